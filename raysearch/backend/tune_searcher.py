"""Ray Tune's side of proposing recipes: an adapter around `Searcher`, saved together with the scheduler."""

import json
import math
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher as RaySearcher

from raysearch.backend.pareto_asha import ParetoASHA
from raysearch.errors import InputError
from raysearch.files import append_json, read_json_lines, write_text
from raysearch.search.searcher import Searcher
from raysearch.study.records import TrialRecord

STATE, EVENTS = "search-state.json", "search-events.jsonl"
MIN_EVENTS = 50  # between two snapshots, of all events so far a tenth if that is more


class TuneSearcher(RaySearcher):
    """What Ray Tune sees of a `Searcher`: each suggestion is `{"recipe": {...}}` over `config`.

    With a `folder` it survives the death of its process at any instant: every event is noted in a journal before it is
    applied, and a snapshot of the state now and then makes the journal short. What it does is decided by the events
    alone, so `recover` brings back the state of the last one.

    Args:
        searcher: does the work.
        scheduler: tells stopped trials from finished ones, and is saved and restored together with the searcher.
        config: further entries of every trial's configuration.
        retention, time_attr: result keys, as in `ParetoASHA`.
        folder: takes `search-state.json` and `search-events.jsonl`.
    """

    def __init__(
        self,
        searcher: Searcher,
        scheduler: ParetoASHA,
        config: Mapping[str, Any] | None = None,
        retention: str = "retention",
        time_attr: str = "samples_seen",
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        # Not `searcher`: Ray takes whatever has that attribute for a wrapper of its own.
        self.recipes, self.scheduler, self._config = searcher, scheduler, dict(config or {})
        self._retention, self._time_attr = retention, time_attr
        self._folder = folder
        self._num_events = self._num_saved = 0
        self._orphans: list[str] = []  # trials that run on under the name of the next suggestion
        self._live: set[str] = set()
        self.num_slots: Callable[[], int] = lambda: sys.maxsize
        """How many trials may run at a time, now."""
        if folder is not None:
            scheduler.on_event = lambda *event: self._note("rungs", *event)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Nothing to take over: the space and the objectives were given at construction."""
        return metric is None and mode is None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration, Ray's word for the end, or None while all slots are taken."""
        if len(self._live) >= self.num_slots():
            return None
        if self._orphans:
            orphan = self._orphans.pop(0)
            self._tell("rename", orphan, trial_id)
            self._note("rungs", "rename", orphan, trial_id)
            self.scheduler.rungs.rename(orphan, trial_id)
            recipe = self.recipes.proposals[trial_id].recipe
        else:
            recipe = self._tell("suggest", trial_id)
        if recipe is None:
            return self.FINISHED
        self._live.add(trial_id)
        return {**self._config, "recipe": recipe.as_dict()}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note a value on the way."""
        if self._retention in result and self._time_attr in result:
            self._tell("report", trial_id, result[self._time_attr], result[self._retention])

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The trial finished, was stopped, or failed. One that was refused, as every other would be, has not ended: it
        goes on when the study does."""
        if trial_id not in self._live:
            return
        self._live.discard(trial_id)
        if (result or {}).get("refused"):
            return
        if result:
            self.on_trial_result(trial_id, result)
        value = (result or {}).get(self._retention, math.nan)
        if error or value is None or not math.isfinite(value):
            self._tell("fail", trial_id)
        elif self.scheduler.was_stopped(trial_id):
            self._tell("stop", trial_id)
        else:
            self._tell("finish", trial_id)

    def recover(self, records: Sequence[TrialRecord]) -> None:
        """Go on from the files of an earlier process.

        A trial that was running goes on under the name of one of the next suggestions. So does one whose end was
        noted, but not recorded before the process died. A record that no event tells of is taken in.

        Raises:
            InputError: the files are not of this version.
        """
        assert self._folder is not None
        ended = {record.trial for record in records}
        if self.read_state(self._folder):
            with _of_this_version(self._folder / STATE):
                for number, target, event, *facts in read_json_lines(self._folder / EVENTS):
                    if number > self._num_events:
                        self._num_events = number
                        self._replay(target, event, facts, ended)
        for record in records:
            self._take_in(record)
        self._orphans = self.recipes.running()
        self.recipes.exhausted = False  # a study may be extended

    def read_state(self, folder: Path) -> bool:
        """Go on from the snapshot in `folder`, if there is one.

        Raises:
            InputError: it is not of this version.
        """
        path = folder / STATE
        if not path.exists():
            return False
        with _of_this_version(path):
            self.restore(str(path))
        return True

    def save_if_due(self, now: bool = False) -> None:
        """Write a snapshot if the journal has become long, or `now`."""
        since = self._num_events - self._num_saved
        if self._folder is not None and (now or since > max(MIN_EVENTS, self._num_events // 10)):
            self.save(str(self._folder / STATE))
            write_text(self._folder / EVENTS, "")
            self._num_saved = self._num_events

    def get_state(self) -> dict[str, Any]:
        """The searcher's state and the scheduler's, as plain JSON values."""
        return {
            "num_events": self._num_events,
            "searcher": self.recipes.state(),
            "scheduler": self.scheduler.rungs.state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `get_state`; the budgets stay those of the scheduler here."""
        self._num_events = self._num_saved = state["num_events"]
        self.recipes.set_state(state["searcher"])
        self.scheduler.set_state(state["scheduler"])
        self._orphans = self.recipes.running()

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON."""
        write_text(Path(checkpoint_path), json.dumps(self.get_state()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a saved state."""
        self.set_state(json.loads(Path(checkpoint_path).read_text()))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing beside Tune's experiment state, which nobody reads back, where there is a folder."""
        if self._folder is None:
            super().save_to_dir(checkpoint_dir, session_str)

    def _tell(self, event: str, *facts: Any) -> Any:
        self._note("recipes", event, *facts)
        return getattr(self.recipes, event)(*facts)

    def _note(self, target: str, event: str, *facts: Any) -> None:
        self._num_events += 1
        if self._folder is not None:
            append_json(self._folder / EVENTS, [self._num_events, target, event, *facts], flush=False)

    def _replay(self, target: str, event: str, facts: Sequence[Any], ended: Container[str]) -> None:
        if target == "rungs":
            self.scheduler.apply(event, *facts)
        elif event not in ("finish", "stop", "fail") or facts[0] in ended:
            getattr(self.recipes, event)(*facts)

    def _take_in(self, record: TrialRecord) -> None:
        """A trial that has ended, whatever the machine's crash has left of the events."""
        known = self.recipes.proposals.get(record.trial)
        if known is not None and known.end is not None:
            return
        if known is None:
            running = {self.recipes.proposals[name].recipe.key: name for name in self.recipes.running()}
            if record.key in running:
                self.recipes.rename(running[record.key], record.trial)
                self.scheduler.rungs.rename(running[record.key], record.trial)
            elif not self.recipes.adopt(record.trial, record.recipe):
                return
        size, rungs = self.recipes.proposals[record.trial].size_ratio, self.scheduler.rungs
        for score in record.rungs:
            self.recipes.report(record.trial, score.samples_seen, score.retention)
            facts = (size, score.retention, score.retention_se, score.samples_seen)
            rungs.decide(record.trial, *facts)
            if record.end == "finished" and score is record.rungs[-1]:
                rungs.finish(record.trial, *facts)
        {"finished": self.recipes.finish, "stopped": self.recipes.stop, "failed": self.recipes.fail}[record.end](
            record.trial
        )


@contextmanager
def _of_this_version(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no state of this version ({error}); delete it, to go on from trials.jsonl alone"
        ) from None
