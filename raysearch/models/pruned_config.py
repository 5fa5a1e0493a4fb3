"""The configuration of a pruned model: the stock class that can hold a shape, every per-layer list cut to it."""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import MistralConfig, PretrainedConfig

from raysearch.models.shape import Shape


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of a model's decoder, from the model's configuration."""
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    return Shape(
        int(text.num_hidden_layers),
        int(getattr(text, "num_key_value_heads", None) or heads),
        heads,
        int(text.intermediate_size),
    )


def head_dim_of(text_config: PretrainedConfig) -> int:
    """Features per head."""
    return int(getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads)


def pruned_config(config: PretrainedConfig, shape: Shape, layers: Sequence[int] | None = None) -> PretrainedConfig:
    """A new configuration for the whole model.

    Args:
        config: of the dense model; not changed.
        shape: of the pruned decoder.
        layers: the dense layers that stay, increasing; None keeps the first ones.

    Raises:
        ValueError: the stock class refuses the shape.
    """
    text = config.get_text_config(decoder=True)
    pruned_text = pruned_text_config(text, shape, layers)
    if text is config:
        return pruned_text
    pruned = copy.deepcopy(config)
    for name, value in vars(config).items():
        if value is text:
            setattr(pruned, name, pruned_text)
    return pruned


def pruned_text_config(text: PretrainedConfig, shape: Shape, layers: Sequence[int] | None = None) -> PretrainedConfig:
    """As `pruned_config`, for the decoder's own configuration.

    Two decoders become Mistral, with the same logits, where their own class refuses a head count: Llama, whose hidden
    size must be a multiple of the heads, and Phi-3 with long rotary factors, whose number must match that quotient.
    Mistral has no biases and no partial rotary embedding, so they must have none.
    """
    dense, layers = shape_of(text), range(shape.num_layers) if layers is None else layers
    assert len(layers) == shape.num_layers, (shape, layers)
    fields: dict[str, Any] = text.to_dict()
    for name, value in fields.items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == dense.num_layers:
            fields[name] = [value[i] for i in layers]
    fields["num_hidden_layers"] = shape.num_layers
    if (shape.num_kv_heads, shape.num_heads) != (dense.num_kv_heads, dense.num_heads):
        fields["head_dim"] = head_dim_of(text)
        fields["num_attention_heads"] = shape.num_heads
        fields["num_key_value_heads"] = shape.num_kv_heads
    fields["intermediate_size"] = shape.num_ffn_channels
    cls = type(text)
    if _becomes_mistral(text, shape):
        cls, fields = MistralConfig, _as_mistral(text, fields)
    fields.pop("model_type", None)
    pruned = cls(**fields)
    pruned._attn_implementation = text._attn_implementation
    return pruned


def _becomes_mistral(text: PretrainedConfig, shape: Shape) -> bool:
    if text.model_type == "llama":
        return text.hidden_size % shape.num_heads != 0 and not (text.attention_bias or text.mlp_bias)
    if text.model_type == "phi3":
        rope = text.rope_parameters
        partial = rope.get("partial_rotary_factor", 1.0) != 1.0
        return rope["rope_type"] == "longrope" and not partial and shape.num_heads != text.num_attention_heads
    return False


def _as_mistral(text: PretrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    dropped = {"attention_bias", "mlp_bias", "pretraining_tp", "resid_pdrop", "embd_pdrop"}
    fields = {name: value for name, value in fields.items() if name not in dropped}
    if fields.get("architectures"):
        fields["architectures"] = ["MistralForCausalLM"]
    return {**fields, "sliding_window": getattr(text, "sliding_window", None)}
