"""An export is complete and loads, or leaves nothing. On the embedded LVLM, loaded by transformers alone."""

import json
import shutil

import pytest

from raysearch import pocket
from raysearch.cli.app import app
from raysearch.config.budget import Budget, rate_text, size_text
from raysearch.errors import InputError
from raysearch.export.export_checkpoint import export_checkpoint
from raysearch.report.html_page import write_report
from raysearch.study.front import Front, retention_text
from tests.support import synthetic_study


def num_stored(folder):
    """Numbers in the safetensors header: parameters, tied ones once."""
    with (folder / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    total = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study in which the answer to 60% is the embedded LVLM itself."""
    weights = pocket.weights_folder()
    made = synthetic_study.make(tmp_path_factory.mktemp("study") / "run", num_trials=20)
    point = made.front.pick(Budget.parse("60%"))
    folder = made.folder / point.checkpoint
    shutil.rmtree(folder)
    shutil.copytree(weights, folder)
    (folder / "recipe.yaml").write_text("mode: widthwise\n")
    points = [
        p.model_copy(update={"num_params": num_stored(weights)}) if p.key == point.key else p for p in made.front.points
    ]
    made.front.model_copy(update={"points": points}).save(made.folder)
    return made.folder


def answer(study):
    return Front.load(study).pick(Budget.parse("60%"))


def test_export_copies_and_proves(study, tmp_path, capsys):
    to = tmp_path / "small"
    with pytest.raises(SystemExit) as ended:
        app(["export", str(study), "--budget", "60%", "--to", str(to)])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Loaded by transformers in a fresh process" in said
    source = study / answer(study).checkpoint
    assert {path.name for path in to.iterdir()} == {path.name for path in source.iterdir()} | {"README.md"}
    assert (to / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    card = (to / "README.md").read_text()
    point = answer(study)
    assert f"| bytes | {point.size_bytes:,} of 10,000,000" in card
    assert retention_text(point) in card
    assert retention_text(point.heldout) in card
    for name, score in point.heldout.scores.items():
        assert f"| {name} | {score:.3f} [" in card
    # Keys and values of 7 layers, 6 heads of 16, two bytes each, for 1,000 tokens.
    assert size_text(1000 * 2 * 7 * 6 * 16 * 2) in card
    assert "tokens/s" in card
    assert "AutoModelForImageTextToText" in card
    assert f"criterion: {point.recipe.criterion}" in card
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing else is left"


def test_a_front_is_measured_where_it_lies(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # a closed port
    folder = tmp_path / "run"
    front = Front.load(study)
    alone = front.model_copy(update={"points": [answer(study)], "budgets": {"60%": answer(study).key}})
    shutil.copytree(study, folder)
    alone.save(folder)
    with pytest.raises(SystemExit) as ended:
        app(["benchmark", str(folder)])
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    assert err.count("raysearch sync") == 1, "MLflow is unreachable: one warning"
    measured = Front.load(folder)
    (point,), dense = measured.points, measured.baseline.measured
    assert point.measured.kv_cache_bytes_per_1000_tokens == 1000 * 2 * 7 * 6 * 16 * 2
    assert point.measured.checkpoint_bytes == (folder / point.checkpoint / "model.safetensors").stat().st_size
    assert point.measured.device == dense.device
    assert point.measured.prefill_seconds > 0
    assert point.measured.decode_tokens_per_second > 1
    assert point.measured.peak_memory_bytes > point.size_bytes
    assert rate_text(point.measured.decode_tokens_per_second) in out
    assert measured.model_copy(update={"points": [answer(study)], "baseline": front.baseline}) == alone
    waiting = [json.loads(line) for line in (folder / "mlflow-unsent.jsonl").read_text().splitlines()]
    assert waiting[0]["metrics"]["speed.prefill_seconds"] == point.measured.prefill_seconds
    page = write_report(folder).read_text()
    assert ">Speed and memory</h2>" in page
    assert f"<td>{1000 * point.measured.prefill_seconds:.3g} ms</td>" in page
    with pytest.raises(SystemExit):
        app(["best", str(folder), "--budget", "60%"])
    assert "Measured" in capsys.readouterr().out


def test_a_checkpoint_of_another_size_is_refused(study, tmp_path):
    point = answer(study).model_copy(update={"num_params": 7})
    with pytest.raises(InputError, match=r"front\.json says 7"):
        export_checkpoint(study, point, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_checkpoint_is_refused(study, tmp_path):
    point = answer(study)
    broken = tmp_path / "run"
    shutil.copytree(study / point.checkpoint, broken / point.checkpoint)
    weights = broken / point.checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="transformers can't use this checkpoint"):
        export_checkpoint(broken, point, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": None}, "has no checkpoint"),
        ({"checkpoint": "../../etc"}, "is no folder in"),
        ({"checkpoint": "checkpoints/gone"}, "copy the whole folder"),
    ],
)
def test_what_is_not_there_is_said(study, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        export_checkpoint(study, answer(study).model_copy(update=changes), tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
