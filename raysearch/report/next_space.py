"""What the next search space should change, by where the front lies and by what was found."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysearch.config.dimensions import Range
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
    """Ranges with at least half of the front in the tenth at one end."""
    suggested = []
    for name, cases in space.recipe.items():
        values = [float(p.recipe.as_dict()[name]) for p in front.points if _is_number(p.recipe.as_dict().get(name))]  # type: ignore[arg-type]
        if name == "ratio" or len(cases) != 1 or not isinstance(cases[0], Range) or len(values) < MIN_POINTS:
            continue
        case = cases[0]
        places = [_place(value, case) for value in values]
        for is_near, end, way in (
            ([place <= EDGE for place in places], case.low, "below"),
            ([place >= 1 - EDGE for place in places], case.high, "above"),
        ):
            if case.low < case.high and sum(is_near) * 2 >= len(values):
                reason = f"{sum(is_near)} of {len(values)} recipes on the front lie in the tenth of the range next to it"
                suggested.append(Change(f"recipe.{name}", f"let it go {way} {end:g}, where that is valid", reason))
    return suggested


def _choices(space: SearchSpace, found: Sequence[Finding]) -> list[Change]:
    """Choices that retain less than another one at equal size and mode, or known to retain as much."""
    suggested = {}
    for finding in found:
        field, value = finding.needless or ("", "")
        if value in space.values_of(field) and len(space.values_of(field)) > 1:
            suggested.setdefault((field, value), Change(f"recipe.{field}", f"leave out {value}", finding.sentence))
    return list(suggested.values())


def _place(value: float, case: Range) -> float:
    low, high = (math.log(case.low), math.log(case.high)) if case.log else (case.low, case.high)
    return ((math.log(value) if case.log else value) - low) / max(high - low, 1e-12)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
