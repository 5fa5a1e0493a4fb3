"""Slots and workers without Ray: the real loop in a thread, with a coordinator in this process."""

import errno
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raysearch import progress
from raysearch.backend import slot as slot_module
from raysearch.backend import worker as worker_module
from raysearch.backend.coordinator import Coordinator
from raysearch.backend.messages import Failed, FinishTrial, NextRung, RunRecipe, ScoreHeldout
from raysearch.backend.runtime import TrialRuntime
from raysearch.backend.slot import Slot, SlotDied, is_by_storage
from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.data.bad_rows import BadData
from raysearch.errors import InputError
from raysearch.files import StorageProblem, write_json
from raysearch.study.front import Measured
from raysearch.study.records import Score
from scripts.testing.local_coordinator import LocalCoordinator

RECIPE = Recipe(mode="layerwise", ratio=0.3, criterion="deepest")
HELDOUT = Measured(retention=0.3, retention_ci=(0.2, 0.4), scores={})
FULL = OSError(errno.ENOSPC, "no space left")


class ScriptedTrial:
    """Gives two scores, or raises what the runtime says."""

    def __init__(self, recipe, error):
        self.recipe, self.error, self.samples_seen, self.end = recipe, error, 0, 30
        self.size, self.seconds = Size(500, 1000), {"seconds_training": 1.0, "seconds_evaluating": 2.0}

    def scores(self, rungs, keep_in):
        for seen in [*rungs, self.end]:
            if self.error:
                raise self.error
            self.samples_seen = seen
            yield Score(samples_seen=seen, retention=seen / 100, retention_se=0.01, scores={"digits": 0.5})

    @property
    def scores_heldout_later(self):
        return self.recipe.quantization == "none"

    def heldout_quality(self):
        return HELDOUT

    def export(self, folder, heldout):
        folder.mkdir(parents=True)

    def close(self):
        pass


class ScriptedContext(SimpleNamespace):
    @property
    def heldout_baseline(self):
        return self.first_of_study("heldout", self.measure)


class ThreadRuntime(TrialRuntime):
    """Runs the worker loop in the slot's own thread."""

    def __init__(self, error=None, refusal=None):
        self.error, self.refusal, self.killed, self.ends = error, refusal, [], threading.Event()
        self.measure = lambda: "dense"

    def run_workers(self, loop, config, slots, name, folder):
        loop(config, 0, slots.workers)

    def start_process(self, num_threads):
        pass

    def open_context(self, space, teacher_folder, measure_once_per_study):
        if self.refusal:
            raise InputError(self.refusal)
        logging.getLogger("raysearch.data.samples").warning("left out 3 of 40 rows")
        logging.getLogger("raysearch.recovery.trainer").info("two passes a step")
        assert measure_once_per_study({"search": lambda: 7}) == {"search": 7}
        dense = SimpleNamespace(search=SimpleNamespace(means=lambda: {"digits": 0.9}), importances={})
        self.context = ScriptedContext(dense_size=Size(1000, 2000), baselines=dense, measure=self.measure)
        return self.context

    @contextmanager
    def shape_study(self, context):
        yield {}

    def open_trial(self, recipe, context):
        return ScriptedTrial(recipe, self.error)

    def score_heldout(self, folder, context):
        if not folder.exists():
            raise InputError(f"{folder}: no checkpoint")
        assert context.heldout_baseline == "dense"
        return HELDOUT

    def this_worker(self):
        return "worker", "here", None

    def kill(self, worker):
        self.killed.append(worker)

    def leave(self):
        self.killed.append("itself")


@pytest.fixture
def coordinator():
    return LocalCoordinator()


@pytest.fixture
def open_slot(coordinator, tmp_path, monkeypatch):
    monkeypatch.setattr("raysearch.backend.node_check.node_name", lambda: "node here")

    def make(runtime, **slots):
        fields = {"name": "s", "model": "pocket", "recipe": RECIPE.as_dict(), "slots": {"num": 1, **slots}}
        space = SearchSpace.model_validate(fields)
        write_json(tmp_path / "space.json", space.model_dump(mode="json"))
        return Slot(coordinator, runtime, space, [10], tmp_path)

    return make


def test_a_recipe_runs_through_a_slot(open_slot, coordinator, tmp_path):
    slot = open_slot(ThreadRuntime())
    first, last = slot.ask(RunRecipe(recipe=RECIPE)), slot.ask(NextRung())
    assert (first.score.samples_seen, first.is_last) == (10, False)
    assert (last.score.samples_seen, last.is_last, last.size_ratio) == (30, True, 0.5)
    assert last.seconds_training == 1.0
    written = slot.ask(FinishTrial(folder=str(tmp_path / "checkpoints" / "x")))
    assert (written.checkpoint, written.heldout) == ("checkpoints/x", None)
    assert slot.ask(ScoreHeldout(folder=str(tmp_path / "checkpoints" / "x"))).heldout == HELDOUT
    gone = slot.ask(ScoreHeldout(folder=str(tmp_path / "checkpoints" / "gone")))
    assert gone.reason == f"InputError: {tmp_path}/checkpoints/gone: no checkpoint"
    assert not gone.may_pass
    assert coordinator.call(Coordinator.dense_scores) == {"digits": 0.9}
    slot.close()
    assert coordinator.call(Coordinator.workers, slot.name) == []


def test_packed_weights_are_scored_before_they_are_written(open_slot, tmp_path):
    slot = open_slot(ThreadRuntime())
    slot.ask(RunRecipe(recipe=RECIPE.model_copy(update={"quantization": "int8"})))
    assert slot.ask(FinishTrial(folder=str(tmp_path / "checkpoints" / "x"))).heldout == HELDOUT


def test_the_dense_model_is_measured_by_one_slot_while_the_other_goes_on(open_slot, tmp_path):
    (tmp_path / "x").mkdir()
    command, measured, may_go_on, scoring = ScoreHeldout(folder=str(tmp_path / "x")), [], threading.Event(), []

    def measure():
        measured.append("once")
        may_go_on.wait(30)
        return "dense"

    class Waits(ThreadRuntime):
        def score_heldout(self, folder, context):
            scoring.append(folder)
            may_go_on.set()
            return super().score_heldout(folder, context)

    first, second = ThreadRuntime(), Waits()
    first.measure = second.measure = measure
    slots = open_slot(first), open_slot(second)
    for slot in slots:
        slot.ask(RunRecipe(recipe=RECIPE))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(slots[0].ask(command)))
    asking.start()
    while not measured:
        asking.join(0.01)
    answers.append(slots[1].ask(command))
    asking.join(30)
    assert [answer.heldout for answer in answers] == [HELDOUT] * 2
    assert (measured, len(scoring)) == (["once"], 1)


def test_a_dense_model_that_one_slot_cannot_measure_is_measured_by_another(open_slot, tmp_path):
    (tmp_path / "x").mkdir()

    def fail():
        raise RuntimeError("CUDA out of memory")

    first = ThreadRuntime()
    first.measure = fail
    reply = open_slot(first).ask(ScoreHeldout(folder=str(tmp_path / "x")))
    assert (reply.reason, reply.may_pass) == ("RuntimeError: CUDA out of memory", True)
    assert open_slot(ThreadRuntime()).ask(ScoreHeldout(folder=str(tmp_path / "x"))).heldout == HELDOUT


def test_a_workers_warning_reaches_the_driver_once(open_slot, coordinator):
    for _ in range(2):
        slot = open_slot(ThreadRuntime())
        slot.ask(RunRecipe(recipe=RECIPE))
        slot.close()
    assert coordinator.coordinator.log_lines == [(logging.WARNING, "left out 3 of 40 rows")]
    assert coordinator.call(Coordinator.logged, 0) == (logging.WARNING, "left out 3 of 40 rows")


def test_workers_log_from_the_drivers_level_on(open_slot, coordinator):
    coordinator.coordinator = Coordinator(logging.INFO)
    slot = open_slot(ThreadRuntime())
    slot.ask(RunRecipe(recipe=RECIPE))
    slot.close()
    assert coordinator.coordinator.log_lines[:2] == [
        (logging.WARNING, "left out 3 of 40 rows"),
        (logging.INFO, "two passes a step"),
    ]
    logging.getLogger("raysearch").setLevel(logging.WARNING)


def test_a_study_that_one_worker_refuses_is_refused_by_all(open_slot):
    first = open_slot(ThreadRuntime(refusal="benchmarks: own: at chance"))
    reply = first.ask(RunRecipe(recipe=RECIPE))
    assert (reply.reason, reply.refusal) == ("InputError: benchmarks: own: at chance", "benchmarks: own: at chance")
    second = open_slot(ThreadRuntime())  # it would load, and is told
    assert second.ask(RunRecipe(recipe=RECIPE)).refusal == "benchmarks: own: at chance"


def test_a_failure_before_the_first_trial_is_said_once(open_slot, coordinator, monkeypatch):
    monkeypatch.setattr(slot_module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)

    class Broken(ThreadRuntime):
        def open_context(self, space, teacher_folder, measure_once_per_study):
            raise AttributeError("no such layer\nin line 7")

    with pytest.raises(SlotDied, match="no such layer"):
        open_slot(Broken()).ask(RunRecipe(recipe=RECIPE))
    reason = "no trial can be started: AttributeError: no such layer"
    assert coordinator.coordinator.log_lines == [(logging.ERROR, reason)]


def test_what_goes_wrong_with_one_recipe_does_not_end_the_slot(open_slot):
    runtime = ThreadRuntime(error=FloatingPointError("sft is nan\nin step 3"))
    slot = open_slot(runtime)
    assert slot.ask(RunRecipe(recipe=RECIPE)) == Failed(reason="FloatingPointError: sft is nan", may_pass=False)
    runtime.error = RuntimeError("CUDA out of memory")
    assert slot.ask(RunRecipe(recipe=RECIPE)).may_pass
    runtime.error = FULL
    assert slot.ask(RunRecipe(recipe=RECIPE)).by_storage
    runtime.error = None
    assert slot.ask(RunRecipe(recipe=RECIPE)).score.samples_seen == 10


def test_data_of_no_use_end_the_study_and_not_the_trial_alone(open_slot):
    runtime = ThreadRuntime(error=BadData("rows.json: more than 1.0% of 40 rows can't be used"))
    slot = open_slot(runtime)
    for command in (RunRecipe(recipe=RECIPE), NextRung()):
        reply = slot.ask(command)
        assert reply.refusal == "rows.json: more than 1.0% of 40 rows can't be used"
        assert reply.reason == f"BadData: {reply.refusal}"
        assert not reply.may_pass


def test_several_workers_go_on_only_after_what_goes_wrong_on_all_of_them(open_slot, monkeypatch):
    monkeypatch.setattr(slot_module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)
    slot = open_slot(ThreadRuntime(error=StorageProblem(errno.ENOSPC, "no space left")), workers=2)
    assert slot.ask(RunRecipe(recipe=RECIPE)).by_storage
    runtime = ThreadRuntime(error=FULL)  # of one of them: the other would wait for it
    slot = open_slot(runtime, workers=2)
    with pytest.raises(SlotDied, match="no space left") as died:
        slot.ask(RunRecipe(recipe=RECIPE))
    assert died.value.by_storage
    assert died.value.nodes == ["here"]
    assert runtime.killed == ["worker"]


class HungRuntime(ThreadRuntime):
    """Its worker sends a few heartbeats and never replies."""

    def run_workers(self, loop, config, slots, name, folder):
        coordinator = config["coordinator"]
        coordinator.call(Coordinator.join, name, "worker", "here", None)
        for _ in range(3):
            coordinator.call(Coordinator.heartbeat, name)
            self.ends.wait(0.1)
        self.ends.wait()

    def kill(self, worker):
        super().kill(worker)
        self.ends.set()


def test_a_slot_without_heartbeats_is_ended(open_slot, monkeypatch):
    monkeypatch.setattr(slot_module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)
    runtime = HungRuntime()
    slot = open_slot(runtime, timeout_s=0.5)
    with pytest.raises(SlotDied, match=rf"{slot.name}: no heartbeat for \d s") as died:
        slot.ask(RunRecipe(recipe=RECIPE))
    assert runtime.killed == ["worker"]
    assert died.value.nodes == ["here"]
    assert not died.value.by_storage


def test_a_slot_that_measures_or_waits_for_one_that_does_is_not_ended(open_slot, coordinator, monkeypatch):
    monkeypatch.setattr(slot_module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)
    monkeypatch.setattr(worker_module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)
    is_measuring, reasons = threading.Event(), []

    def measure():
        is_measuring.set()
        for _ in range(40):
            progress.step()
            time.sleep(0.05)
        reasons.extend(stage.reason for stage in coordinator.call(Coordinator.stages))
        return "dense"

    class Measuring(ThreadRuntime):
        def open_context(self, space, teacher_folder, measure_once_per_study):
            assert measure_once_per_study({"the dense model": measure}) == {"the dense model": "dense"}
            return super().open_context(space, teacher_folder, measure_once_per_study)

    first, second = (open_slot(Measuring(), timeout_s=1) for _ in range(2))
    assert is_measuring.wait(10)
    started = time.monotonic()
    assert second.ask(RunRecipe(recipe=RECIPE)).score.samples_seen == 10
    assert time.monotonic() - started > 1, "one slot has waited for longer than its timeout"
    assert first.ask(RunRecipe(recipe=RECIPE)).score.samples_seen == 10
    assert "the dense model" in reasons


def test_patience_follows_the_longest_answer(open_slot):
    assert open_slot(ThreadRuntime(), timeout_s=20).patience_s == 20
    assert open_slot(ThreadRuntime()).patience_s == 1800


@pytest.mark.parametrize(
    ("failure", "storage"),
    [
        (WorkerGroupError("two", {0: RuntimeError("connection closed"), 1: FULL}), True),
        (ControllerError(FULL), True),
        (FULL, True),
        (WorkerGroupError("one", {1: OSError(errno.ENOENT, "no such file")}), False),
        (None, False),
    ],
)
def test_whether_storage_has_ended_a_slot(failure, storage):
    assert is_by_storage(failure) is storage


def test_an_unknown_command_is_a_failure_and_no_attribute(open_slot):
    slot = open_slot(ThreadRuntime())
    assert slot.ask("_load").reason.startswith("AssertionError")


class FailsToStart(ThreadRuntime):
    def start_process(self, num_threads):
        raise RuntimeError("gloo: no interface")


def test_a_slot_tells_what_it_does_and_whether_it_died_before_it_could_take_a_recipe(
    open_slot, coordinator, monkeypatch
):
    monkeypatch.setattr(slot_module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)

    def states():
        return [stage.state for stage in coordinator.call(Coordinator.stages)]

    slot = open_slot(ThreadRuntime())
    slot.ask(RunRecipe(recipe=RECIPE))
    assert states() == ["training"]
    slot.close()
    assert states() == []
    with pytest.raises(SlotDied, match="gloo: no interface") as died:
        open_slot(FailsToStart()).ask(RunRecipe(recipe=RECIPE))
    assert died.value.at_start
    assert states() == []
    slot = open_slot(ThreadRuntime(RuntimeError("out of memory")), workers=2)
    with pytest.raises(SlotDied) as died:
        slot.ask(RunRecipe(recipe=RECIPE))
    assert not died.value.at_start


def test_a_slot_that_has_no_workers_yet_waits_for_room(coordinator):
    coordinator.call(Coordinator.begin, "slot-1", None)
    assert [(s.state, s.reason) for s in coordinator.call(Coordinator.stages)] == [("waiting for room", "")]
    coordinator.call(Coordinator.join, "slot-1", "worker", "node", None)
    assert [(s.state, s.reason) for s in coordinator.call(Coordinator.stages)] == [("joining", "1 workers are there")]
    coordinator.call(Coordinator.enter, "gone", "training")
    coordinator.call(Coordinator.forget, "slot-1")
    assert coordinator.call(Coordinator.stages) == []


@pytest.mark.parametrize("answer", ["dead", "silent", "lives", "over"])
def test_a_worker_leaves_when_its_coordinator_is_gone(answer, monkeypatch):
    monkeypatch.setattr(worker_module, "SECONDS_BETWEEN_HEARTBEATS", 0.001)
    monkeypatch.setattr(worker_module, "SECONDS_ALONE", 0.05)
    runtime, is_over, num_asked = ThreadRuntime(), threading.Event(), 0

    class Client:
        def submit(self, method):
            nonlocal num_asked
            num_asked += 1
            waiting = Future()
            if answer == "dead":
                waiting.set_exception(RuntimeError("the actor has died"))
            elif answer != "silent":
                waiting.set_result(30)
            if answer != "silent" and num_asked == 20:
                is_over.set()
            return waiting

    if answer == "over":
        is_over.set()
    worker_module.leave_when_alone(Client(), runtime, is_over)
    assert runtime.killed == (["itself"] if answer in ("dead", "silent") else [])
    assert num_asked == {"dead": 1, "silent": 1, "lives": 20, "over": 0}[answer]
