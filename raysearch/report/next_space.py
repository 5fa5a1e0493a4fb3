"""What the next search space should change, by where the front lies and by what was found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysearch.config.dimensions import Range, matches
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.report.findings import Finding
from raysearch.study.front import Front

MIN_POINTS = 4
EDGE = 0.1
"""Part of a range at each end, of its logarithm where it is sampled so."""


@dataclass(frozen=True)
class Change:
    """A change of one key of the space, and why."""

    key: str
    text: str
    reason: str


def changes(space: SearchSpace, front: Front, found: Sequence[Finding]) -> list[Change]:
    """Ranges to widen, choices to leave out; none where the study shows too little."""
    return [*_ranges(space, front), *_choices(space, found)]


def _ranges(space: SearchSpace, front: Front) -> list[Change]:
    """Ranges with at least half of the front in the tenth at one end, of the recipes that a range holds for."""
    suggested = []
    rows = [point.recipe.as_dict() for point in front.points]
    for name, case in ((name, case) for name, cases in space.recipe.items() for case in cases):
        if name == "ratio" or not isinstance(case, Range) or case.low == case.high:
            continue
        values = [float(row[name]) for row in rows if name in row and matches(row, case.when)]  # type: ignore[arg-type]
        places = [_place(value, case) for value in values]
        for num_near, end, way in (
            (sum(place <= EDGE for place in places), case.low, "below"),
            (sum(place >= 1 - EDGE for place in places), case.high, "above"),
        ):
            if len(values) >= MIN_POINTS and 2 * num_near >= len(values) and not _is_last(name, end):
                which = "".join(f", where {field} is {value}" for field, value in case.when.items())
                reason = f"{num_near} of {len(values)} recipes on the front lie in the tenth of the range next to it"
                suggested.append(Change(f"recipe.{name}", f"let it go {way} {end:g}{which}", reason))
    return suggested


def _choices(space: SearchSpace, found: Sequence[Finding]) -> list[Change]:
    """Choices that retain less than another one at equal size and mode, or known to retain as much."""
    suggested: dict[tuple[str, str], Change] = {}
    for finding in found:
        field, value = finding.needless or ("", "")
        if value in space.values_of(field) and len(space.values_of(field)) > 1:
            suggested.setdefault((field, value), Change(f"recipe.{field}", f"leave out {value}", finding.sentence))
    return list(suggested.values())


def _is_last(field: str, value: float) -> bool:
    """Whether a recipe's field admits nothing beyond a value."""
    bounds = Recipe.model_fields[field].metadata
    return any(getattr(bound, kind, None) == value for bound in bounds for kind in ("ge", "gt", "le", "lt"))


def _place(value: float, case: Range) -> float:
    low, high = (math.log(case.low), math.log(case.high)) if case.log else (case.low, case.high)
    return ((math.log(value) if case.log else value) - low) / max(high - low, 1e-12)
