"""Count a model's parameters on the meta device, once per configuration; pruned sizes follow by arithmetic."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from raysearch.errors import InputError
from raysearch.models import Layout, decoder_layout, empty_model, family_for
from raysearch.models.layout import outer_layout, signature_of
from raysearch.models.pruned_config import fixed_layers, head_dim_of, least_experts, pruned_text_config, shape_of
from raysearch.models.shape import UNIT_KINDS, LayerCounts, ParamCounts, Shape, Tensor, UnitKind


@dataclass(frozen=True)
class _Decoder:
    """A dense decoder; tries on the meta device which head counts its stock class can hold.

    Attributes:
        places: the last layer of each kind; the other fields have an entry for each of them.
    """

    dense: Shape
    text_config: PretrainedConfig
    decoder_class: type
    places: Sequence[int]
    layouts: Sequence[Layout]
    tensors: Sequence[dict[str, torch.Size]]

    def attention_choices(self) -> list[tuple[int, int]]:
        """All (KV heads, query heads) that the class holds, with equally many query heads per group."""
        whole = self.dense.num_kv_heads, self.dense.num_heads
        if not any(layout.attention_out for layout in self.layouts) or whole[1] % whole[0]:
            return [whole]
        per_group = range(1, whole[1] // whole[0] + 1)
        pairs = [(kv, kv * q) for kv in range(1, whole[0] + 1) for q in per_group]
        return [pair for pair in pairs if pair == whole or self._holds(pair)]

    def num_linears(self, pair: tuple[int, int]) -> list[int]:
        """Linear layers of a decoder layer of each kind with these heads."""
        return [len(_linear_modules(layer)) for layer in self._layers(pair)]

    def _holds(self, pair: tuple[int, int]) -> bool:
        num = nums_of(replace(self.dense, num_kv_heads=pair[0], num_heads=pair[1]))
        try:
            built = self._layers(pair)
        except InputError:
            return False
        for layer, layout, tensors in zip(built, self.layouts, self.tensors, strict=True):
            for name, parameter in layer.named_parameters():
                dense = tensors.get(layout.source(name)[0])
                if dense is None or tuple(parameter.shape) != layout.kept_shape(name, dense, num):
                    return False
        return True

    def _layers(self, pair: tuple[int, int]) -> Sequence[nn.Module]:
        shape = replace(self.dense, num_layers=len(self.places), num_kv_heads=pair[0], num_heads=pair[1])
        text_config = pruned_text_config(self.text_config, shape, self.places)
        same = type(text_config) is type(self.text_config)
        return empty_model(text_config, self.decoder_class if same else MODEL_MAPPING[type(text_config)]).layers


def nums_of(shape: Shape) -> dict[UnitKind, int]:
    """Units of each kind in a layer."""
    return dict(zip(UNIT_KINDS, shape.widths, strict=True))


_COUNTS: OrderedDict[str, ParamCounts] = OrderedDict()
_MAX_CACHED = 64


def counts_of(config: PretrainedConfig) -> ParamCounts:
    """The counts of a configuration, cached by its content.

    Raises:
        InputError: a part of the family isn't found, or transformers can't build the model.
    """
    key = type(config).__name__ + config.to_json_string(use_diff=False)
    if key not in _COUNTS:
        _COUNTS[key] = _count(copy.deepcopy(config))
        if len(_COUNTS) > _MAX_CACHED:
            _COUNTS.popitem(last=False)
    return _COUNTS[key]


def _count(config: PretrainedConfig) -> ParamCounts:
    model = empty_model(config)
    dense, family = shape_of(config), family_for(config)
    decoder, text_config = family.decoder(model), family.text_config(config)
    layers, layouts = list(decoder.layers), decoder_layout(model)
    if not (int(text_config.hidden_size) > 0 and int(text_config.vocab_size) > 0):
        raise InputError(f"{config.model_type}: its decoder has no features or no tokens by its configuration")
    if len(layers) != dense.num_layers:
        raise InputError(f"{config.model_type}: has {len(layers)} layers, and {dense.num_layers} by its configuration")
    by_signature: dict[Any, list[int]] = {}
    for i, layer in enumerate(layers):
        by_signature.setdefault(signature_of(layer), []).append(i)
    places = sorted(by_signature.values(), key=max)
    lasts = [of_kind[-1] for of_kind in places]
    tensors = [{name: parameter.shape for name, parameter in layers[i].named_parameters()} for i in lasts]
    candidates = _Decoder(dense, text_config, type(decoder), lasts, [layouts[i] for i in lasts], tensors)
    choices = candidates.attention_choices()

    decoder_ids = {id(p) for p in [*decoder.parameters(), *family.lm_head(model).parameters()]}
    outer, in_layers = outer_layout(model), {id(p) for p in decoder.layers.parameters()}
    outside, rest = (
        _outer_counts(
            [
                (name, p.shape)
                for name, p in model.named_parameters()
                if id(p) not in in_layers and (id(p) in decoder_ids) is inside
            ],
            outer,
            dense,
        )
        for inside in (False, True)
    )
    saved, in_place = model.state_dict().keys(), {id(b) for b in decoder.layers.buffers()}
    buffers = [
        b for name, b in model.named_buffers() if name in saved and not (id(b) in in_place and b.is_floating_point())
    ]
    kinds = [
        LayerCounts(tuple(of_kind), *_tensors(layers[of_kind[0]], layouts[of_kind[0]], dense), num_split_linears=0)
        for of_kind in places
    ]
    owned = {part.tensor for layout in layouts for part in layout.slices if part.kind == "ffn_channels"}
    has_experts = any(len(shape) == 3 for of_kind in tensors for name, shape in of_kind.items() if name in owned)
    multiple = min(8 if has_experts else 1, dense.num_ffn_channels)

    def with_heads(pair: tuple[int, int]) -> int:
        shape = replace(dense, num_kv_heads=pair[0], num_heads=pair[1])
        return sum(len(kind.layers) * kind.layer(shape) for kind in kinds)

    choices.sort(key=with_heads, reverse=True)
    if len(choices) > 1:
        split = candidates.num_linears(choices[-1])
        kinds = [
            replace(kind, num_split_linears=num - sum(tensor.is_linear for tensor in kind.tensors))
            for kind, num in zip(kinds, split, strict=True)
        ]
    rest_per_layer = _rest_per_layer(decoder, text_config, dense, fixed_layers(config))
    narrows = not rest_per_layer and bool(outer.slices) and all(kind.has("hidden_channels") for kind in kinds)
    return ParamCounts(
        dense=dense,
        outside=outside,
        num_projector=sum(p.numel() for path in family.projector_paths for p in model.get_submodule(path).parameters()),
        rest=rest,
        rest_per_layer=rest_per_layer,
        kinds=tuple(kinds),
        num_buffer_values=sum(b.numel() for b in buffers if b.is_floating_point()),
        buffer_bytes=sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
        fixed_layers=fixed_layers(config),
        channels_multiple=multiple,
        channels_step=64 if dense.num_ffn_channels >= 4096 else multiple,
        most_channels=dense.num_ffn_channels,
        hidden_step=_hidden_step(dense.hidden_size) if narrows else dense.hidden_size,
        head_dim=head_dim_of(text_config),
        vocab_size=int(text_config.vocab_size),
        attention_choices=tuple(choices),
        least_experts=least_experts(config) if any(kind.has("experts") for kind in kinds) else dense.num_experts,
    )


def _hidden_step(hidden_size: int) -> int:
    """Steps of the hidden size: whole tiles of tensor cores in large models."""
    return 64 if hidden_size >= 1024 else 8 if hidden_size >= 64 else 1


def _outer_counts(named: Sequence[tuple[str, torch.Size]], outer: Layout, dense: Shape) -> LayerCounts:
    """Tensors outside of the layers; those without hidden channels as one."""
    following = [(name, shape) for name, shape in named if outer.slices_of(name)]
    num_others = sum(shape.numel() for _, shape in named) - sum(shape.numel() for _, shape in following)
    others = Tensor(((num_others, *(0 for _ in UNIT_KINDS)),), is_linear=False)
    tensors = tuple(_tensor(name, shape, outer, dense, is_linear=False) for name, shape in following)
    return LayerCounts((), (others, *tensors), (), num_split_linears=0)


def _tensor(name: str, shape: torch.Size, layout: Layout, dense: Shape, is_linear: bool) -> Tensor:
    num, axes = nums_of(dense), []
    for axis, size in enumerate(shape):
        per_unit = Counter[str]()
        for part in layout.slices_of(name):
            per_unit[part.kind] += part.size * (part.axis == axis)
        owned = sum(per_unit[kind] * num[kind] for kind in UNIT_KINDS)
        axes.append((size - owned, *(per_unit[kind] for kind in UNIT_KINDS)))
    return Tensor(tuple(axes), is_linear)


def _rest_per_layer(decoder: nn.Module, text_config: PretrainedConfig, dense: Shape, fixed: Sequence[int]) -> int:
    """Parameters of the decoder outside of its layers that go with one of them."""
    droppable = [i for i in range(dense.num_layers) if i not in fixed]
    if not droppable or dense.num_layers == 1:
        return 0
    layers = [i for i in range(dense.num_layers) if i != droppable[-1]]
    try:
        fewer = empty_model(
            pruned_text_config(text_config, replace(dense, num_layers=len(layers)), layers), type(decoder)
        )
    except InputError:  # no layer can be dropped alone
        return 0
    rests = [
        sum(p.numel() for p in part.parameters()) - sum(p.numel() for p in part.layers.parameters())
        for part in (decoder, fewer)
    ]
    return rests[0] - rests[1]


def _linear_modules(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def _tensors(layer: nn.Module, layout: Layout, dense: Shape) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A decoder layer's parameters and its saved floating point buffers, with their extents per unit."""
    linears = {f"{name}.weight" for name in _linear_modules(layer)}
    saved = layer.state_dict().keys()
    buffers = [(name, b) for name, b in layer.named_buffers() if name in saved and b.is_floating_point()]
    parameters, kept = (
        tuple(_tensor(name, t.shape, layout, dense, name in linears) for name, t in named)
        for named in (layer.named_parameters(), buffers)
    )
    return parameters, kept
