"""Judge shapes before any is trained: at each of some sizes, how the removal is best split and by which criterion.

A shape is judged by a pruned model's divergence from the dense one, which takes a forward pass of the calibration
samples. The search at each size is its own, so that slots can share the sizes.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from raysearch.config.dimensions import Dimension, RecipeSuggester, Suggester, field_of
from raysearch.config.recipe import Recipe
from raysearch.searching.judged_shapes import JudgedShape
from raysearch.searching.samplers.encoding import Encoding
from raysearch.searching.samplers.gaussian_process import GaussianProcess
from raysearch.searching.samplers.sized_space import SizedSpace
from raysearch.searching.samplers.suggesters import RandomSuggester

FIELDS = frozenset(
    [
        *("mode", "quantization", "ratio", "layer_criterion", "width_criterion", "depth_share", "attention_share"),
        *("expert_ratio", "expert_criterion", "hidden_ratio", "hidden_criterion"),
    ]
)
"""The fields that decide a shape, and the kinds of criterion that decide what is removed."""
FIRST = {"attention_share": 0.0, "depth_share": 0.5}
"""Of the shapes that are judged first."""
SIZE_STEP = 0.07
"""Distance of the size ratios that are studied beside the budgets."""
SHARE_DRAWN = 0.4
"""Of the shapes at one size, drawn at random; the others change the best so far."""
NUM_PARENTS = 3
ATTEMPTS = 8
MAX_POINTS = 150
"""Shapes that the model of divergences is fitted to."""


def study_sizes(space: SizedSpace) -> list[float]:
    """The size ratios to study, rising: the budgets, and others spread between the smallest and the dense size."""
    sizes = list(space.limits)
    largest, smallest = max(sizes, default=1.0) - SIZE_STEP / 2, smallest_size(space)
    for size in np.arange(smallest + 0.01, largest, SIZE_STEP).tolist():
        if all(abs(size - other) > SIZE_STEP / 2 for other in sizes):
            sizes.append(size)
    return sorted(sizes)


def smallest_size(space: SizedSpace) -> float:
    """The smallest size ratio that some mode of the space reaches."""
    found = []
    for mode in space.search_space.values_of("mode"):
        highest = max(map(float, space.search_space.values_of("ratio")))
        sizes = (space.size_ratio_at(ratio, {"mode": mode}) for ratio in np.linspace(highest, 0, 16).tolist())
        found.append(next((size for size in sizes if size is not None), 1.0))
    return min(found)


def study_size(
    space: SizedSpace,
    limit: float,
    judge: Callable[[Recipe], float],
    identity: Callable[[Recipe], Hashable],
    num_shapes: int,
    seed: int,
) -> list[JudgedShape]:
    """Judge shapes that are just small enough for a size ratio: in each mode one that keeps all heads, some at random,
    then changes of the best so far.

    Args:
        judge: divergence of a recipe's pruned model; not finite where there is none.
        identity: what makes two recipes the same pruned model.
        num_shapes: how many to judge at most; fewer where the space has no more.

    Returns:
        The judged shapes, the best first.
    """
    draw = np.random.default_rng((seed, 5, round(limit * 1e6)))
    judged: dict[Hashable, JudgedShape] = {}
    best: list[JudgedShape] = []
    first: list[Suggester] = [RecipeSuggester({"mode": mode, **FIRST}) for mode in space.search_space.values_of("mode")]
    for _ in range(ATTEMPTS * num_shapes):
        parent = None
        if len(judged) >= SHARE_DRAWN * num_shapes and best:
            parent = best[int(draw.integers(min(NUM_PARENTS, len(best))))].params
        candidate = space.candidate(first.pop() if first else RandomSuggester(draw, parent), limit)
        if candidate is None or identity(candidate.recipe) in judged:
            continue
        shape = JudgedShape(
            params={name: value for name, value in candidate.params.items() if field_of(name) in FIELDS},
            size_ratio=candidate.size_ratio,
            divergence=judge(candidate.recipe),
        )
        judged[identity(candidate.recipe)] = shape
        best = sorted((s for s in judged.values() if math.isfinite(s.divergence)), key=lambda s: s.divergence)
        if len(judged) == num_shapes:
            break
    return best


def study_parts(
    space: SizedSpace,
    judge: Callable[[Recipe], float],
    identity: Callable[[Recipe], Hashable],
    num_shapes: int,
    seed: int,
) -> dict[str, Callable[[], list[JudgedShape]]]:
    """A function per size that studies it, by name; together they judge `num_shapes` shapes at most."""
    sizes = study_sizes(space)
    num_each = max(1, num_shapes // len(sizes))
    return {
        f"shapes at {size:.4f}": functools.partial(study_size, space, size, judge, identity, num_each, seed)
        for size in sizes
    }


class ShapeModel:
    """Divergences of the shapes that were not judged, from those that were.

    Args:
        dimensions: of the space, by name.
        shapes: judged ones, of all sizes.
    """

    def __init__(self, dimensions: Mapping[str, Dimension], shapes: Sequence[JudgedShape]) -> None:
        self._encoding = Encoding({name: d for name, d in dimensions.items() if field_of(name) in FIELDS})
        chosen = [shapes[at] for at in np.linspace(0, len(shapes) - 1, min(MAX_POINTS, len(shapes))).astype(int)]
        points = np.stack([self._point(shape.params, shape.size_ratio) for shape in chosen])
        values = np.array([_log(shape.divergence) for shape in chosen])
        self._low, self._high = float(values.min()), float(values.max())
        self._model = GaussianProcess(points, self._encoding.groups, values, np.zeros(len(values)))

    def scaled(self, params: Sequence[Mapping[str, Any]], size_ratios: Sequence[float]) -> np.ndarray:
        """(n,) logarithms of the divergences of recipes: 0 for the least that was judged, 1 for the largest."""
        points = np.stack([self._point(*one) for one in zip(params, size_ratios, strict=True)])
        mean, _ = self._model.predict(points)
        return (mean - self._low) / max(self._high - self._low, 1e-9)

    def _point(self, params: Mapping[str, Any], size_ratio: float) -> np.ndarray:
        return self._encoding.point({n: value for n, value in params.items() if field_of(n) in FIELDS}, size_ratio)


def _log(divergence: float) -> float:
    return math.log(max(divergence, 1e-4))
