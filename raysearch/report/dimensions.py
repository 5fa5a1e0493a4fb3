"""The dimensions of a study's recipes as plain values, for parallel coordinates and for slices at equal size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysearch.report.effects import finished, left_at_equal_size
from raysearch.report.front_info import thinned
from raysearch.study.front import Baseline, Front
from raysearch.study.records import TrialRecord

MAX_LINES = 200
MAX_DOTS = 300
MIN_TRIALS = 8
"""Finished trials, before slices are drawn."""


@dataclass(frozen=True)
class Axis:
    """A dimension that varies.

    Attributes:
        levels: of a dimension with few values or with names, all of them in order; empty for numbers.
        log: whether numbers are drawn by their logarithm.
    """

    name: str
    levels: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def place(self, value: object) -> float | None:
        """Where a value lies, from 0 to 1; None if the dimension doesn't apply."""
        if value is None:
            return None
        if self.levels:
            return self.levels.index(level_text(value)) / max(1, len(self.levels) - 1)
        assert isinstance(value, int | float), value
        if self.log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)


def axes_of(records: Sequence[TrialRecord]) -> list[Axis]:
    """The dimensions that vary over these trials, in the order of a recipe's fields."""
    found: list[Axis] = []
    rows = [record.recipe.as_dict() for record in records]
    for name in dict.fromkeys(name for row in rows for name in row):
        values = {row[name] for row in rows if name in row}
        if name == "seed" or len(values) < 2:
            continue
        numbers = [value for value in values if isinstance(value, int | float)]
        if len(numbers) == len(values) and len(values) > 5:
            low, high = float(min(numbers)), float(max(numbers))
            found.append(Axis(name, (), low, high, log=low > 0 and high / low > 20))
        else:
            found.append(Axis(name, tuple(map(level_text, sorted(values, key=lambda v: (str(type(v)), v))))))  # type: ignore[arg-type]
    return found


def level_text(value: object) -> str:
    """A value of few, as text."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Line:
    """A finished trial in parallel coordinates: its place on each axis."""

    key: str
    places: tuple[float | None, ...]
    is_on_front: bool


def parallel_lines(front: Front, records: Sequence[TrialRecord]) -> tuple[list[Axis], list[Line]]:
    """Axes, the last two of them size and retention, and the lines: MAX_LINES of the finished trials at most, and all
    of the front."""
    ended = finished(records)
    keys = {point.key for point in front.points}
    shown = [*thinned([r for r in ended if r.key not in keys], MAX_LINES), *(r for r in ended if r.key in keys)]
    if not shown:
        return [], []
    axes = axes_of(shown)
    outcomes = np.array([(r.size_bytes / front.baseline.size_bytes, r.rungs[-1].retention) for r in shown])
    lows, highs = outcomes.min(0), outcomes.max(0)
    highs = np.where(highs > lows, highs, lows + 1e-9)
    lines = [
        Line(
            record.key,
            (
                *(axis.place(record.recipe.as_dict().get(axis.name)) for axis in axes),
                *((outcome - lows) / (highs - lows)).tolist(),
            ),
            record.key in keys,
        )
        for record, outcome in zip(shown, outcomes, strict=True)
    ]
    ends = [
        Axis(name, (), float(low), float(high))
        for name, low, high in zip(("size", "retention"), lows, highs, strict=True)
    ]
    return [*axes, *ends], lines


@dataclass(frozen=True)
class Slice:
    """Finished trials by the value of one dimension.

    Attributes:
        values: (num_trials,) numbers, or names of levels.
        differences: (num_trials,) retention less what trials of this size and mode retain, by least squares.
        means: by level, the mean difference with its 95% interval (Student); none for numbers.
    """

    axis: Axis
    values: tuple[float | str, ...]
    differences: tuple[float, ...]
    means: dict[str, tuple[float, float, float]]


def slices(records: Sequence[TrialRecord], baseline: Baseline) -> list[Slice]:
    """A slice of each dimension that varies but the ratio, which is the size; none below MIN_TRIALS."""
    ended = thinned(finished(records), MAX_DOTS)
    if len(ended) < MIN_TRIALS:
        return []
    found = []
    for axis in axes_of(ended):
        if axis.name == "ratio":
            continue
        chosen = [record for record in ended if axis.name in record.recipe.as_dict()]
        if len(chosen) < MIN_TRIALS:
            continue
        left = left_at_equal_size(chosen, baseline, within_modes=axis.name != "mode")
        raw = [record.recipe.as_dict()[axis.name] for record in chosen]
        values = tuple(level_text(value) if axis.levels else float(value) for value in raw)  # type: ignore[arg-type]
        means = {level: _mean(left[[value == level for value in values]]) for level in axis.levels}
        found.append(Slice(axis, values, tuple(left.tolist()), {k: m for k, m in means.items() if m}))
    return found


def _mean(values: np.ndarray) -> tuple[float, float, float] | None:
    """Mean, low and high; None for fewer than 4 values, whose spread tells nothing."""
    if len(values) < 4:
        return None
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), float(values.mean()) - reach, float(values.mean()) + reach
