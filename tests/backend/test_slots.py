"""What a Tune trial does when its slot or its recipe fails; the slot is a script, the trial is real."""

import errno
import math
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raysearch.backend import slot as slot_module
from raysearch.backend import trainable
from raysearch.backend import worker as worker_module
from raysearch.backend.slot import Slot, SlotDied
from raysearch.backend.trainable import RecipeTrial
from raysearch.data.samples import BadData
from raysearch.files import StorageProblem

RECIPE = {"mode": "layerwise", "ratio": 0.3, "criterion": "deepest"}
SCORES = [
    {"samples_seen": seen, "retention": seen / 100, "size_ratio": 0.5, "done": seen == 90} for seen in (10, 30, 90)
]
KEPT = {"checkpoint": "checkpoints/x", "heldout": {}}
DIES, LOST_NODE, NO_STORAGE = "dies", "lost node", "no storage"


@pytest.fixture
def trial(monkeypatch, tmp_path):
    """A trial whose slots answer from `script`: what goes wrong at each question, in order; None for nothing."""
    script, asked = [], []

    class ScriptedSlot:
        def __init__(self, *arguments):
            self.at = 0
            asked.append("slot")

        def ask(self, command):
            asked.append(command["do"])
            wrong = script.pop(0) if script else None
            if wrong in (DIES, LOST_NODE, NO_STORAGE):
                raise SlotDied(str(wrong), ["gone" if wrong == LOST_NODE else "here"], wrong == NO_STORAGE)
            if wrong is not None:
                return wrong
            if command["do"] == "finish":
                return KEPT
            self.at = 1 if command["do"] == "run" else self.at + 1
            return dict(SCORES[self.at - 1])

    monkeypatch.setattr(trainable, "Slot", ScriptedSlot)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(trainable, "SECONDS_TO_MISS_A_NODE", 0.0)
    monkeypatch.setattr(
        trainable.ray,
        "nodes",
        lambda: [{"NodeID": "here", "Alive": True}, {"NodeID": "gone", "Alive": False}],
    )
    board = SimpleNamespace(is_dominated=SimpleNamespace(remote=lambda *point: False))
    made = object.__new__(RecipeTrial)
    space = {"name": "s", "model": "pocket", "recipe": RECIPE}
    made.setup({"recipe": RECIPE}, board, space, [10, 30], str(tmp_path))
    made.script, made.asked = script, asked
    return made


def run(trial, *script):
    """The results of a trial, until it is done."""
    trial.script[:] = script
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    return results


def test_a_trial_hands_out_its_rungs_and_its_checkpoint(trial):
    results = run(trial)
    assert [result["samples_seen"] for result in results] == [10, 30, 90]
    assert results[-1]["checkpoint"] == "checkpoints/x"
    assert trial.asked == ["slot", "run", "next", "next", "finish"]


@pytest.mark.parametrize("moment", range(4))
def test_a_slot_that_dies_is_replaced_and_no_rung_comes_twice(trial, moment):
    results = run(trial, *[None] * moment, DIES)
    assert [result["samples_seen"] for result in results] == [10, 30, 90]
    assert results[-1]["checkpoint"] == "checkpoints/x"
    assert trial.asked.count("slot") == 2


def test_a_recipe_whose_slots_die_twice_has_failed(trial):
    (result,) = run(trial, DIES, DIES)
    assert result["failed"] == DIES
    assert result["done"]
    assert math.isnan(result["retention"])
    assert trial.asked.count("slot") == 2


def test_lost_nodes_are_no_fault_of_the_recipe(trial):
    results = run(trial, LOST_NODE, LOST_NODE, None, LOST_NODE, DIES)
    assert [result["samples_seen"] for result in results] == [10, 30, 90]
    assert trial.asked.count("slot") == 5


def test_a_node_whose_loss_is_noticed_late_is_no_fault_of_the_recipe(trial, monkeypatch):
    looks = []

    def nodes():
        looks.append("look")
        return [{"NodeID": "here", "Alive": True}, {"NodeID": "gone", "Alive": len(looks) < 9}]

    monkeypatch.setattr(trainable, "SECONDS_TO_MISS_A_NODE", 60.0)
    monkeypatch.setattr(trainable.ray, "nodes", nodes)
    monkeypatch.setattr(trainable.time, "sleep", lambda seconds: None)
    results = run(trial, LOST_NODE, DIES)
    assert [result["samples_seen"] for result in results] == [10, 30, 90]
    assert trial.asked.count("slot") == 3


def test_what_may_pass_is_tried_once_more_on_the_same_slot(trial):
    full = {"failed": "OSError: no space left", "may_pass": True}
    assert "failed" not in run(trial, None, full)[-1]
    assert trial.asked.count("slot") == 1
    trial.reset_config({"recipe": RECIPE})
    assert run(trial, full, None, full)[-1]["failed"] == "OSError: no space left"


def test_what_will_not_pass_is_not_tried_again(trial):
    results = run(trial, None, {"failed": "FloatingPointError: sft is nan", "may_pass": False})
    assert [result.get("failed") for result in results] == [None, "FloatingPointError: sft is nan"]
    assert trial.asked == ["slot", "run", "next"]


def test_data_of_no_use_end_the_study_and_not_the_trial_alone():
    def scores():
        raise BadData("rows.json: more than 1.0% of 40 rows can't be used (row 3: no answer); mend or remove them")
        yield

    worker = object.__new__(worker_module._Worker)
    worker._trial, worker._refusal, worker._num_workers = None, None, 1
    worker._scores = scores()
    for command in ({"do": "next"}, {"do": "run", "recipe": RECIPE}):
        reply = worker.handle_command(command)
        assert reply["refused"].startswith("rows.json: more than 1.0%")
        assert reply["failed"] == f"BadData: {reply['refused']}"
        assert not reply["may_pass"]


def test_full_or_lost_storage_is_waited_for_and_is_no_fault_of_the_recipe(trial, monkeypatch):
    pauses = []
    monkeypatch.setattr(trainable.time, "sleep", pauses.append)
    full = {"failed": "OSError: no space left", "may_pass": True, "storage": True}
    results = run(trial, None, full, full, full, full, DIES)
    assert [result["samples_seen"] for result in results] == [10, 30, 90]
    assert pauses == [1, 2, 4, 8]
    trial.reset_config({"recipe": RECIPE})
    (result,) = run(trial, *[full] * 100)
    assert result["done"]
    assert result["storage"]  # which ends the search
    assert result["failed"] == "OSError: no space left"
    assert 600 <= sum(pauses[4:]) < 660
    assert max(pauses) == 60


def test_a_slot_that_storage_has_ended_is_no_fault_of_the_recipe(trial, monkeypatch):
    monkeypatch.setattr(trainable.time, "sleep", lambda seconds: None)
    results = run(trial, None, NO_STORAGE, NO_STORAGE, NO_STORAGE, DIES)
    assert [result["samples_seen"] for result in results] == [10, 30, 90]
    assert trial.asked.count("slot") == 5
    trial.reset_config({"recipe": RECIPE})
    (result,) = run(trial, *[NO_STORAGE] * 100)
    assert result["storage"]


FULL = OSError(errno.ENOSPC, "no space left")


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
def test_a_slot_says_whether_storage_has_ended_it(monkeypatch, failure, storage):
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda worker: None)
    slot = object.__new__(Slot)
    slot.name, slot._board, slot._failure = "slot-a", SilentBoard(0), failure
    slot._thread = SimpleNamespace(join=lambda seconds: None)
    assert slot._died("ended").storage is storage


def test_a_storage_problem_of_all_workers_is_a_reply(monkeypatch):
    worker = object.__new__(worker_module._Worker)
    worker._refusal, worker._num_workers, worker._has_frozen = None, 2, True

    def asked(error):
        worker._trial = SimpleNamespace(close=lambda: None)
        monkeypatch.setattr(worker, "_next", lambda: (_ for _ in ()).throw(error), raising=False)
        return worker.handle_command({"do": "next"})

    assert asked(StorageProblem(errno.ENOSPC, "no space left"))["storage"]
    with pytest.raises(OSError, match="no space left"):  # the others would wait for this one
        asked(FULL)


def test_what_stands_in_the_way_of_every_recipe_is_said_so(trial):
    mistake = "InputError: benchmarks: own: at chance"
    (result,) = run(trial, {"failed": mistake, "may_pass": False, "refused": "benchmarks: own: at chance"})
    assert result["done"]
    assert result["failed"] == mistake
    assert result["refused"] == "benchmarks: own: at chance"


class SilentBoard:
    """Of a slot that gives `num_signs` signs of life and then none, and never replies."""

    def __init__(self, num_signs):
        self.num_signs, self.killed, self.num_given = num_signs, [], 0
        for name in ("send", "reply_to", "signs", "workers", "forget"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _send(self, slot, command):
        pass

    def _reply_to(self, slot, index):
        return "reply"

    def _signs(self, slot):
        self.num_given = min(self.num_given + 1, self.num_signs)
        return self.num_given

    def _workers(self, slot):
        return [("worker", "here")]

    def _forget(self, slot):
        pass


def test_a_slot_without_signs_of_life_is_ended(monkeypatch):
    board, clock, killed = SilentBoard(num_signs=7), [0.0], []

    def wait(waiting, timeout):
        clock[0] += timeout
        return [], waiting

    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(slot_module.time, "monotonic", lambda: clock[0])
    slot = object.__new__(Slot)
    slot.name, slot._board, slot._failure, slot._num_replies = "slot-a", board, None, 0
    slot._longest_s, slot._timeout_s = 0.0, 20.0
    slot._thread = SimpleNamespace(is_alive=lambda: True, join=lambda seconds: None)
    with pytest.raises(SlotDied, match=r"slot-a: no sign of life for 25 s") as died:
        slot.ask({"do": "next"})
    assert killed == ["worker"]
    assert died.value.nodes == ["here"]
    assert clock[0] == 7 * 5 + 25  # every sign gave it 20 s more
    slot._timeout_s, slot._longest_s = None, 10.0
    assert slot._patience_s == 1800
    slot._longest_s = 1000.0
    assert slot._patience_s == 10_000
