"""Structural pruning: from scores and a shape to a smaller stock model."""

from raysearch.pruning.compensation import compensate
from raysearch.pruning.prune import prune

__all__ = ["compensate", "prune"]
