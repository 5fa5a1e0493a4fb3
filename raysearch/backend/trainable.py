"""A Tune trial: one recipe on a warm slot."""

import math
import os
import time
from typing import Any

import ray
from ray import tune

from raysearch.backend.slot import Slot, SlotDied
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.study.folder import CHECKPOINTS

MAX_FAILURES = 2  # of one recipe, for reasons of its own
SECONDS_TO_MISS_A_NODE = 90.0  # Ray gives a node up after five looks that may take 10 s each
STORAGE_PATIENCE_S, LONGEST_PAUSE_S = 600.0, 60.0  # a full disk or lost storage is no fault of a recipe's
FAILED = {"done": True, "retention": math.nan, "samples_seen": 0}


class RecipeTrial(tune.Trainable):
    """A Tune trial: one recipe, one result per rung. Its slot outlives it (`reuse_actors=True`)."""

    def setup(self, config: dict[str, Any], board: Any, space: dict[str, Any], rungs: list[int], folder: str) -> None:
        self._board, self._rungs, self._folder = board, rungs, folder
        self._space = SearchSpace.model_validate(space)
        self._slot: Slot | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._recipe = Recipe(**new_config["recipe"])
        self._num_scores, self._started = 0, time.monotonic()
        self._num_asked = 0  # scores of this recipe that the slot has been asked for
        self._failures: list[str] = []
        self._waited_s = 0.0  # for storage
        self._deaths: list[SlotDied] = []
        return True

    def step(self) -> dict[str, Any]:
        """The recipe's next rung, and at the last one its checkpoint.

        A slot that dies is replaced, and the recipe goes on from its last rung: twice at most, nodes that were lost
        apart. So is a recipe that fails for a reason that may pass. While the storage is full or away, it waits.
        """
        while True:
            try:
                reply = self._next_score()
            except SlotDied as death:
                self._slot, self._num_asked = None, 0
                if not death.storage:
                    self._deaths.append(death)
                reply = {"failed": str(death), "may_pass": True, "storage": death.storage}
            if not reply.get("failed"):
                break
            if self._is_for_good(reply):
                reply = {**reply, **FAILED}
                break
        self._num_scores += 1
        return {**reply, "seconds": time.monotonic() - self._started}

    def _is_for_good(self, failure: dict[str, Any]) -> bool:
        """Whether to give up; storage that is full or away is waited for first."""
        if failure.get("storage"):
            if self._waited_s >= STORAGE_PATIENCE_S:
                return True
            pause = min(LONGEST_PAUSE_S, 1 + self._waited_s)
            time.sleep(pause)
            self._waited_s += pause
            return False
        return not failure["may_pass"] or self._has_failed_too_often()

    def _has_failed_too_often(self) -> bool:
        """By its own fault. Ray takes a while to notice that a node is gone, and until then a slot's death looks like
        the recipe's."""
        deadline = time.monotonic() + SECONDS_TO_MISS_A_NODE
        while True:
            own = [death for death in self._deaths if not death.node_lost()]
            if len(self._failures) + len(own) < MAX_FAILURES:
                return False
            if not own or time.monotonic() > deadline:
                return True
            time.sleep(1)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the slot keeps the recipe's state at its rungs."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load; see `save_checkpoint`."""

    def cleanup(self) -> None:
        if self._slot:
            self._slot.close()

    def _next_score(self) -> dict[str, Any]:
        """The next score from the slot; a new one hands out those before it again."""
        if self._slot is None:
            self._slot = Slot(self._board, self._space, self._rungs, self._folder)
        reply: dict[str, Any] = {}
        while self._num_asked <= self._num_scores and not reply.get("failed"):
            command = {"do": "next"} if self._num_asked else {"do": "run", "recipe": self._recipe.as_dict()}
            reply = self._slot.ask(command)
            self._num_asked += 1
        if not reply.get("failed") and reply["done"]:
            reply |= self._finish(reply)
        if reply.get("failed"):
            if not reply.get("storage"):
                self._failures.append(reply["failed"])
            self._num_asked = 0
        return reply

    def _finish(self, last: dict[str, Any]) -> dict[str, Any]:
        """Keep the checkpoint of a model that the front doesn't dominate, and score it on held-out questions."""
        assert self._slot is not None
        if self._space.search.keep_scores:
            self._slot.ask({"do": "keep", "folder": os.path.join(self._folder, "scores")})
        dominated = ray.get(self._board.is_dominated.remote(last["size_ratio"], last["retention"]))
        if dominated:
            return {}
        folder = os.path.join(self._folder, CHECKPOINTS, self._recipe.key)
        return self._slot.ask({"do": "finish", "folder": folder})
