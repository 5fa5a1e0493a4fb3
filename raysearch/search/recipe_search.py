"""Ray Tune's side of proposing recipes: an adapter around `Searcher`, saved together with the scheduler."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher as RaySearcher

from raysearch.files import write_text
from raysearch.search.scheduler import ParetoASHA
from raysearch.search.searcher import Searcher


class RecipeSearch(RaySearcher):
    """What Ray Tune sees of a `Searcher`: each suggestion is `{"recipe": {...}}` over `config`.

    Args:
        searcher: does the work.
        scheduler: tells stopped trials from finished ones, and is saved and restored together with the searcher.
        config: further entries of every trial's configuration.
        retention, time_attr: result keys, as in `ParetoASHA`.
    """

    def __init__(
        self,
        searcher: Searcher,
        scheduler: ParetoASHA | None = None,
        config: Mapping[str, Any] | None = None,
        retention: str = "retention",
        time_attr: str = "samples_seen",
    ) -> None:
        super().__init__()
        # Not `searcher`: Ray takes whatever has that attribute for a wrapper of its own.
        self.recipes, self.scheduler, self._config = searcher, scheduler, dict(config or {})
        self._retention, self._time_attr = retention, time_attr

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Nothing to take over: the space and the objectives were given at construction."""
        return metric is None and mode is None

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's configuration, or Ray's word for the end."""
        recipe = self.recipes.suggest(trial_id)
        return self.FINISHED if recipe is None else {**self._config, "recipe": recipe.as_dict()}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note a value on the way."""
        if self._retention in result and self._time_attr in result:
            self.recipes.report(trial_id, result[self._time_attr], result[self._retention])

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial finished, was stopped, or failed."""
        if trial_id not in self.recipes.proposals:
            return
        if result:
            self.on_trial_result(trial_id, result)
        value = (result or {}).get(self._retention, math.nan)
        if error or value is None or not math.isfinite(value):
            self.recipes.fail(trial_id)
        elif self.scheduler is not None and self.scheduler.was_stopped(trial_id):
            self.recipes.stop(trial_id)
        else:
            self.recipes.finish(trial_id)

    def get_state(self) -> dict[str, Any]:
        """The searcher's state and the scheduler's, as plain JSON values."""
        state = {"searcher": self.recipes.state()}
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.rungs.state()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `get_state`."""
        self.recipes.set_state(state["searcher"])
        if self.scheduler is not None and "scheduler" in state:
            self.scheduler.set_state(state["scheduler"])

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON."""
        write_text(Path(checkpoint_path), json.dumps(self.get_state()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a saved state."""
        self.set_state(json.loads(Path(checkpoint_path).read_text()))
