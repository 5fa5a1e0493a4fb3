"""Effects of settings on retention, with their intervals.

Estimated by least squares among finished trials, at equal size and mode. A search samples promising settings more
often, so these are observations, not experiments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from raysearch.study.front import Baseline
from raysearch.study.records import TrialRecord

Side = Callable[[TrialRecord], bool | None]
MIN_PER_SIDE = 4
"""Finished trials that each side of a comparison needs."""


@dataclass(frozen=True)
class Effect:
    """An estimated difference in retention with its interval."""

    value: float
    low: float
    high: float
    p_value: float | None = None
    """Two-sided; None where only the interval is known."""

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def reversed(self) -> "Effect":
        """The difference with its sides swapped."""
        return Effect(-self.value, -self.high, -self.low, self.p_value)

    def points(self) -> str:
        """Its magnitude in points of retention, as text."""
        return f"{100 * abs(self.value):.1f} points"

    def interval(self) -> str:
        """The interval in points of retention, as text with signs."""
        return f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def effect_of(
    records: Sequence[TrialRecord], baseline: Baseline, side: Side, within_modes: bool = True
) -> Effect | None:
    """Difference in retention between trials with and without a setting, at equal size and mode.

    Args:
        records: finished trials.
        baseline: the dense model.
        side: of a trial, True with the setting, False without; None leaves the trial out.
        within_modes: False compares at equal size alone, e.g. the modes themselves.

    Returns:
        The coefficient of `side` beside an intercept, the size, its square and the mode. Its 95% interval is Student's
        with the HC3 error (MacKinnon and White, 1985), since small models scatter more than large ones. None when
        either side has fewer than MIN_PER_SIDE trials, or the size and mode leave nothing to compare.
    """
    sides = [(record, side(record)) for record in records]
    chosen = [record for record, found in sides if found is not None]
    on = np.array([found for _, found in sides if found is not None], bool)
    if min(on.sum(), (~on).sum()) < MIN_PER_SIDE:
        return None
    design = np.column_stack([on, _size_and_mode(chosen, baseline, within_modes)])
    retentions = np.array([record.rungs[-1].retention for record in chosen])
    num_free = len(retentions) - design.shape[1]
    if num_free < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    from scipy.stats import t

    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ retentions
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    residuals = (retentions - design @ coefficients) / np.maximum(1 - leverage, 1e-3)
    error = float(np.sqrt(np.sum(((design @ inverse)[:, 0] * residuals) ** 2)))
    value, reach = float(coefficients[0]), float(t.ppf(0.975, num_free)) * error
    p_value = float(2 * t.sf(abs(value) / error, num_free)) if error else float(value == 0)
    return Effect(value, value - reach, value + reach, p_value)


def left_at_equal_size(records: Sequence[TrialRecord], baseline: Baseline, within_modes: bool = True) -> np.ndarray:
    """(n,) retention of finished trials less that expected at their size, and mode, by least squares."""
    retentions = np.array([record.rungs[-1].retention for record in records])
    design = _size_and_mode(records, baseline, within_modes)
    return retentions - design @ np.linalg.lstsq(design, retentions, rcond=None)[0]


def finished(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that were trained to their end and scored."""
    return [record for record in records if record.end == "finished" and record.rungs]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two (n,) arrays; ties share their mean rank; 0 if one side does not vary."""
    one, other = _ranks(np.asarray(first, float)), _ranks(np.asarray(second, float))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _size_and_mode(records: Sequence[TrialRecord], baseline: Baseline, with_modes: bool) -> np.ndarray:
    """(n, 3 + modes - 1): an intercept, the size, its square, and a column per mode but the first."""
    size = np.array([record.size_bytes / baseline.size_bytes for record in records])
    modes = sorted({record.recipe.mode for record in records}) if with_modes else []
    dummies = [[record.recipe.mode == mode for record in records] for mode in modes[1:]]
    return np.column_stack([np.ones(len(size)), size, size**2, *np.array(dummies, float)])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
