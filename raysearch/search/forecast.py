"""What further trials are expected to add."""

from collections.abc import Mapping
from dataclasses import dataclass

from raysearch.search.trial_history import TrialHistory

NUM_RUNS = 10.0


@dataclass(frozen=True)
class Gain:
    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    num_runs: float
    front: Gain
    at_budgets: dict[str, Gain]

    @property
    def most_points(self) -> float:
        gains = self.at_budgets.values() or [self.front]
        return max(gain.points for gain in gains)


def forecast(history: TrialHistory, full_run: float, limits: Mapping[str, float]) -> Forecast | None:
    return None
