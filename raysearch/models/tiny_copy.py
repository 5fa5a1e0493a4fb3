"""A tiny copy of an architecture, to try things on: the configuration's own classes, flags, tokens and kinds of layers,
only narrower, and shorter where all layers are alike; and inputs for it, with a picture where it takes one."""

import contextlib
import inspect
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.errors import InputError, first_line
from raysearch.logging import quiet
from raysearch.models.transformers_classes import empty_model, model_class

MAX_PARAMS = 400_000_000
MAX_PICTURE_SECONDS = 10.0
NUM_LOGITS = 8
_HIDDEN = ("hidden_size", "embed_dim", "d_model", "dim", "width", "n_embd")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "attention_heads", "resampler_n_heads")
_INNER = re.compile(r"intermediate|ffn|mlp_dim|n_inner|feed_forward|block_ff_dim")
_NO_WIDTH = re.compile(r"image|vocab|position|patch|window|kernel|stride|token|resolution|length|crop|tile|chunk")
_WIDTH = re.compile(r"hidden|dim|size|width|channels|features")
_TEXT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "qk_head_dim": 16,
    "v_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "ssm_state_size": 8, "mamba_d_state": 8, "mamba_num_heads": 8, "mamba_n_heads": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "laurel_rank": 8,
    "hidden_size_per_layer_input": 4, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2, "n_group": 1,
    "topk_group": 1, "sliding_window": 8, "attention_chunk_size": 8, "block_dim": 64, "conv_dim": 64,
}  # fmt: skip
"""Widths of special decoders, where they are larger."""


def tiny_copy(config: PretrainedConfig) -> tuple[PreTrainedModel, "dict[str, Inputs]"]:
    """A tiny copy with random weights, and inputs that it takes; see `tiny_model` and `inputs_for`.

    Raises:
        InputError: none can be made.
    """
    with contextlib.suppress(InputError):  # some classes derive other numbers from the size of a picture
        model = tiny_model(tiny_config(config, smaller_pictures=True))
        inputs = inputs_for(model)
        if "picture" in inputs:
            return model, inputs
    model = tiny_model(tiny_config(config))
    return model, inputs_for(model)


def tiny_config(config: PretrainedConfig, smaller_pictures: bool = False) -> PretrainedConfig:
    """The configuration of a tiny copy. Tokens and all flags stay, and the layers where they differ.

    Args:
        smaller_pictures: of 4 x 4 patches.

    Raises:
        InputError: its class refuses the numbers.
    """
    values = config.to_dict()
    text = values
    for name in _path_to(config, config.get_text_config(decoder=True)) or ():
        text = text[name]
    widths: dict[int, int] = {}
    named = [value for part in _parts(values) for name, value in part.items() if "feature_layer" in name]
    feature_layers = [layer for value in named for layer in (value if isinstance(value, list) else [value])]
    _shorten(text, "num_hidden_layers", 6)
    _shrink_text(text, widths)
    for part in _parts(values):
        if part is not text:
            _shrink_part(part, widths)
            if part is not values and all(layer in (-1, -2) for layer in feature_layers):
                _shorten(part, "num_hidden_layers", 3)
                _shorten(part, "depth", 3)
    for part in _parts(values):
        for name, value in part.items():
            if type(value) is int and value in widths and _WIDTH.search(name) and not _NO_WIDTH.search(name):
                part[name] = widths[value]
    if smaller_pictures:
        _shrink_pictures(values)
    tokens = [value for name, value in values.items() if name.endswith(("token_id", "token_index"))]
    if type(text.get("vocab_size")) is int:  # default configurations may lack the image token's row
        text["vocab_size"] = max([text["vocab_size"], *(token + 1 for token in tokens if type(token) is int)])
    values.pop("model_type", None)
    try:
        with quiet():
            return type(config)(**values)
    except Exception as error:
        raise InputError(f"{config.model_type}: no tiny copy can be made ({first_line(error)})") from None


def _path_to(config: PretrainedConfig, wanted: PretrainedConfig) -> tuple[str, ...] | None:
    """The names of the configurations that lead to a part of one."""
    if config is wanted:
        return ()
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            path = _path_to(value, wanted)
            if path is not None:
                return (name, *path)
    return None


def _parts(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and all that lie in it, as the dictionaries that they are."""
    yield values
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("config"):
            yield from _parts(value)


def _shorten(part: dict[str, Any], key: str, most: int) -> None:
    """Fewer layers, where all are alike: no list has different entries or numbers of layers."""
    num = part.get(key)
    if type(num) is not int or num <= most:
        return
    lists = {name: value for name, value in part.items() if isinstance(value, list | tuple) and value}
    by_layer = {name: value for name, value in lists.items() if len(value) == num}
    if any(len(set(map(str, value))) > 1 for value in by_layer.values()):
        return
    if any("layer" in name or "ind" in name for name in lists.keys() - by_layer.keys()):
        return
    if part.get("per_layer_config") or any(
        name.startswith(("first_", "num_kv_shared", "num_dense", "n_dense")) and part[name] for name in part
    ):
        return
    part |= {name: value[:most] for name, value in by_layer.items()} | {key: most}


def _shrink_text(text: dict[str, Any], widths: dict[int, int]) -> None:
    hidden_key = next((name for name in _HIDDEN if text.get(name)), "hidden_size")
    hidden, heads = text.get(hidden_key) or 64, text.get("num_attention_heads") or text.get("n_head") or 4
    groups = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or hidden // heads
    rotary = _rotary_share(text)
    rotary_only = text.get("qk_rope_head_dim") and head_dim == text["qk_rope_head_dim"]  # of compressed attention
    new_dim = 8 if rotary_only else 16 if rotary == 1 else 32
    new_groups = 4 if groups == heads else min(groups, 2)
    new_hidden = 4 * new_dim if not text.get("head_dim") or head_dim * heads == hidden else 6 * new_dim
    widths[hidden] = new_hidden
    for name, value in text.items():
        if name in (hidden_key, *_HEADS, "num_key_value_heads", "head_dim", "global_head_dim"):
            continue
        if name in _TEXT and type(value) is int and value > _TEXT[name]:
            text[name] = _TEXT[name]
        elif _INNER.search(name):
            text[name] = _narrowed(value, 32 if "moe" in name or "expert" in name else 96)
    text[hidden_key] = new_hidden
    text |= {name: 4 for name in _HEADS if text.get(name)}
    text |= {name: new for name, new in (("num_key_value_heads", new_groups), ("head_dim", new_dim)) if text.get(name)}
    if text.get("global_head_dim"):
        text["global_head_dim"] = new_dim * max(1, text["global_head_dim"] // head_dim)
    for own in (text.get("per_layer_config") or {}).values():
        for name, value in own.items():
            if name == "head_dim" and value:
                own[name] = new_dim * min(max(1, value // head_dim), 4)
            elif name == "num_key_value_heads" and value:
                own[name] = min(value, new_groups)
            elif _INNER.search(name):
                own[name] = _narrowed(value, 96)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(text.get(key), dict):
            text[key] = _shrink_rope(text[key], round(new_dim * rotary) // 2)


def _rotary_share(text: dict[str, Any]) -> float:
    rope = text.get("rope_parameters") or {}
    shares = [part.get("partial_rotary_factor") for part in (rope, *rope.values()) if isinstance(part, dict)]
    return min([share for share in shares if share] or [text.get("partial_rotary_factor") or 1.0])


def _shrink_rope(rope: Any, num_frequencies: int) -> Any:
    """Rotary settings for fewer frequencies: sections in proportion, the first factors of long contexts."""
    if not isinstance(rope, dict):
        return rope
    found = {name: _shrink_rope(value, num_frequencies) for name, value in rope.items()}
    for name in ("short_factor", "long_factor"):
        if isinstance(rope.get(name), list):
            found[name] = rope[name][:num_frequencies]
    sections = rope.get("mrope_section")
    if sections:
        total = sum(sections)
        new = [max(1, section * num_frequencies // total) for section in sections]
        new[0] += num_frequencies - sum(new)
        found["mrope_section"] = new
    return found


def _shrink_part(part: dict[str, Any], widths: dict[int, int]) -> None:
    """A part beside the decoder: at most 4 heads of 8 features, or of as many as make its width."""
    heads_keys = [name for name in _HEADS if type(part.get(name)) is int]
    hidden_keys = [name for name in _HIDDEN if heads_keys and type(part.get(name)) is int]
    old = [(part[hidden_keys[0]], part[heads_keys[0]])] if hidden_keys else []
    for name in hidden_keys:
        part[name] = widths.setdefault(part[name], 32)
    for name in (*heads_keys, "num_key_value_heads"):
        if type(part.get(name)) is int and part[name] > 4:
            part[name] = 4
    for name in ("head_dim", "global_head_dim", "resampler_head_dim"):
        if type(part.get(name)) is int:
            is_quotient = any(hidden == heads * part[name] for hidden, heads in old)
            part[name] = part[hidden_keys[0]] // part[heads_keys[0]] if is_quotient else min(part[name], 8)
    for name, value in part.items():
        if _INNER.search(name):
            part[name] = _narrowed(value, 48)


def _shrink_pictures(values: dict[str, Any]) -> None:
    for part in _parts(values):
        size, patch = part.get("image_size"), part.get("patch_size")
        if type(size) is int and type(patch) is int and size > 4 * patch:
            part["image_size"] = 4 * patch
            for name in ("image_grid_pinpoints", "vision_feature_grid_pinpoints"):
                if values.get(name):
                    values[name] = [[4 * patch, 4 * patch], [4 * patch, 8 * patch]]


def _narrowed(value: Any, width: int) -> Any:
    if isinstance(value, list | tuple):
        return [_narrowed(entry, width) for entry in value]
    return width if type(value) is int and value > width else value


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A tiny copy on the CPU, fp32, with random weights large enough that every unit matters.

    Raises:
        InputError: it can't be built, or isn't small.
    """
    num_params = sum(parameter.numel() for parameter in empty_model(config).parameters())
    if num_params > MAX_PARAMS:
        raise InputError(f"{config.model_type}: no tiny copy can be made, it would have {num_params:,} parameters")
    config.dtype = torch.float32
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        try:
            model = model_class(config)._from_config(config, attn_implementation="eager").eval().float()
        except Exception as error:
            raise InputError(f"{config.model_type}: no tiny copy can be made ({first_line(error)})") from None
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if tensor.ndim >= 2:
                    nn.init.normal_(tensor, std=0.12)
                elif tensor.is_floating_point() and "A_log" not in name and "dt_" not in name:
                    tensor.copy_(0.1 * torch.randn_like(tensor) + float(tensor.mean() > 0.5))
    return model.requires_grad_(False)


Inputs = dict[str, torch.Tensor]


def inputs_for(model: PreTrainedModel) -> dict[str, Inputs]:
    """Inputs that a tiny copy takes: `text`, and `picture` if one is found that changes its answer.

    Raises:
        InputError: it takes neither.
    """
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Inputs] = {}
    reason = ""
    ids = torch.randint(60, 90, (1, 24), generator=generator)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        if bool(torch.isfinite(logits_of(model, text)).all()):
            found["text"] = text
        else:
            reason = "logits are not finite"
    except Exception as error:
        reason = first_line(error)
    token = getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None)
    if token is not None:
        picture = _picture(model, int(token), generator)
        if picture is not None:
            found["picture"] = picture
    if not found:
        raise InputError(f"{model.config.model_type}: a tiny copy doesn't take text ({reason})")
    return found


def logits_of(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Logits of the last tokens, without a cache: (batch, at most `NUM_LOGITS`, vocabulary)."""
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.inference_mode(), quiet():
        logits = model(**inputs, use_cache=False, **({"logits_to_keep": NUM_LOGITS} if takes else {})).logits
    return logits[:, -NUM_LOGITS:]


def _picture(model: PreTrainedModel, token: int, generator: torch.Generator) -> Inputs | None:
    forward = inspect.signature(model.forward).parameters
    features = _features(model)
    takes = dict(forward) | dict(inspect.signature(features).parameters if features else {})
    for image in _images(model.config, generator):
        if not image.keys() <= takes.keys() or ("image_grid_thw" in takes) != ("image_grid_thw" in image):
            continue
        open_numbers, tried = [_num_tokens(model, image)] if features else [16, 4, 1], {0}
        while open_numbers:
            num_tokens = open_numbers.pop(0)
            if num_tokens in tried or len(tried) > 4:
                continue
            tried.add(num_tokens)
            ids = torch.randint(60, 90, (1, num_tokens + 10), generator=generator)
            ids[:, 1 : 1 + num_tokens] = token
            wanted = 0
            for types in (None, "mm_token_type_ids", "token_type_ids"):
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **image}
                if types:
                    inputs[types] = (ids == token).long()
                started = time.process_time()
                try:
                    answer = logits_of(model, inputs)
                    if time.process_time() - started > MAX_PICTURE_SECONDS:
                        return None
                    other = logits_of(model, {**inputs, "pixel_values": 1.7 * image["pixel_values"] + 0.3})
                except Exception as error:
                    wanted = wanted or _features_in(str(error), num_tokens)
                    continue
                if answer.shape[1] == NUM_LOGITS and answer.isfinite().all() and not torch.equal(answer, other):
                    return inputs
            open_numbers.append(wanted)
    return None


def _images(config: PretrainedConfig, generator: torch.Generator) -> Iterator[Inputs]:
    """A picture in each of the forms that processors of transformers make."""
    vision = getattr(config, "vision_config", None) or config

    def number(name: str, default: int) -> int:
        value = getattr(vision, name, None) or default
        value = value[0] if isinstance(value, list | tuple) else value
        return value if isinstance(value, int) else default

    size, patch, frames = number("image_size", 56), number("patch_size", 14), number("temporal_patch_size", 2)
    merge = max(number("spatial_merge_size", 1), number("merge_size", 1), 2)
    channels = number("in_channels", number("num_channels", 3))
    channels = channels if channels < 8 else 3
    side = 2 * merge
    grid = torch.tensor([[1, side, side]])
    for depth in dict.fromkeys((frames, 1)):
        rows = torch.randn(side * side, channels * depth * patch * patch, generator=generator)
        yield {"pixel_values": rows, "image_grid_thw": grid}
        yield {"pixel_values": rows, "image_grid_thw": grid, "image_merge_sizes": torch.tensor([1])}
    yield {
        "pixel_values": torch.randn(side * side, channels, patch, patch, generator=generator),
        "image_grid_thw": grid,
    }
    for length in dict.fromkeys((4 * patch, size)):  # few models insist on the second, which takes longer
        pixels = torch.randn(1, channels, length, length, generator=generator)
        sizes = torch.tensor([[length, length]])
        yield {"pixel_values": pixels}
        yield {"pixel_values": pixels[:, None]}
        yield {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(1, 1, length, length).long()}
        yield {"pixel_values": pixels, "image_sizes": sizes}
        yield {"pixel_values": torch.stack([pixels, pixels], 1), "image_sizes": sizes}
        yield {"pixel_values": pixels[:, None], "image_sizes": sizes}
        yield {"pixel_values": pixels, "high_res_pixel_values": torch.randn(1, 3, 1024, 1024, generator=generator)}


def _features(model: PreTrainedModel) -> Callable[..., Any] | None:
    for part in (model, model.base_model):
        if hasattr(part, "get_image_features"):
            return part.get_image_features
    return None


def _num_tokens(model: PreTrainedModel, image: Inputs) -> int:
    """How many image tokens a picture takes: rows of its features, or what the error says."""
    features = _features(model)
    assert features is not None
    try:
        with torch.inference_mode(), quiet():
            found = features(**image)
    except Exception:
        return 0
    found = getattr(found, "pooler_output", None) if hasattr(found, "last_hidden_state") else found
    if isinstance(found, list | tuple):
        return sum(part.numel() // part.shape[-1] for part in found if isinstance(part, torch.Tensor))
    return found.numel() // found.shape[-1] if isinstance(found, torch.Tensor) else 0


def _features_in(message: str, num_tokens: int) -> int:
    """The number of image features that an error names beside that of tokens; 0 if none."""
    numbers = [int(number) for number in re.findall(r"features:? ?(\d+)", message)]
    return next((number for number in numbers if number != num_tokens), 0)
