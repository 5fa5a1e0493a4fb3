"""Build the pruned model: a new stock model with the kept parts of the dense model's tensors."""

import copy
from collections.abc import Mapping, Sequence

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import Family, Layout, decoder_layout, empty_model, family_for, model_class
from raysearch.models.layout import Units
from raysearch.models.pruned_config import pruned_config
from raysearch.models.shape import Shape


def slice_model(
    model: PreTrainedModel,
    layers: Sequence[int],
    units: Mapping[int, Units],
    bias_shift: Mapping[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """Copy what a model keeps into a smaller one; the dense model is not changed.

    Args:
        model: the dense model.
        layers: the decoder layers that stay, increasing.
        units: the units that each of those layers keeps, by dense layer index; equally many in every layer.
        bias_shift: values added to biases, by the dense tensor's name inside the decoder's layer list.

    Returns:
        A model of a stock class, on the dense model's device, in its dtype and in eval mode.

    Raises:
        InputError: the stock class can't hold such a decoder, or the layers name one that must stay.
    """
    family = family_for(model)
    _check_layers(family, model, layers)
    shape = _common_shape(layers, units)
    try:
        config = pruned_config(model.config, shape, layers)
        unchanged = type(config) is type(model.config)
        pruned = empty_model(config, type(model) if unchanged else model_class(config))
    except (ValueError, AssertionError, StrictDataclassError) as error:
        raise InputError(f"{model.config.model_type}: no stock model holds {shape}: {error}") from None
    _fill(pruned, model, family.layers_name(model), layers, decoder_layout(model), units, bias_shift or {})
    if model.generation_config is not None:
        pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned.eval()


def _check_layers(family: Family, model: PreTrainedModel, layers: Sequence[int]) -> None:
    num_layers, fixed = len(family.decoder(model).layers), family.num_leading_layers_kept(model.config)
    if list(layers) != sorted(set(layers)) or not layers or not 0 <= layers[0] <= layers[-1] < num_layers:
        raise InputError(f"layers {list(layers)}: must be increasing and of 0 to {num_layers - 1}")
    if list(layers[:fixed]) != list(range(fixed)):
        raise InputError(
            f"layers {list(layers)}: the first {fixed} layers of {model.config.model_type} take in visual features and "
            "must stay"
        )


def _common_shape(layers: Sequence[int], units: Mapping[int, Units]) -> Shape:
    extents = {(len(units[i].kv_groups), len(units[i].heads), len(units[i].ffn_channels)) for i in layers}
    if len(extents) != 1:
        raise InputError(f"units: layers keep different numbers, {sorted(extents)}; a stock model has one for all")
    return Shape(len(layers), *extents.pop())


def _fill(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    prefix: str,
    layers: Sequence[int],
    layout: Layout,
    units: Mapping[int, Units],
    bias_shift: Mapping[str, torch.Tensor],
) -> None:
    """Fill the empty model with values; shared tensors stay shared."""

    def located(name: str) -> tuple[int | None, str]:
        """Dense layer and name inside it; None and the whole name outside the layers."""
        if not name.startswith(prefix + "."):
            return None, name
        layer, _, inner = name[len(prefix) + 1 :].partition(".")
        return layers[int(layer)], inner

    def dense_name(name: str) -> str:
        layer, inner = located(name)
        return inner if layer is None else f"{prefix}.{layer}.{layout.source(inner)[0]}"

    def value(name: str, source: torch.Tensor) -> torch.Tensor:
        layer, inner = located(name)
        if layer is None:
            return source.detach().clone()
        kept = layout.keep(inner, source, units[layer])
        shift = bias_shift.get(f"{layer}.{inner}")
        return kept if shift is None else kept + shift.to(kept)

    filled: dict[int, nn.Parameter] = {}
    for name, empty in list(pruned.named_parameters(remove_duplicate=False)):
        if id(empty) not in filled:
            source = dense.get_parameter(dense_name(name))
            tensor = value(name, source)
            assert tensor.shape == empty.shape, (name, tuple(tensor.shape), tuple(empty.shape))
            filled[id(empty)] = nn.Parameter(tensor, requires_grad=source.requires_grad)
        _set(pruned, name, filled[id(empty)])
    for name, _ in list(pruned.named_buffers(remove_duplicate=False)):
        _set(pruned, name, dense.get_buffer(dense_name(name)).detach().clone())


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor


def full_units(model: PreTrainedModel) -> dict[int, Units]:
    """Every unit of every layer, by layer."""
    num_layers = len(family_for(model).decoder(model).layers)
    return dict.fromkeys(range(num_layers), decoder_layout(model).all_units())
