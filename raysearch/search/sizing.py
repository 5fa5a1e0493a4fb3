"""Exact sizes of a space's recipes, and the ratios that meet a size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from raysearch.recipe import Recipe
from raysearch.size import Budget, Size

_ANY_CRITERION = {"layerwise": "deepest", "widthwise": "magnitude", "both": "deepest+magnitude"}
BISECTIONS = 14


class Sizing:
    """Sizes as shares of the dense model's bytes.

    Args:
        size_of: exact size of the whole model that a recipe makes; None if there is no such shape.
        dense: size of the whole dense model.
        budgets: sizes that answers are wanted for.

    Attributes:
        limits: the budgets.
        smallest: the smallest size met among those that fit no budget; infinite without any.
    """

    def __init__(
        self, size_of: Callable[[Recipe], Size | None], dense: Size, budgets: Sequence[Budget]
    ) -> None:
        self._size_of, self._dense, self._budgets = size_of, dense, budgets
        self.limits = [budget.size_ratio(dense) for budget in budgets]
        self.smallest = math.inf
        self._solved: dict[tuple[str, float], float] = {}

    def ratio_of(self, recipe: Recipe) -> float | None:
        """A recipe's size, or None if it has no shape or fits no budget."""
        size = self._size_of(recipe)
        if size is None:
            return None
        ratio = size.size_bytes / self._dense.size_bytes
        if self._budgets and not any(budget.admits(size, self._dense) for budget in self._budgets):
            self.smallest = min(self.smallest, ratio)
            return None
        return ratio

    def solve(self, mode: str, target: float) -> float:
        """The smallest removed ratio whose model is within the size `target`."""
        if (mode, target) not in self._solved:
            low, high = 0.0, 0.99
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                size = self._size_of(bare(mode, middle))
                fits = size is None or size.size_bytes <= target * self._dense.size_bytes
                low, high = (low, middle) if fits else (middle, high)
            self._solved[mode, target] = high
        return self._solved[mode, target]


def bare(mode: Any, ratio: float) -> Recipe:
    """A recipe with the shape that a mode and a ratio have."""
    return Recipe(mode=mode, ratio=ratio, criterion=_ANY_CRITERION[mode])
