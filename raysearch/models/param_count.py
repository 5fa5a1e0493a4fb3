"""Count a model's parameters on the meta device, once per configuration; pruned sizes follow by arithmetic."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from raysearch.errors import InputError
from raysearch.models import Layout, UnitKind, decoder_layout, empty_model, family_for
from raysearch.models.layout import UNIT_KINDS, signature_of
from raysearch.models.pruned_config import fixed_layers, head_dim_of, pruned_text_config, shape_of
from raysearch.models.shape import LayerCounts, Linear, ParamCounts, Shape


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
        num = _nums(Shape(1, *pair, self.dense.num_ffn_channels))
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
        shape = Shape(len(self.places), *pair, self.dense.num_ffn_channels)
        text_config = pruned_text_config(self.text_config, shape, self.places)
        same = type(text_config) is type(self.text_config)
        return empty_model(text_config, self.decoder_class if same else MODEL_MAPPING[type(text_config)]).layers


def _nums(shape: Shape) -> dict[UnitKind, int]:
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

    total = sum(p.numel() for p in model.parameters())
    decoder_ids = {id(p) for p in [*decoder.parameters(), *family.lm_head(model).parameters()]}
    in_decoder = sum(p.numel() for p in model.parameters() if id(p) in decoder_ids)
    in_layers = sum(p.numel() for p in decoder.layers.parameters())
    buffers = [b for name, b in model.named_buffers() if name in model.state_dict()]
    kinds = []
    for of_kind, shapes in zip(places, tensors, strict=True):
        layout = layouts[of_kind[0]]
        per_unit = group, head, channel = [_per_unit(layout, shapes, kind, _nums(dense)) for kind in UNIT_KINDS]
        per_layer = sum(shape.numel() for shape in shapes.values()) - sum(map(mul, dense.widths, per_unit))
        kinds.append(
            LayerCounts(tuple(of_kind), per_layer, group, head, channel, _linears(layers[of_kind[0]], layout), 0)
        )
    owned = {part.tensor for layout in layouts for part in layout.slices if part.kind == "ffn_channels"}
    has_experts = any(len(shape) == 3 for of_kind in tensors for name, shape in of_kind.items() if name in owned)
    choices.sort(key=lambda pair: sum(len(kind.layers) * kind.attention(pair) for kind in kinds), reverse=True)
    if len(choices) > 1:
        split = candidates.num_linears(choices[-1])
        kinds = [replace(kind, num_split_linears=n - len(kind.linears)) for kind, n in zip(kinds, split, strict=True)]
    return ParamCounts(
        dense=dense,
        num_outside=total - in_decoder,
        num_projector=sum(p.numel() for path in family.projector_paths for p in model.get_submodule(path).parameters()),
        num_decoder_rest=in_decoder - in_layers,
        rest_per_layer=_rest_per_layer(decoder, text_config, dense, fixed_layers(config)),
        kinds=tuple(kinds),
        num_buffer_values=sum(b.numel() for b in buffers if b.is_floating_point()),
        buffer_bytes=sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
        fixed_layers=fixed_layers(config),
        channels_multiple=min(8 if has_experts else 1, dense.num_ffn_channels),
        hidden_size=int(text_config.hidden_size),
        head_dim=head_dim_of(text_config),
        vocab_size=int(text_config.vocab_size),
        attention_choices=tuple(choices),
    )


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


def _linears(layer: nn.Module, layout: Layout) -> tuple[Linear, ...]:
    """A decoder layer's linear layers, their extents per unit."""

    def per_unit(name: str, axis: int, extent: int) -> tuple[int, int, int, int]:
        sizes = Counter[str]()
        for part in layout.slices_of(f"{name}.weight"):
            if part.axis == axis:
                sizes[part.kind] += part.size
        return (0 if sizes else extent, sizes["kv_groups"], sizes["heads"], sizes["ffn_channels"])

    return tuple(
        Linear(per_unit(name, 0, module.out_features), per_unit(name, 1, module.in_features))
        for name, module in _linear_modules(layer).items()
    )


def _per_unit(layout: Layout, shapes: dict[str, torch.Size], kind: UnitKind, num: dict[UnitKind, int]) -> int:
    """Parameters of one unit of `kind` in a layer."""
    fewer = {**num, kind: num[kind] - 1}
    return sum(
        shape.numel() - torch.Size(layout.kept_shape(name, shape, fewer)).numel() for name, shape in shapes.items()
    )
