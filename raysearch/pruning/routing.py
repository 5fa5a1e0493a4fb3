"""A dense model whose routers don't know the experts that are removed: what a model without them computes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from raysearch.models import decoder_layout, family_for
from raysearch.models.layout import Units

LINEAR: Any = torch._C._nn.linear
"""What `nn.functional.linear` is; ZeRO 3 replaces it for good by one whose calls no mode sees."""
NEVER = -1e4
"""A router's logit that no expert is chosen with; its softmax and sigmoid are 0 in every dtype."""


@contextmanager
def routing_among(model: PreTrainedModel, units: Mapping[int, Units]) -> Iterator[None]:
    """Inside, tokens go to kept experts alone.

    Args:
        units: what each layer keeps, by layer; others keep all.
    """
    layers, layouts = family_for(model).decoder(model).layers, decoder_layout(model)
    routers: dict[int, torch.Tensor] = {}
    biases: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, kept in units.items():
        for part in layouts[i].slices:
            gone = np.setdiff1d(np.arange(part.num_units), kept[part.kind]) if part.kind == "experts" else ()
            if len(gone):
                tensor = _tensor(layers[i], part.tensor)
                index = torch.as_tensor(gone, device=tensor.device)
                if tensor.ndim == 2:
                    routers[id(tensor)] = index
                elif tensor.ndim == 1:
                    biases.append((tensor, index))
    if not routers:
        yield
        return
    replaced = nn.functional.linear
    before = [tensor.detach().clone() for tensor, _ in biases]
    try:
        with torch.no_grad():
            for tensor, index in biases:
                tensor.index_fill_(0, index, NEVER)
        nn.functional.linear = LINEAR
        with _WithoutLogits(routers):
            yield
    finally:
        nn.functional.linear = replaced
        with torch.no_grad():
            for (tensor, _), values in zip(biases, before, strict=True):
                tensor.copy_(values)


def _tensor(layer: nn.Module, name: str) -> torch.Tensor:
    parent, _, leaf = name.rpartition(".")
    return getattr(layer.get_submodule(parent), leaf)


class _WithoutLogits(TorchFunctionMode):
    """Replaces the outputs of routers' linear layers for removed experts, whatever module computes them."""

    def __init__(self, routers: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self._routers = dict(routers)
        self._casts: list[torch.Tensor] = []  # kept alive, since they are known by their ids

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is LINEAR:
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            gone = self._routers.get(id(weight))
            return result if gone is None else result.index_fill(-1, gone, NEVER)
        if args and id(args[0]) in self._routers and torch.is_tensor(result) and result.shape == args[0].shape:
            self._routers[id(result)] = self._routers[id(args[0])]
            self._casts.append(result)
        return result
