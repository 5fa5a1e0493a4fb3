"""A Tune trial: one recipe, one result per rung; or, after the search, held-out scores, one result per point of the
front. Its slot outlives it (`reuse_actors=True`)."""

from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raysearch.backend.cluster import is_node_lost
from raysearch.backend.coordinator import CoordinatorClient
from raysearch.backend.messages import AllScored, Failed, RungScored
from raysearch.backend.recipe_run import RecipeRun
from raysearch.backend.runtime import TrialRuntime
from raysearch.backend.slot import Slot
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace

REPLY = "reply"
"""Key of a Tune result that holds the trial's `TrialReply`."""
HELDOUT = "heldout"
"""Key in the configuration of a trial that has no recipe: it scores points of the front on held-out questions."""


class RecipeTrial(tune.Trainable):
    """What Ray Tune sees of a `RecipeRun`."""

    def setup(
        self,
        config: dict[str, Any],
        coordinator: CoordinatorClient,
        runtime: TrialRuntime,
        space: dict[str, Any],
        rungs: list[int],
        folder: Path,
    ) -> None:
        """Take the recipe of `config`; the slot is opened at the first step."""
        parsed = SearchSpace.model_validate(space)
        owner = ray.get_runtime_context().current_actor
        open_slot = partial(Slot, coordinator, runtime, parsed, rungs, folder, owner)
        self._run = RecipeRun(open_slot, is_node_lost, coordinator, folder, parsed.search.keep_scores)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial's recipe, on the same slot."""
        self._scores_heldout = HELDOUT in new_config
        if not self._scores_heldout:
            self._run.start(Recipe(**new_config["recipe"]))
        return True

    def step(self) -> dict[str, Any]:
        """The recipe's next rung, or the next point of the front."""
        reply = self._run.next_point() if self._scores_heldout else self._run.next_rung()
        is_last = isinstance(reply, RungScored) and reply.is_last
        return {REPLY: reply, "done": is_last or isinstance(reply, Failed | AllScored)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the slot keeps the recipe's state at its rungs."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load; see `save_checkpoint`."""

    def cleanup(self) -> None:
        """End the slot."""
        self._run.close()
