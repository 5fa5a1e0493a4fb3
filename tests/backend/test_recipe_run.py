"""What a trial does when its slot or its recipe fails; the slot is a script."""

from pathlib import Path

import pytest

from raysearch.backend import recipe_run
from raysearch.backend.coordinator import Coordinator
from raysearch.backend.messages import (
    AllScored,
    CheckpointWritten,
    Failed,
    FinishTrial,
    HeldoutScored,
    NextRung,
    PointScored,
    RungScored,
    RunRecipe,
    ScoreHeldout,
)
from raysearch.backend.recipe_run import RecipeRun
from raysearch.backend.slot import SlotDied
from raysearch.config.recipe import Recipe
from raysearch.study.front import Measured
from raysearch.study.records import Score
from scripts.testing.local_coordinator import LocalCoordinator

RECIPE = Recipe(mode="layerwise", ratio=0.3, criterion="deepest")
SEEN = [10, 30, 90]
DIES, LOST_NODE, NO_STORAGE = "dies", "lost node", "no storage"
STARTS = ["slot-0123abcd: no room on 10.0.0.1", "slot-4567cdef: no room on 10.0.0.2", "slot-89abcdef: port 5 is taken"]
HELDOUT = Measured(retention=0.9, retention_ci=(0.8, 1.0), scores={})
FULL = Failed(reason="OSError: no space left", may_pass=True, by_storage=True)


def rung(seen):
    score = Score(samples_seen=seen, retention=seen / 100, retention_se=0.01, scores={"digits": seen / 100})
    sizes = {"num_params": 500, "size_bytes": 1000, "size_ratio": 0.5}
    return RungScored(score=score, **sizes, is_last=seen == SEEN[-1])


class Script:
    """Opens slots that answer by a script: what goes wrong at each command, in order; None for nothing."""

    def __init__(self):
        self.steps, self.commands, self.num_slots = [], [], 0

    def open_slot(self):
        self.num_slots += 1
        return ScriptedSlot(self)


class ScriptedSlot:
    def __init__(self, script):
        self.script, self.at = script, 0

    def ask(self, command):
        self.script.commands.append(type(command))
        wrong = self.script.steps.pop(0) if self.script.steps else None
        if wrong in (DIES, LOST_NODE, NO_STORAGE):
            raise SlotDied(wrong, ["gone" if wrong == LOST_NODE else "here"], wrong == NO_STORAGE)
        if isinstance(wrong, str):
            raise SlotDied(wrong, [], at_start=True)
        if wrong is not None:
            return wrong
        if isinstance(command, FinishTrial):
            return CheckpointWritten(checkpoint=f"checkpoints/{Path(command.folder).name}")
        if isinstance(command, ScoreHeldout):
            return HeldoutScored(heldout=HELDOUT)
        self.at = 1 if isinstance(command, RunRecipe) else self.at + 1
        return rung(SEEN[self.at - 1])


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    """Runs the recipe by a script; its replies, until the last."""
    monkeypatch.setattr(recipe_run, "SECONDS_TO_MISS_A_NODE", 0.0)
    made = RecipeRun(script.open_slot, lambda nodes: "gone" in nodes, LocalCoordinator(), tmp_path)

    def play(*steps):
        script.steps[:] = steps
        made.start(RECIPE)
        replies = [made.next_rung()]
        while not isinstance(replies[-1], Failed) and not replies[-1].is_last:
            replies.append(made.next_rung())
        return replies

    return play


def seen(replies):
    return [reply.score.samples_seen for reply in replies]


def test_a_recipe_gives_its_rungs_and_its_checkpoint(run, script):
    replies = run()
    assert seen(replies) == SEEN
    assert replies[-1].checkpoint == f"checkpoints/{RECIPE.key}"
    assert replies[-1].heldout is None
    assert script.commands == [RunRecipe, NextRung, NextRung, FinishTrial]


@pytest.mark.parametrize("moment", range(4))
def test_a_slot_that_dies_is_replaced_and_no_rung_comes_twice(run, script, moment):
    replies = run(*[None] * moment, DIES)
    assert seen(replies) == SEEN
    assert replies[-1].checkpoint
    assert script.num_slots == 2


def test_a_recipe_whose_slots_die_twice_has_failed(run, script):
    (reply,) = run(DIES, DIES)
    assert (reply.reason, script.num_slots) == (DIES, 2)


def test_three_starts_that_fail_alike_end_the_search(run, script):
    (reply,) = run(STARTS[0], STARTS[2], STARTS[1], STARTS[0])
    assert (reply.at_start, reply.reason) == (True, STARTS[0])
    assert script.num_slots == 4


def test_starts_that_fail_for_a_while_are_no_fault_of_the_recipe(run, script):
    assert seen(run(STARTS[0], STARTS[1], STARTS[2], None, DIES, STARTS[0], STARTS[1])) == SEEN
    assert script.num_slots == 7


def test_starts_that_always_fail_end_the_search_whatever_they_say(run, script):
    (reply,) = run(*(f"slot-0123abcd: {'x' * number}" for number in range(9)))
    assert reply.at_start
    assert script.num_slots == recipe_run.MAX_FAILED_STARTS


def test_lost_nodes_are_no_fault_of_the_recipe(run, script):
    assert seen(run(LOST_NODE, LOST_NODE, None, LOST_NODE, DIES)) == SEEN
    assert script.num_slots == 5


def test_a_node_whose_loss_is_noticed_late_is_no_fault_of_the_recipe(script, tmp_path, monkeypatch):
    looks = []

    def is_node_lost(nodes):
        looks.append("look")
        return "gone" in nodes and len(looks) >= 9

    monkeypatch.setattr(recipe_run.time, "sleep", lambda seconds: None)
    made = RecipeRun(script.open_slot, is_node_lost, LocalCoordinator(), tmp_path)
    script.steps[:] = [LOST_NODE, DIES]
    made.start(RECIPE)
    assert seen([made.next_rung() for _ in SEEN]) == SEEN
    assert script.num_slots == 3


def test_what_may_pass_is_tried_once_more_on_the_same_slot(run, script):
    passing = Failed(reason="RuntimeError: out of memory", may_pass=True)
    assert seen(run(None, passing)) == SEEN
    assert script.num_slots == 1
    assert run(passing, None, passing)[-1].reason == passing.reason


def test_what_will_not_pass_is_not_tried_again(run, script):
    replies = run(None, Failed(reason="FloatingPointError: sft is nan", may_pass=False))
    assert [isinstance(reply, Failed) for reply in replies] == [False, True]
    assert script.commands == [RunRecipe, NextRung]


def test_full_or_lost_storage_is_waited_for_and_is_no_fault_of_the_recipe(run, script, monkeypatch):
    pauses = []
    monkeypatch.setattr(recipe_run.time, "sleep", pauses.append)
    assert seen(run(None, FULL, FULL, FULL, FULL, DIES)) == SEEN
    assert pauses == [1, 2, 4, 8]
    (reply,) = run(*[FULL] * 100)
    assert reply == FULL  # which ends the search
    assert 600 <= sum(pauses[4:]) < 660
    assert max(pauses) == 60


def test_a_slot_that_storage_has_ended_is_no_fault_of_the_recipe(run, script, monkeypatch):
    monkeypatch.setattr(recipe_run.time, "sleep", lambda seconds: None)
    assert seen(run(None, NO_STORAGE, NO_STORAGE, NO_STORAGE, DIES)) == SEEN
    assert script.num_slots == 5
    (reply,) = run(*[NO_STORAGE] * 100)
    assert reply.by_storage


def test_what_stands_in_the_way_of_every_recipe_is_said_so(run):
    refused = Failed(reason="InputError: at chance", may_pass=False, refusal="benchmarks: own: at chance")
    assert run(refused) == [refused]


@pytest.fixture
def scoring(script, tmp_path, monkeypatch):
    """Scores four points by a script; the replies, until the last."""
    monkeypatch.setattr(recipe_run, "SECONDS_TO_MISS_A_NODE", 0.0)
    monkeypatch.setattr(recipe_run.time, "sleep", lambda seconds: None)

    def play(*steps):
        script.steps[:] = steps
        coordinator = LocalCoordinator()
        coordinator.call(Coordinator.post_unscored, list("abcd"))
        made = RecipeRun(script.open_slot, lambda nodes: "gone" in nodes, coordinator, tmp_path)
        replies = []
        while not isinstance(reply := made.next_point(), AllScored):
            replies.append(reply)
        return replies

    return play


def test_points_are_scored_one_after_the_other(scoring, script):
    assert scoring() == [PointScored(key=key, heldout=HELDOUT) for key in "abcd"]
    assert script.commands == [ScoreHeldout] * 4
    assert script.num_slots == 1


def test_a_point_that_cannot_be_scored_is_passed_over(scoring, script):
    gone = Failed(reason="InputError: no checkpoint", may_pass=False)
    replies = scoring(gone, DIES, None, DIES, DIES, *[FULL] * 100)
    assert [(reply.key, reply.heldout is None) for reply in replies] == [
        ("a", True), ("b", False), ("c", True), ("d", True),
    ]  # fmt: skip
    assert [reply.reason for reply in replies] == [gone.reason, "", DIES, FULL.reason]


def test_a_dominated_model_gets_no_checkpoint(script, tmp_path):
    coordinator = LocalCoordinator()
    coordinator.call(recipe_run.Coordinator.post_front, [(0.4, 0.95)])
    made = RecipeRun(script.open_slot, lambda nodes: False, coordinator, tmp_path)
    made.start(RECIPE)
    assert [made.next_rung().checkpoint for _ in SEEN] == [None] * 3
    assert FinishTrial not in script.commands
