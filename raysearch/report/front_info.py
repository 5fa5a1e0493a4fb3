"""What pictures of a front show, as plain values: worked out here, drawn elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raysearch.config.budget import Budget, Size, rate_text
from raysearch.config.recipe import Recipe
from raysearch.study.front import Baseline, Front, FrontPoint
from raysearch.study.records import TrialRecord
from raysearch.study.secrets import mask


@dataclass(frozen=True)
class Mark:
    """One recipe in the plane of size and retention.

    Attributes:
        size_ratio: size as a share of the dense model's bytes.
        retention: on the search split; 1 is the dense model.
        interval: its 95% interval, or None.
        end: `finished` or `stopped`.
        facts: name and value, one pair per line of a tooltip.
    """

    key: str
    size_ratio: float
    retention: float
    interval: tuple[float, float] | None
    mode: str
    end: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BudgetLine:
    """A budget asked for, as a share of the dense model's bytes, and the key of its answer."""

    text: str
    size_ratio: float
    answer: str | None


@dataclass(frozen=True)
class FrontInfo:
    """All that a picture of a front shows.

    Attributes:
        points: the front, sorted by size.
        stairs: (num_corners, 2) corners of the best retention within each size, from the smallest point to 1.
    """

    study: str
    model: str
    dense: Size
    hypervolume: float
    points: tuple[Mark, ...]
    stairs: tuple[tuple[float, float], ...]
    budgets: tuple[BudgetLine, ...]


def front_info(front: Front) -> FrontInfo:
    """What a picture of `front` shows."""
    dense = front.baseline.size
    points = tuple(_front_mark(point) for point in front.points)
    lines = [BudgetLine(text, Budget.parse(text).size_ratio(dense), key) for text, key in front.budgets.items()]
    return FrontInfo(
        study=front.study,
        model=mask(front.model),
        dense=dense,
        hypervolume=front.hypervolume,
        points=points,
        stairs=staircase([(mark.size_ratio, mark.retention) for mark in points]),
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


def trial_marks(records: Iterable[TrialRecord], baseline: Baseline) -> tuple[Mark, ...]:
    """Trials that reached a rung, each at its last retention; failed ones are left out."""
    return tuple(
        Mark(
            key=record.key,
            size_ratio=record.size_bytes / baseline.size_bytes,
            retention=record.rungs[-1].retention,
            interval=None,
            mode=record.recipe.mode,
            end=record.end,
            facts=(
                *recipe_facts(record.recipe),
                ("samples seen", f"{record.rungs[-1].samples_seen:,}"),
                ("end", record.end),
            ),
        )
        for record in records
        if record.rungs and record.end != "failed"
    )


def recipe_facts(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The fields that apply, as text."""
    return tuple(
        (name, f"{value:.3g}" if isinstance(value, float) else str(value)) for name, value in recipe.as_dict().items()
    )


def off_front(info: FrontInfo, trials: Iterable[Mark]) -> list[Mark]:
    """The trials that are not on the front: each recipe is drawn once."""
    keys = {mark.key for mark in info.points}
    return [mark for mark in trials if mark.key not in keys]


def retention_range(info: FrontInfo, trials: Sequence[Mark]) -> tuple[float, float]:
    """Range of a retention axis: all of the front, and trials down to the worst tenth."""
    intervals = [mark.interval for mark in info.points if mark.interval]
    tried = sorted(mark.retention for mark in trials)
    lows = [1.0, *(low for low, _ in intervals), *tried[len(tried) // 10 :][:1]]
    highs = [1.0, *(high for _, high in intervals), *tried[-1:]]
    bottom = min(lows)
    room = max(0.02, 0.06 * (max(highs) - bottom))
    return max(bottom - room, -0.02), max(highs) + room


def smallest_size(info: FrontInfo, trials: Sequence[Mark]) -> float:
    """Where a size axis begins."""
    sizes = [mark.size_ratio for mark in (*info.points, *trials)]
    sizes += [line.size_ratio for line in info.budgets]
    return max(0.0, min([0.9, *sizes]) - 0.04)


def _front_mark(point: FrontPoint) -> Mark:
    low, high = point.retention_ci
    facts = [
        ("retention", f"{point.retention:.1%} [{100 * low:.1f}, {100 * high:.1f}]"),
        ("size", f"{point.size_ratio:.1%}: {point.size_bytes:,} bytes, {point.num_params:,} parameters"),
    ]
    if point.heldout:
        facts.append(("held out", f"{point.heldout.retention:.1%}"))
    if point.measured:
        facts.append(("prefill", f"{1000 * point.measured.prefill_seconds:.3g} ms"))
        facts.append(("decoding", rate_text(point.measured.decode_tokens_per_second)))
    facts += [(f"score {name}", f"{score:.3f}") for name, score in point.scores.items()]
    facts += [*recipe_facts(point.recipe), ("samples seen", f"{point.samples_seen:,}")]
    return Mark(point.key, point.size_ratio, point.retention, (low, high), point.recipe.mode, "finished", tuple(facts))
