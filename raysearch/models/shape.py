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
class ParamCounts:
    """Parameters of one dense model by part; a pruned model's count follows by multiplication.

    Attributes:
        num_outside: parameters outside the decoder (vision tower, projector); of them `num_projector` the projector's.
        num_decoder_rest: embeddings, language head (once if tied) and final norm.
        per_layer: a layer's parameters that no prunable unit owns (norms, output biases).
        per_kv_head, per_head, per_channel: parameters of one unit in one layer.
        linears: a layer's linear layers; quantisation rounds their weights.
        num_split_linears: how many more a layer has in the class with split weights that holds fewer heads.
        num_buffer_values, buffer_bytes: saved buffers that are floating point (in values), and the others.
        hidden_size, head_dim, vocab_size: of the decoder; pruning leaves them alone.
        attention_choices: all (KV heads, query heads) with equally many query heads per group that the stock class
            holds, the largest first.
    """

    dense: Shape
    num_outside: int
    num_projector: int
    num_decoder_rest: int
    per_layer: int
    per_kv_head: int
    per_head: int
    per_channel: int
    linears: tuple[Linear, ...]
    num_split_linears: int
    num_buffer_values: int
    buffer_bytes: int
    num_leading_layers_kept: int
    hidden_size: int
    head_dim: int
    vocab_size: int
    attention_choices: tuple[tuple[int, int], ...]

    def layer(self, shape: Shape) -> int:
        """Parameters of one decoder layer of `shape`."""
        attention = self.attention((shape.num_kv_heads, shape.num_heads))
        return self.per_layer + attention + shape.num_ffn_channels * self.per_channel

    def decoder(self, shape: Shape) -> int:
        """Parameters of the language model: embeddings, layers, final norm and head."""
        return self.num_decoder_rest + shape.num_layers * self.layer(shape)

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
            quantization: of the weights of `linears`; the number of parameters stays.
        """
        shape = shape or self.dense
        num_params = self.total(shape)
        size_bytes = (num_params + self.num_buffer_values) * bytes_per_param + self.buffer_bytes
        if quantization != "none":
            size_bytes -= shape.num_layers * self._bytes_saved(shape, bytes_per_param, quantization)
        return Size(num_params, size_bytes)

    def _bytes_saved(self, shape: Shape, bytes_per_param: int, quantization: Quantization) -> int:
        """Bytes that quantisation saves in one decoder layer."""
        saved = 0
        for linear in self.linears:
            num_outputs, num_inputs = linear.extents(shape)
            saved += num_outputs * num_inputs * bytes_per_param
            saved -= stored_bytes(quantization, num_outputs, num_inputs, bytes_per_param)
        split = self.num_split_linears if shape.num_heads != self.dense.num_heads else 0
        return saved - split * SHAPE_BYTES

    def kv_cache_bytes(self, shape: Shape, num_tokens: int, bytes_per_value: int = 2) -> int:
        """Keys and values of `num_tokens` tokens of one sequence in all layers; sliding windows would take less."""
        return 2 * shape.num_layers * shape.num_kv_heads * self.head_dim * num_tokens * bytes_per_value

    def attention(self, pair: tuple[int, int]) -> int:
        """Parameters of one layer's heads, given (KV heads, query heads)."""
        return pair[0] * self.per_kv_head + pair[1] * self.per_head

    @cached_property
    def smallest(self) -> Shape:
        """The smallest shape that the stock class holds."""
        kv, heads = min(self.attention_choices, key=self.attention)
        return Shape(max(1, self.num_leading_layers_kept), kv, heads, 1)
