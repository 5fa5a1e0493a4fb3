"""Ray Tune's search algorithm and scheduler over one `JournaledSearch`."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher as RaySearcher

from raysearch.backend.faults import fatal_errors
from raysearch.backend.messages import Failed, RungScored
from raysearch.backend.trainable import HELDOUT, REPLY
from raysearch.searching.journal import RungArgs
from raysearch.searching.journaled_search import JournaledSearch
from raysearch.searching.judged_shapes import JudgedShape
from raysearch.searching.pace import Deadline


class TuneSearcher(RaySearcher):
    """Suggests configurations `{"recipe": {...}}`, and `{"heldout": True}` to slots that get no further recipe.

    Args:
        search: decides.
        num_slots: how many trials may run at a time, now.
        judged_shapes: the shapes that were judged, once they are.
        deadline: of this start, if there is one.
        unscored: the keys of the front's points that are to be scored on held-out questions, by what is known now.
        post_unscored: takes the final ones, which the trials without a recipe wait for.
    """

    def __init__(
        self,
        search: JournaledSearch,
        num_slots: Callable[[], int] = lambda: sys.maxsize,
        judged_shapes: Callable[[], Sequence[JudgedShape] | None] = lambda: None,
        deadline: Deadline | None = None,
        unscored: Callable[[], list[str]] = list,
        post_unscored: Callable[[list[str]], None] = lambda keys: None,
    ) -> None:
        super().__init__()
        self._unscored, self._post_unscored = unscored, post_unscored
        self._search, self._num_slots, self._judged_shapes = search, num_slots, judged_shapes
        self._deadline = deadline
        self._awaits_shapes = not search.searcher.shapes
        self._live: set[str] = set()
        self._num_slots_used = 0
        self._num_without_recipe = 0
        self._is_over, self._is_posted = False, False

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Nothing to take over: the space and the objectives were given at construction."""
        return metric is None and mode is None

    @fatal_errors()
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration, Ray's word for the end, or None while all slots are taken, or all samples by
        running trials that may still be stopped."""
        if self._is_over or self._search.has_all_trials():
            return self._heldout()
        if len(self._live) >= self._num_slots() or (self._live and self._search.must_wait()):
            return None
        if self._awaits_shapes and (shapes := self._judged_shapes()) is not None:
            self._awaits_shapes = False
            if shapes:
                self._search.learn_shapes(shapes)
        longest = self._deadline.longest_trial() if self._deadline else math.inf
        if longest is None:
            self._search.end_time()
            return self._heldout()
        recipe = self._search.suggest(trial_id, longest)
        if recipe is None:
            return None if self._live and self._search.must_wait() else self._heldout()
        self._live.add(trial_id)
        self._num_slots_used = max(self._num_slots_used, len(self._live))
        return {"recipe": recipe.as_dict()}

    def _heldout(self) -> dict[str, Any] | str | None:
        """There is no further recipe: every slot that has become free waits for the last trial, its model loaded, and
        then takes its part of the points without a held-out score."""
        self._is_over = True
        keys = self._unscored()
        if not self._live and not self._is_posted:
            self._post_unscored(keys)
            self._is_posted = True
        most = min(self._num_slots_used or len(keys), self._num_slots())
        if self._num_without_recipe + len(self._live) < most and (self._live or self._num_without_recipe < len(keys)):
            self._num_without_recipe += 1
            return {HELDOUT: True}
        return None if self._live else self.FINISHED

    @fatal_errors()
    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Report the trial's score."""
        reply = result.get(REPLY)
        if isinstance(reply, RungScored):
            self._search.report(trial_id, reply.score.samples_seen, reply.score.retention)

    @fatal_errors()
    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The trial finished, was stopped, or failed. One that was refused, as every other would be, has not ended: it
        goes on when the study does."""
        if trial_id not in self._live:
            return
        self._live.discard(trial_id)
        reply = (result or {}).get(REPLY)
        if isinstance(reply, Failed) and reply.refusal:
            return
        self.on_trial_result(trial_id, result or {})
        is_scored = isinstance(reply, RungScored) and math.isfinite(reply.score.retention)
        self._search.end(trial_id, failed=error or not is_scored)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study's journal has it all."""


class TuneScheduler(FIFOScheduler):
    """Stops trials as the search's bracket decides."""

    def __init__(self, search: JournaledSearch) -> None:
        super().__init__()
        self._search = search

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Refuse a single metric: size and retention are both objectives."""
        return metric is None and mode is None

    @fatal_errors()
    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new trial, or one that is tried again after its process failed."""
        if HELDOUT not in trial.config:
            self._search.add(trial.trial_id)

    @fatal_errors()
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Decide at rungs."""
        reply = result.get(REPLY)
        if not isinstance(reply, RungScored):
            return TrialScheduler.CONTINUE
        if reply.score.samples_seen >= self._search.bracket.max_t:
            self._search.reach_end(_args(trial, reply))
            return TrialScheduler.STOP
        decision = self._search.judge(_args(trial, reply))
        return TrialScheduler.CONTINUE if decision.go_on else TrialScheduler.STOP

    @fatal_errors()
    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
        """The trial came to its own end, or Ray has carried out our stop."""
        reply = result.get(REPLY)
        if isinstance(reply, RungScored):
            self._search.reach_end(_args(trial, reply))

    @fatal_errors()
    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A failed trial holds back no other; Ray adds it again if it is to be retried."""
        if HELDOUT not in trial.config:
            self._search.lose(trial.trial_id)


def _args(trial: Trial, reply: RungScored) -> RungArgs:
    score = reply.score
    return RungArgs(
        trial=trial.trial_id,
        size=reply.size_ratio,
        retention=score.retention,
        retention_se=score.retention_se,
        samples_seen=score.samples_seen,
    )
