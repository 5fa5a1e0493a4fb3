"""Exact sizes of a space's recipes, and the ratios that meet a size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from raysearch.config.budget import Budget, Size
from raysearch.config.quantization import Quantization
from raysearch.config.recipe import Recipe

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

    def __init__(self, size_of: Callable[[Recipe], Size | None], dense: Size, budgets: Sequence[Budget]) -> None:
        self._size_of, self._dense = size_of, dense
        self.smallest = math.inf
        self.set_budgets(budgets)

    def set_budgets(self, budgets: Sequence[Budget]) -> None:
        """Answer for other budgets from now on."""
        self._budgets = budgets
        self.limits = [budget.size_ratio(self._dense) for budget in budgets]
        self._solved: dict[tuple[str, Quantization, float], float] = {}

    def ratio_of(self, recipe: Recipe) -> float | None:
        """A recipe's size, or None if it has no shape or fits no budget."""
        size = self._size_of(recipe)
        if size is None:
            return None
        ratio = size.size_bytes / self._dense.size_bytes
        if not self._is_admitted(size):
            self.smallest = min(self.smallest, ratio)
            return None
        return ratio

    def solve(self, target: float, mode: str, quantization: Quantization = "none") -> float:
        """The smallest removed ratio whose model is within the size `target`, and within a budget if there are any."""
        known = (mode, quantization, target)
        if known not in self._solved:
            low, high = 0.0, 0.99
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                size = self._size_of(bare(middle, mode, quantization))
                fits = size is None or (size.size_bytes <= target * self._dense.size_bytes and self._is_admitted(size))
                low, high = (low, middle) if fits else (middle, high)
            self._solved[known] = high
        return self._solved[known]

    def _is_admitted(self, size: Size) -> bool:
        return not self._budgets or any(budget.admits(size, self._dense) for budget in self._budgets)


def bare(ratio: float, mode: Any, quantization: Quantization = "none") -> Recipe:
    """A recipe of this size, whatever else."""
    return Recipe(mode=mode, quantization=quantization, ratio=ratio, criterion=_ANY_CRITERION[mode])
