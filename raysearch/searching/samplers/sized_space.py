"""A search space with the exact sizes of its recipes, and the ratios that meet a size."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from raysearch.config.budget import Budget, Size
from raysearch.config.dimensions import RecipeSuggester, Suggester, choose
from raysearch.config.quantization import Quantization
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.searching.samplers.suggesters import is_ratio, suggest

BISECTIONS = 14
MOST_AIMS = 6  # at a size, until the model is within it
_ANY_CRITERION = {"layerwise": "deepest", "widthwise": "magnitude", "both": "deepest+magnitude"}


@dataclass
class Candidate:
    """A recipe of the space that fits a budget.

    Attributes:
        params: the values chosen for it, by the names that the space asks for (`SearchSpace.search_params`).
        size_ratio: its exact size, as a share of the dense model's bytes.
    """

    recipe: Recipe
    params: dict[str, Any]
    size_ratio: float

    @property
    def identity(self) -> tuple[float, str]:
        """The model it makes: recipes of one size that differ in nothing but the ratio make the same model."""
        return self.size_ratio, self.recipe.key_without_ratio


class SizedSpace:
    """A search space whose sizes are shares of the dense model's bytes.

    Args:
        search_space: where recipes come from.
        size_of: exact size of the whole model that a recipe makes; None if there is no such shape.
        dense: size of the whole dense model.
        budgets: a recipe that is over all of them is never tried.

    Attributes:
        limits: the budgets as size ratios.
        smallest: the smallest size ratio met among those that fit no budget; infinite without any.
    """

    def __init__(
        self,
        search_space: SearchSpace,
        size_of: Callable[[Recipe], Size | None],
        dense: Size,
        budgets: Sequence[Budget] = (),
    ) -> None:
        self.search_space, self._size_of, self._dense = search_space, size_of, dense
        self.smallest = math.inf
        self.set_budgets(budgets)

    def set_budgets(self, budgets: Sequence[Budget]) -> None:
        """Replace the budgets."""
        self.budgets, self.limits = budgets, [budget.size_ratio(self._dense) for budget in budgets]
        self._solved: dict[tuple[str, Quantization, float], float] = {}

    def candidate(self, suggester: Suggester, limit: float | None = None) -> Candidate | None:
        """What a suggester chooses; None if its values exclude each other, or the recipe fits no budget.

        Args:
            limit: size ratio that the model shall just meet, by the ratio, as far as its bounds and steps allow.
        """
        aim = limit
        for _ in range(MOST_AIMS):
            solve = None if aim is None else functools.partial(self._solve, aim)
            try:
                recipe, params = suggest(self.search_space, suggester, solve)
            except ValidationError:
                return None
            size_ratio = self.size_ratio(recipe)
            if aim is None or limit is None or size_ratio is None or size_ratio <= limit:
                break
            # How the removal is split, which is chosen after the ratio, has rounded to other whole units.
            aim -= 1.5 * (size_ratio - limit) + 1e-4
            suggester = RecipeSuggester({name: value for name, value in params.items() if not is_ratio(name)})
        return None if size_ratio is None else Candidate(recipe, params, size_ratio)

    def _solve(self, limit: float, params: Mapping[str, Any], low: float, high: float) -> float:
        return self.ratio_for(limit, params)

    def size_ratio(self, recipe: Recipe) -> float | None:
        """A recipe's size, or None if it has no shape or fits no budget."""
        size = self._size_of(recipe)
        if size is None:
            return None
        ratio = size.size_bytes / self._dense.size_bytes
        if not self._is_admitted(size):
            self.smallest = min(self.smallest, ratio)
            return None
        return ratio

    def size_ratio_at(self, ratio: float, params: Mapping[str, Any]) -> float | None:
        """`size_ratio` of a recipe with the values chosen so far and this removed ratio."""
        return self.size_ratio(bare_recipe(ratio, **self._sized_by(params)))

    def ratio_for(self, limit: float, params: Mapping[str, Any]) -> float:
        """`solve` for the values chosen so far, or those of a recipe; the result may lie outside the ratio's bounds."""
        return self.solve(limit, **self._sized_by(params))

    def solve(self, limit: float, mode: str, quantization: Quantization = "none") -> float:
        """The smallest removed ratio whose model is within the size ratio `limit`, and within a budget if any."""
        known = (mode, quantization, limit)
        if known not in self._solved:
            low, high, is_met = 0.0, 0.99, False
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                size = self._size_of(bare_recipe(middle, mode, quantization))
                if size is None:  # too much is removed, or less than the rules on shapes ask for
                    fits = not is_met
                else:
                    fits = size.size_bytes <= limit * self._dense.size_bytes and self._is_admitted(size)
                    is_met = is_met or fits
                low, high = (low, middle) if fits else (middle, high)
            self._solved[known] = high
        return self._solved[known]

    def _sized_by(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The fields beside the ratio that decide a recipe's size; one with a single value is never asked for."""
        found: dict[str, Any] = {}
        for field in ("mode", "quantization"):
            value = choose(RecipeSuggester(params), field, self.search_space.recipe.get(field, []), found)
            if value is not None:
                found[field] = value
        return found

    def _is_admitted(self, size: Size) -> bool:
        return not self.budgets or any(budget.admits(size, self._dense) for budget in self.budgets)


def bare_recipe(ratio: float, mode: Any, quantization: Quantization = "none") -> Recipe:
    """Some recipe of this size."""
    return Recipe(mode=mode, quantization=quantization, ratio=ratio, criterion=_ANY_CRITERION[mode])


def golden_ratio_sequence(number: int, seed: int) -> float:
    """Values that spread evenly over [0, 1) as `number` grows."""
    return (number * 0.6180339887 + seed * 0.7548776662) % 1.0
