"""Which of a trial's states is handed over: on the embedded LVLM, with recovery that harms or goes too far."""

import json

import pytest
import torch
from safetensors.torch import load_file

from raysearch.config.recipe import Recipe
from raysearch.recovery.deepspeed_engine import start_distributed
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Baseline, FrontPoint
from raysearch.study.records import TrialRecord
from raysearch.trials.context import TrialContext
from raysearch.trials.rebuild_checkpoint import rebuild_checkpoint
from raysearch.trials.trial import Trial
from tests.support.pocket_space import pocket_space

PRUNED = {"mode": "layerwise", "ratio": 0.1, "criterion": "deepest"}
HARMFUL = Recipe(**PRUNED, trained="projector+decoder", lr=0.3, data_fraction=0.5)
SPACE = pocket_space(
    {**PRUNED, "trained": ["projector+decoder", "projector+lora"], "lr": [0.3, 0.001]},
    num_samples=32,
    num_search=60,
    precision="fp32",
    search={"early_questions": 0.2},
)


@pytest.fixture(scope="module")
def context():
    start_distributed()
    return TrialContext(SPACE)


@pytest.fixture(scope="module")
def unrecovered(context, tmp_path_factory):
    """Score, held-out score and folder of the model that is only pruned."""
    folder = tmp_path_factory.mktemp("pruned") / "model"
    trial = Trial(Recipe(**PRUNED, trained="nothing"), context)
    (score,) = trial.scores([8])
    heldout = trial.finish(folder)
    trial.close()
    return score, heldout, folder


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same_weights(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "changes", [{}, {"trained": "projector+lora", "lora_rank": 2, "lr": 10.0}, {"quantization": "int8"}]
)
def test_where_recovery_harms_the_model_before_it_is_handed_over(context, unrecovered, tmp_path, changes):
    plain, plain_heldout, folder = unrecovered
    recipe = Recipe(**{**HARMFUL.as_dict(), **changes})
    if recipe.quantization != "none":
        rounded = Trial(Recipe(**PRUNED, trained="nothing", quantization="int8"), context)
        (plain,) = rounded.scores([])
        plain_heldout = rounded.finish(folder := tmp_path / "rounded")
    trial = Trial(recipe, context)
    first, rung, last = trial.scores([8])
    assert [score.samples_seen for score in (first, rung, last)] == [0, 8, 16]
    assert first.retention > 0.5 > rung.retention
    assert (first.losses, first.best_at, rung.best_at) == ({}, None, None)
    assert last.best_at == 0
    assert (last.retention, last.retention_se, last.scores) == (plain.retention, plain.retention_se, plain.scores)
    assert last.losses["sft"] > 0
    assert trial.samples_seen == trial.end == 16
    assert trial.finish(tmp_path / "made") == plain_heldout
    trial.close()
    assert same_weights(tmp_path / "made", folder)
    written = json.loads((tmp_path / "made" / "scores.json").read_text())
    assert written["search"]["best_at"] == 0


def test_scores_before_recovery_are_on_the_early_questions_and_those_at_the_end_on_all(context, unrecovered):
    trial = Trial(HARMFUL, context)
    first, last = trial.scores([])
    trial.close()
    num_all = sum(len(benchmark.questions) for benchmark in context.questions)
    num_early = sum(len(benchmark.questions) for benchmark in context.early_questions)
    assert (first.num_questions, last.num_questions) == (num_early, num_all)
    assert num_early == sum(map(len, context.baselines.early.scores.values())) < num_all
    alone = context.evaluate(context.model, context.early_questions)
    for name, values in alone.scores.items():
        assert context.baselines.early.scores[name].tolist() == values.tolist()
        assert context.baselines.early.images[name].tolist() == alone.images[name].tolist()


class MendedAtARung(Trial):
    """Its pruned model has its image features moved off; at 8 samples they are moved back, until the next step."""

    def __init__(self, recipe, context, model=None):
        super().__init__(recipe, context, model)
        move_features(self.model, context, 12.0)

    def _state_at(self, samples_seen, keep_in):
        found = super()._state_at(samples_seen, keep_in)
        if found is not None and samples_seen == 0:
            move_features(found, self.context, 12.0)
        return found

    def _train_until(self, samples_seen):
        losses = super()._train_until(samples_seen)
        if samples_seen == 8:
            move_features(self.model, self.context, -12.0)
        return losses


def move_features(model, context, by):
    *_, bias = (param for part in context.family.projector(model) for param in part.parameters())
    with torch.no_grad():
        bias.add_(by)


@pytest.mark.parametrize("changes", [{}, {"trained": "projector+lora", "lora_rank": 2}])
def test_a_rung_that_is_better_than_the_end_is_handed_over(context, tmp_path, changes):
    recipe = Recipe(**{**HARMFUL.as_dict(), "lr": 1e-5, "data_fraction": 1.0, **changes})
    trial = MendedAtARung(recipe, context)
    steps = trial.scores([8, 24], tmp_path / "states")
    first, eight = next(steps), next(steps)
    at_8 = trial.evaluate(context.heldout).means()
    rung, last = steps
    assert eight.retention > max(first.retention, rung.retention) + 0.2
    assert (last.samples_seen, last.best_at) == (32, 8)
    assert last.retention == pytest.approx(eight.retention, abs=0.1)  # on all questions, not on 40
    kept = {path.name for path in (tmp_path / "states").iterdir()}
    assert kept == {"8-best", "32"}
    # Recovery was in fp32, the model is in bf16 again.
    assert trial.finish(tmp_path / "made").scores == pytest.approx(at_8, abs=0.05)
    trial.close()
    resumed = MendedAtARung(recipe, context)
    assert list(resumed.scores([8, 24], tmp_path / "states")) == [first, eight, rung, last]
    resumed.close()
    # Without a folder for its states, only the pruned model could take the place of the final one.
    without = MendedAtARung(recipe, context)
    *_, last = without.scores([8, 24])
    without.close()
    assert last.best_at != 8
    assert last.retention < eight.retention - 0.1


def test_what_is_rebuilt_is_what_was_handed_over(context, unrecovered, tmp_path):
    plain, plain_heldout, folder = unrecovered
    study = StudyFolder(tmp_path / "study", context.space)
    study.create()
    trial = Trial(HARMFUL, context)
    scores = list(trial.scores([8]))
    trial.close()
    sizes = {"num_params": trial.size.num_params, "size_bytes": trial.size.size_bytes}
    ended = {"trial": "t", "key": HARMFUL.key, "recipe": HARMFUL, "end": "finished", "seconds": 1.0}
    record = TrialRecord(**ended, **sizes, rungs=scores)
    dense = context.dense_size
    baseline = Baseline(num_params=dense.num_params, size_bytes=dense.size_bytes, scores={})
    study.offer(record, baseline, None, None)
    study.record(record)
    (point,) = study.front.points
    assert (point.best_at, point.samples_seen, point.retention) == (0, 16, plain.retention)
    rebuilt = rebuild_checkpoint(study.folder, point)
    assert (rebuilt.best_at, rebuilt.retention, rebuilt.heldout) == (0, plain.retention, plain_heldout)
    assert same_weights(study.folder / rebuilt.checkpoint, folder)


def test_a_study_that_never_measured_the_unrecovered_model_is_rebuilt_as_it_was(context, tmp_path):
    study = StudyFolder(tmp_path / "study", context.space)
    study.create()
    trial = Trial(HARMFUL, context)
    trial.keeps_best = False
    scores = list(trial.scores([8]))
    trial.close()
    assert [score.samples_seen for score in scores] == [8, 16]
    ended = {"trial": "t", "key": HARMFUL.key, "recipe": HARMFUL, "end": "finished", "seconds": 1.0}
    study.record(TrialRecord(**ended, num_params=1, size_bytes=1, rungs=scores))
    point = FrontPoint(
        key=HARMFUL.key, recipe=HARMFUL, num_params=1, size_bytes=1, size_ratio=0.5, retention=0.1,
        retention_ci=(0, 1), scores={}, samples_seen=16,
    )  # fmt: skip
    rebuilt = rebuild_checkpoint(study.folder, point)
    assert (rebuilt.best_at, rebuilt.retention) == (None, scores[-1].retention)


def test_without_early_stopping_only_the_end_is_measured(context):
    settings = context.space.search.model_copy(update={"early_stopping": False})
    space = context.space
    context.space = space.model_copy(update={"search": settings})
    try:
        trial = Trial(HARMFUL, context)
        assert [(score.samples_seen, score.best_at) for score in trial.scores([])] == [(16, None)]
        trial.close()
    finally:
        context.space = space
