"""Structural pruning: from scores and a shape to a smaller stock model."""

from raysearch.prune.compensation import compensate
from raysearch.prune.cut import prune
from raysearch.prune.shape import Shape, removed_share, shape_of, size_of, solve, solve_budget

__all__ = [
    "Shape",
    "compensate",
    "prune",
    "removed_share",
    "shape_of",
    "size_of",
    "solve",
    "solve_budget",
]
