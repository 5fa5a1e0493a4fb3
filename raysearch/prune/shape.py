"""Exact sizes and shapes of a configuration's pruned models: `raysearch.shape` on its counts."""

import torch
from transformers import PretrainedConfig

from raysearch import shape as counted
from raysearch.prune.config import shape_of
from raysearch.prune.count import counts_of
from raysearch.quantization import Quantization
from raysearch.recipe import Mode
from raysearch.shape import Shape
from raysearch.size import Budget, Size

__all__ = [
    "Shape",
    "removed_share",
    "shape_of",
    "size_of",
    "solve",
    "solve_budget",
]


def size_of(
    config: PretrainedConfig,
    shape: Shape | None = None,
    bytes_per_param: int | torch.dtype = 2,
    quantization: Quantization = "none",
) -> Size:
    """Exact size of the whole model with a decoder of `shape` (None: as it is); milliseconds after the first call."""
    counts = counts_of(config)
    return counts.size(shape or counts.dense, _num_bytes(bytes_per_param), quantization)


def removed_share(config: PretrainedConfig, shape: Shape) -> float:
    """Share of the decoder's parameters that `shape` removes: the exact value of a recipe's ratio."""
    counts = counts_of(config)
    return 1 - counts.decoder(shape) / counts.decoder(counts.dense)


def solve(
    config: PretrainedConfig,
    mode: Mode,
    ratio: float,
    depth_share: float | None = None,
    multiple: int | None = None,
) -> Shape:
    """As `raysearch.shape.solve`."""
    return counted.solve(counts_of(config), mode, ratio, depth_share, multiple)


def solve_budget(
    config: PretrainedConfig,
    mode: Mode,
    budget: Budget,
    depth_share: float | None = None,
    multiple: int | None = None,
    bytes_per_param: int | torch.dtype = 2,
    quantization: Quantization = "none",
) -> Shape:
    """As `raysearch.shape.solve_budget`."""
    chosen = depth_share, multiple, _num_bytes(bytes_per_param), quantization
    return counted.solve_budget(counts_of(config), mode, budget, *chosen)


def _num_bytes(bytes_per_param: int | torch.dtype) -> int:
    return bytes_per_param.itemsize if isinstance(bytes_per_param, torch.dtype) else bytes_per_param
