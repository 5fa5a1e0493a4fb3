"""Which decoder layers to drop."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from raysearch.errors import InputError
from raysearch.pruning.importance import Importance


def layers_to_keep(
    importance: Importance,
    num_layers: int,
    fixed: Sequence[int] = (),
    kinds: Sequence[int] | None = None,
    nums: Sequence[int] | None = None,
) -> list[int]:
    """The layers that stay, increasing.

    Args:
        importance: of a layer criterion.
        num_layers: how many stay.
        fixed: layers that are never dropped.
        kinds: the kind of each layer; None where all are of one.
        nums: how many of each kind stay.

    Raises:
        InputError: `importance` is not of a layer criterion.
    """
    order = importance.layer_order
    if importance.block_distance is not None:
        order = np.argsort(importance.block_distance[:, 0], kind="stable")
    if order is None:
        raise InputError(f"criterion {importance.criterion}: scores no layers; choose a layer criterion")
    kinds, nums = (kinds, nums) if kinds and nums else ([0] * len(order), [num_layers])
    excess = Counter(kinds)
    excess.subtract(dict(enumerate(nums)))
    if importance.block_distance is not None:
        block = _nearest_block(importance.block_distance, len(order) - num_layers, fixed, kinds, excess)
        if block is not None:
            return [i for i in range(len(order)) if i not in block]
    dropped = set()
    for i in map(int, order):
        if i not in fixed and excess[kinds[i]] > 0:
            dropped.add(i)
            excess[kinds[i]] -= 1
    return [i for i in range(len(order)) if i not in dropped]


def _nearest_block(
    distance: np.ndarray, length: int, fixed: Sequence[int], kinds: Sequence[int], excess: Counter[int]
) -> range | None:
    """The block of consecutive layers whose input and output are nearest (arXiv 2403.17887), of those without a
    fixed layer and with as many layers of each kind as are to go; None if there is none."""
    blocks = [range(start, start + length) for start in range(len(distance) - length + 1)]
    allowed = [block for block in blocks if not set(block) & set(fixed) and Counter(kinds[i] for i in block) == excess]
    return min(allowed, key=lambda block: distance[block.start, length - 1], default=None) if length else range(0)
