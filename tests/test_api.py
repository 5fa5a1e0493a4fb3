"""The Python API, as a notebook uses it."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import raysearch
from raysearch import Budget, InputError, Study, api, pocket
from scripts.testing.spaces import SMALL_SPACE
from tests.support.tiny_models import FAMILIES


def test_every_public_name_is_there():
    for name in raysearch.__all__:
        assert callable(getattr(raysearch, name)), name
    assert {"Study", "search", "prune", "Front", "Recipe"} <= set(raysearch.__all__)


def test_type_checkers_see_every_public_name():
    (block,) = (
        node
        for node in ast.parse(Path(raysearch.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {node.names[0].asname: node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen == {name: f"raysearch.{home}" for name, home in raysearch._HOMES.items()}


STRICT = """
from pathlib import Path
from typing import assert_type

import raysearch

study = raysearch.search("space.yaml", budgets=["60%"], out=Path("runs/first"), trials=4)
assert_type(study, raysearch.Study)
point = study.best("60%")
assert_type(point, raysearch.StudyPoint)
assert_type(point.recipe, raysearch.Recipe)
assert_type(point.retention, float)
assert_type(raysearch.Front.load("runs/first"), raysearch.Front)
model, processor = point.load()
point.export("small")
raysearch.prune(model, {"mode": "widthwise", "ratio": 0.3})
study.bset("60%")  # type: ignore[attr-defined]
raysearch.serach()  # type: ignore[attr-defined]
"""  # --strict tells of an ignore that hides nothing


@pytest.mark.slow
def test_a_file_that_uses_the_api_passes_strict_types(tmp_path):
    (tmp_path / "uses.py").write_text(STRICT)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", "uses.py"]
    # From another folder, without this project's settings of mypy, as an installed package is seen.
    environment = {"MYPYPATH": str(Path(raysearch.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_study_is_read_as_it_lies_on_the_disk(synthetic):
    study = Study.load(str(synthetic.folder))
    assert repr(study) == f"Study('{synthetic.folder}')"
    assert study.space == synthetic.space
    assert study.trials == synthetic.records
    assert study.front == synthetic.front
    assert raysearch.Front.load(str(synthetic.folder)) == synthetic.front


def test_a_data_frame_has_a_row_per_trial(synthetic):
    frame = Study(synthetic.folder).to_dataframe()
    assert list(frame["key"]) == [record.key for record in synthetic.records]
    assert set(frame["key"][frame["on_front"]]) == {point.key for point in synthetic.front.points}
    point = synthetic.front.points[0]
    (row,) = frame[frame["key"] == point.key].to_dict("records")
    assert (row["retention"], row["size_ratio"]) == (point.retention, point.size_ratio)
    assert row["ratio"] == pytest.approx(point.recipe.ratio, rel=1e-8)  # nine digits, as in its key
    assert row["score_digits"] == point.scores["digits"]
    failed = frame[frame["end"] == "failed"]
    assert len(failed) == 1
    assert failed["retention"].isna().all()


def test_a_plot_has_every_trial_and_the_front(synthetic):
    figure = Study(synthetic.folder).plot()
    (front,) = (trace for trace in figure.data if trace.name.startswith("recipes on the front"))
    assert list(front.x) == [point.size_ratio for point in synthetic.front.points]


def test_the_best_point_loads_and_is_exported(synthetic, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(synthetic.folder, folder)
    point = Study(folder).best("60%")
    assert dict(point) == dict(synthetic.front.pick(Budget.parse("60%")))
    assert Study(folder).best(Budget.parse("60%")) == point
    shutil.copytree(pocket.weights_folder(), folder / point.checkpoint, dirs_exist_ok=True)
    model, processor = point.load()
    assert point.folder == (folder / point.checkpoint).resolve()
    assert processor.tokenizer is not None
    front = json.loads((folder / "front.json").read_text())
    for row in front["points"]:
        row["num_params"] = model.num_parameters()
    (folder / "front.json").write_text(json.dumps(front))
    Study(folder).best("60%").export(tmp_path / "small")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "small", dtype="auto")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        Study(folder).best("60%").export(tmp_path / "small")


def test_mistakes_are_one_line_and_write_nothing(synthetic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nowhere: holds no study"):
        Study.load("nowhere")
    with pytest.raises(InputError, match="raise the budget"):
        Study(synthetic.folder).best("1%")
    with pytest.raises(InputError, match="not a size"):
        Study(synthetic.folder).best("12")
    with pytest.raises(InputError, match=r"space: modle: unknown key"):
        api.search({**SMALL_SPACE, "modle": "x"})
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        api.search("none.yaml")
    with pytest.raises(InputError, match="budget '12': not a size"):
        api.search(SMALL_SPACE, budgets=["12"], out="new")
    with pytest.raises(InputError, match=r"^--runs: must be above 0, not -1"):
        api.search(SMALL_SPACE, runs=-1, out="new")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_memory_is_pruned():
    dense = FAMILIES["llava_llama"].model()
    before = [parameter.clone() for parameter in dense.parameters()]
    small = raysearch.prune(dense, {"mode": "layerwise", "ratio": 0.5, "criterion": "deepest"})
    assert type(small) is type(dense)
    assert small.config.text_config.num_hidden_layers == 2
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), before, strict=True))
    with pytest.raises(InputError, match="recipe: ratio: "):
        raysearch.prune(dense, {"mode": "layerwise", "ratio": 2, "criterion": "deepest"})
    with pytest.raises(InputError, match="criterion block_influence: needs calibration data"):
        raysearch.prune(dense, {"mode": "layerwise", "ratio": 0.5, "criterion": "block_influence"})


def test_calibration_batches_are_used_for_layers_and_widths():
    family = FAMILIES["llava_llama"]
    recipe = {"mode": "both", "ratio": 0.4, "criterion": "block_influence+taylor"}
    dense = family.model()
    small = raysearch.prune(dense, recipe, iter([family.batch(seed=0), family.batch(seed=1)]))
    assert small.num_parameters() < dense.num_parameters()
    assert small.config.text_config.intermediate_size < dense.config.text_config.intermediate_size


@pytest.mark.slow
def test_a_search_and_its_resumption(tmp_path):
    study = raysearch.search(SMALL_SPACE, out=tmp_path / "study", trials=2)
    assert len(study.trials) == 2
    assert len(study.resume(trials=3).trials) == 3
