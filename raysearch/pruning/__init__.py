"""Structural pruning: a smaller stock model from importance scores and a shape."""

from raysearch.pruning.compensation import compensate
from raysearch.pruning.prune import prune

__all__ = ["compensate", "prune"]
