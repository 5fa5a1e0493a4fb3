"""Cache of the frozen vision tower's outputs: the tower runs once per image, not once per step of every trial."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from raysearch.models.family import Family

MAX_DIFFERENCE = 0.05
"""Largest difference between a tower's outputs for images in a batch and one by one, relative to their deviation.
Rounding to bf16 is .008, and sums may round differently for more rows (on the embedded LVLM's CPU they don't); a tower
that mixes its rows differs by about 1."""
_PLAIN = (bool, int, float, str, torch.dtype, type(None))

_Flat = tuple[Sequence[Any], TreeSpec]
"""A tower's arguments or output, flattened, and their structure."""


class VisionCache:
    """Cached outputs of the vision tower, for models that all have the same one and never train it.

    Every image goes through the tower alone, so that its output depends neither on its batch nor on what is cached.
    Towers of several modules, or with arguments or outputs other than one row per image, run as they are. Whether rows
    are independent is tried on the first batch.

    Args:
        family: of the models.
        max_bytes: bound of the cache, in CPU memory; images beyond it go through the tower each time.
    """

    def __init__(self, family: Family, max_bytes: float) -> None:
        self._family, self._free_bytes = family, max_bytes
        self._cached: dict[bytes, _Flat] = {}
        self._is_by_row: bool | None = None if max_bytes else False

    @property
    def num_images(self) -> int:
        """Images in the cache."""
        return len(self._cached)

    @contextmanager
    def serving(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, the tower of `model` answers from the cache, without gradients."""
        towers = self._family.vision(model)
        if len(towers) != 1 or self._is_by_row is False:
            yield
            return
        tower = towers[0]
        before = vars(tower).get("forward")
        tower.forward = functools.partial(self._forward, tower.forward)
        try:
            yield
        finally:
            del tower.forward
            if before is not None:
                tower.forward = before

    def _forward(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        rows = _rows((args, kwargs))
        # Outside inference mode, whose tensors can't be used in training.
        with torch.inference_mode(False), torch.no_grad():
            if self._is_by_row is None and len(rows) > 1:
                self._is_by_row = _is_by_row(compute, rows, compute(*args, **kwargs))
                if not self._is_by_row:  # outputs of single images returned so far are right all the same
                    self._cached.clear()
            if not rows or self._is_by_row is False:
                return compute(*args, **kwargs)
            outputs = [self._output(compute, row, key) for row, key in zip(rows, _keys(args, kwargs), strict=True)]
            return _joined(outputs, _tensors((args, kwargs))[0].device)

    def _output(self, compute: Callable[..., Any], row: _Flat, key: bytes) -> _Flat:
        if key not in self._cached:
            leaves, spec = _computed(compute, row)
            output = [leaf.to("cpu") if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
            num_bytes = sum(tensor.nbytes for tensor in _tensors(output[0]))
            if num_bytes > self._free_bytes:
                return output
            self._free_bytes -= num_bytes
            self._cached[key] = output
        return self._cached[key]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _rows(arguments: Any) -> list[_Flat]:
    """A tower's arguments, image by image; empty if they can't be split."""
    leaves, spec = tree_flatten(arguments)
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in _tensors(arguments)}
    if len(lengths) != 1 or not all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in leaves):
        return []
    return [
        ([leaf[i : i + 1] if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
        for i in range(lengths.pop())
    ]


def _keys(*arguments: Any) -> list[bytes]:
    """A digest of each image's arguments."""
    leaves, spec = tree_flatten(arguments)
    hosted = [leaf.detach().cpu().contiguous() for leaf in _tensors(arguments)]
    plain = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
    common = repr((spec, plain, [(tensor.dtype, tensor.shape[1:]) for tensor in hosted])).encode()
    keys = []
    for i in range(len(hosted[0])):
        digest = hashlib.blake2b(common, digest_size=16)
        for tensor in hosted:
            digest.update(tensor[i].flatten().view(torch.uint8).numpy())
        keys.append(digest.digest())
    return keys


def _computed(compute: Callable[..., Any], row: _Flat) -> _Flat:
    leaves, spec = row
    args, kwargs = tree_unflatten([leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
    return tree_flatten(compute(*args, **kwargs))


def _joined(outputs: Sequence[_Flat], device: torch.device) -> Any:
    """Outputs of several images as one, in memory of its own."""
    leaves, spec = outputs[0]
    if len(outputs) == 1:
        joined = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    else:
        columns = zip(*(leaves for leaves, _ in outputs), strict=True)
        joined = [None if column[0] is None else torch.cat(column) for column in columns]
    return tree_unflatten([leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for leaf in joined], spec)


def _is_by_row(compute: Callable[..., Any], rows: Sequence[_Flat], together: Any) -> bool:
    """Whether the tower's outputs for images one by one equal those for all of them, `together`."""
    expected, spec = tree_flatten(together)
    alone = [_computed(compute, row) for row in rows]
    if any(own != spec for _, own in alone):
        return False
    for whole, *parts in zip(expected, *(leaves for leaves, _ in alone), strict=True):
        if whole is None and all(part is None for part in parts):
            continue
        if not all(isinstance(part, torch.Tensor) and part.ndim and len(part) == 1 for part in parts):
            return False
        if not isinstance(whole, torch.Tensor) or len(whole) != len(rows):
            return False
        whole, joined = whole.float(), torch.cat(parts).float()
        if not (joined - whole).norm() <= MAX_DIFFERENCE * (whole - whole.mean()).norm():
            return False
    return True
