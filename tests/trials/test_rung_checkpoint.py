"""A trial that is resumed at its last rung equals the uninterrupted trial."""

import errno
import os
import pkgutil
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from raysearch.config.recipe import Recipe
from raysearch.config.settings import RecoverySettings
from raysearch.data.bad_rows import BadRows
from raysearch.errors import InputError
from raysearch.evaluation.retention import Results
from raysearch.models.param_count import counts_of
from raysearch.models.vision_cache import VisionCache
from raysearch.recovery import checkpoint
from raysearch.recovery.teacher import Teacher
from raysearch.trials.context import check_early_questions
from raysearch.trials.trial import Trial
from tests.support.recovery_setup import recipe, samples, tiny_encoder, tiny_family, tiny_model

RUNGS = [8, 24]


class TinyContext(SimpleNamespace):
    """A context of a tiny model whose score is computed from its weights."""

    def prune(self, chosen):
        return tiny_model(seed=1)

    def kept_layers(self, chosen):
        return [0, 1]

    def evaluate(self, model, benchmarks):
        kept = float(sum(param.detach().double().abs().mean() for param in model.parameters()))
        return Results({"weights": np.array([kept % 1, 0.5])}, {"weights": np.array(["a", "b"])}, {"weights": 0.0})

    def evaluate_search(self, model):
        return self.evaluate(model, self.questions), self.evaluate(model, self.early_questions)


def context(keeps_best=False, **settings):
    made = TinyContext(
        model=tiny_model(),
        counts=counts_of(tiny_model().config),
        family=tiny_family(),
        vision=VisionCache(tiny_family(), 1e9),
        samples=samples(),
        bad_rows=BadRows("rows", 40),
        encoder=tiny_encoder(),
        teacher=Teacher(tiny_model(), tiny_family()),
        questions=(),
        early_questions=(),
        space=SimpleNamespace(
            recovery=RecoverySettings(batch_size=8, precision="fp32", zero_stage=1, **settings),
            retention="ratio_of_averages",
            search=SimpleNamespace(early_stopping=keeps_best),
        ),
    )
    dense = made.evaluate(made.model, ())
    made.baselines = SimpleNamespace(search=dense, early=dense)
    return made


CHOSEN = recipe(trained="projector+decoder").model_copy(update={"ratio": 0.0})


def scores(made, keep_in, stop_after=None, chosen=CHOSEN):
    trial, found = Trial(chosen, made), []
    for score in trial.scores(RUNGS, keep_in):
        found.append(score)
        if len(found) == stop_after:
            break
    assert trial.samples_seen == found[-1].samples_seen
    trial.close()
    return found


@pytest.mark.parametrize("settings", [{}, {"weight_average": True}])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_trial_goes_on_from_its_last_rung(tmp_path, settings, stop_after):
    made = context(**settings)
    unbroken = scores(made, None)
    assert [score.samples_seen for score in unbroken] == [8, 24, 40]
    assert scores(made, tmp_path, stop_after) == unbroken[:stop_after]
    assert [path.name for path in tmp_path.iterdir()] == [str(unbroken[stop_after - 1].samples_seen)]
    assert scores(made, tmp_path) == unbroken


def test_what_was_kept_last_is_what_counts_and_half_written_states_are_passed_over(tmp_path):
    made = context()
    unbroken = scores(made, tmp_path, 1)
    shutil.copytree(tmp_path / "8", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "weights.safetensors").write_bytes(b"half")
    assert scores(made, tmp_path)[0] == unbroken[0]
    assert [path.name for path in tmp_path.iterdir()] == ["40"]


@pytest.mark.parametrize("broken", ["weights.safetensors", "worker-0.safetensors", "position.json", "scores.json"])
def test_a_broken_state_starts_the_trial_anew(tmp_path, broken):
    made = context()
    unbroken = scores(made, tmp_path, 2)
    path = tmp_path / "24" / broken
    path.write_bytes(path.read_bytes()[:-40])
    assert scores(made, tmp_path)[:2] == unbroken
    assert [path.name for path in tmp_path.iterdir()] == ["40"]


@pytest.mark.parametrize("damaged", ["weights.safetensors", "worker-0.safetensors"])
def test_a_state_whose_bytes_have_changed_starts_the_trial_anew(tmp_path, damaged):
    """The file is as long as it was, and its header is right."""
    made = context()
    unbroken = scores(made, tmp_path, 2)
    content = bytearray((tmp_path / "24" / damaged).read_bytes())
    content[len(content) // 2] ^= 0x41
    (tmp_path / "24" / damaged).write_bytes(content)
    assert scores(made, tmp_path) == scores(made, None)
    assert unbroken == scores(made, None, 2)


@pytest.mark.parametrize(
    "fails",
    ["recovery.checkpoint.write_tensors", "recovery.checkpoint.write_json", "trials.rung_checkpoint.write_json"],
)
def test_a_full_disk_costs_the_state_and_not_the_trial(tmp_path, monkeypatch, caplog, fails):
    """The state before stays; once there is room again, the next is written."""
    made = context()
    unbroken = scores(made, None)
    target = f"raysearch.{fails}"
    writer, when_full = pkgutil.resolve_name(target), [False, True, False]

    def write(path, *given):
        if when_full[len(found)]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        writer(path, *given)

    monkeypatch.setattr(target, write)
    trial, found = Trial(CHOSEN, made), []
    for score in trial.scores(RUNGS, tmp_path):
        found.append(score)
        states = [path.name for path in tmp_path.iterdir()]
        assert states == [["8"], ["8"], ["40"]][len(found) - 1]
    trial.close()
    assert found == unbroken
    (warning,) = caplog.messages
    assert warning == f"{tmp_path / '24'}: not written (No space left on device); the trial continues without it"


def test_a_trial_goes_on_from_the_last_state_there_was_room_for(tmp_path, monkeypatch):
    made = context()
    unbroken = scores(made, tmp_path, 1)

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tensors", full)
        unbroken = scores(made, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["8"]
    assert scores(made, tmp_path)[:2] == unbroken


def test_another_recipes_state_is_not_taken(tmp_path):
    made = context()
    scores(made, tmp_path, 2)
    other = recipe(trained="projector").model_copy(update={"ratio": 0.0})
    assert scores(made, tmp_path, chosen=other) == scores(made, None, chosen=other)


@pytest.fixture(scope="module")
def keeping_best(tmp_path_factory):
    """Per seed: the recipe, its context, the scores of its whole trial, and those of its states below the end.

    The score of the random model is its weights' size modulo 1: any state may be the best.
    """
    trials = []
    for seed in (0, 1, 2):
        chosen, made = CHOSEN.model_copy(update={"seed": seed, "lr": 10.0**-seed}), context(keeps_best=True)
        states = scores(made, None, 3, chosen=chosen)
        unbroken = scores(made, tmp_path_factory.mktemp("unbroken"), chosen=chosen)
        trials.append((chosen, made, unbroken, states))
    return trials


def test_the_best_of_a_trials_measured_states_counts(keeping_best):
    for _, _, unbroken, states in keeping_best:
        assert [score.samples_seen for score in unbroken] == [0, 8, 24, 40]
        best, last = max(states, key=lambda score: score.retention), unbroken[-1]
        assert last.best_at in (None, best.samples_seen)
        if last.best_at is not None:
            assert last.retention == pytest.approx(best.retention, abs=1e-9)
    assert len({unbroken[-1].best_at for _, _, unbroken, _ in keeping_best}) > 1, "every trial ended alike"


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_trial_that_keeps_its_best_state_ends_as_if_uninterrupted(keeping_best, tmp_path, stop_after):
    for chosen, made, unbroken, states in keeping_best:
        keep_in = tmp_path / f"{chosen.seed}"
        assert scores(made, keep_in, stop_after, chosen=chosen) == unbroken[:stop_after]
        assert scores(made, keep_in, chosen=chosen) == unbroken
        best = max(states, key=lambda score: score.retention).samples_seen
        assert {path.name for path in keep_in.iterdir()} == {"40"} | ({f"{best}-best"} if best else set())


def test_a_damaged_best_state_falls_out(tmp_path):
    made = context(keeps_best=True)
    found = scores(made, tmp_path, 3)
    (best,) = tmp_path.glob("*-best/weights.safetensors")
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 0x41
    best.write_bytes(content)
    assert found[0].best_at is None
    assert scores(made, tmp_path)[-1].best_at in (None, 0)


class AskedByName(TinyContext):
    """Its model gets half of the early questions right, and three of four at the end; the dense one gets more."""

    RIGHT = {"early": [1, 0], "all": [1, 1, 0, 1]}
    DENSE = {"early": [1, 1], "all": [1, 1, 1, 1]}

    def evaluate(self, model, benchmarks):
        return self.results(self.RIGHT[benchmarks])

    def evaluate_search(self, model):
        return self.evaluate(model, self.questions), self.evaluate(model, self.early_questions)

    def results(self, right):
        return Results({"b": np.array(right, float)}, {"b": np.arange(len(right)).astype(str)}, {"b": 0.0})


def test_rungs_are_scored_on_fewer_questions_against_the_dense_model_on_the_same_ones(tmp_path):
    made = AskedByName(**{**vars(context()), "questions": "all", "early_questions": "early"})
    made.baselines = SimpleNamespace(search=made.results(made.DENSE["all"]), early=made.results(made.DENSE["early"]))
    found = scores(made, tmp_path, 2)
    assert scores(made, tmp_path)[:2] == found  # taken up again, they are the same
    found = scores(made, None)
    assert [score.retention for score in found] == [0.5, 0.5, 0.75]
    assert [score.num_questions for score in found] == [2, 2, 4]
    # Deviations of 1/2 and of 1/4: sqrt(n / (n - 1) * sum of squares) / n
    assert found[0].retention_se == pytest.approx((2 * 2 * 0.25) ** 0.5 / 2)
    assert found[2].retention_se == pytest.approx((4 / 3 * (3 / 16 + 9 / 16)) ** 0.5 / 4)


def test_a_trial_without_recovery_is_scored_on_all_questions():
    made = AskedByName(**{**vars(context()), "questions": "all", "early_questions": "early"})
    made.baselines = SimpleNamespace(search=made.results(made.DENSE["all"]), early=None)
    untrained = Recipe(mode="layerwise", ratio=0.15, criterion="deepest", trained="nothing")
    (score,) = Trial(untrained, made).scores(RUNGS)
    assert (score.retention, score.num_questions) == (0.75, 4)


def test_questions_that_tell_nothing_are_refused():
    nothing = AskedByName().results([0, 0])
    space = SimpleNamespace(retention="ratio_of_averages", search=SimpleNamespace(early_questions=0.01))
    with pytest.raises(InputError, match=r"^search\.early_questions: 0\.01: .* on b: nothing to keep; raise it"):
        check_early_questions(nothing, space)
    check_early_questions(AskedByName().results([0, 1]), space)
