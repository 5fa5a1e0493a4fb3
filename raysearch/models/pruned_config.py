"""The configuration of a pruned model: the stock class that can hold a shape, everything per layer cut to it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import MistralConfig, PretrainedConfig

from raysearch.errors import InputError, first_line
from raysearch.models.shape import Shape

_CHANNELS = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", "ffn_hidden_size", "ffn_dim")
"""Keys of the number of FFN channels; of a decoder with experts, that of the experts comes first."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN_EXPERTS = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "num_selected_experts", "moe_topk",
    "moe_top_k", "moe_k", "top_k_experts",
)  # fmt: skip
"""Keys of the number of experts that a token goes through."""
_EXPERT_GROUPS = ("n_group", "num_expert_group", "num_expert_groups")
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers")
"""Keys that say how many first layers are of another kind."""
_LAST_LAYERS = ("num_kv_shared_layers",)
"""Keys that say how many last layers are of another kind."""


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of a model's decoder, from the model's configuration.

    Raises:
        InputError: the configuration lacks a number of it, or has one that no model has.
    """
    text = config.get_text_config(decoder=True)
    heads = _number(text, "num_attention_heads")
    shape = (
        _number(text, "num_hidden_layers"),
        _number(text, "num_key_value_heads") or heads,
        heads,
        _number(text, channels_key(text)),
    )
    if not all(isinstance(number, int) and number > 0 for number in shape):
        raise InputError(
            f"{config.model_type}: its decoder has {shape[0]} layers, {shape[1]} KV heads, {shape[2]} query heads and "
            f"{shape[3]} FFN channels by its configuration; only decoders with one positive number of each are pruned"
        )
    hidden_size = _number(text, "hidden_size")
    return Shape(*shape, _num_experts(text), hidden_size if type(hidden_size) is int else 0)  # type: ignore[arg-type]


def _num_experts(text: PretrainedConfig) -> int:
    """Experts of a layer that has any; 0 for a decoder without."""
    nums = [_number(text, name) for name in _EXPERTS]
    return next((num for num in nums if type(num) is int and num > 0), 0)


def least_experts(config: PretrainedConfig) -> int:
    """The fewest experts that a router can choose among: those that a token goes through. All of them where that number
    is not known, or where the router chooses groups of experts first."""
    text = config.get_text_config(decoder=True)
    chosen = [num for name in _CHOSEN_EXPERTS if type(num := _number(text, name)) is int and num > 0]
    in_groups = any((_number(text, name) or 1) != 1 for name in _EXPERT_GROUPS)
    return _num_experts(text) if in_groups or not chosen else min(max(chosen), _num_experts(text))


def channels_key(text: PretrainedConfig) -> str:
    """The key of a decoder's configuration that has its number of FFN channels."""
    has_experts = any(_number(text, name) for name in _EXPERTS)
    keys = _CHANNELS if has_experts else _CHANNELS[2:]
    return next((key for key in keys if _number(text, key)), "intermediate_size")


def _number(text: PretrainedConfig, key: str) -> Any:
    """The number under a key, which may stand in a list once per layer; None if layers differ in it."""
    try:
        value = getattr(text, key, None)
    except Exception:  # a key that per_layer_config gives layers of their own
        return None
    if isinstance(value, list | tuple):
        return value[0] if len(set(map(str, value))) == 1 else None
    return value


def head_dim_of(text_config: PretrainedConfig) -> int:
    """Features per head."""
    return int(_number(text_config, "head_dim") or text_config.hidden_size // text_config.num_attention_heads)


def pruned_config(config: PretrainedConfig, shape: Shape, layers: Sequence[int] | None = None) -> PretrainedConfig:
    """A new configuration for the whole model.

    Args:
        config: of the dense model; not changed.
        shape: of the pruned decoder.
        layers: the dense layers that stay, increasing; None keeps the first ones.

    Raises:
        InputError: the stock class refuses the shape or these layers.
    """
    text = config.get_text_config(decoder=True)
    pruned_text = pruned_text_config(text, shape, layers)
    if text is config:
        return pruned_text
    return _with_text(config, text, pruned_text)


_HIDDEN_OUTSIDE = (
    "hidden_size",
    "text_hidden_size",
    "llm_hidden_size",
    "out_hidden_size",
    "projection_dim",
    "output_dim",
)
"""Keys beside the decoder's own configuration that may repeat its hidden size; the first only where it holds that."""


def _with_text(config: PretrainedConfig, text: PretrainedConfig, pruned_text: PretrainedConfig) -> PretrainedConfig:
    """A copy of a configuration with another decoder's, which may lie deeper."""
    pruned = copy.deepcopy(config)
    for name, value in vars(config).items():
        if value is text:
            setattr(pruned, name, pruned_text)
        elif isinstance(value, PretrainedConfig):
            if value.get_text_config(decoder=True) is text:
                setattr(pruned, name, _with_text(value, text, pruned_text))
            else:
                _follow_hidden_size(getattr(pruned, name), _HIDDEN_OUTSIDE[1:], text, pruned_text)
    _follow_hidden_size(pruned, _HIDDEN_OUTSIDE, text, pruned_text)
    return pruned


def _follow_hidden_size(
    config: PretrainedConfig, keys: Sequence[str], text: PretrainedConfig, pruned_text: PretrainedConfig
) -> None:
    for key in keys if pruned_text.hidden_size != text.hidden_size else ():
        if vars(config).get(key) == text.hidden_size:
            setattr(config, key, pruned_text.hidden_size)


def pruned_text_config(text: PretrainedConfig, shape: Shape, layers: Sequence[int] | None = None) -> PretrainedConfig:
    """As `pruned_config`, for the decoder's own configuration.

    Two decoders become Mistral, with the same logits, where their own class refuses a head count: Llama, whose hidden
    size must be a multiple of the heads, and Phi-3 with long rotary factors, whose number must match that quotient.
    Mistral has no biases and no partial rotary embedding, so they must have none.

    Raises:
        InputError: as `pruned_config`.
    """
    dense, layers = shape_of(text), range(shape.num_layers) if layers is None else layers
    assert len(layers) == shape.num_layers, (shape, layers)
    fields: dict[str, Any] = text.to_dict()
    per_layer = {} if shape.num_layers == dense.num_layers else _cut_to(layers, fields, dense.num_layers)
    fields |= copy.deepcopy(per_layer)  # some classes change the list that they are given
    fields["num_hidden_layers"] = shape.num_layers
    if (shape.num_kv_heads, shape.num_heads) != (dense.num_kv_heads, dense.num_heads):
        if not getattr(text, "is_heterogeneous", False):
            fields["head_dim"] = head_dim_of(text)
        fields["num_attention_heads"] = shape.num_heads
        fields["num_key_value_heads"] = shape.num_kv_heads
    if shape.hidden_size not in (0, dense.hidden_size):
        if not getattr(text, "is_heterogeneous", False):
            fields["head_dim"] = head_dim_of(text)
        fields[text.attribute_map.get("hidden_size", "hidden_size")] = shape.hidden_size
    if shape.num_ffn_channels != dense.num_ffn_channels:
        key, num = channels_key(text), shape.num_ffn_channels
        fields[key] = [num] * shape.num_layers if isinstance(getattr(text, key), list | tuple) else num
    if shape.num_experts not in (0, dense.num_experts):
        named = [key for key in _EXPERTS if key in fields and _number(text, key) == dense.num_experts]
        fields |= dict.fromkeys(named, shape.num_experts)
    cls = type(text)
    if _becomes_mistral(text, shape):
        cls, fields = MistralConfig, _as_mistral(text, fields)
    fields.pop("model_type", None)
    try:
        pruned = cls(**fields)
    except Exception as error:  # whatever an architecture's own validation raises
        raise InputError(f"{text.model_type}: {cls.__name__} refuses {shape} ({first_line(error)})") from None
    for name, value in per_layer.items():
        if name != "per_layer_config" and hasattr(pruned, name) and _plain(getattr(pruned, name)) != _plain(value):
            raise InputError(
                f"{text.model_type}: {cls.__name__} has rules of its own for {name}, which these {len(layers)} layers "
                "don't follow"
            )
    pruned._attn_implementation = text._attn_implementation
    return pruned


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _cut_to(layers: Sequence[int], fields: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The entries of a decoder's configuration that go by layer, for the layers that stay: a list with an entry per
    layer, a list of layers' numbers, and how many first or last layers are of another kind."""
    new_place = {old: new for new, old in enumerate(layers)}
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list | tuple) and not name.endswith(("token_id", "token_ids", "architectures")):
            if _is_layer_numbers(name, value, num_layers):
                found[name] = [new_place[old] for old in value if old in new_place]
            elif len(value) == num_layers:
                found[name] = [value[i] for i in layers]
        elif name == "per_layer_config" and isinstance(value, dict):
            found[name] = {new_place[int(old)]: own for old, own in value.items() if int(old) in new_place}
        elif name in _FIRST_LAYERS and isinstance(value, int):
            found[name] = sum(i < value for i in layers)
        elif name in _LAST_LAYERS and isinstance(value, int):
            found[name] = sum(i >= num_layers - value for i in layers)
    return found


def _is_layer_numbers(name: str, value: Sequence[Any], num_layers: int) -> bool:
    """Whether a list holds numbers of layers, not one entry per layer: whole, increasing, each once."""
    if not value or (len(value) == num_layers and num_layers <= 2):
        return False
    numbers = [entry for entry in value if type(entry) is int and 0 <= entry < num_layers]
    names_layers = any(word in name for word in ("layer", "idx", "ind"))
    return names_layers and len(numbers) == len(value) and list(value) == sorted(set(numbers))


def fixed_layers(config: PretrainedConfig) -> tuple[int, ...]:
    """The decoder layers that can't be dropped, increasing.

    Qwen3-VL and others add visual features behind the first layers, by position, so dropping one would shift the
    features; and some classes make the last layer of a kind of their own.
    """
    text = config.get_text_config(decoder=True)
    dense = shape_of(config)
    vision = getattr(config, "vision_config", None)
    num_leading = min(len(getattr(vision, "deepstack_visual_indexes", None) or ()), dense.num_layers)
    fixed = set(range(num_leading))
    if dense.num_layers > 1 and _cut_to(range(dense.num_layers - 1), text.to_dict(), dense.num_layers):
        try:
            pruned_text_config(text, replace(dense, num_layers=dense.num_layers - 1))
        except InputError:
            fixed.add(dense.num_layers - 1)
    return tuple(sorted(fixed))


def _becomes_mistral(text: PretrainedConfig, shape: Shape) -> bool:
    if text.model_type == "llama":
        return (shape.hidden_size or text.hidden_size) % shape.num_heads != 0 and not (
            text.attention_bias or text.mlp_bias
        )
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
