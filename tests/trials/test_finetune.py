"""Further recovery of a front point: on the embedded LVLM, a few samples; the better one is handed over."""

import json
import shutil

import pytest

from raysearch import models, pocket
from raysearch.cli.app import app
from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.evaluation.retention import Estimate
from raysearch.files import write_json
from raysearch.models.param_count_cache import counts_of_model
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Baseline, Front, FrontPoint, Measured
from raysearch.trials.finetune import Finetuned, finetune

RECIPE = {"mode": "layerwise", "ratio": 0.0, "criterion": "block_influence", "trained": "projector"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose only recipe is the embedded LVLM with its image features moved off: soon mended."""
    return make_study(tmp_path_factory.mktemp("study") / "run", lambda bias: bias.add_(12.0))


def make_study(folder, change):
    """A study on one small benchmark, whose only recipe is the embedded LVLM with a changed bias of the projector."""
    content = {
        "name": "finetuned",
        "model": "pocket",
        "num_samples": 64,
        "benchmarks": ["digits"],
        "recipe": {**RECIPE, "lr": 0.002, "hidden_kd": [0.0, 1.0]},
        "recovery": {"max_length": 256, "zero_stage": 1},
    }
    StudyFolder(folder, SearchSpace.model_validate(content)).create()
    recipe = Recipe(**RECIPE, lr=0.002, data_fraction=0.5)
    checkpoint = folder / "checkpoints" / recipe.key
    shutil.copytree(pocket.weights_folder(), checkpoint)
    spoil(checkpoint, change)
    counts = counts_of_model("pocket")
    size = counts.size(counts.dense)
    point = FrontPoint(
        key=recipe.key, recipe=recipe, num_params=size.num_params, size_bytes=size.size_bytes, size_ratio=1.0,
        retention=0.2, retention_ci=(0.1, 0.3), scores={"digits": 0.2}, samples_seen=32,
        checkpoint=f"checkpoints/{recipe.key}",
    )  # fmt: skip
    baseline = Baseline(num_params=size.num_params, size_bytes=size.size_bytes, scores={"digits": 0.945})
    Front.build("finetuned", "pocket", baseline, [point], [Budget.parse("100%")]).save(folder)
    return folder


def spoil(checkpoint, change):
    model, processor = models.load(checkpoint)
    parameters = [p for part in models.family_for(model).projector(model) for p in part.parameters()]
    change(parameters[-1].data)
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)


def point_of(study):
    return Front.load(study).points[0]


def test_a_spoilt_model_is_mended_and_handed_over(study, tmp_path, capsys):
    to = tmp_path / "small"
    with pytest.raises(SystemExit) as ended:
        app(["export", str(study), "--budget", "100%", "--to", str(to), "--finetune", "--epochs", "2"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "The finetuned model was taken: 128 further samples" in out
    scores = json.loads((to / "scores.json").read_text())
    assert scores["heldout"]["retention"] > 0.8  # .751 before
    assert "| recovery | 160 samples seen |" in (to / "README.md").read_text()
    assert "The finetuned model was taken" in (to / "README.md").read_text()
    kept = (study / point_of(study).checkpoint / "model.safetensors").read_bytes()
    assert (to / "model.safetensors").read_bytes() != kept, "the front's own checkpoint stays as it was"


def test_what_further_training_harms_is_left_as_it_was(tmp_path):
    """The embedded LVLM itself, trained on at a ruinous rate."""
    folder = make_study(tmp_path / "run", lambda bias: bias)
    point = point_of(folder)
    ruinous = point.model_copy(update={"recipe": Recipe(**{**point.recipe.as_dict(), "lr": 0.3})})
    finetuned = finetune(folder, ruinous, epochs=0.5)
    assert finetuned.gain.interval[1] < 0
    assert finetuned.point == ruinous
    assert finetuned.before.retention == 1.0
    assert finetuned.after.retention < 1


def test_the_choice_is_by_the_search_questions():
    point = FrontPoint(
        key="0", recipe=Recipe(**RECIPE), num_params=1, size_bytes=2, size_ratio=1.0, retention=0.5,
        retention_ci=(0.4, 0.6), scores={}, samples_seen=1,
    )  # fmt: skip
    low, high = (Measured(retention=kept, retention_ci=(0, 1), scores={}) for kept in (0.6, 0.7))
    worse = Finetuned(point, Estimate(-0.01, 0.01), low, high, 100)
    assert not worse.is_better
    assert worse.describe().startswith("The model was left as it was: 100 further samples")
    assert "-1.0 points [-3.0, +1.0]" in worse.describe()
    assert "from 60.0% to 70.0%" in worse.describe()
    assert not Finetuned(point, Estimate(0.0, 0.0), low, high, 1).is_better, "a tie changes nothing"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": None}, "has no checkpoint"),
        (
            {"recipe": Recipe(mode="layerwise", ratio=0.0, criterion="deepest", trained="nothing")},
            "no recovery to continue",
        ),
    ],
)
def test_what_cannot_be_finetuned_is_said(study, changes, said):
    with pytest.raises(InputError, match=said):
        finetune(study, point_of(study).model_copy(update=changes))


def test_a_study_without_its_space_is_refused(study, tmp_path):
    shutil.copytree(study, tmp_path / "run")
    (tmp_path / "run" / "space.json").unlink()
    with pytest.raises(InputError, match=r"no space\.json"):
        finetune(tmp_path / "run", point_of(study))
    write_json(tmp_path / "run" / "space.json", {"name": "x"})
    with pytest.raises(InputError, match="model: missing"):
        finetune(tmp_path / "run", point_of(study))
