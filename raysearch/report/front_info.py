"""What the plots of a front show, as plain values; `plots` draws them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from raysearch.config.budget import Budget, Size, rate_text
from raysearch.config.recipe import Recipe
from raysearch.study.front import Baseline, Front, FrontPoint, retention_text
from raysearch.study.records import TrialRecord
from raysearch.study.secrets import mask

MAX_TRIALS_DRAWN = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class PlotPoint:
    """One recipe in a plot of retention over size.

    Attributes:
        size_ratio: size as a share of the dense model's bytes.
        retention: on the search split; 1 is the dense model.
        interval: its 95% interval, or None.
        end: `finished` or `stopped`.
        tooltip: (name, value), one pair per line.
    """

    key: str
    size_ratio: float
    retention: float
    interval: tuple[float, float] | None
    mode: str
    end: str
    tooltip: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BudgetLine:
    """A budget, as a share of the dense model's bytes, and the key of the recipe that answers it."""

    text: str
    size_ratio: float
    answer: str | None


@dataclass(frozen=True)
class FrontInfo:
    """All that a plot of a front shows.

    Attributes:
        points: the front, sorted by size.
        staircase: (num_corners, 2) corners of the best retention within each size, from the smallest point to 1.
        budgets: sorted by size.
    """

    study: str
    model: str
    dense: Size
    hypervolume: float
    points: tuple[PlotPoint, ...]
    staircase: tuple[tuple[float, float], ...]
    budgets: tuple[BudgetLine, ...]


def front_info(front: Front) -> FrontInfo:
    """What a plot of `front` shows."""
    dense = front.baseline.size
    points = tuple(_front_point(point) for point in front.points)
    lines = [BudgetLine(text, Budget.parse(text).size_ratio(dense), key) for text, key in front.budgets.items()]
    return FrontInfo(
        study=front.study,
        model=mask(front.model),
        dense=dense,
        hypervolume=front.hypervolume,
        points=points,
        staircase=staircase([(point.size_ratio, point.retention) for point in points]),
        budgets=tuple(sorted(lines, key=lambda line: line.size_ratio)),
    )


def staircase(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Corners of the best retention within each size; `points` sorted by size, retention rising with it."""
    corners: list[tuple[float, float]] = []
    for size, retention in points:
        if corners:
            corners.append((size, corners[-1][1]))
        corners.append((size, retention))
    if corners and corners[-1][0] < 1:
        corners.append((1.0, corners[-1][1]))
    return tuple(corners)


def thinned(records: Sequence[T], num: int) -> Sequence[T]:
    """At most `num` of them, evenly spread from the first to the last."""
    if len(records) <= num:
        return records
    return [records[index] for index in np.linspace(0, len(records) - 1, num).round().astype(int)]


def thinned_text(num: int, records: Sequence[Any], what: str = "shown") -> str:
    """A sentence that says so; empty where nothing is left out."""
    return (
        f"{num:,} of {len(records):,} trials are {what}, evenly spread over the search." if num < len(records) else ""
    )


def trial_points(records: Iterable[TrialRecord], baseline: Baseline) -> tuple[PlotPoint, ...]:
    """The scored trials, each at its last retention, without the failed ones; MAX_TRIALS_DRAWN of them at most."""
    scored = [record for record in records if record.rungs and record.end != "failed"]
    return tuple(
        PlotPoint(
            key=record.key,
            size_ratio=record.size_bytes / baseline.size_bytes,
            retention=record.rungs[-1].retention,
            interval=None,
            mode=record.recipe.mode,
            end=record.end,
            tooltip=(
                *_recipe_lines(record.recipe),
                ("samples seen", f"{record.rungs[-1].samples_seen:,}"),
                ("end", record.end),
            ),
        )
        for record in thinned(scored, MAX_TRIALS_DRAWN)
    )


def off_front(info: FrontInfo, trials: Iterable[PlotPoint]) -> list[PlotPoint]:
    """The trials that are not on the front, so that each recipe is drawn once."""
    keys = {point.key for point in info.points}
    return [trial for trial in trials if trial.key not in keys]


def axis_ranges(info: FrontInfo, trials: Sequence[PlotPoint]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(low, high) of the size axis and of the retention axis, which leaves out the worst tenth of the trials."""
    sizes = [point.size_ratio for point in (*info.points, *trials)] + [line.size_ratio for line in info.budgets]
    intervals = [point.interval for point in info.points if point.interval]
    tried = sorted(trial.retention for trial in trials)
    bottom = min([1.0, *(low for low, _ in intervals), *tried[len(tried) // 10 :][:1]])
    top = max([1.0, *(high for _, high in intervals), *tried[-1:]])
    margin = max(0.02, 0.06 * (top - bottom))
    return (max(0.0, min([0.9, *sizes]) - 0.04), 1.03), (max(bottom - margin, -0.02), top + margin)


def _front_point(point: FrontPoint) -> PlotPoint:
    lines = [
        ("retention", retention_text(point)),
        ("size", f"{point.size_ratio:.1%}: {point.size_bytes:,} bytes, {point.num_params:,} parameters"),
    ]
    if point.heldout:
        lines.append(("held out", f"{point.heldout.retention:.1%}"))
    if point.measured:
        lines.append(("prefill", f"{1000 * point.measured.prefill_seconds:.3g} ms"))
        lines.append(("decoding", rate_text(point.measured.decode_tokens_per_second)))
    lines += [(f"score {name}", f"{score:.3f}") for name, score in point.scores.items()]
    lines += [*_recipe_lines(point.recipe), ("samples seen", f"{point.samples_seen:,}")]
    mode, interval = point.recipe.mode, point.retention_ci
    return PlotPoint(point.key, point.size_ratio, point.retention, interval, mode, "finished", tuple(lines))


def _recipe_lines(recipe: Recipe) -> list[tuple[str, str]]:
    """The fields that apply, as text."""
    return [
        (name, f"{value:.3g}" if isinstance(value, float) else str(value)) for name, value in recipe.as_dict().items()
    ]
