"""A checked search with its sizes and counts, before anything is loaded or run."""

from dataclasses import dataclass, field
from typing import Any

from raysearch.config.budget import Budget, Size
from raysearch.config.quantization import check_installed
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.data.loading import num_rows
from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import check_benchmarks
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape import ParamCounts, Shape
from raysearch.models.shape_solver import shape_for_ratio, size_for, smallest_shape


@dataclass(frozen=True)
class StudyPlan:
    """A checked search.

    Attributes:
        counts: of the dense model; the sizes of pruned models follow from them.
        dense: size of the dense model.
        num_samples: rows of recovery data that make 100%.
        max_samples: samples seen by the longest trial.
    """

    space: SearchSpace
    counts: ParamCounts = field(repr=False)
    dense: Size
    num_samples: int
    max_samples: int
    budgets: tuple[Budget, ...]

    @property
    def first_rung(self) -> int:
        """Samples seen at the first rung; without early stopping, at the longest trial's end."""
        settings = self.space.search
        return max(1, round(settings.first_rung * self.max_samples)) if settings.early_stopping else self.max_samples

    def size_of(self, recipe: Recipe) -> Size | None:
        """The exact size of a recipe's model; None if the family has no such shape."""
        return size_for(self.counts, recipe)

    def smallest(self) -> Size:
        """The size of the smallest model that the space can reach."""
        modes = self.space.values_of("mode")
        ratio = max(map(float, self.space.values_of("ratio")))
        shapes = [_smallest_shape(self.counts, mode, ratio) for mode in modes]
        kept = self.space.values_of("quantization") or ["none"]
        sizes = [self.counts.size(shape, quantization=how) for shape in shapes for how in kept]
        return min(sizes, key=lambda size: size.size_bytes)

    def describe(self) -> list[str]:
        """What the search will do, as lines for people."""
        space, settings = self.space, self.space.search
        budgets = [f"{b.text} ({b.bound_bytes(self.dense) / 1e6:,.1f} MB)" for b in self.budgets]
        return [
            f"model      {space.model}: {self.dense.num_params:,} parameters, {self.dense.size_bytes:,} bytes",
            f"budgets    {', '.join(budgets) or 'none: the whole range of sizes'}",
            f"data       {space.data_text}: {self.num_samples:,} samples; the longest trial sees {self.max_samples:,}",
            *([f"shapes     {space.shapes.describe()}"] if self.counts.rules else []),
            f"limits     {settings.limits_text()}; by {settings.sampler}, seed {settings.seed}, "
            + ("stopped early where behind" if settings.early_stopping else "all run to their end"),
        ]


def plan_study(space: SearchSpace) -> StudyPlan:
    """Check a space against its model and data, in seconds; nothing is written.

    Raises:
        InputError: the model, the data, a benchmark or a budget can't be used.
    """
    if set(space.values_of("quantization")) - {"none"}:
        check_installed()
    counts = counts_of_model(space.model).under(space.shapes)
    dense = counts.size(counts.dense)
    check_benchmarks(space.benchmarks)
    rows = num_rows(space.data)
    if space.num_samples and space.num_samples > rows:
        raise InputError(f"num_samples: {space.num_samples}, but {space.data_text} has {rows} rows; lower it")
    num_samples = space.num_samples or rows
    smallest_fraction = min(map(float, space.values_of("data_fraction")), default=1.0)
    if not round(smallest_fraction * num_samples):
        raise InputError(
            f"recipe.data_fraction: {smallest_fraction:g} of {num_samples} samples is none; raise it or num_samples"
        )
    budgets = tuple(Budget.parse(text) for text in space.budgets)
    planned = StudyPlan(space, counts, dense, num_samples, space.largest_recovery(num_samples), budgets)
    smallest = planned.smallest()
    if budgets and not any(budget.admits(smallest, dense) for budget in budgets):
        raise InputError(
            f"budgets {', '.join(space.budgets)}: no recipe of the space is small enough; the smallest has "
            f"{smallest.num_params:,} parameters, {budgets[-1].costs_text(smallest, dense)}; "
            "raise the budget or recipe.ratio"
        )
    return planned


def _smallest_shape(counts: ParamCounts, mode: Any, ratio: float) -> Shape:
    try:
        return shape_for_ratio(counts, mode, ratio)
    except InputError:  # more than can be removed
        return smallest_shape(counts, mode)
