"""Which decoder layers to drop."""

import numpy as np

from raysearch.errors import InputError
from raysearch.pruning.importance import Importance


def layers_to_keep(importance: Importance, num_layers: int, num_fixed: int = 0) -> list[int]:
    """The layers that stay, increasing.

    Args:
        importance: of a layer criterion.
        num_layers: how many stay.
        num_fixed: the number of first layers that are never dropped.

    Raises:
        InputError: `importance` is not of a layer criterion.
    """
    if importance.block_distance is not None:
        return _without_nearest_block(importance.block_distance, num_layers, num_fixed)
    if importance.layer_order is None:
        raise InputError(f"criterion {importance.criterion}: scores no layers; choose a layer criterion")
    droppable = [int(i) for i in importance.layer_order if i >= num_fixed]
    total = len(importance.layer_order)
    dropped = set(droppable[: total - num_layers])
    return [i for i in range(total) if i not in dropped]


def _without_nearest_block(distance: np.ndarray, num_layers: int, num_fixed: int) -> list[int]:
    """Drop the block of consecutive layers whose input and output are nearest (arXiv 2403.17887)."""
    total = len(distance)
    length = total - num_layers
    if length == 0:
        return list(range(total))
    starts = distance[num_fixed : total - length + 1, length - 1]
    start = num_fixed + int(np.argmin(starts))
    return [i for i in range(total) if not start <= i < start + length]
