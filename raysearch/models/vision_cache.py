"""What a frozen vision tower says of pictures, kept in memory: it runs once per picture, not once per step of every
trial."""

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
"""Of a tower's output for pictures together and one by one, relative to how it varies. bf16 has steps of .008, and a
sum rounds otherwise for more rows on some machines (on the embedded LVLM's processor there is no difference at all); a
tower that mixes its rows differs by 1 or so."""
_PLAIN = (bool, int, float, str, torch.dtype, type(None))

_Call = tuple[Sequence[Any], TreeSpec]
"""Arguments of a tower, flat, and how they were nested; so its output."""


class VisionCache:
    """Answers for the vision tower of models that all have the same one, and never train it.

    Every picture goes through the tower alone, so that what is said of it depends neither on what else is in its batch
    nor on what is known already. Models whose tower is several modules, or takes or gives anything but a row per
    picture, are left as they are; whether rows are independent is tried on the first batch.

    Args:
        family: of the models.
        max_bytes: the most that is kept, in the machine's memory; pictures beyond go through the tower each time.
    """

    def __init__(self, family: Family, max_bytes: float) -> None:
        self._family, self._free_bytes = family, max_bytes
        self._known: dict[bytes, _Call] = {}
        self._is_by_row: bool | None = None if max_bytes else False

    @property
    def num_pictures(self) -> int:
        """How many are known."""
        return len(self._known)

    @contextmanager
    def serving(self, model: PreTrainedModel) -> Iterator[None]:
        """Answer for the tower of `model` for a while; no gradient goes there."""
        towers = self._family.vision(model)
        if len(towers) != 1 or self._is_by_row is False:
            yield
            return
        tower = towers[0]
        before = vars(tower).get("forward")
        tower.forward = functools.partial(self._answer, tower.forward)
        try:
            yield
        finally:
            del tower.forward
            if before is not None:
                tower.forward = before

    def _answer(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        rows = _rows((args, kwargs))
        # Outside inference mode, whose tensors training can't use.
        with torch.inference_mode(False), torch.no_grad():
            if self._is_by_row is None and len(rows) > 1:
                self._is_by_row = _is_by_row(compute, rows, compute(*args, **kwargs))
                if not self._is_by_row:  # what a single picture has been answered with is right all the same
                    self._known.clear()
            if not rows or self._is_by_row is False:
                return compute(*args, **kwargs)
            found = [self._of(compute, row, key) for row, key in zip(rows, _keys(args, kwargs), strict=True)]
            return _joined(found, _tensors((args, kwargs))[0].device)

    def _of(self, compute: Callable[..., Any], row: _Call, key: bytes) -> _Call:
        if key not in self._known:
            leaves, spec = _computed(compute, row)
            found = [leaf.to("cpu") if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec
            num_bytes = sum(tensor.nbytes for tensor in _tensors(found[0]))
            if num_bytes > self._free_bytes:
                return found
            self._free_bytes -= num_bytes
            self._known[key] = found
        return self._known[key]


def _tensors(given: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(given)[0] if isinstance(leaf, torch.Tensor)]


def _rows(given: Any) -> list[_Call]:
    """What a tower was given, picture by picture; nothing if it can't be taken apart."""
    leaves, spec = tree_flatten(given)
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in _tensors(given)}
    if len(lengths) != 1 or not all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in leaves):
        return []
    return [
        ([leaf[i : i + 1] if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
        for i in range(lengths.pop())
    ]


def _keys(*given: Any) -> list[bytes]:
    """A digest of all that a tower was given for each picture."""
    leaves, spec = tree_flatten(given)
    hosted = [leaf.detach().cpu().contiguous() for leaf in _tensors(given)]
    plain = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
    common = repr((spec, plain, [(tensor.dtype, tensor.shape[1:]) for tensor in hosted])).encode()
    keys = []
    for i in range(len(hosted[0])):
        digest = hashlib.blake2b(common, digest_size=16)
        for tensor in hosted:
            digest.update(tensor[i].flatten().view(torch.uint8).numpy())
        keys.append(digest.digest())
    return keys


def _computed(compute: Callable[..., Any], row: _Call) -> _Call:
    leaves, spec = row
    args, kwargs = tree_unflatten([leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
    return tree_flatten(compute(*args, **kwargs))


def _joined(rows: Sequence[_Call], device: torch.device) -> Any:
    """What was said of several pictures, as one output of its own."""
    leaves, spec = rows[0]
    if len(rows) == 1:
        joined = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    else:
        columns = zip(*(leaves for leaves, _ in rows), strict=True)
        joined = [None if column[0] is None else torch.cat(column) for column in columns]
    return tree_unflatten([leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for leaf in joined], spec)


def _is_by_row(compute: Callable[..., Any], rows: Sequence[_Call], together: Any) -> bool:
    """Whether the tower says of pictures one by one what it says of them `together`."""
    expected, spec = tree_flatten(together)
    apart = [_computed(compute, row) for row in rows]
    if any(own != spec for _, own in apart):
        return False
    for whole, *parts in zip(expected, *(leaves for leaves, _ in apart), strict=True):
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
