"""One recipe on a slot, rung by rung, with the retries that failures deserve; and held-out scores after the search."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raysearch.backend.coordinator import Coordinator, CoordinatorClient
from raysearch.backend.messages import (
    AllScored,
    Command,
    Failed,
    FinishTrial,
    HeldoutScored,
    NextRung,
    PointScored,
    Reply,
    RungScored,
    RunRecipe,
    SaveScores,
    ScoreHeldout,
)
from raysearch.backend.slot import Slot, SlotDied
from raysearch.config.recipe import Recipe
from raysearch.study.front import CHECKPOINTS

MAX_FAILURES = 2  # of one recipe, for reasons of its own
MAX_ALIKE_STARTS, MAX_FAILED_STARTS = 3, 6  # of slots, before the search ends
SECONDS_TO_MISS_A_NODE = 90.0  # Ray gives a node up after five looks that may take 10 s each
STORAGE_PATIENCE_S, LONGEST_PAUSE_S = 600.0, 60.0  # a full disk or lost storage is no fault of a recipe's


class RecipeRun:
    """Runs recipes, one after the other, on a slot that is replaced when it dies.

    Args:
        open_slot: starts a slot.
        is_node_lost: whether one of the nodes with these ids is gone.
        coordinator: knows the front.
        folder: of the study.
        keep_scores: write the scores per held-out question, too.
    """

    def __init__(
        self,
        open_slot: Callable[[], Slot],
        is_node_lost: Callable[[Sequence[str]], bool],
        coordinator: CoordinatorClient,
        folder: Path,
        keep_scores: bool = False,
    ) -> None:
        self._open_slot, self._is_node_lost = open_slot, is_node_lost
        self._coordinator, self._folder, self._keep_scores = coordinator, folder, keep_scores
        self._slot: Slot | None = None
        self._failed_starts: list[SlotDied] = []  # since a slot last replied

    def start(self, recipe: Recipe) -> None:
        """Go on with another recipe."""
        self._recipe = recipe
        self._forget_failures()

    def _forget_failures(self) -> None:
        self._num_scores = 0
        self._num_asked = 0  # scores of this recipe that the slot has been asked for
        self._num_failures = 0
        self._waited_s = 0.0  # for storage
        self._deaths: list[SlotDied] = []

    def next_rung(self) -> RungScored | Failed:
        """The recipe's next rung, and at the last one its checkpoint.

        A slot that dies is replaced, and the recipe goes on from its last rung: twice at most, nodes that were lost
        apart; one that dies before it could take a recipe, as often as `_never_starts` says. So is a recipe that fails
        for a reason that may pass. While the storage is full or away, it waits.
        """
        reply = self._until_for_good(self._next_score)
        self._num_scores += 1
        assert isinstance(reply, RungScored | Failed), reply
        return reply

    def next_point(self) -> PointScored | AllScored:
        """Score the checkpoint of a front point that has no score on held-out questions; waits for the search's end.

        Failures are met as those of a recipe are.
        """
        key = self._coordinator.call(Coordinator.next_unscored)
        if key is None:
            return AllScored()
        self._forget_failures()
        command = ScoreHeldout(folder=str(self._folder / CHECKPOINTS / key))
        reply = self._until_for_good(lambda: self._counted(self._ask(command)))
        if isinstance(reply, Failed):
            return PointScored(key=key, reason=reply.reason)
        assert isinstance(reply, HeldoutScored), reply
        return PointScored(key=key, heldout=reply.heldout)

    def _until_for_good(self, attempt: Callable[[], Reply]) -> Reply:
        """A reply, or a failure that another attempt would not mend."""
        while True:
            try:
                reply = attempt()
            except SlotDied as death:
                self._slot, self._num_asked = None, 0
                if death.at_start and not death.by_storage:
                    self._failed_starts.append(death)
                    if self._never_starts(death):
                        return Failed(reason=str(death), may_pass=False, at_start=True)
                    continue
                if not death.by_storage:
                    self._deaths.append(death)
                reply = Failed(reason=str(death), may_pass=True, by_storage=death.by_storage)
            if not isinstance(reply, Failed) or self._is_for_good(reply):
                return reply

    def _never_starts(self, death: SlotDied) -> bool:
        """Whether slots have failed MAX_ALIKE_STARTS times for this reason, or MAX_FAILED_STARTS times in all; those on
        nodes that were lost apart."""
        own = [_alike(start) for start in self._failed_starts if not self._is_node_lost(start.nodes)]
        return own.count(_alike(death)) >= MAX_ALIKE_STARTS or len(own) >= MAX_FAILED_STARTS

    def close(self) -> None:
        """End the slot."""
        if self._slot:
            self._slot.close()

    def _is_for_good(self, failure: Failed) -> bool:
        """Whether to give up; storage that is full or away is waited for first."""
        if failure.by_storage:
            if self._waited_s >= STORAGE_PATIENCE_S:
                return True
            pause_s = min(LONGEST_PAUSE_S, 1 + self._waited_s)
            time.sleep(pause_s)
            self._waited_s += pause_s
            return False
        return not failure.may_pass or self._has_failed_too_often()

    def _has_failed_too_often(self) -> bool:
        """By its own fault. Ray takes a while to notice that a node is gone, and until then a slot's death looks like
        the recipe's."""
        deadline = time.monotonic() + SECONDS_TO_MISS_A_NODE
        while True:
            num_own = sum(not self._is_node_lost(death.nodes) for death in self._deaths)
            if self._num_failures + num_own < MAX_FAILURES:
                return False
            if not num_own or time.monotonic() > deadline:
                return True
            time.sleep(1)

    def _next_score(self) -> Reply:
        """The next score from the slot; a new one first repeats those before it, from the recipe's checkpoint."""
        reply: Reply | None = None
        while self._num_asked <= self._num_scores and not isinstance(reply, Failed):
            reply = self._ask(NextRung() if self._num_asked else RunRecipe(recipe=self._recipe))
            self._num_asked += 1
        assert isinstance(reply, RungScored | Failed), reply
        if isinstance(reply, RungScored) and reply.is_last:
            reply = self._finish(reply)
        return self._counted(reply)

    def _counted(self, reply: Reply) -> Reply:
        if isinstance(reply, Failed):
            self._num_failures += not reply.by_storage
            self._num_asked = 0
        return reply

    def _finish(self, last: RungScored) -> RungScored | Failed:
        """Write the checkpoint of a model that the front doesn't dominate."""
        if self._keep_scores:
            self._ask(SaveScores(folder=str(self._folder / "scores")))
        if self._coordinator.call(Coordinator.is_dominated, last.size_ratio, last.score.retention):
            return last
        reply = self._ask(FinishTrial(folder=str(self._folder / CHECKPOINTS / self._recipe.key)))
        if isinstance(reply, Failed):
            return reply
        return last.model_copy(update=dict(reply))

    def _ask(self, command: Command) -> Reply:
        self._slot = self._slot or self._open_slot()
        reply = self._slot.ask(command)
        self._failed_starts.clear()
        return reply


def _alike(death: SlotDied) -> str:
    """The reason without what differs from one slot to the next: names, numbers and addresses."""
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", str(death))
