"""A search that has been checked and counted, before anything is loaded or run."""

from dataclasses import dataclass, field
from typing import Any

from raysearch import families
from raysearch.benchmarks import load_benchmarks
from raysearch.data.reading import load_samples
from raysearch.errors import InputError
from raysearch.prune.shape import Shape, shape_of, size_of, smallest_shape, solve
from raysearch.recipe import Recipe
from raysearch.size import Budget, Size
from raysearch.space import SearchSpace
from raysearch.trial import size_for


@dataclass(frozen=True)
class Plan:
    """What a search needs to know beforehand.

    Attributes:
        dense: size of the dense model.
        num_samples: rows of recovery data that make 100%.
        max_samples: samples seen by the longest trial.
    """

    space: SearchSpace
    config: Any = field(repr=False)
    dense: Size
    num_samples: int
    max_samples: int
    budgets: tuple[Budget, ...]

    def size_of(self, recipe: Recipe) -> Size | None:
        """The exact size of what a recipe makes; None when the family has no such model."""
        try:
            return size_for(self.config, recipe)
        except InputError:
            return None

    def smallest(self) -> Size:
        """The size of the smallest model that the space can reach."""
        modes = self.space.values_of("mode")
        ratio = max(map(float, self.space.values_of("ratio")))
        shapes = [_smallest_shape(self.config, mode, ratio) for mode in modes]
        return min((size_of(self.config, shape) for shape in shapes), key=lambda size: size.size_bytes)

    def describe(self) -> list[str]:
        """What will be done, one fact a line."""
        space, settings = self.space, self.space.search
        budgets = [f"{b.text} ({b.bound_bytes(self.dense) / 1e6:,.1f} MB)" for b in self.budgets]
        return [
            f"model      {space.model}: {self.dense.num_params:,} parameters, {self.dense.size_bytes:,} bytes",
            f"budgets    {', '.join(budgets) or 'none: the whole range of sizes'}",
            f"data       {space.data}: {self.num_samples:,} samples; the longest trial sees {self.max_samples:,}",
            f"trials     {settings.trials} by {settings.sampler}, seed {settings.seed}, "
            + ("stopped early where behind" if settings.early_stopping else "all run to their end"),
        ]


def plan(space: SearchSpace) -> Plan:
    """Check a space against its model and data; nothing is loaded that costs more than seconds, nothing written.

    Raises:
        InputError: the model, the data, a benchmark or a budget can't be used.
    """
    config = families.load_config(space.model)
    dense = size_of(config, shape_of(config))
    load_benchmarks(space.benchmarks, "search")
    num_rows = len(load_samples(space.data))
    if space.num_samples and space.num_samples > num_rows:
        raise InputError(f"num_samples: {space.num_samples}, but {space.data} has {num_rows} rows; lower it")
    num_samples = space.num_samples or num_rows
    smallest_fraction = min(map(float, space.values_of("data_fraction")), default=1.0)
    if not round(smallest_fraction * num_samples):
        raise InputError(
            f"recipe.data_fraction: {smallest_fraction:g} of {num_samples} samples is none; raise it or num_samples"
        )
    budgets = tuple(Budget.parse(text) for text in space.budgets)
    planned = Plan(space, config, dense, num_samples, space.largest_recovery(num_samples), budgets)
    smallest = planned.smallest()
    if budgets and not any(budget.admits(smallest, dense) for budget in budgets):
        raise InputError(
            f"budgets {', '.join(space.budgets)}: no recipe of the space is small enough; the smallest has "
            f"{smallest.num_params:,} parameters, {smallest.size_bytes / dense.size_bytes:.1%} of the dense model; "
            "raise the budget or recipe.ratio"
        )
    return planned


def _smallest_shape(config: Any, mode: Any, ratio: float) -> Shape:
    try:
        return solve(config, mode, ratio)
    except InputError:  # more than can be removed
        return smallest_shape(config, mode)
