"""The trials that reached one rung, and their values there."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysearch.searching.early_stopping.nondomination import NonDominatedRanks
from raysearch.study.multi_objective import exclusive_hypervolume

BEYOND = 0.1  # of the range, between the worst point and where areas end, so that the largest model's counts


class Rung:
    """The trials at one rung.

    Args:
        level: samples seen here.
        budgets: sizes that answers are wanted for.
        share: of the trials, best first, that are ranked (see `NonDominatedRanks`).

    Attributes:
        values: (size, retention) by trial, in order of arrival.
        failed: trials that don't count.
        ranks: non-domination ranks of the trials that count.
    """

    def __init__(self, level: float, budgets: Sequence[float], share: float) -> None:
        self.level, self._budgets, self._share = level, budgets, share
        self.values: dict[str, tuple[float, float]] = {}
        self.failed: set[str] = set()
        self._rebuild()

    @property
    def num_trials(self) -> int:
        """Trials that count."""
        return len(self.values) - len(self.failed)

    def add(self, trial: str, size: float, retention: float) -> None:
        """Note that a trial came here; a second time changes nothing."""
        if trial not in self.values:
            self.values[trial] = (size, retention)
            self.ranks.add(size, retention)
            self._widen(size, retention)

    def set_failed(self, trial: str, failed: bool) -> None:
        """Leave a trial out, or count it again."""
        if trial in self.values and (trial in self.failed) != failed:
            self.failed ^= {trial}
            self._rebuild()

    def rename(self, trial: str, name: str) -> None:
        """Give a trial another name; its place stays."""
        if trial in self.values:
            self.values = {name if key == trial else key: value for key, value in self.values.items()}
            self.failed = {name if key == trial else key for key in self.failed}

    def set_budgets(self, budgets: Sequence[float]) -> None:
        """Follow the leaders of other budgets from now on."""
        self._budgets = budgets
        self._rebuild()

    def budgets_led(self, size: float, retention: float) -> list[float]:
        """The budgets that the point is within and where no trial here is as good."""
        return [budget for budget, best in self._best.items() if size <= budget and retention > best]

    def place(self, members: np.ndarray, newcomer: int) -> int:
        """A newcomer's place among the members of its rank by exclusive hypervolume, 1 being best.

        Areas are over log size, and over retention from 0 on: as in the hypervolume of a search, a small model counts
        for all that it retains. Where a value is below 0, they begin just below the rung's lowest one. Equals that came
        earlier are before the newcomer.

        Args:
            members: (n, 2) sizes and retentions of the rank, both rising.
            newcomer: its row.
        """
        points = np.stack([np.log(members[:, 0]), -members[:, 1]], 1)
        low, high = np.minimum(self._low, points[newcomer]), np.maximum(self._high, points[newcomer])
        reference = high + BEYOND * np.where(high > low, high - low, 1.0)
        if high[1] <= 0:
            reference[1] = 0.0
        areas = exclusive_hypervolume(points, reference)
        return int(np.sum(areas >= areas[newcomer]))

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {"values": {trial: list(value) for trial, value in self.values.items()}, "failed": sorted(self.failed)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.values = {trial: tuple(value) for trial, value in state["values"].items()}
        self.failed = set(state["failed"])
        self._rebuild()

    def _rebuild(self) -> None:
        counted = [value for trial, value in self.values.items() if trial not in self.failed]
        self.ranks, self._best = NonDominatedRanks(counted, self._share), dict.fromkeys(self._budgets, -math.inf)
        self._low, self._high = np.full(2, math.inf), np.full(2, -math.inf)
        for size, retention in counted:
            self._widen(size, retention)

    def _widen(self, size: float, retention: float) -> None:
        for budget in self.budgets_led(size, retention):
            self._best[budget] = retention
        here = np.array([math.log(size), -retention])
        self._low, self._high = np.minimum(self._low, here), np.maximum(self._high, here)
