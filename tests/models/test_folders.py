"""Folders as people have them: what transformers loads is what is counted and written, or one line says why not."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from raysearch.errors import InputError
from raysearch.export.save_checkpoint import save_checkpoint
from raysearch.models import load, load_config
from raysearch.models.checkpoint_files import check_folder
from raysearch.models.param_count import counts_of
from raysearch.models.param_count_cache import counts_of_model
from raysearch.pruning.checkpoint import prune_checkpoint
from tests.support.tiny_models import FAMILIES, dense


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny Llama, whose head is tied, in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dense("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def with_head(folder: Path, head: torch.Tensor) -> None:
    """Add a head of its own to the file; the configuration still ties it."""
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def logits(model: hf.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits


@pytest.mark.parametrize("values", ["other", "equal"])
def test_a_stored_head_is_tied_only_if_it_equals_the_embedding(folder: Path, tmp_path: Path, values: str) -> None:
    embedding = dense("llama").get_input_embeddings().weight.detach()
    with_head(folder, embedding.clone() if values == "equal" else torch.randn(embedding.shape))
    stock = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    num_params = sum(parameter.numel() for parameter in stock.parameters())
    assert num_params - sum(p.numel() for p in dense("llama").parameters()) == (values == "other") * embedding.numel()
    assert counts_of(load_config(folder)).size().num_params == num_params
    assert counts_of_model(str(folder)).size().num_params == num_params
    done = prune_checkpoint(folder, mode="layerwise", ratio=0, to=tmp_path / "out")
    written = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert done["num_params"] == num_params == sum(parameter.numel() for parameter in written.parameters())
    assert torch.equal(logits(written), logits(stock))


def test_the_same_configuration_with_another_head_is_counted_anew(folder: Path) -> None:
    embedding = dense("llama").get_input_embeddings().weight.detach()
    with_head(folder, embedding.clone())
    tied = counts_of_model(str(folder)).size().num_params
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": embedding + 1}, folder / "model.safetensors", {"format": "pt"})
    assert counts_of_model(str(folder)).size().num_params == tied + embedding.numel()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_model_is_told(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{}")
    with pytest.raises(InputError, match=f"holds an adapter \\({name}\\).*merge it"):
        load(folder)
    with pytest.raises(InputError, match="holds an adapter"):
        counts_of_model(str(folder))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
@pytest.mark.parametrize("where", ["", "text_config", "vision_config", "thinker_config.text_config"])
def test_quantised_weights_are_told_wherever_that_stands(folder: Path, where: str, method: str) -> None:
    def quantise(config: dict[str, Any]) -> None:
        for part in filter(None, where.split(".")):
            config = config.setdefault(part, {})
        config["quantization_config"] = {"quant_method": method}

    configure(folder, quantise)
    name = f"{where}.quantization_config".lstrip(".")
    with pytest.raises(InputError, match=f"weights are quantised; give the folder .*\\({name} in config.json\\)"):
        load_config(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than any model has"),
        ({"num_hidden_layers": 20_000}, "more than any model has"),
        ({"num_hidden_layers": float("inf")}, "more than any model has"),
        ({"num_hidden_layers": 0}, "only decoders with one positive number of each"),
        ({"num_hidden_layers": -1}, "llama"),
        ({"num_key_value_heads": 10**7}, "more than any model has"),
        ({"num_attention_heads": 0}, "llama|config.json"),
        ({"hidden_size": 0}, "llama|config.json|no features"),
        ({"hidden_size": 10**12}, "llama|config.json"),
        ({"intermediate_size": 10**7}, r"config.json asks for [0-9,]+ parameters, and the files hold"),
        ({"vocab_size": -5}, "llama|config.json"),
        ({"intermediate_size": [1]}, "llama|config.json"),
        ({"num_hidden_layers": "3"}, "llama|config.json"),
        ({"model_type": ["llama"]}, "no configuration of a model"),
        ({"vision_config": {"depth": 10**9}}, "vision_config.depth is 1000000000"),
        ({"rope_parameters": "x"}, "llama|config.json"),
        ({"per_layer_config": {"9": {"skip": ["mlp"]}}}, "llama|config.json"),
    ],
)
def test_absurd_numbers_are_one_line(folder: Path, change: dict[str, Any], said: str) -> None:
    configure(folder, lambda config: config.update(change))
    with pytest.raises(InputError, match=said) as caught:
        counts_of_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "null", "", '{"model_type": "llama"', '{"a":' * 100_000], ids=range(6)
)
def test_a_configuration_that_is_none_is_one_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config.json: (can't be read as JSON|no configuration)") as caught:
        load_config(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"null",
        b'{"a": {"data_offsets": []}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
        b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1' + b"0" * 5000 + b"]}}",
    ],
    ids=range(6),
)
def test_a_header_that_is_none_is_one_line(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match=r"model.safetensors: truncated or no safetensors file") as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [2**62, 3 * 2**30])
def test_a_header_that_claims_to_be_huge_takes_no_memory(folder: Path, length: int) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(InputError, match="truncated or no safetensors file"):
        check_folder(folder)


@pytest.mark.parametrize(
    "weight_map", [{"a": [1]}, {"a": 1, "b": "x"}, [], "x", {"a": "/dev/zero"}, {"a": "../model/model.safetensors"}]
)
def test_an_index_names_files_of_its_folder_only(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="not an index of shards"):
        check_folder(folder)


def test_code_of_the_original_is_not_named_in_what_is_written(folder: Path, tmp_path: Path) -> None:
    configure(folder, lambda config: config.update(auto_map={"AutoModelForCausalLM": "modeling_x.X"}))
    (folder / "modeling_x.py").write_text("raise SystemExit('run')\n")
    prune_checkpoint(folder, mode="layerwise", ratio=0.3, criterion="deepest", to=tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    for trusted in (False, True):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=trusted)


def test_a_hub_id_is_checked_and_converted_like_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, without a network."""
    snapshot = tmp_path / "hub" / "models--lab--tiny" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "hub" / "models--lab--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--lab--tiny" / "refs" / "main").write_text("0" * 40)
    folder.rename(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded, _ = load("lab/tiny")
    assert torch.equal(logits(loaded), logits(dense("llama")))
    assert counts_of(load_config("lab/tiny")) == counts_of(FAMILIES["llama"].config())
    (snapshot / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        load("lab/tiny")
    with pytest.raises(InputError, match="model 'lab/none': no such folder, and the hub didn't give it"):
        load_config("lab/none")


@pytest.mark.parametrize(
    ("card", "metadata"),
    [
        (
            "---\nlicense: apache-2.0\nbase_model: lab/base\n---\n# A model\n",
            {"license": "apache-2.0", "base_model": "lab/base"},
        ),
        ("---\nlicense: other\nlicense_name: mine\n---\n", {"license": "other", "license_name": "mine"}),
        ("# No header\n", {"license": "unknown"}),
        ("---\n[broken\n---\n", {"license": "unknown"}),
        (None, {"license": "unknown"}),
    ],
)
def test_the_licence_travels(folder: Path, tmp_path: Path, card: str | None, metadata: dict[str, str]) -> None:
    import yaml

    if card is not None:
        (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text("do what you like")
    (folder / "NOTICE.txt").write_text("made by others")
    save_checkpoint(dense("llama"), None, tmp_path / "out", card={"base_model": str(folder)})
    assert (tmp_path / "out" / "LICENSE").read_text() == "do what you like"
    assert (tmp_path / "out" / "NOTICE.txt").read_text() == "made by others"
    text = (tmp_path / "out" / "README.md").read_text()
    written = yaml.safe_load(text.split("---")[1])
    assert {name: written.get(name) for name in metadata} == metadata
    assert ("base_model" in written) == ("base_model" in metadata)
    assert ("is unknown" in text) == (metadata["license"] == "unknown")
