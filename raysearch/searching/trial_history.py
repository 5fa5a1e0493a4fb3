"""The trials of a search, and the retention that its unfinished ones would probably reach."""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raysearch.config.recipe import Recipe
from raysearch.searching.samplers.sized_space import Candidate
from raysearch.study.multi_objective import nondomination_ranks

End = Literal["finished", "stopped", "failed"]


@dataclass
class Proposal(Candidate):
    """A candidate that became a trial.

    Attributes:
        number: of the trial, counted from 0 in the order of the proposals.
        curve: (samples seen, retention), rising in the first.
        end: None while it runs.
    """

    number: int
    curve: list[tuple[float, float]] = field(default_factory=list)
    end: End | None = None

    @property
    def samples_seen(self) -> float:
        """Samples seen at its last result; 0 before the first."""
        return self.curve[-1][0] if self.curve else 0.0


class TrialHistory:
    """The trials of a search, by name, in the order of their proposals.

    Attributes:
        proposals: all of them.
        running: those that have not ended.
        front: names of the finished ones that no finished one dominates.
        identities: of all models proposed (`Candidate.identity`).
        num_by_size: how many trials there are of each size ratio.
        num_samples_ended: recovery samples that the ended ones have seen.
    """

    def __init__(self) -> None:
        self.proposals: dict[str, Proposal] = {}
        self.running: dict[str, Proposal] = {}
        self.front: list[str] = []
        self.identities: set[tuple[float, str]] = set()
        self.num_by_size = Counter[float]()
        self.num_samples_ended = 0.0
        # Of finished trials: gains from each number of samples to the end, sorted; and their statistics, as needed.
        self._gains: dict[float, list[float]] = {}
        self._expected: dict[float, tuple[float, float, int]] = {}

    def __len__(self) -> int:
        return len(self.proposals)

    def __iter__(self) -> Iterator[tuple[str, Proposal]]:
        return iter(self.proposals.items())

    def add(
        self, trial: str, candidate: Candidate, curve: Iterable[tuple[float, float]] = (), end: End | None = None
    ) -> Proposal:
        """Begin a trial."""
        made = Proposal(candidate.recipe, candidate.params, candidate.size_ratio, len(self), list(curve), end)
        self.proposals[trial] = made
        if end is None:
            self.running[trial] = made
        else:
            self.num_samples_ended += made.samples_seen
        self.identities.add(made.identity)
        self.num_by_size[made.size_ratio] += 1
        return made

    def rename(self, trial: str, name: str) -> None:
        """Give a running trial another name; its place in the order stays."""
        self.proposals = {name if key == trial else key: value for key, value in self.proposals.items()}
        self.running = {name if key == trial else key: value for key, value in self.running.items()}

    def report(self, trial: str, samples_seen: float, retention: float) -> None:
        """Add a value to a trial's curve; one that is not finite, or was there before, is ignored."""
        curve = self.proposals[trial].curve
        if math.isfinite(retention) and (not curve or samples_seen > curve[-1][0]):
            curve.append((float(samples_seen), float(retention)))

    def end(self, trial: str, end: End) -> None:
        """End a trial; one without any value has failed."""
        proposal = self.proposals[trial]
        proposal.end = end if proposal.curve else "failed"
        self.running.pop(trial, None)
        self.num_samples_ended += proposal.samples_seen
        if proposal.end == "finished":
            self._note_finished(trial)

    def final(self, trial: str) -> tuple[float, float] | None:
        """The final retention and its standard deviation; None for a trial that failed or has no value yet.

        For a stopped or running trial: its last value plus the median gain of finished trials from there to their end;
        the deviation is half the distance between the 16% and 84% quantiles of these gains.
        """
        proposal = self.proposals[trial]
        if proposal.end == "failed" or not proposal.curve:
            return None
        seen, value = proposal.curve[-1]
        if proposal.end == "finished":
            return value, 0.0
        gain, deviation, num = self._gain_from(seen)
        return value + max(0.0, gain), deviation + abs(value) * (0.05 / num if num else 0.1)

    def _gain_from(self, seen: float) -> tuple[float, float, int]:
        """Median, half the distance between the 16% and 84% quantiles, and number; 0 where there are no gains."""
        if seen not in self._expected:
            gains = self._gains.get(seen) or [0.0]
            last = len(gains) - 1
            middle = (gains[last // 2] + gains[len(gains) // 2]) / 2
            low, high = gains[math.floor(0.16 * last)], gains[math.ceil(0.84 * last)]
            self._expected[seen] = middle, (high - low) / 2, len(self._gains.get(seen, ()))
        return self._expected[seen]

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {name: [p.recipe.as_dict(), p.params, p.size_ratio, p.curve, p.end] for name, p in self}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "TrialHistory":
        """The history that `state` was taken from."""
        history = cls()
        for name, (recipe, params, size_ratio, curve, end) in state.items():
            candidate = Candidate(Recipe(**recipe), params, size_ratio)
            history.add(name, candidate, [(seen, value) for seen, value in curve], end)
        for name, proposal in history:
            if proposal.end == "finished":
                history._note_finished(name)
        return history

    def _note_finished(self, trial: str) -> None:
        curve = self.proposals[trial].curve
        names = [*self.front, trial]
        points = np.array([(self.proposals[n].size_ratio, -self.proposals[n].curve[-1][1]) for n in names])
        self.front = [name for name, rank in zip(names, nondomination_ranks(points), strict=True) if rank == 0]
        for seen, value in curve[:-1]:
            bisect.insort(self._gains.setdefault(seen, []), curve[-1][1] - value)
        self._expected.clear()
