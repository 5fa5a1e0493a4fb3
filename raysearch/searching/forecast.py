"""What further full runs are expected to add to the front and to the answers at the budgets.

Had the same trials come in another order, half of their samples would have found so much less, on average over orders;
each further doubling is taken to add as much. docs/measurements/search.md has how well that agrees with replays, and
what else was tried.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysearch.searching.trial_history import TrialHistory
from raysearch.study.multi_objective import hypervolume

NUM_RUNS = 10.0
"""Full runs that a forecast is about."""
MIN_FINISHED, MIN_RUNS = 3, 2.0
"""Finished trials, and full runs, before there is a forecast."""
NUM_ORDERS = 40
HIGH_FACTOR, HIGH_MORE = 2.5, 1.0
"""Four of five gains in replays were at most this factor of the expected one, and so many points more."""


@dataclass(frozen=True)
class Ended:
    """A trial that has ended.

    Attributes:
        size_ratio: share of the dense model's size.
        retention: None unless it finished.
        samples: recovery samples that it saw.
    """

    size_ratio: float
    retention: float | None
    samples: float


@dataclass(frozen=True)
class Gain:
    """An expected gain in points, hundredths of retention or of hypervolume.

    Attributes:
        high: the gain is expected between 0 and this with 80%.
    """

    points: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What `num_runs` further full runs are expected to add.

    Attributes:
        front: to the hypervolume, times 100.
        at_budgets: to the retention of each budget's answer.
        unanswered: budgets within which there are trials, but no finished one, so that nothing can be said of them.
    """

    num_runs: float
    front: Gain
    at_budgets: dict[str, Gain]
    unanswered: tuple[str, ...] = ()

    @property
    def most_points(self) -> float:
        """The largest expected gain at a budget, of the hypervolume without budgets; infinite where nothing can be
        said."""
        if self.unanswered:
            return math.inf
        return max((gain.points for gain in self.at_budgets.values()), default=self.front.points)


def forecast(history: TrialHistory, full_run: float, limits: Mapping[str, float]) -> Forecast | None:
    """What another `NUM_RUNS` full runs are expected to add, by the trials that have ended; None if they are too few.

    Args:
        full_run: samples that the longest trial sees.
        limits: size ratios that answers are wanted for, by budget.
    """
    ended = [
        Ended(trial.size_ratio, trial.curve[-1][1] if trial.end == "finished" else None, trial.samples_seen)
        for _, trial in history
        if trial.end is not None
    ]
    gains = expected_gains(ended, full_run, list(limits.values()))
    if gains is None:
        return None
    missing = np.maximum(0.0, 100.0 - Values(ended, list(limits.values())).of(slice(None)))
    highs = np.fmin(high_of(gains), missing)
    front, *at_budgets = (Gain(*pair) for pair in zip(gains.tolist(), highs.tolist(), strict=True))
    by_budget = dict(zip(limits, at_budgets, strict=True))
    found = {budget: gain for budget, gain in by_budget.items() if not math.isnan(gain.points)}
    smallest = min(trial.size_ratio for _, trial in history)
    unanswered = tuple(budget for budget, limit in limits.items() if budget not in found and smallest <= limit)
    return Forecast(NUM_RUNS, front, found, unanswered)


def high_of(points: np.ndarray) -> np.ndarray:
    """Upper end of the 80% interval of an expected gain, in points; its lower end is 0."""
    return HIGH_FACTOR * points + HIGH_MORE


def expected_gains(trials: Sequence[Ended], full_run: float, limits: Sequence[float]) -> np.ndarray | None:
    """(1 + limits,): points that `NUM_RUNS` full runs are expected to add to the hypervolume and at each limit.

    Args:
        trials: that have ended, in the order of their proposals.

    Returns:
        At most what is missing to the dense model; NaN at a limit that no finished trial is within; None while there
        are too few trials.
    """
    values, each = Values(trials, limits), np.array([trial.samples for trial in trials])
    samples = each.sum()
    if values.num_finished < MIN_FINISHED or samples < MIN_RUNS * full_run:
        return None
    draw, now, halves = np.random.default_rng(0), values.of(slice(None)), []
    for _ in range(NUM_ORDERS):
        order = draw.permutation(len(each))
        halves.append(values.of(order[np.cumsum(each[order]) <= samples / 2]))
    known = ~np.isnan(halves)  # a first answer is no gain
    less = np.where(known, now - halves, 0.0).sum(0) / np.maximum(1, known.sum(0))
    expected = less * math.log2(1 + NUM_RUNS * full_run / samples)
    return np.where(np.isnan(now), math.nan, np.minimum(expected, np.maximum(0.0, 100.0 - now)))


class Values:
    """Hypervolume and best retention at each limit, in points, of some of the trials."""

    def __init__(self, trials: Sequence[Ended], limits: Sequence[float]) -> None:
        self._sizes = np.array([trial.size_ratio for trial in trials])
        self._retentions = np.array([math.nan if trial.retention is None else trial.retention for trial in trials])
        self._within = self._sizes[:, None] <= np.asarray(limits) + 1e-9  # (trials, limits)
        self._is_finished = ~np.isnan(self._retentions)
        self.num_finished = int(self._is_finished.sum())

    def of(self, trials: np.ndarray | slice) -> np.ndarray:
        """(1 + limits,); NaN at a limit that none of these is within."""
        finished = self._is_finished[trials]
        sizes, retentions = self._sizes[trials][finished], self._retentions[trials][finished]
        within = self._within[trials][finished]
        best = np.where(within, retentions[:, None], -math.inf).max(0, initial=-math.inf)
        best[np.isinf(best)] = math.nan
        return 100 * np.array([hypervolume(sizes, retentions), *best])
