"""Build the pruned model: a new stock model with the kept parts of the dense model's tensors."""

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import Family, Layout, decoder_layout, empty_model, family_for, model_class
from raysearch.models.layout import Units, outer_layout
from raysearch.models.pruned_config import fixed_layers, pruned_config
from raysearch.models.shape import UNIT_KINDS, Shape


def slice_model(
    model: PreTrainedModel,
    layers: Sequence[int],
    units: Mapping[int, Units],
    bias_shift: Mapping[str, torch.Tensor] | None = None,
    share: bool = False,
) -> PreTrainedModel:
    """Copy what a model keeps into a smaller one; the dense model is not changed.

    Args:
        model: the dense model.
        layers: the decoder layers that stay, increasing.
        units: the units that each of those layers keeps, by dense layer index; equally many in every layer, and the
            same hidden channels.
        bias_shift: values added to biases, by the dense tensor's name inside the decoder's layer list.
        share: whether tensors of which nothing is removed are the dense model's own, not copies, which takes less
            memory where only one of the two models is used afterwards.

    Returns:
        A model of a stock class, on the dense model's device, in its dtype and in eval mode. Where hidden channels are
        removed, norms are scaled so that it computes what the dense model does with these channels set to 0: a mean
        square over d of D channels is larger by D / d than one over all, with zeros.

    Raises:
        InputError: the stock class can't hold such a decoder, or the layers name one that must stay.
    """
    family = family_for(model)
    _check_layers(family, model, layers)
    shape = _common_shape(layers, units)
    config = pruned_config(model.config, shape, layers)
    unchanged = type(config) is type(model.config)
    pruned = empty_model(config, type(model) if unchanged else model_class(config))
    name, layouts = family.layers_name(model), decoder_layout(model)
    _fill(pruned, model, name, layers, layouts, units, bias_shift or {}, share, shape.hidden_size)
    if model.generation_config is not None:
        pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned.eval()


def _check_layers(family: Family, model: PreTrainedModel, layers: Sequence[int]) -> None:
    num_layers, fixed = len(family.decoder(model).layers), fixed_layers(model.config)
    if list(layers) != sorted(set(layers)) or not layers or not 0 <= layers[0] <= layers[-1] < num_layers:
        raise InputError(f"layers {list(layers)}: must be increasing and of 0 to {num_layers - 1}")
    if not set(fixed) <= set(layers):
        raise InputError(
            f"layers {list(layers)}: layers {list(fixed)} of {model.config.model_type} must stay, since they take in "
            "visual features or are of a kind that its class gives by position"
        )


def _common_shape(layers: Sequence[int], units: Mapping[int, Units]) -> Shape:
    hidden = next(iter(units.values()))["hidden_channels"]
    assert all(np.array_equal(kept["hidden_channels"], hidden) for kept in units.values()), "hidden channels differ"
    extents = {tuple(len(units[i][kind]) for kind in UNIT_KINDS) for i in layers}
    if len(extents) != 1:
        raise InputError(f"units: layers keep different numbers, {sorted(extents)}; a stock model has one for all")
    return Shape(len(layers), *extents.pop())


def _fill(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    prefix: str,
    layers: Sequence[int],
    layouts: Sequence[Layout],
    units: Mapping[int, Units],
    bias_shift: Mapping[str, torch.Tensor],
    share: bool,
    hidden_size: int,
) -> None:
    """Fill the empty model with values; shared tensors stay shared."""

    narrows = hidden_size != layouts[0].hidden_size
    outer = outer_layout(dense) if narrows else None

    def located(name: str) -> tuple[int | None, str]:
        """Dense layer and name inside it; None and the whole name outside the layers."""
        if not name.startswith(prefix + "."):
            return None, name
        layer, _, inner = name[len(prefix) + 1 :].partition(".")
        return layers[int(layer)], inner

    def dense_name(name: str) -> str:
        layer, inner = located(name)
        return inner if layer is None else f"{prefix}.{layer}.{layouts[layer].source(inner)[0]}"

    def value(name: str, source: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        layer, inner = located(name)
        if layer is None:
            kept = _of_layers(source.detach(), shape, layers, len(layouts))
            kept = outer.keep(name, kept, units[layers[0]]) if outer else kept
        else:
            kept = layouts[layer].keep(inner, source, units[layer])
        norm, leaf = dense_name(name).rpartition(".")[::2]
        if (
            outer
            and leaf == "weight"
            and inner.rpartition(".")[0] in (layouts[layer] if layer is not None else outer).norms
        ):
            kept = _scaled(dense.get_submodule(norm), kept, math.sqrt(layouts[0].hidden_size / hidden_size))
        if layer is not None and (shift := bias_shift.get(f"{layer}.{inner}")) is not None:
            return kept + shift.to(kept)
        is_shared = kept.device.type != "meta" and kept.data_ptr() == source.data_ptr()
        return kept.clone() if is_shared and not share else kept

    parameters = dict(dense.named_parameters(remove_duplicate=False))
    buffers = dict(dense.named_buffers(remove_duplicate=False))
    filled: dict[int, tuple[int, nn.Parameter]] = {}
    for name, empty in list(pruned.named_parameters(remove_duplicate=False)):
        source = parameters.get(dense_name(name))
        if source is None:
            raise _differs(dense, name, "is new")
        if id(empty) not in filled:
            tensor = value(name, source, empty.shape)
            if tensor.shape != empty.shape:
                raise _differs(dense, name, f"is {tuple(empty.shape)}, not {tuple(tensor.shape)}")
            filled[id(empty)] = id(source), nn.Parameter(tensor, requires_grad=source.requires_grad)
        if filled[id(empty)][0] != id(source):
            raise _differs(dense, name, "is shared with another tensor")
        _set(pruned, name, filled[id(empty)][1])
    for name, empty in list(pruned.named_buffers(remove_duplicate=False)):
        if dense_name(name) not in buffers:
            raise _differs(dense, name, "is new")
        tensor = value(name, buffers[dense_name(name)], empty.shape)
        if tensor.shape != empty.shape:
            raise _differs(dense, name, f"is {tuple(empty.shape)}, not {tuple(tensor.shape)}")
        _set(pruned, name, tensor)


def _scaled(norm: nn.Module, kept: torch.Tensor, factor: float) -> torch.Tensor:
    """A norm's kept weight for outputs larger by `factor`; some classes multiply by 1 + weight."""
    if kept.device.type == "meta":
        return kept
    trial = copy.deepcopy(norm)
    with torch.no_grad():
        trial.weight.zero_()
        is_offset = bool(trial(torch.ones_like(trial.weight)[None]).any())
    values = kept.float()
    return ((values + 1) * factor - 1 if is_offset else values * factor).to(kept.dtype)


def _of_layers(tensor: torch.Tensor, shape: torch.Size, layers: Sequence[int], num_layers: int) -> torch.Tensor:
    """A tensor outside of the layers; if it has a part per layer along an axis, as embeddings per layer do, the parts
    of the layers that stay."""
    for axis, (size, wanted) in enumerate(zip(tensor.shape, shape, strict=False)):
        part = size // num_layers
        if size != wanted == part * len(layers) and size == part * num_layers:
            parts = tensor.unflatten(axis, (num_layers, part))
            tensor = parts.index_select(axis, torch.as_tensor(layers, device=tensor.device)).flatten(axis, axis + 1)
    return tensor


def _differs(dense: PreTrainedModel, name: str, how: str) -> InputError:
    return InputError(f"{dense.config.model_type}: its class can't hold this shape: in the pruned model {name} {how}")


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor


def full_units(model: PreTrainedModel) -> dict[int, Units]:
    """Every unit of every layer, by layer."""
    return {i: layout.all_units() for i, layout in enumerate(decoder_layout(model))}
