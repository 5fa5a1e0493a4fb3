"""The prunable extents of a decoder, and the parameter counts of a model's parts."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from operator import mul
from typing import Literal

from raysearch.config.budget import Size
from raysearch.config.quantization import SHAPE_BYTES, Quantization, stored_bytes
from raysearch.config.shape_rules import ShapeRules
from raysearch.errors import InputError

Part = Literal["depth", "width", "experts", "hidden"]
"""What a criterion is for: layers, heads and FFN channels, experts, hidden channels."""
UnitKind = Literal["kv_groups", "heads", "ffn_channels", "experts", "hidden_channels"]


@dataclass(frozen=True)
class Unit:
    """A kind of unit that can be removed from a decoder; `UNITS` has all of them.

    Attributes:
        kind: its name, also of the scores in `Importance` and the indices in `Units`.
        extent: the field of `Shape` that says how many a layer has.
        noun: in sentences.
        scored_for: which of a recipe's criteria scores it.
    """

    kind: UnitKind
    extent: str
    noun: str
    scored_for: Part


UNITS = (
    Unit("kv_groups", "num_kv_heads", "KV heads", "width"),
    Unit("heads", "num_heads", "query heads", "width"),
    Unit("ffn_channels", "num_ffn_channels", "FFN channels", "width"),
    Unit("experts", "num_experts", "experts", "experts"),
    Unit("hidden_channels", "hidden_size", "hidden channels", "hidden"),
)
UNIT_KINDS: tuple[UnitKind, ...] = tuple(unit.kind for unit in UNITS)


@dataclass(frozen=True, order=True)
class Shape:
    """The prunable extents of a decoder, the same in every layer.

    Attributes:
        num_layers: decoder layers.
        num_kv_heads: key and value heads per layer.
        num_heads: query heads per layer, a multiple of `num_kv_heads`.
        num_ffn_channels: intermediate FFN channels per layer, or per expert.
        num_experts: experts per layer that has any; 0 for all that the dense model has.
        hidden_size: channels of the residual stream; 0 for all that the dense model has.
    """

    num_layers: int
    num_kv_heads: int
    num_heads: int
    num_ffn_channels: int
    num_experts: int = 0
    hidden_size: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """How many units of each kind a layer has, in the order of `UNITS`."""
        return tuple(getattr(self, unit.extent) for unit in UNITS)

    def filled(self, dense: "Shape") -> "Shape":
        """This shape with the dense numbers of experts and hidden channels in place of 0."""
        if self.hidden_size and (self.num_experts or not dense.num_experts):
            return self
        num_experts, hidden_size = self.num_experts or dense.num_experts, self.hidden_size or dense.hidden_size
        return replace(self, num_experts=num_experts, hidden_size=hidden_size)


Extent = tuple[int, ...]
"""Entries along an axis of a tensor: those that no unit owns, then those per unit of each kind."""


@dataclass(frozen=True)
class Tensor:
    """A parameter of a decoder layer.

    Attributes:
        axes: the extent of each axis.
        is_linear: whether it is the weight of a linear layer, (outputs, inputs); quantisation rounds those.
    """

    axes: tuple[Extent, ...]
    is_linear: bool

    def sizes(self, units: Extent) -> list[int]:
        """Its sizes, given 1 and the number of units of each kind."""
        return [sum(map(mul, axis, units)) for axis in self.axes]


Polynomial = dict[tuple[int, ...], int]
"""Coefficients of products of numbers of units, by the units' places in `UNITS`; () is the constant."""


@dataclass(frozen=True)
class LayerCounts:
    """Parameters of the decoder layers of one kind, which have the same tensors and shapes; or of another part.

    Attributes:
        layers: their places in the dense decoder; none for another part.
        tensors: parameters of one layer.
        buffers: its saved floating point buffers.
        num_split_linears: how many more linear layers one has in the class with split weights that holds fewer heads.
    """

    layers: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]
    num_split_linears: int

    def layer(self, shape: Shape) -> int:
        """Parameters of one layer of `shape`."""
        return _value(self._params, shape)

    def buffer_values(self, shape: Shape) -> int:
        """Values of one layer's buffers."""
        return _value(self._buffer_values, shape)

    @cached_property
    def _params(self) -> Polynomial:
        return _polynomial(self.tensors)

    @cached_property
    def _buffer_values(self) -> Polynomial:
        return _polynomial(self.buffers)

    def has(self, kind: UnitKind) -> bool:
        """Whether units of a kind own anything here."""
        return any(UNIT_KINDS.index(kind) in term for term in self._params)


def _polynomial(tensors: Iterable[Tensor]) -> Polynomial:
    """Values of all tensors together."""
    found = Counter[tuple[int, ...]]()
    for tensor in tensors:
        terms: Counter[tuple[int, ...]] = Counter({(): 1})
        for constant, *per_unit in tensor.axes:
            product = Counter({term: constant * factor for term, factor in terms.items()})
            for place, size in enumerate(per_unit):
                for term, factor in terms.items() if size else ():
                    product[tuple(sorted((*term, place)))] += size * factor
            terms = product
        found.update(terms)
    return {term: factor for term, factor in found.items() if factor}


def _value(polynomial: Polynomial, shape: Shape) -> int:
    units = shape.widths
    return sum(factor * math.prod([units[place] for place in term]) for term, factor in polynomial.items())


@dataclass(frozen=True)
class ParamCounts:
    """Parameters of one dense model by part; a pruned model's count follows by multiplication.

    Attributes:
        outside: parameters outside the decoder (vision tower, projector); of them `num_projector` the projector's.
        rest: embeddings, language head (once if tied) and final norm.
        rest_per_layer: parameters of `rest` that go with each layer, such as embeddings per layer.
        kinds: of decoder layers, in the order of their last ones. A hybrid decoder has several, such as recurrent and
            attention layers.
        num_buffer_values, buffer_bytes: saved buffers that are floating point (in values, without those of `kinds`),
            and the others.
        fixed_layers: the decoder layers that can't be dropped.
        channels_multiple: that the number of FFN channels must be: the class demands it, such as whole 16 bytes per row
            in grouped products over experts, or rules do.
        channels_step: by which their number is chosen: 64 from 4096 channels on, for tensor cores.
        most_channels: the largest number allowed; the dense one unless rules forbid it.
        hidden_step: by which the hidden size is chosen; all of it where none of its channels can be removed.
        head_dim, vocab_size: of the decoder; pruning leaves them alone.
        attention_choices: all (KV heads, query heads) with equally many query heads per group that the stock class
            holds, the largest first.
        least_experts: the fewest experts that the class routes among; `dense.num_experts` where none can be dropped.
        rules: on shapes, in words; empty without any.
    """

    dense: Shape
    outside: LayerCounts
    num_projector: int
    rest: LayerCounts
    rest_per_layer: int
    kinds: tuple[LayerCounts, ...]
    num_buffer_values: int
    buffer_bytes: int
    fixed_layers: tuple[int, ...]
    channels_multiple: int
    channels_step: int
    most_channels: int
    hidden_step: int
    head_dim: int
    vocab_size: int
    attention_choices: tuple[tuple[int, int], ...]
    least_experts: int
    rules: str = ""

    def under(self, rules: ShapeRules) -> "ParamCounts":
        """The same model, of which only shapes within the rules are made.

        Raises:
            InputError: there is no such shape.
        """
        if rules == ShapeRules():
            return self
        dense, step = self.dense, math.lcm(self.channels_multiple, rules.channels_multiple)
        head_rules = dense.num_kv_heads, self.head_dim, dense.hidden_size
        choices = tuple(pair for pair in self.attention_choices if rules.admits_heads(*pair, *head_rules))
        has_channels = any(kind.has("ffn_channels") for kind in self.kinds)
        most = dense.num_ffn_channels // step * step if has_channels else dense.num_ffn_channels
        missing = None
        if dense.hidden_size % rules.hidden_multiple:
            missing = f"its hidden size is {dense.hidden_size}"
        elif not choices:
            missing = f"no part of its {dense.num_kv_heads} KV heads and {dense.num_heads} query heads of "
            missing += f"{self.head_dim} features will do"
        elif not most or most % step:
            missing = f"it has {dense.num_ffn_channels} FFN channels"
        if missing:
            raise InputError(f"shapes: {rules.describe()}: this decoder has no such shape, since {missing}")
        hidden_step = min(math.lcm(self.hidden_step, rules.hidden_multiple), dense.hidden_size)
        chosen = step if rules.ffn_multiple else math.lcm(self.channels_step, step)
        return replace(
            self,
            attention_choices=choices,
            channels_multiple=step,
            channels_step=min(chosen, most),
            most_channels=most,
            hidden_step=dense.hidden_size if rules.quotient_head_dim else hidden_step,
            rules=rules.describe(),
        )

    @cached_property
    def kind_of_layer(self) -> list[int]:
        """For each dense layer, the place of its kind."""
        places = {layer: place for place, kind in enumerate(self.kinds) for layer in kind.layers}
        return [places[layer] for layer in range(self.dense.num_layers)]

    def num_of_kinds(self, num_layers: int) -> list[int]:
        """How many layers of each kind a decoder of `num_layers` has: as nearly as possible the dense model's
        proportions, at least one of each, and all fixed ones. So the number of layers alone decides on the size."""
        totals = [len(kind.layers) for kind in self.kinds]
        least = [max(1, sum(layer in kind.layers for layer in self.fixed_layers)) for kind in self.kinds]
        wanted = [num_layers * total / self.dense.num_layers for total in totals]
        found = least[:]
        while sum(found) < num_layers:
            open_kinds = [place for place, total in enumerate(totals) if found[place] < total]
            found[max(open_kinds, key=lambda place: (wanted[place] - found[place], -place))] += 1
        return found

    def layers(self, shape: Shape) -> int:
        """Parameters of all decoder layers."""
        shape, nums = shape.filled(self.dense), self.num_of_kinds(shape.num_layers)
        return sum(num * kind.layer(shape) for num, kind in zip(nums, self.kinds, strict=True))

    def layer(self, shape: Shape) -> float:
        """Parameters of one decoder layer, on average over a decoder of `shape`."""
        return self.layers(shape) / shape.num_layers

    def channels(self, shape: Shape) -> int:
        """Parameters of one FFN channel in every layer of a decoder."""
        return self.layers(replace(shape, num_ffn_channels=1)) - self.layers(replace(shape, num_ffn_channels=0))

    def attention(self, pair: tuple[int, int], hidden_size: int = 0) -> int:
        """Parameters of the heads of all dense layers, given (KV heads, query heads)."""
        kv_heads, heads = pair
        without = replace(self.dense, num_kv_heads=0, num_heads=0, hidden_size=hidden_size)
        return self.layers(replace(without, num_kv_heads=kv_heads, num_heads=heads)) - self.layers(without)

    def decoder(self, shape: Shape) -> int:
        """Parameters of the language model: embeddings, layers, final norm and head."""
        shape, dropped = shape.filled(self.dense), self.dense.num_layers - shape.num_layers
        return self.rest.layer(shape) - dropped * self.rest_per_layer + self.layers(shape)

    def num_outside(self, shape: Shape) -> int:
        """Parameters outside the decoder; a projector's outputs follow the hidden size."""
        return self.outside.layer(shape.filled(self.dense))

    def total(self, shape: Shape) -> int:
        """Parameters of the whole model."""
        return self.num_outside(shape) + self.decoder(shape)

    def removed_share(self, shape: Shape) -> float:
        """Share of the decoder's parameters that `shape` removes."""
        return 1 - self.decoder(shape) / self.decoder(self.dense)

    def size(self, shape: Shape | None = None, bytes_per_param: int = 2, quantization: Quantization = "none") -> Size:
        """Size of the whole model on disk: tied weights once, without the files' headers.

        Args:
            shape: of the decoder; None is the dense one.
            bytes_per_param: of weights that aren't quantised, and of the scales of those that are.
            quantization: of the weights of linear layers; the number of parameters stays.
        """
        shape = (shape or self.dense).filled(self.dense)
        num_params = self.total(shape)
        size_bytes = (num_params + self.num_buffer_values) * bytes_per_param + self.buffer_bytes
        for num, kind in zip(self.num_of_kinds(shape.num_layers), self.kinds, strict=True):
            size_bytes += num * kind.buffer_values(shape) * bytes_per_param
            if quantization != "none":
                size_bytes -= num * self._bytes_saved(kind, shape, bytes_per_param, quantization)
        cached = self.kv_cache_bytes(shape, 1, bytes_per_param)
        return Size(num_params, size_bytes, cached, self.activation_bytes(shape, bytes_per_param))

    def _bytes_saved(self, kind: LayerCounts, shape: Shape, bytes_per_param: int, quantization: Quantization) -> int:
        """Bytes that quantisation saves in one decoder layer."""
        saved, units = 0, (1, *shape.widths)
        for tensor in kind.tensors:
            if tensor.is_linear:
                num_outputs, num_inputs = tensor.sizes(units)
                saved += num_outputs * num_inputs * bytes_per_param
                saved -= stored_bytes(quantization, num_outputs, num_inputs, bytes_per_param)
        split = kind.num_split_linears if shape.num_heads != self.dense.num_heads else 0
        return saved - split * SHAPE_BYTES

    def kv_cache_bytes(self, shape: Shape, num_tokens: int, bytes_per_value: int = 2) -> int:
        """Keys and values of `num_tokens` tokens of one sequence in all layers; sliding windows and layers without
        attention would take less."""
        return 2 * shape.num_layers * shape.num_kv_heads * self.head_dim * num_tokens * bytes_per_value

    def activation_bytes(self, shape: Shape, bytes_per_value: int = 2) -> int:
        """Most that one token of a prompt takes at a time beside the KV cache, as the decoder of transformers computes
        it, without the attention's weights and with the last token's logits alone: three of the FFN's channels and four
        hidden states in a gated FFN, or seven hidden states in a norm, which computes in fp32."""
        hidden_size = shape.hidden_size or self.dense.hidden_size
        return bytes_per_value * max(3 * shape.num_ffn_channels + 4 * hidden_size, 7 * hidden_size)

    @cached_property
    def largest(self) -> Shape:
        """The largest shape that is made: the dense one, unless rules forbid its widths."""
        kv, heads = max(self.attention_choices, key=self.attention)
        return replace(self.dense, num_kv_heads=kv, num_heads=heads, num_ffn_channels=self.most_channels)

    @cached_property
    def smallest(self) -> Shape:
        """The smallest shape that is made, with all experts and hidden channels."""
        kv, heads = min(self.attention_choices, key=self.attention)
        least = sum(max(1, sum(layer in kind.layers for layer in self.fixed_layers)) for kind in self.kinds)
        has_channels = any(kind.has("ffn_channels") for kind in self.kinds)
        channels = min(self.channels_multiple, self.most_channels) if has_channels else self.most_channels
        return replace(self.dense, num_layers=least, num_kv_heads=kv, num_heads=heads, num_ffn_channels=channels)
