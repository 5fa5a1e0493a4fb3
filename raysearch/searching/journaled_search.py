"""A searcher and an ASHA bracket that survive the death of their process at any instant."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.files import read_json, write_text
from raysearch.searching.early_stopping.asha import AshaBracket, Decision
from raysearch.searching.early_stopping.decision_log import DecisionLog
from raysearch.searching.journal import (
    ENDS,
    LimitArgs,
    RenameArgs,
    ReportArgs,
    RungArgs,
    ShapesArgs,
    TrialArgs,
    WithinArgs,
    append_event,
    apply_event,
    read_events,
)
from raysearch.searching.judged_shapes import JudgedShape
from raysearch.searching.limits import Limits
from raysearch.searching.searcher import Searcher
from raysearch.study.records import TrialRecord

STATE, JOURNAL, DECISIONS = "search-state.json", "search-events.jsonl", "decisions.jsonl"
SCHEMA = 4  # of `search-state.json`
MIN_EVENTS = 50  # between two snapshots, of all events so far a tenth if that is more


class JournaledSearch:
    """Decides which recipe to try next and which trial to stop, and writes every event to a journal first.

    What it decides follows from the events alone. A snapshot of the state now and then keeps the journal short;
    `resume` reads it, replays the events after it, and so comes to the state of the last event.

    Args:
        searcher: suggests recipes.
        bracket: judges trials at rungs.
        folder: of the study; takes `search-state.json`, `search-events.jsonl` and `decisions.jsonl`. Left out, nothing
            is written.
    """

    def __init__(self, searcher: Searcher, bracket: AshaBracket, folder: Path | None = None) -> None:
        self.searcher, self.bracket = searcher, bracket
        self._folder = folder
        self._log = DecisionLog(folder / DECISIONS) if folder else None
        self._num_events = self._num_saved = 0
        self._interrupted: list[str] = []  # trials that go on under the name of the next suggestion
        self._num_logged = 0  # decisions in the log that `begin` keeps
        self._replayed: list[tuple[int, Decision]] = []

    def suggest(self, trial: str, longest: float = math.inf) -> Recipe | None:
        """The recipe of the next trial, that of an interrupted one first; None when there is none left.

        Args:
            longest: samples that a new trial may see at most; finite only where the clock ends the search.
        """
        if self._interrupted:
            self._do("renamed", RenameArgs(trial=self._interrupted.pop(0), name=trial))
            return self.searcher.proposals[trial].recipe
        if math.isinf(longest):
            return self._do("suggested", TrialArgs(trial=trial))
        is_nearest = longest < self.searcher.longest_trial()
        recipe = self._do("suggested_within", WithinArgs(trial=trial, longest=longest))
        if recipe is None and is_nearest and not self.searcher.exhausted:
            self.end_time()
        return recipe

    def must_wait(self) -> bool:
        """Whether a further trial may start once a running one has been stopped, but not now."""
        return not self._interrupted and self.searcher.must_wait()

    def has_all_trials(self) -> bool:
        """Whether as many trials have been started as the search may have."""
        num_trials = self.searcher.num_trials
        return not self._interrupted and num_trials is not None and len(self.searcher.history) >= num_trials

    def end_time(self) -> None:
        """There is no time for a further trial; the study's next start has time again."""
        if not self.searcher.ended_by:
            self._do("limit_reached", LimitArgs(limit="time"))

    def learn_shapes(self, shapes: Sequence[JudgedShape]) -> None:
        """Shapes have been judged; proposals follow them from now on."""
        self._do("shapes_judged", ShapesArgs(shapes=list(shapes)))

    def add(self, trial: str) -> None:
        """A trial starts, or is tried again after its process failed."""
        self._do("added", TrialArgs(trial=trial))

    def judge(self, result: RungArgs) -> Decision:
        """Whether a trial goes on after a result, and why."""
        return self._do("rung_reached", result)

    def reach_end(self, result: RungArgs) -> None:
        """A trial's last result counts at all rungs that it has not reached, unless it was stopped."""
        self._do("end_reached", result)

    def lose(self, trial: str) -> None:
        """A trial's process failed: it holds back no other at the rungs."""
        self._do("lost", TrialArgs(trial=trial))

    def report(self, trial: str, samples_seen: float, retention: float) -> None:
        """A running trial was scored."""
        self._do("reported", ReportArgs(trial=trial, samples_seen=samples_seen, retention=retention))

    def end(self, trial: str, failed: bool) -> None:
        """A trial has failed, was stopped, or came to its own end."""
        event = "failed" if failed else "stopped" if self.bracket.was_stopped(trial) else "finished"
        self._do(event, TrialArgs(trial=trial))

    def resume(self, records: Sequence[TrialRecord]) -> bool:
        """Go on from the files of an earlier process.

        A trial that was running goes on under the name of one of the next suggestions. So does one whose end was in
        the journal, but not in `records`, when the process died. A record that no event tells of is adopted.

        Nothing is written before `begin`. Earlier events are replayed under the budgets and the limits of then;
        those of now hold afterwards.

        Args:
            records: the trials that have ended, as `trials.jsonl` has them.

        Returns:
            Whether there was a state to go on from.

        Raises:
            InputError: the files are damaged, or of another version.
        """
        assert self._folder is not None
        path = self._folder / STATE
        is_there = path.exists()
        searcher = self.searcher
        budgets, num_trials, size_ratios = searcher.budgets, searcher.num_trials, self.bracket.budgets
        limits = searcher.limits
        if is_there:
            try:
                self._set_state(read_json(path))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}: no state of this version ({error}); delete it, to go on from trials.jsonl alone"
                ) from None
            self._replay({record.trial for record in records})
        for record in records:
            self._adopt(record)
        if not is_there:
            self._num_logged = self.bracket.num_decisions
        searcher.set_targets(budgets, num_trials, limits)
        self.bracket.set_budgets(size_ratios)
        self._interrupted = searcher.running()
        searcher.go_on()
        return is_there

    def begin(self) -> None:
        """Write what `resume` has brought back: the decision log and a snapshot."""
        if self._log:
            self._log.cut(self._num_logged)
            for number, decision in self._replayed:
                self._log.write(number, decision)
        self._replayed.clear()
        self.save_if_due(now=True)

    def save_if_due(self, now: bool = False) -> None:
        """Write a snapshot and empty the journal, if it has become long or `now`."""
        since = self._num_events - self._num_saved
        if self._folder is not None and (now or since > max(MIN_EVENTS, self._num_events // 10)):
            write_text(self._folder / STATE, json.dumps(self.state()))
            write_text(self._folder / JOURNAL, "")
            self._num_saved = self._num_events

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "num_events": self._num_events,
            "budgets": [budget.text for budget in self.searcher.budgets],
            "num_trials": self.searcher.num_trials,
            "limits": asdict(self.searcher.limits),
            "searcher": self.searcher.state(),
            "bracket": self.bracket.state(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if state.get("schema") != SCHEMA:
            raise ValueError(f"schema {state.get('schema')} where {SCHEMA} is read")
        self._num_events = self._num_saved = state["num_events"]
        budgets, limits = [Budget.parse(text) for text in state["budgets"]], Limits(**state.get("limits", {}))
        self.searcher.set_targets(budgets, state["num_trials"], limits)
        self.searcher.set_state(state["searcher"])
        self.bracket = AshaBracket.from_state(state["bracket"])
        self._num_logged = self.bracket.num_decisions

    def _replay(self, ended: set[str]) -> None:
        assert self._folder is not None
        path = self._folder / JOURNAL
        for number, event, args in read_events(path):
            if number > self._num_events and not (event in ENDS and args.trial not in ended):
                try:
                    answer = apply_event(self.searcher, self.bracket, event, args)
                except (KeyError, ValueError) as error:
                    raise InputError(
                        f"{path}: event {number} fits no state here ({error}); delete it and {STATE} beside it, to go "
                        "on from trials.jsonl alone"
                    ) from None
                if isinstance(answer, Decision):
                    self._replayed.append((self.bracket.num_decisions, answer))
            self._num_events = max(number, self._num_events)

    def _do(self, event: str, args: BaseModel) -> Any:
        """Write an event to the journal, then apply it."""
        self._num_events += 1
        if self._folder is not None:
            append_event(self._folder / JOURNAL, self._num_events, event, args)
        answer = apply_event(self.searcher, self.bracket, event, args)
        if self._log and isinstance(answer, Decision):
            self._log.write(self.bracket.num_decisions, answer)
        return answer

    def _adopt(self, record: TrialRecord) -> None:
        """Take over a trial that has ended, whatever a crash of the machine has left of its events."""
        searcher, bracket = self.searcher, self.bracket
        known = searcher.proposals.get(record.trial)
        if known is not None and known.end is not None:
            return
        if known is None:
            running = {searcher.proposals[name].recipe.key: name for name in searcher.running()}
            if record.key in running:
                searcher.rename(running[record.key], record.trial)
                bracket.rename(running[record.key], record.trial)
            elif not searcher.adopt(record.trial, record.recipe):
                return
        size = searcher.proposals[record.trial].size_ratio
        for score in record.rungs:
            searcher.report(record.trial, score.samples_seen, score.retention)
            args = (size, score.retention, score.retention_se, score.samples_seen)
            bracket.decide(record.trial, *args)
            if record.end == "finished" and score is record.rungs[-1]:
                bracket.finish(record.trial, *args)
        end = {"finished": searcher.finish, "stopped": searcher.stop, "failed": searcher.fail}[record.end]
        end(record.trial)
