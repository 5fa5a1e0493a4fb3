"""The disk quota of a study: what goes first, that the front never loses a point, and a checkpoint made again."""

import json
import shutil

import pytest

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.export.export_checkpoint import checkpoint_of
from raysearch.study import folder as study_module
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Front, Measured
from raysearch.study.records import Score
from raysearch.trials.context import TrialContext
from raysearch.trials.rebuild_checkpoint import rebuild_checkpoint
from raysearch.trials.trial import Trial
from tests.support import synthetic_study
from tests.support.synthetic_study import BASELINE

MB = 10**6  # of a checkpoint per tenth of the dense size
# Size ratio and retention; with the corner (1, 0), each alone adds .1 * .3, .2 * .2, .3 * .1 and .1 * .2.
PLACES = {0.3: 0.3, 0.4: 0.5, 0.6: 0.6, 0.9: 0.8}


def recipe(ratio):
    return Recipe(mode="layerwise", ratio=ratio, criterion="deepest")


def study(folder, quota_mb, budgets=("45%",)):
    space = synthetic_study.space(budgets=list(budgets))
    settings = space.recovery.model_copy(update={"checkpoint_quota_gb": quota_mb and quota_mb / 1000})
    made = StudyFolder(folder, space.model_copy(update={"recovery": settings}))
    made.create()
    return made


def finish(made, ratio, retention):
    """A trial that ends with a checkpoint of `ratio` times 10 MB."""
    chosen, trial = recipe(1 - ratio), f"trial-{ratio}"
    made.trial_started(trial, chosen)
    made.rung(trial, Score(samples_seen=9, retention=retention, retention_se=0.0, scores={}))
    checkpoint = made.folder / "checkpoints" / chosen.key
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_bytes(b"")
    (checkpoint / "model.safetensors").write_bytes(bytes(round(10 * ratio * MB)))
    size = round(ratio * BASELINE.size_bytes)
    record = made.ending(trial, "finished", {"num_params": size // 2, "size_bytes": size})
    heldout = Measured(retention=retention, retention_ci=(0, 1), scores={})
    made.offer(record, BASELINE, f"checkpoints/{chosen.key}", heldout)
    made.record(record)


def kept(made):
    """Size ratios of the front's checkpoints, by front.json and on the disk, which must agree."""
    front = Front.load(made.folder)
    assert front == made.front
    named = {point.size_ratio for point in front.points if point.checkpoint}
    folders = {path.name for path in (made.folder / "checkpoints").iterdir()}
    assert folders == {recipe(1 - ratio).key for ratio in PLACES if ratio in named}
    return sorted(named)


@pytest.mark.parametrize(
    ("quota_mb", "left"),
    [
        (None, [0.3, 0.4, 0.6, 0.9]),
        (22, [0.3, 0.4, 0.6, 0.9]),
        (21.9, [0.3, 0.4, 0.6]),  # 0.9 adds .02, the least
        (12.9, [0.3, 0.4]),  # then 0.6, with .03
        (6.9, [0.4]),  # 0.3 adds .03 as well, but answers no budget
        (3.9, []),
    ],
)
def test_what_the_front_needs_least_goes_first(tmp_path, quota_mb, left, caplog):
    made = study(tmp_path, None)
    for ratio, retention in PLACES.items():
        finish(made, ratio, retention)
    made = study(tmp_path, quota_mb)  # goes on under another quota
    assert kept(made) == left
    assert [point.size_ratio for point in made.front.points] == sorted(PLACES), "no point is lost"
    assert made.front.budgets == {"45%": recipe(0.6).key}
    assert caplog.text.count("export --rebuild makes it again") == len(PLACES) - len(left)


def test_the_quota_is_kept_to_at_every_end(tmp_path):
    made = study(tmp_path, 13)
    for ratio, retention in {0.9: 0.8, 0.6: 0.6, 0.4: 0.5, 0.3: 0.3}.items():
        finish(made, ratio, retention)
        assert 10 * sum(kept(made)) <= 13
    assert len(made.front.points) == 4
    finish(made, 0.2, 0.9)  # dominates all: theirs go, and there is room again
    assert [point.checkpoint is None for point in made.front.points] == [False]


def test_states_of_running_trials_go_first_and_large_ones_before_small_ones(tmp_path):
    made = study(tmp_path, 9)
    for trial, size in {"small": 2, "large": 3}.items():
        made.trial_started(trial, recipe(size / 10))
        state = made.folder / "running" / recipe(size / 10).key / "8"
        state.mkdir(parents=True)
        (state / "weights.safetensors").write_bytes(bytes(size * MB))
    finish(made, 0.4, 0.5)
    left = lambda: sorted(len(path.read_bytes()) // MB for path in made.folder.glob("running/*/*/*"))  # noqa: E731
    assert left() == [2, 3]
    finish(made, 0.3, 0.3)
    assert left() == [2]
    (made.folder / "running" / recipe(0.2).key / "24").mkdir()
    (made.folder / "running" / recipe(0.2).key / "24" / "weights.safetensors").write_bytes(bytes(MB))
    made.rung("small", Score(samples_seen=24, retention=0.1, retention_se=0.0, scores={}))
    assert left() == [1]
    assert kept(made) == [0.3, 0.4]


def test_a_kill_between_the_front_and_the_deletion_costs_nothing(tmp_path, monkeypatch):
    made = study(tmp_path, None)
    for ratio, retention in PLACES.items():
        finish(made, ratio, retention)

    def die(path, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(study_module, "delete_folder", die)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path, 13)
    front = Front.load(tmp_path)
    assert [bool(point.checkpoint) for point in front.points] == [True, True, True, False]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    made = study(tmp_path, 13)
    assert kept(made) == [0.3, 0.4, 0.6]
    assert [point.size_ratio for point in made.front.points] == sorted(PLACES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of one real recipe on the embedded LVLM."""
    content = {
        "name": "one",
        "model": "pocket",
        "num_samples": 48,
        "benchmarks": ["digits"],
        "recipe": {
            "mode": ["layerwise", "both"],
            "ratio": [0.3, 0.4],
            "criterion": ["deepest", "greedy_loss", "magnitude", "activation"],
            "trained": "projector+lora",
            "hidden_kd": [0.0, 1.0],
        },
        "calibration": {"num_samples": 4},
        "recovery": {"max_length": 256, "zero_stage": 1},
    }
    made = StudyFolder(tmp_path_factory.mktemp("trained") / "study", SearchSpace.model_validate(content))
    made.create()
    chosen = Recipe(mode="both", ratio=0.3, criterion="deepest+magnitude", trained="projector+lora", hidden_kd=1.0)
    trial = Trial(chosen, TrialContext(made.space.fixed_to(chosen)))
    made.trial_started("t", chosen)
    for score in trial.scores([20]):
        made.rung("t", score)
    heldout = trial.finish(made.folder / "checkpoints" / chosen.key)
    sizes = {"num_params": trial.size.num_params, "size_bytes": trial.size.size_bytes}
    trial.close()
    record = made.ending("t", "finished", sizes)
    made.offer(record, BASELINE, f"checkpoints/{chosen.key}", heldout)
    made.record(record)
    return made


def test_a_deleted_checkpoint_is_made_again_to_the_last_bit(trained, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(trained.folder, folder)
    settings = trained.space.recovery.model_copy(update={"checkpoint_quota_gb": 1e-6})
    made = StudyFolder(folder, trained.space.model_copy(update={"recovery": settings}))
    made.create()
    (point,) = made.front.points
    with pytest.raises(InputError, match=r"checkpoint_quota_gb was reached; add --rebuild to make it again"):
        checkpoint_of(folder, point)
    again = rebuild_checkpoint(folder, point)
    before = trained.front.points[0]
    made_again, wanted = checkpoint_of(folder, again), checkpoint_of(trained.folder, before)
    assert (made_again / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    assert again == before.model_copy(update={"checkpoint": again.checkpoint})
    assert json.loads((folder / "front.json").read_text())["points"][0]["checkpoint"] is None
