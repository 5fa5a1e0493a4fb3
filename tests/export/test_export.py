"""Checkpoint folders: written completely or not at all, loaded by transformers alone, refused in one line if broken."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import PreTrainedTokenizerFast

from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.export.save_checkpoint import save_checkpoint
from raysearch.models import family_for, load
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape_solver import shape_for_ratio
from raysearch.pruning import prune
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.pruning.importance import importance
from tests.support.tiny_models import dense

RECIPE = Recipe(mode="both", ratio=0.3, criterion="deepest+magnitude", trained="nothing")


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of ninety words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(90)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", pad_token="w0", eos_token="w2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The dense tiny LLaVA in several shards."""
    dense("llava_llama").save_pretrained(tmp_path / "dense", max_shard_size="150KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 2
    return tmp_path / "dense"


def test_everything_is_in_the_folder(tmp_path: Path) -> None:
    model = dense("llama")
    scores = {"search": {"retention": 0.912345, "scores": {"count": 0.5}}, "pruning": {"mode": "both"}}
    card = {"base_model": "lab/dense-1b", "title": "A smaller one", "parameters": "1 of 2"}
    save_checkpoint(model, tokenizer(), tmp_path / "out", recipe=RECIPE, scores=scores, card=card)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"recipe.yaml", "scores.json", "README.md"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside it
    assert all(os.stat(path).st_mode & 0o444 == 0o444 for path in (tmp_path / "out").iterdir())
    assert Recipe(**yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())).key == RECIPE.key
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    text = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["base_model"] == "lab/dense-1b"
    assert metadata["pipeline_tag"] == "text-generation"
    assert "# A smaller one" in text
    assert "| search.retention | 0.9123 |" in text
    assert "pruning.mode" not in text
    loaded, words = load(tmp_path / "out")
    assert words("w5 w7")["input_ids"] == [5, 7]
    assert loaded.config.tie_word_embeddings
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_an_interrupted_save_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(dense("llama"), None, tmp_path / "out", card={"title": "first"})
    with pytest.raises(InputError, match="name a new or empty one"):
        save_checkpoint(dense("llama"), None, tmp_path / "out", card={"title": "second"})
    monkeypatch.setattr("raysearch.export.save_checkpoint.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(dense("llama"), None, tmp_path / "out", card={"title": "second"}, replaces=True)
    assert "# first" in (tmp_path / "out" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    save_checkpoint(dense("llama"), None, tmp_path / "out", card={"title": "third"}, replaces=True)
    assert "# third" in (tmp_path / "out" / "README.md").read_text()


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    for target in (tmp_path / "notes", tmp_path / "notes" / "thesis.tex"):
        with pytest.raises(InputError, match="name a"):
            save_checkpoint(dense("llama"), None, target)
        with pytest.raises(InputError, match="name a"):
            prune_checkpoint("nowhere", mode="layerwise", ratio=0.5, to=target)
    assert (tmp_path / "notes" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("mode", ["layerwise", "widthwise", "both"])
def test_prune_checkpoint_without_data(folder: Path, tmp_path: Path, mode: str) -> None:
    summary = prune_checkpoint(folder, mode=mode, ratio=0.4, to=tmp_path / "out")
    loaded, _ = load(tmp_path / "out")
    assert sum(p.numel() for p in loaded.parameters()) == summary["num_params"]
    assert counts_of(loaded.config).size(None, loaded.dtype.itemsize).size_bytes == summary["size_bytes"]
    assert summary["shape"] == vars(shape_of(loaded.config))
    assert summary["ratio"] == pytest.approx(0.4, abs=0.1)
    written = Recipe(**yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text()))
    assert (written.mode, written.trained) == (mode, "nothing")
    assert written.ratio == pytest.approx(summary["ratio"])


def test_prune_checkpoint_to_a_budget_of_the_whole_model(folder: Path, tmp_path: Path) -> None:
    summary = prune_checkpoint(folder, mode="widthwise", budget="60%", to=tmp_path / "out")
    assert 0.59 < summary["size_ratio"] <= 0.6


def test_wrong_uses_write_nothing(folder: Path, tmp_path: Path) -> None:
    wrong = {
        "needs one of ratio, budget and an exact shape": {"mode": "layerwise"},
        "outside [0, 1)": {"mode": "layerwise", "ratio": 1.0},
        "ratio nan: outside [0, 1)": {"mode": "both", "ratio": float("nan")},
        "below the smallest model": {"mode": "layerwise", "budget": "1KB"},
        "needs calibration data": {"mode": "widthwise", "ratio": 0.2, "criterion": "taylor"},
        "names no layer criterion": {"mode": "layerwise", "ratio": 0.2, "criterion": "magnitude"},
        "names no width criterion": {"mode": "both", "ratio": 0.2, "criterion": "deepest"},
        "can remove at most": {"mode": "widthwise", "ratio": 0.95},
    }
    for message, settings in wrong.items():
        with pytest.raises(InputError) as caught:
            prune_checkpoint(folder, to=tmp_path / "out", **settings)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_calibration_without_a_usable_image_writes_nothing(folder: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "why"}, {"from": "gpt", "value": "because"}]
    (tmp_path / "text.json").write_text(json.dumps([{"conversations": turns}] * 3))
    (tmp_path / "torn.png").write_bytes(b"no picture")
    (tmp_path / "torn.json").write_text(json.dumps([{"image": "torn.png", "conversations": turns}] * 3))
    for model, data, message in (
        (folder, "text.json", "text.json: none of its 3 samples has an image, and llava is a vision-language"),
        ("pocket", "torn.json", "none of 3 samples can be used .*torn.png: can't be read"),
        (folder, "gone.json", "gone.json: no such file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            prune_checkpoint(model, mode="layerwise", ratio=0.3, to=tmp_path / "out", calibration=tmp_path / data)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_calibration_rows_that_cannot_be_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turns = [{"from": "human", "value": "why"}, {"from": "gpt", "value": "because"}]
    Image.new("RGB", (28, 28)).save(tmp_path / "fine.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    rows = [{"id": name, "image": f"{name}.png", "conversations": turns} for name in ("fine", "torn")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    prune_checkpoint("pocket", mode="layerwise", ratio=0.3, to=tmp_path / "out", calibration=tmp_path / "rows.json")
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path / 'rows.json'}: left out 1 of 2 rows (row 1: image ")


def broken(folder: Path, how: str) -> None:
    """Break a checkpoint as disks and people do."""
    shard = sorted(folder.glob("*.safetensors"))[1]
    config = json.loads((folder / "config.json").read_text())
    if how == "missing":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "pointer":
        shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif how == "other widths":
        config["text_config"]["intermediate_size"] = 80
    elif how == "more layers":
        config["text_config"]["num_hidden_layers"] = 6
    elif how == "fewer layers":
        config["text_config"]["num_hidden_layers"] = 3
    elif how == "pickled":
        for path in folder.glob("*.safetensors*"):
            path.rename(path.with_suffix(".bin"))
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "unknown type":
        config["model_type"] = "perceptron"
    elif how == "bad index":
        (folder / "model.safetensors.index.json").write_text("{")
    if how in ("other widths", "more layers", "fewer layers", "unknown type"):
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"model-00002-of-\d+.safetensors: missing"),
        ("truncated", r"model-00002-of-\d+.safetensors: truncated or no safetensors file, \d+ bytes"),
        ("empty", "truncated or no safetensors file"),
        ("pointer", "truncated or no safetensors file"),
        ("other widths", r"mlp.down_proj.weight is \(64, 96\) in the files and \(64, 80\) by the configuration"),
        ("more layers", "asks for 18 tensors that the files lack"),
        ("fewer layers", "hold 9 tensors that the configuration lacks, the first is .*layers.3"),
        ("pickled", "pickled .bin files"),
        ("no config", "no config.json"),
        ("unknown type", "can't be read by transformers"),
        ("bad index", "index.json: can't be read as JSON"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder: Path, how: str, message: str) -> None:
    broken(folder, how)
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_such_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="no such folder"):
        load("nobody/nothing")


def test_weights_in_half_precision_stay_so(folder: Path, tmp_path: Path) -> None:
    prune_checkpoint(folder, mode="widthwise", ratio=0.2, to=tmp_path / "out", dtype=torch.bfloat16)
    loaded, _ = load(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert load(tmp_path / "out", dtype=torch.float32)[0].dtype == torch.float32
    shutil.rmtree(tmp_path / "out")


def test_the_dense_model_shares_no_memory() -> None:
    model = dense("smolvlm")
    scores = importance(model, None, "magnitude")
    pruned = prune(model, shape_for_ratio(counts_of(model.config), "widthwise", 0.1), {"width": scores})
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert not addresses & {parameter.data_ptr() for parameter in pruned.parameters()}
    assert family_for(pruned).lm_head(pruned).weight is pruned.get_input_embeddings().weight
