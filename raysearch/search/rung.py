"""What is known at one rung: the trials that came to it, their values there, and what became of these."""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysearch.front import exclusive_hypervolume
from raysearch.search.layers import Layers

REFERENCE = np.array([1.1, 1.1])  # just beyond the unit square, so that the ends of a layer count


class Rung:
    """The trials at one rung.

    Attributes:
        level: samples seen here.
        values: (size, retention, standard error) by trial, in order of arrival.
        gains_to_end: what finished trials gained from here to their end, rising.
        failed: trials that don't count.
        layers: non-domination layers of the trials that count.
    """

    def __init__(self, level: float, budgets: Sequence[float]) -> None:
        self.level, self._budgets = level, budgets
        self.values: dict[str, tuple[float, float, float]] = {}
        self.gains_to_end: list[float] = []
        self.failed: set[str] = set()
        self._column: dict[str, int] = {}  # where a trial stands in `_numbers`
        self._numbers = np.full((2, 64), np.nan)  # retention here, and gain since; NaN where there is none
        self._rebuild()

    @property
    def num_trials(self) -> int:
        """Trials that count."""
        return len(self.values) - len(self.failed)

    def add(self, trial: str, size: float, retention: float, se: float) -> None:
        """A trial came here; a second time changes nothing."""
        if trial not in self.values:
            self.values[trial] = (size, retention, se)
            self._number(trial, retention)
            self._count(size, retention)

    def note_value(self, trial: str, retention: float) -> None:
        """A trial that was here has come to this retention since."""
        if trial in self.values:
            self._numbers[1, self._column[trial]] = retention - self.values[trial][1]

    def set_failed(self, trial: str, failed: bool) -> None:
        """Leave a trial out, or count it again."""
        if trial in self.values and (trial in self.failed) != failed:
            self.failed ^= {trial}
            self._rebuild()

    def rename(self, trial: str, name: str) -> None:
        """Give a trial another name; its place stays."""
        if trial in self.values:
            self.values = {name if key == trial else key: value for key, value in self.values.items()}
            self._column[name] = self._column.pop(trial)
            self.failed = {name if key == trial else key for key in self.failed}

    def budgets_led(self, size: float, retention: float) -> list[float]:
        """The budgets within which no trial here is as good."""
        return [budget for budget, best in self._best.items() if size <= budget and retention > best]

    def rank(self, company: np.ndarray, newcomer: int, retention: float) -> int:
        """A newcomer's place in its layer by exclusive hypervolume, 1 being best.

        Both axes, log size and retention, are scaled to [0, 1] over the rung. Of equals, those that came earlier stand
        before the newcomer.

        Args:
            company: (n, 2) sizes and retentions of the layer, both rising.
            newcomer: its row.
            retention: its retention without margin.
        """
        points = np.stack([np.log(company[:, 0]), -company[:, 1]], 1)
        here = np.array([points[newcomer, 0], -retention])
        low, high = np.minimum(self._low, here), np.maximum(self._high, here)
        points = (points - low) / np.where(high > low, high - low, 1.0)
        areas = exclusive_hypervolume(points, REFERENCE)
        return int(np.sum(areas >= areas[newcomer]))

    def movement(self, newcomer: float, prior: float) -> float:
        """Variance of how values here have moved by later rungs, a common shift apart.

        Where little is known, the variance of the values here stands in, with the weight of `prior` trials.
        """
        values, gains = self._numbers[:, : len(self.values)]
        gains = gains[~np.isnan(gains)]
        moved = float(np.var(gains)) * len(gains) if len(gains) else 0.0
        return (prior * float(np.var(np.append(values, newcomer))) + moved) / (prior + len(gains))

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {
            "values": {trial: list(value) for trial, value in self.values.items()},
            "gains": {
                trial: float(self._numbers[1, column])
                for trial, column in self._column.items()
                if not math.isnan(self._numbers[1, column])
            },
            "gains_to_end": list(self.gains_to_end),
            "failed": sorted(self.failed),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.values = {trial: tuple(value) for trial, value in state["values"].items()}
        self._column = {}
        for trial, (_, retention, _) in self.values.items():
            self._number(trial, retention)
        for trial, gain in state["gains"].items():
            self._numbers[1, self._column[trial]] = gain
        self.gains_to_end = list(state["gains_to_end"])
        self.failed = set(state["failed"])
        self._rebuild()

    def _number(self, trial: str, retention: float) -> None:
        column = self._column[trial] = len(self._column)
        if column == self._numbers.shape[1]:
            self._numbers = np.concatenate([self._numbers, np.full_like(self._numbers, np.nan)], 1)
        self._numbers[:, column] = retention, np.nan

    def _rebuild(self) -> None:
        self.layers, self._best = Layers(), dict.fromkeys(self._budgets, -math.inf)
        self._low, self._high = np.full(2, math.inf), np.full(2, -math.inf)
        for trial, (size, retention, _) in self.values.items():
            if trial not in self.failed:
                self._count(size, retention)

    def _count(self, size: float, retention: float) -> None:
        self.layers.add(size, retention)
        for budget in self.budgets_led(size, retention):
            self._best[budget] = retention
        here = np.array([math.log(size), -retention])
        self._low, self._high = np.minimum(self._low, here), np.maximum(self._high, here)


class BestWithin:
    """The best retention at no more than a size: a staircase of (size, retention), rising in both."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []

    def within(self, size: float) -> float:
        """-inf if nothing is as small."""
        at = bisect.bisect_right(self.points, size, key=lambda point: point[0])
        return self.points[at - 1][1] if at else -math.inf

    def add(self, size: float, retention: float) -> None:
        """One more; it stays only if it is the best at its size."""
        if retention > self.within(size):
            kept = [point for point in self.points if point[0] < size or point[1] > retention]
            self.points = sorted([*kept, [size, retention]])
