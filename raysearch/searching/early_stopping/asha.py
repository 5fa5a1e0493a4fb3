"""The early-stopping rule without the code that runs trials: values in, decisions out.

Asynchronous successive halving (arXiv 1810.05934) lets a trial continue if it is in the best 1/eta of its rung. With
two objectives, "best" means the lower non-domination rank, and within a rank the larger exclusive hypervolume.
"""

import bisect
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raysearch.errors import InputError
from raysearch.searching.early_stopping.rung import Rung

SCHEMA = 4  # of `AshaBracket.state`


@dataclass(frozen=True)
class Rule:
    """Parts of the stopping rule; each can be switched off.

    Attributes:
        keep_budget_leaders: never stop the best trial within a budget while it is better than every finished one.
        count_finished: trials that ended below a rung count there with their final value.
    """

    keep_budget_leaders: bool = True
    count_finished: bool = True


@dataclass(frozen=True)
class Decision:
    """Whether a trial continues after a result, and why.

    Attributes:
        samples_seen, rung: of the result; `rung` is None if it is at none.
        num_trials: at the rung, itself included.
        num_better: of these, in better non-domination ranks, as far as the number that may continue.
        num_own: in its own non-domination rank, itself included; 0 where that was not needed.
        rank: its place there by exclusive hypervolume, 1 being best; None where that was not needed.
    """

    trial: str
    go_on: bool
    reason: str
    size: float
    retention: float
    retention_se: float
    samples_seen: float
    rung: float | None = None
    num_trials: int = 0
    num_better: int = 0
    num_own: int = 0
    rank: int | None = None


class AshaBracket:
    """Asynchronous successive halving over (size, retention): size minimised, retention maximised.

    Args:
        max_t: largest number of samples that a trial sees.
        grace_period: samples seen at the first rung.
        reduction_factor: eta; one in eta continues, and each rung is at eta times the samples of the one before.
        budgets: sizes that answers are wanted for, in the unit of the trials' sizes.
        rule: the parts of the rule in use.

    Attributes:
        num_spared: so many trials, those that begin first, are never stopped; see also `spare`.

    Raises:
        InputError: `grace_period` or `reduction_factor` is out of range.
    """

    def __init__(
        self,
        max_t: float,
        grace_period: float,
        reduction_factor: float = 3,
        budgets: Iterable[float] = (),
        rule: Rule | None = None,
    ) -> None:
        if not 0 < grace_period <= max_t:
            raise InputError(
                f"grace_period {grace_period:g}: must lie above 0 and not beyond max_t {max_t:g}; "
                f"set it to {max_t / reduction_factor**2:g}, say"
            )
        if not reduction_factor > 1:
            raise InputError(f"reduction_factor {reduction_factor:g}: must be above 1; 3 is usual")
        self.max_t, self.grace_period, self.reduction_factor = max_t, grace_period, reduction_factor
        self.budgets = sorted(budgets)
        self.rule = rule or Rule()
        self.rungs = [Rung(level, self.budgets, 1 / reduction_factor) for level in self._levels()]
        self._live: dict[str, _Progress] = {}
        self._best_finals = dict.fromkeys(self.budgets, -math.inf)  # of finished trials, by budget
        self.num_decisions = self.num_spared = 0
        self._spared: dict[str, str] = {}  # the reasons, by trial

    def _levels(self) -> list[float]:
        """No rung nearer to the end than half a step, on the log scale of rungs: it would save little."""
        last = self.max_t / math.sqrt(self.reduction_factor)
        levels = [self.grace_period]
        while levels[-1] * self.reduction_factor <= last:
            levels.append(levels[-1] * self.reduction_factor)
        if float(self.grace_period).is_integer() and float(self.max_t).is_integer():
            levels = [round(level) for level in levels]  # samples are whole
        return levels

    @property
    def levels(self) -> list[float]:
        """Samples seen at each rung, rising; a trial is best evaluated exactly there."""
        return [rung.level for rung in self.rungs]

    def decide(self, trial: str, size: float, retention: float, retention_se: float, samples_seen: float) -> Decision:
        """Judge a trial's newest result; a rung that the trial has passed before changes nothing.

        Raises:
            ValueError: `size` is not a positive number.
        """
        if not (size > 0 and math.isfinite(size)):
            raise ValueError(f"trial {trial}: size {size} is no positive number")
        result = (size, retention, retention_se, samples_seen)
        if not math.isfinite(retention):
            self.fail(trial)
            return Decision(trial, False, "failed: retention is no number", *result)
        progress = self._live.setdefault(trial, _Progress(size))
        reached = bisect.bisect_right(self.levels, samples_seen * (1 + 1e-9)) - 1
        if reached <= progress.rung:
            behind = progress.stopped and reached == progress.rung  # else it is being replayed
            return Decision(trial, not behind, "between rungs", *result)
        self.num_decisions += 1
        rung = self.rungs[reached]
        decision = self.judge(trial, rung, *result)
        rung.add(trial, size, retention)
        progress.rung, progress.stopped = reached, not decision.go_on
        return decision

    def finish(self, trial: str, size: float, retention: float, retention_se: float, samples_seen: float) -> None:
        """Note the final value of a trial that ran to its own end; it counts at all rungs that it has not reached.

        A trial that was stopped is left as it is; one whose final value is not finite has failed.
        """
        progress = self._live.setdefault(trial, _Progress(size))
        if progress.stopped or progress.final is not None:
            return
        if not math.isfinite(retention):
            self.fail(trial)
            return
        progress.final = retention
        self._note_final(size, retention)
        if self.rule.count_finished:
            for rung in self.rungs[progress.rung + 1 :]:
                rung.add(trial, size, retention)

    def fail(self, trial: str) -> None:
        """Leave a failed trial out of all rungs, so that it stops no other."""
        self._set_failed(trial, True)

    def revive(self, trial: str) -> None:
        """A trial begins, or resumes from its last checkpoint after `fail`."""
        if len(self._spared) < self.num_spared:
            self.spare(trial, f"one of the first {self.num_spared} trials")
        self._set_failed(trial, False)

    def spare(self, trial: str, reason: str) -> None:
        """Never stop a trial; decisions name the reason."""
        self._spared.setdefault(trial, reason)

    def fail_all_but(self, trials: Container[str]) -> None:
        """Fail the trials that a restored experiment does not have."""
        for trial in self._live:
            if trial not in trials:
                self.fail(trial)

    def rename(self, trial: str, name: str) -> None:
        """Give a trial another name."""
        self._spared = {name if key == trial else key: reason for key, reason in self._spared.items()}
        if trial in self._live:
            self._live = {name if key == trial else key: value for key, value in self._live.items()}
            for rung in self.rungs:
                rung.rename(trial, name)

    def was_stopped(self, trial: str) -> bool:
        """Whether the rule has stopped this trial."""
        return trial in self._live and self._live[trial].stopped

    def set_budgets(self, budgets: Iterable[float]) -> None:
        """Spare the leaders of other budgets from now on."""
        self.budgets = sorted(budgets)
        self._note_finals()
        for rung in self.rungs:
            rung.set_budgets(self.budgets)

    def _set_failed(self, trial: str, failed: bool) -> None:
        for rung in self.rungs:
            rung.set_failed(trial, failed)

    def judge(
        self, trial: str, rung: Rung, size: float, retention: float, retention_se: float, samples_seen: float
    ) -> Decision:
        """The decision about a newcomer to a rung; nothing is noted."""
        rank = rung.ranks.rank_of(size, retention)
        better, own = rung.ranks.num_better(rank), rung.ranks.num_with(size, retention, rank)
        num = rung.num_trials + 1
        allowed = max(1.0, num / self.reduction_factor + 1e-9)
        place = None
        if better + own <= allowed:
            go_on, reason = True, "its layer goes on whole"
        elif better + 1 > allowed:
            go_on, reason, better, own = False, "enough trials are better", int(allowed), 0
        else:
            place = rung.place(*rung.ranks.members_with(size, retention, rank))
            go_on = better + place <= allowed
            reason = f"number {place} of {own} in the layer that is split"
        if not go_on and self.rule.keep_budget_leaders:
            led = [b for b in rung.budgets_led(size, retention) if retention > self._best_finals[b]]
            if led:
                go_on, reason = True, f"leads budget {led[0]:g}, and no finished trial is as good"
        if not go_on and trial in self._spared:
            go_on, reason = True, self._spared[trial]
        result = (size, retention, retention_se, samples_seen)
        return Decision(trial, go_on, reason, *result, rung.level, num, better, own, place)

    def _note_finals(self) -> None:
        self._best_finals = dict.fromkeys(self.budgets, -math.inf)
        for progress in self._live.values():
            if progress.final is not None:
                self._note_final(progress.size, progress.final)

    def _note_final(self, size: float, final: float) -> None:
        for budget, best in self._best_finals.items():
            if size <= budget and final > best:
                self._best_finals[budget] = final

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "max_t": self.max_t,
            "grace_period": self.grace_period,
            "reduction_factor": self.reduction_factor,
            "budgets": self.budgets,
            "rule": asdict(self.rule),
            "trials": {
                name: [progress.size, progress.rung, progress.stopped, progress.final]
                for name, progress in self._live.items()
            },
            "rungs": [rung.state() for rung in self.rungs],
            "num_decisions": self.num_decisions,
            "num_spared": self.num_spared,
            "spared": self._spared,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "AshaBracket":
        """The bracket that `state` was taken from; it makes the same decisions from there on.

        Raises:
            ValueError: another version has written it.
        """
        if state["schema"] != SCHEMA:
            raise ValueError(f"state of early stopping: schema {state['schema']} where {SCHEMA} is read")
        rule = Rule(**state["rule"])
        bracket = cls(state["max_t"], state["grace_period"], state["reduction_factor"], state["budgets"], rule)
        bracket._live = {name: _Progress(*entry) for name, entry in state["trials"].items()}
        bracket._note_finals()
        for rung, saved in zip(bracket.rungs, state["rungs"], strict=True):
            rung.restore(saved)
        bracket.num_decisions, bracket.num_spared = state["num_decisions"], state["num_spared"]
        bracket._spared = dict(state["spared"])
        return bracket


@dataclass
class _Progress:
    size: float
    rung: int = -1
    stopped: bool = False
    final: float | None = None
    """Retention at its own end; None if it has not come there."""


Rungs = AshaBracket  # the name that `raysearch` exports
