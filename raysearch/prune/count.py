"""Exact sizes of pruned models, counted on the meta device once per configuration and linear from then on."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, PretrainedConfig

from raysearch.errors import InputError
from raysearch.families import Kind, Layout, empty_model, family_for, layout_of
from raysearch.prune.config import Shape, pruned_text_config, shape_of
from raysearch.size import Size


@dataclass
class Counts:
    """Parameters of one dense model by where they are; a pruned model's count follows by multiplication.

    Attributes:
        num_outside: parameters outside the decoder (vision tower, projector).
        num_decoder_rest: embeddings, language head (once if tied) and final norm.
        per_layer: a layer's parameters that no prunable unit owns (norms, output biases).
        per_kv_head, per_head, per_channel: parameters of one unit in one layer.
        num_buffer_values, buffer_bytes: saved buffers that are floating point (in values), and the others.
    """

    dense: Shape
    num_outside: int
    num_decoder_rest: int
    per_layer: int
    per_kv_head: int
    per_head: int
    per_channel: int
    num_buffer_values: int
    buffer_bytes: int
    num_leading_layers_kept: int
    layout: Layout
    text_config: PretrainedConfig
    layer_shapes: dict[str, torch.Size]
    decoder_class: type
    _held: dict[tuple[int, int], bool] = field(default_factory=dict)

    def layer(self, shape: Shape) -> int:
        """Parameters of one decoder layer of `shape`."""
        return (
            self.per_layer
            + shape.num_kv_heads * self.per_kv_head
            + shape.num_heads * self.per_head
            + shape.num_ffn_channels * self.per_channel
        )

    def decoder(self, shape: Shape) -> int:
        """Parameters of the language model: embeddings, layers, final norm and head."""
        return self.num_decoder_rest + shape.num_layers * self.layer(shape)

    def total(self, shape: Shape) -> int:
        """Parameters of the whole model."""
        return self.num_outside + self.decoder(shape)

    def size(self, shape: Shape, bytes_per_param: int) -> Size:
        """Size of the whole model as its tensors are saved."""
        num_params = self.total(shape)
        return Size(num_params, (num_params + self.num_buffer_values) * bytes_per_param + self.buffer_bytes)

    @cached_property
    def smallest(self) -> Shape:
        """The smallest shape that the stock class holds."""
        kv, heads = min(self.attention_choices, key=self.attention)
        return Shape(max(1, self.num_leading_layers_kept), kv, heads, 1)

    @cached_property
    def attention_choices(self) -> list[tuple[int, int]]:
        """All (KV heads, query heads) that leave an equal number of query heads per group and that the stock class
        holds, in the order of falling size."""
        per_group = range(1, self.layout.heads_per_group + 1)
        pairs = [(kv, kv * q) for kv in range(1, self.dense.num_kv_heads + 1) for q in per_group]
        return sorted(filter(self.holds, pairs), key=self.attention, reverse=True)

    def attention(self, pair: tuple[int, int]) -> int:
        """Parameters of one layer's heads, given (KV heads, query heads)."""
        return pair[0] * self.per_kv_head + pair[1] * self.per_head

    def holds(self, pair: tuple[int, int]) -> bool:
        """Whether a stock decoder can be built with so many heads of the dense size: tried on the meta device."""
        if pair not in self._held:
            self._held[pair] = pair == (self.dense.num_kv_heads, self.dense.num_heads) or self._try(pair)
        return self._held[pair]

    def _try(self, pair: tuple[int, int]) -> bool:
        shape = Shape(1, *pair, self.dense.num_ffn_channels)
        num: dict[Kind, int] = {
            "kv_groups": pair[0],
            "heads": pair[1],
            "ffn_channels": shape.num_ffn_channels,
        }
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


_COUNTS: OrderedDict[str, Counts] = OrderedDict()
_MAX_CACHED = 64


def counts_of(config: PretrainedConfig) -> Counts:
    """The counts of a configuration, remembered per content.

    Raises:
        InputError: the decoder's layers have different shapes, or the family is unknown.
    """
    key = type(config).__name__ + config.to_json_string(use_diff=False)
    if key not in _COUNTS:
        _COUNTS[key] = _count(copy.deepcopy(config))
        if len(_COUNTS) > _MAX_CACHED:
            _COUNTS.popitem(last=False)
    return _COUNTS[key]


def _count(config: PretrainedConfig) -> Counts:
    family = family_for(config)
    model = empty_model(config)
    decoder = family.decoder(model)
    layers, text_config = list(decoder.layers), family.text_config(config)
    layout = layout_of(layers[0], text_config)
    shapes = {name: parameter.shape for name, parameter in layers[0].named_parameters()}
    _check_uniform(config, layers, shapes)
    num = {
        "kv_groups": layout.num_kv_groups,
        "heads": layout.num_heads,
        "ffn_channels": layout.num_ffn_channels,
    }
    dense = shape_of(config)
    assert (dense.num_kv_heads, dense.num_heads, dense.num_ffn_channels) == tuple(num.values()), (dense, num)

    per_unit = {kind: _per_unit(layout, shapes, kind, num) for kind in num}
    per_layer = sum(s.numel() for s in shapes.values()) - sum(num[kind] * per_unit[kind] for kind in num)
    total = sum(p.numel() for p in model.parameters())
    decoder_ids = {id(p) for p in [*decoder.parameters(), *family.lm_head(model).parameters()]}
    in_decoder = sum(p.numel() for p in model.parameters() if id(p) in decoder_ids)
    in_layers = sum(p.numel() for p in decoder.layers.parameters())
    buffers = [b for name, b in model.named_buffers() if name in model.state_dict()]
    return Counts(
        dense=dense,
        num_outside=total - in_decoder,
        num_decoder_rest=in_decoder - in_layers,
        per_layer=per_layer,
        per_kv_head=per_unit["kv_groups"],
        per_head=per_unit["heads"],
        per_channel=per_unit["ffn_channels"],
        num_buffer_values=sum(b.numel() for b in buffers if b.is_floating_point()),
        buffer_bytes=sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
        num_leading_layers_kept=family.num_leading_layers_kept(config),
        layout=layout,
        text_config=text_config,
        layer_shapes=shapes,
        decoder_class=type(decoder),
    )


def _per_unit(layout: Layout, shapes: dict[str, torch.Size], kind: Any, num: dict[Any, int]) -> int:
    """Parameters that go when one unit of `kind` goes."""
    fewer = {**num, kind: num[kind] - 1}
    return sum(
        shape.numel() - torch.Size(layout.kept_shape(name, shape, fewer)).numel()
        for name, shape in shapes.items()
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
