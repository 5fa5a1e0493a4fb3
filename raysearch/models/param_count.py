"""Count a model's parameters on the meta device, once per configuration; pruned sizes follow by arithmetic."""

import copy
from collections import Counter, OrderedDict
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, PretrainedConfig

from raysearch.errors import InputError
from raysearch.models import Layout, UnitKind, decoder_layout, empty_model, family_for
from raysearch.models.pruned_config import head_dim_of, pruned_text_config, shape_of
from raysearch.models.shape import Linear, ParamCounts, Shape

_UNIT_KINDS: tuple[UnitKind, ...] = ("kv_groups", "heads", "ffn_channels")
"""In the order of `Shape.widths`."""


@dataclass(frozen=True)
class _Decoder:
    """A dense decoder; tries on the meta device which head counts its stock class can hold."""

    dense: Shape
    layout: Layout
    text_config: PretrainedConfig
    layer_shapes: dict[str, torch.Size]
    decoder_class: type

    def attention_choices(self) -> list[tuple[int, int]]:
        """All (KV heads, query heads) that the class holds, with equally many query heads per group."""
        per_group = range(1, self.layout.heads_per_group + 1)
        pairs = [(kv, kv * q) for kv in range(1, self.dense.num_kv_heads + 1) for q in per_group]
        return [pair for pair in pairs if self._holds(pair)]

    def num_linears(self, pair: tuple[int, int]) -> int:
        """Linear layers of a decoder layer with these heads."""
        shape = Shape(1, *pair, self.dense.num_ffn_channels)
        return len(_linear_modules(self._one_layer(pruned_text_config(self.text_config, shape))))

    def _holds(self, pair: tuple[int, int]) -> bool:
        if pair == (self.dense.num_kv_heads, self.dense.num_heads):
            return True
        shape = Shape(1, *pair, self.dense.num_ffn_channels)
        num: dict[UnitKind, int] = dict(zip(_UNIT_KINDS, shape.widths, strict=True))
        try:
            built = self._one_layer(pruned_text_config(self.text_config, shape))
        except (ValueError, AssertionError, StrictDataclassError):
            return False
        for name, parameter in built.named_parameters():
            dense = self.layer_shapes.get(self.layout.source(name)[0])
            if dense is None or tuple(parameter.shape) != self.layout.kept_shape(name, dense, num):
                return False
        return True

    def _one_layer(self, text_config: PretrainedConfig) -> nn.Module:
        if type(text_config) is type(self.text_config):
            return empty_model(text_config, self.decoder_class).layers[0]
        with torch.device("meta"):
            return AutoModel.from_config(text_config).layers[0]


_COUNTS: OrderedDict[str, ParamCounts] = OrderedDict()
_MAX_CACHED = 64


def counts_of(config: PretrainedConfig) -> ParamCounts:
    """The counts of a configuration, cached by its content.

    Raises:
        InputError: the decoder's layers have different shapes, or the family is unknown.
    """
    key = type(config).__name__ + config.to_json_string(use_diff=False)
    if key not in _COUNTS:
        _COUNTS[key] = _count(copy.deepcopy(config))
        if len(_COUNTS) > _MAX_CACHED:
            _COUNTS.popitem(last=False)
    return _COUNTS[key]


def _count(config: PretrainedConfig) -> ParamCounts:
    family = family_for(config)
    model = empty_model(config)
    decoder = family.decoder(model)
    layers, text_config = list(decoder.layers), family.text_config(config)
    layout = decoder_layout(model)
    shapes = {name: parameter.shape for name, parameter in layers[0].named_parameters()}
    _check_uniform(config, layers, shapes)
    dense = shape_of(config)
    assert dense.widths == (layout.num_kv_groups, layout.num_heads, layout.num_ffn_channels), (dense, layout)
    num: dict[UnitKind, int] = dict(zip(_UNIT_KINDS, dense.widths, strict=True))

    per_unit = {kind: _per_unit(layout, shapes, kind, num) for kind in num}
    per_layer = sum(s.numel() for s in shapes.values()) - sum(num[kind] * per_unit[kind] for kind in num)
    total = sum(p.numel() for p in model.parameters())
    decoder_ids = {id(p) for p in [*decoder.parameters(), *family.lm_head(model).parameters()]}
    in_decoder = sum(p.numel() for p in model.parameters() if id(p) in decoder_ids)
    in_layers = sum(p.numel() for p in decoder.layers.parameters())
    buffers = [b for name, b in model.named_buffers() if name in model.state_dict()]
    linears = _linears(layers[0], layout)
    candidates = _Decoder(dense, layout, text_config, shapes, type(decoder))
    choices = candidates.attention_choices()
    choices.sort(key=lambda pair: pair[0] * per_unit["kv_groups"] + pair[1] * per_unit["heads"], reverse=True)
    return ParamCounts(
        dense=dense,
        num_outside=total - in_decoder,
        num_projector=sum(p.numel() for module in family.projector(model) for p in module.parameters()),
        num_decoder_rest=in_decoder - in_layers,
        per_layer=per_layer,
        per_kv_head=per_unit["kv_groups"],
        per_head=per_unit["heads"],
        per_channel=per_unit["ffn_channels"],
        linears=linears,
        num_split_linears=candidates.num_linears(choices[-1]) - len(linears),
        num_buffer_values=sum(b.numel() for b in buffers if b.is_floating_point()),
        buffer_bytes=sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
        num_leading_layers_kept=family.num_leading_layers_kept(config),
        hidden_size=int(text_config.hidden_size),
        head_dim=head_dim_of(text_config),
        vocab_size=int(text_config.vocab_size),
        attention_choices=tuple(choices),
    )


def _linear_modules(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def _linears(layer: nn.Module, layout: Layout) -> tuple[Linear, ...]:
    """A decoder layer's linear layers, their extents per unit."""

    def per_unit(name: str, axis: int, extent: int) -> tuple[int, int, int, int]:
        sizes = Counter[str]()
        for part in layout.by_module.get(name, ()):
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


def _check_uniform(config: PretrainedConfig, layers: list[nn.Module], shapes: dict[str, torch.Size]) -> None:
    for i, layer in enumerate(layers):
        found = {name: parameter.shape for name, parameter in layer.named_parameters()}
        if found != shapes:
            odd = sorted(set(found.items()) ^ set(shapes.items()))[0][0]
            raise InputError(
                f"{config.model_type}: decoder layer {i} differs from layer 0 at {odd}; only decoders whose layers all "
                "have the same shape can be pruned"
            )
