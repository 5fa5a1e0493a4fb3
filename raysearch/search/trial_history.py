"""What a search has tried so far, and what its unfinished trials would probably have come to."""

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raysearch.config.recipe import Recipe
from raysearch.search.samplers.encoding import Encoding
from raysearch.study.multi_objective import nondomination_layers

End = Literal["finished", "stopped", "failed"]
ModelIdentity = tuple[float, str]


def model_identity(recipe: Recipe, size_ratio: float) -> ModelIdentity:
    """What a recipe makes: two of one size that differ in nothing but the ratio make the same model."""
    return size_ratio, recipe.key_without_ratio


@dataclass
class Proposal:
    """A trial as the searcher sees it."""

    number: int
    """Its number in the Optuna study; without one, among the proposals."""
    recipe: Recipe
    size_ratio: float
    params: dict[str, Any]
    """What the sampler was asked and answered."""
    point: np.ndarray
    """Of these and the size, as the gain model reads it (`Encoding`)."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(samples seen, retention), rising in the first."""
    end: End | None = None
    """None while it runs."""


class TrialHistory:
    """The trials of a search, by name, in the order of their proposals."""

    def __init__(self) -> None:
        self.proposals: dict[str, Proposal] = {}
        self.made: set[ModelIdentity] = set()
        """What has been proposed."""
        self.running: dict[str, Proposal] = {}
        """The trials that have not ended, in the order of their proposals."""
        self.front: list[str] = []
        """Finished trials that none of them dominates."""
        self.sizes = Counter[float]()
        """How many trials there are of each size ratio."""
        # Of finished trials, from each number of samples to the end; and what these come to, as far as asked for.
        self._gains: dict[float, list[float]] = {}
        self._expected: dict[float, tuple[float, float, int]] = {}

    def __len__(self) -> int:
        return len(self.proposals)

    def __iter__(self) -> Iterator[tuple[str, Proposal]]:
        return iter(self.proposals.items())

    def add(self, trial: str, proposal: Proposal) -> None:
        """A trial begins."""
        self.proposals[trial] = proposal
        self.sizes[proposal.size_ratio] += 1
        if proposal.end is None:
            self.running[trial] = proposal
        self.made.add(model_identity(proposal.recipe, proposal.size_ratio))

    def rename(self, trial: str, name: str) -> None:
        """Go on with a trial under another name; its place in the order stays."""
        self.proposals = {name if key == trial else key: value for key, value in self.proposals.items()}
        self.running = {name if key == trial else key: value for key, value in self.running.items()}

    def report(self, trial: str, samples_seen: float, retention: float) -> None:
        """A value on the way; one that is no number, or comes again, is passed over."""
        curve = self.proposals[trial].curve
        if math.isfinite(retention) and (not curve or samples_seen > curve[-1][0]):
            curve.append((float(samples_seen), float(retention)))

    def end(self, trial: str, end: End) -> None:
        """A trial ends; one without any value has failed."""
        proposal = self.proposals[trial]
        proposal.end = end if proposal.curve else "failed"
        self.running.pop(trial, None)
        if proposal.end == "finished":
            self._note_finished(trial)

    def final(self, trial: str) -> tuple[float, float] | None:
        """The final retention and its standard deviation.

        Of a stopped or running trial: its last value plus the median gain that finished trials have shown from there to
        their end; the deviation is half the way between 16% and 84% of these gains. None for a trial that failed or has
        no value yet.
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
        """Median, half the way between 16% and 84%, and number; 0 where nothing has been seen."""
        if seen not in self._expected:
            gains = self._gains.get(seen) or [0.0]
            last = len(gains) - 1
            middle = (gains[last // 2] + gains[len(gains) // 2]) / 2
            low, high = gains[math.floor(0.16 * last)], gains[math.ceil(0.84 * last)]
            self._expected[seen] = middle, (high - low) / 2, len(self._gains.get(seen, ()))
        return self._expected[seen]

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {
            name: [p.number, p.recipe.as_dict(), p.size_ratio, p.params, p.curve, p.end]
            for name, p in self.proposals.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], encoding: Encoding) -> "TrialHistory":
        """The history that `state` was taken from."""
        history = cls()
        for name, (number, recipe, ratio, params, curve, end) in state.items():
            point = encoding.point(params, ratio)
            values = [(seen, value) for seen, value in curve]
            history.add(name, Proposal(number, Recipe(**recipe), ratio, params, point, values, end))
        for name, proposal in history:
            if proposal.end == "finished":
                history._note_finished(name)
        return history

    def _note_finished(self, trial: str) -> None:
        proposal = self.proposals[trial]
        named = [*self.front, trial]
        points = np.array([(self.proposals[n].size_ratio, -self.proposals[n].curve[-1][1]) for n in named])
        layers = nondomination_layers(points)
        self.front = [name for name, layer in zip(named, layers, strict=True) if layer == 0]
        for seen, value in proposal.curve[:-1]:
            bisect.insort(self._gains.setdefault(seen, []), proposal.curve[-1][1] - value)
        self._expected.clear()
