"""Ways to choose the values of a recipe: at random, or as near as possible to given ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raysearch.config.dimensions import Suggester, field_of
from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.searching.samplers.encoding import scaled

CHANGE = 0.25  # share of a parent's values that its child draws anew
Solve = Callable[[Mapping[str, Any], float, float], float]
"""(values chosen so far, low, high) -> the removed ratio that meets a size; it may lie outside the bounds."""


class RandomSuggester:
    """Draws values at random, or keeps most of a parent's.

    Args:
        draw: source of randomness.
        parent: values to keep, by name.
    """

    def __init__(self, draw: np.random.Generator, parent: Mapping[str, Any] | None = None) -> None:
        self._draw, self._parent = draw, parent or {}

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices`."""
        drawn: Scalar = choices[int(self._draw.integers(len(choices)))]
        keeps = self._parent.get(name) in choices and self._draw.random() >= CHANGE
        return self._parent[name] if keeps else drawn

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`; a child's is often near its parent's."""
        at = float(self._draw.random())
        if name in self._parent and self._draw.random() >= CHANGE:
            at = scaled(self._parent[name], low, high, log) + 0.4 * CHANGE * self._draw.normal()
            at = min(max(at, 0.0), 1.0)
        value = low * (high / low) ** at if log else low + (high - low) * at
        if step:
            value = low + step * round((value - low) / step)
        return float(min(max(value, low), high))


class _Noting:
    """Notes the choices of a suggester by name; `solve`, if given, chooses the removed ratio."""

    def __init__(self, suggester: Suggester, solve: Solve | None) -> None:
        self._suggester, self._solve = suggester, solve
        self.params: dict[str, Any] = {}

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        self.params[name] = value = self._suggester.choice(name, choices)
        return value

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        if self._solve is not None and is_ratio(name):
            value = to_smaller_step(self._solve(self.params, low, high), low, high, step)
        else:
            value = self._suggester.number(name, low, high, log, step)
        self.params[name] = value
        return value


def suggest(space: SearchSpace, suggester: Suggester, solve: Solve | None = None) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a suggester chooses, and its choices by name.

    Raises:
        pydantic.ValidationError: the values chosen exclude each other.
    """
    noting = _Noting(suggester, solve)
    return space.suggest(noting), noting.params


def is_ratio(name: str) -> bool:
    """Whether a name, or one of its cases, is the removed ratio's."""
    return field_of(name) == "ratio"


def to_smaller_step(ratio: float, low: float, high: float, step: float | None) -> float:
    """A ratio within its bounds and on its steps, rounded to the smaller model, so that a budget still holds."""
    if step:
        ratio = low + step * -(-(ratio - low - 1e-9) // step)
    return min(max(ratio, low), high)
