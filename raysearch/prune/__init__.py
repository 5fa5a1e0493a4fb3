"""Structural pruning: from scores and a shape to a smaller stock model."""

from typing import Any

from raysearch.prune.cut import prune
from raysearch.prune.shape import Shape, shape_of, size_of, smallest_shape, solve, solve_budget

__all__ = [
    "Shape",
    "prune",
    "prune_checkpoint",
    "shape_of",
    "size_of",
    "smallest_shape",
    "solve",
    "solve_budget",
]


def __getattr__(name: str) -> Any:
    """`prune_checkpoint` stands above export and data, so that it is imported only when asked for."""
    if name == "prune_checkpoint":
        from raysearch.prune.checkpoint import prune_checkpoint

        return prune_checkpoint
    raise AttributeError(name)
