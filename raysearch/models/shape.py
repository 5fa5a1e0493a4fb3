"""The prunable extents of a decoder, and the parameter counts of a model's parts."""

from dataclasses import dataclass
from functools import cached_property
from operator import mul

from raysearch.config.budget import Size
from raysearch.config.quantization import SHAPE_BYTES, Quantization, stored_bytes


@dataclass(frozen=True, order=True)
class Shape:
    """The prunable extents of a decoder, the same in every layer.

    Attributes:
        num_layers: decoder layers.
        num_kv_heads: key and value heads per layer.
        num_heads: query heads per layer, a multiple of `num_kv_heads`.
        num_ffn_channels: intermediate FFN channels per layer.
    """

    num_layers: int
    num_kv_heads: int
    num_heads: int
    num_ffn_channels: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """KV heads, query heads and FFN channels."""
        return self.num_kv_heads, self.num_heads, self.num_ffn_channels


@dataclass(frozen=True)
class Linear:
    """A linear layer that every decoder layer has.

    Attributes:
        outputs, inputs: features that no unit owns, then those per KV head, per head and per FFN channel.
    """

    outputs: tuple[int, int, int, int]
    inputs: tuple[int, int, int, int]

    def extents(self, shape: Shape) -> tuple[int, int]:
        """Outputs and inputs in a decoder layer of `shape`."""
        units = (1, *shape.widths)
        num_outputs, num_inputs = (sum(map(mul, per, units)) for per in (self.outputs, self.inputs))
        return num_outputs, num_inputs


@dataclass(frozen=True)
class LayerCounts:
    """Parameters of the decoder layers of one kind, which have the same tensors and shapes.

    Attributes:
        layers: their places in the dense decoder.
        per_layer: a layer's parameters that no prunable unit owns (norms, output biases).
        per_kv_head, per_head, per_channel: parameters of one unit in one layer; 0 where the kind has none.
        linears: a layer's linear layers; quantisation rounds their weights.
        num_split_linears: how many more a layer has in the class with split weights that holds fewer heads.
    """

    layers: tuple[int, ...]
    per_layer: int
    per_kv_head: int
    per_head: int
    per_channel: int
    linears: tuple[Linear, ...]
    num_split_linears: int

    def attention(self, pair: tuple[int, int]) -> int:
        """Parameters of one layer's heads, given (KV heads, query heads)."""
        return pair[0] * self.per_kv_head + pair[1] * self.per_head

    def layer(self, shape: Shape) -> int:
        """Parameters of one layer of `shape`."""
        heads = self.attention((shape.num_kv_heads, shape.num_heads))
        return self.per_layer + heads + shape.num_ffn_channels * self.per_channel


@dataclass(frozen=True)
class ParamCounts:
    """Parameters of one dense model by part; a pruned model's count follows by multiplication.

    Attributes:
        num_outside: parameters outside the decoder (vision tower, projector); of them `num_projector` the projector's.
        num_decoder_rest: embeddings, language head (once if tied) and final norm.
        rest_per_layer: the part of `num_decoder_rest` that goes with each layer, such as embeddings per layer.
        kinds: of decoder layers, in the order of their last ones. A hybrid decoder has several, such as recurrent and
            attention layers.
        num_buffer_values, buffer_bytes: saved buffers that are floating point (in values), and the others.
        fixed_layers: the decoder layers that can't be dropped.
        channels_multiple: that the class demands of the number of FFN channels. Grouped products over experts need rows
            of whole 16 bytes.
        hidden_size, head_dim, vocab_size: of the decoder; pruning leaves them alone.
        attention_choices: all (KV heads, query heads) with equally many query heads per group that the stock class
            holds, the largest first.
    """

    dense: Shape
    num_outside: int
    num_projector: int
    num_decoder_rest: int
    rest_per_layer: int
    kinds: tuple[LayerCounts, ...]
    num_buffer_values: int
    buffer_bytes: int
    fixed_layers: tuple[int, ...]
    channels_multiple: int
    hidden_size: int
    head_dim: int
    vocab_size: int
    attention_choices: tuple[tuple[int, int], ...]

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
        nums = self.num_of_kinds(shape.num_layers)
        return sum(num * kind.layer(shape) for num, kind in zip(nums, self.kinds, strict=True))

    def layer(self, shape: Shape) -> float:
        """Parameters of one decoder layer, on average over a decoder of `shape`."""
        return self.layers(shape) / shape.num_layers

    def channels(self, num_layers: int) -> int:
        """Parameters of one FFN channel in every layer of a decoder."""
        nums = self.num_of_kinds(num_layers)
        return sum(num * kind.per_channel for num, kind in zip(nums, self.kinds, strict=True))

    def attention(self, pair: tuple[int, int]) -> int:
        """Parameters of the heads of all dense layers, given (KV heads, query heads)."""
        return sum(len(kind.layers) * kind.attention(pair) for kind in self.kinds)

    def decoder(self, shape: Shape) -> int:
        """Parameters of the language model: embeddings, layers, final norm and head."""
        dropped = self.dense.num_layers - shape.num_layers
        return self.num_decoder_rest - dropped * self.rest_per_layer + self.layers(shape)

    def total(self, shape: Shape) -> int:
        """Parameters of the whole model."""
        return self.num_outside + self.decoder(shape)

    def removed_share(self, shape: Shape) -> float:
        """Share of the decoder's parameters that `shape` removes."""
        return 1 - self.decoder(shape) / self.decoder(self.dense)

    def size(self, shape: Shape | None = None, bytes_per_param: int = 2, quantization: Quantization = "none") -> Size:
        """Size of the whole model on disk: tied weights once, without the files' headers.

        Args:
            shape: of the decoder; None is the dense one.
            bytes_per_param: of weights that aren't quantised, and of the scales of those that are.
            quantization: of the weights of the kinds' `linears`; the number of parameters stays.
        """
        shape = shape or self.dense
        num_params = self.total(shape)
        size_bytes = (num_params + self.num_buffer_values) * bytes_per_param + self.buffer_bytes
        if quantization != "none":
            for num, kind in zip(self.num_of_kinds(shape.num_layers), self.kinds, strict=True):
                size_bytes -= num * self._bytes_saved(kind, shape, bytes_per_param, quantization)
        cached = self.kv_cache_bytes(shape, 1, bytes_per_param)
        return Size(num_params, size_bytes, cached, self.activation_bytes(shape, bytes_per_param))

    def _bytes_saved(self, kind: LayerCounts, shape: Shape, bytes_per_param: int, quantization: Quantization) -> int:
        """Bytes that quantisation saves in one decoder layer."""
        saved = 0
        for linear in kind.linears:
            num_outputs, num_inputs = linear.extents(shape)
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
        return bytes_per_value * max(3 * shape.num_ffn_channels + 4 * self.hidden_size, 7 * self.hidden_size)

    @cached_property
    def smallest(self) -> Shape:
        """The smallest shape that the stock class holds."""
        kv, heads = min(self.attention_choices, key=self.attention)
        least = sum(max(1, sum(layer in kind.layers for layer in self.fixed_layers)) for kind in self.kinds)
        has_channels = any(kind.per_channel for kind in self.kinds)
        return Shape(least, kv, heads, self.channels_multiple if has_channels else self.dense.num_ffn_channels)
