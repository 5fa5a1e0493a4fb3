"""Read the published InternVL-Chat checkpoints (InternViT-300M + Phi-3, Qwen2 or Llama) as the stock InternVL class.

Mini-InternVL-Chat-4B-V1-5 is one of them. The published folders need code of their own; their tensors fit
`InternVLForConditionalGeneration` under other names, with the tower's fused query, key and value weights split.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, InternVLConfig, InternVLVisionConfig

from raysearch.errors import InputError
from raysearch.files import read_json
from raysearch.models.published import renamed

MODEL_TYPE = "internvl_chat"
IMAGE_TOKEN = "<IMG_CONTEXT>"
_LAYER = r"^vision_model\.encoder\.layers\.(\d+)\."
_STOCK_LAYER = r"model.vision_tower.encoder.layer.\1."
_RENAMED = (
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (_LAYER + r"attn\.proj\.", _STOCK_LAYER + "attention.projection_layer."),
    (_LAYER + r"norm1\.", _STOCK_LAYER + "layernorm_before."),
    (_LAYER + r"norm2\.", _STOCK_LAYER + "layernorm_after."),
    (_LAYER + r"ls([12])$", _STOCK_LAYER + r"lambda_\2"),
    (_LAYER + r"mlp\.", _STOCK_LAYER + "mlp."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
)


def stock_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Published tensors under the stock names, the tower's fused weights split."""
    stock: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        fused = re.fullmatch(_LAYER[1:] + r"attn\.qkv\.(weight|bias)", name)
        if fused:
            parent = f"model.vision_tower.encoder.layer.{fused[1]}.attention"
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                stock[f"{parent}.{part}_proj.{fused[2]}"] = rows.contiguous()
        else:
            stock[renamed(name, _RENAMED)] = tensor
    return stock


def stock_config(published: dict[str, Any], names: Iterable[str], folder: Path) -> InternVLConfig:
    """The stock configuration of a published one.

    Raises:
        InputError: a decoder or a layout of image tokens that the stock class doesn't have.
    """
    if published.get("ps_version", "v2") != "v2" or published.get("select_layer", -1) != -1:
        raise InputError(
            f"{folder}/config.json: ps_version {published.get('ps_version')} and select_layer "
            f"{published.get('select_layer')}; the stock InternVL class has v2 and -1"
        )
    vision, llm = published["vision_config"], published["llm_config"]
    decoder, text = llm["model_type"], {name: value for name, value in llm.items() if name not in _NOT_STOCK}
    if decoder not in ("phi3", "qwen2", "llama"):
        raise InputError(
            f"{folder}/config.json: its decoder {decoder} is no class of transformers (phi3, qwen2, llama are)"
        )
    rope = text.get("rope_scaling") or {}
    if rope.get("type") == "su":  # the first name of longrope, which transformers reads only in part
        text["rope_scaling"] = {**rope, "type": "longrope"}
    ratio = published.get("downsample_ratio", 0.5)
    size, patch = published.get("force_image_size") or vision["image_size"], vision["patch_size"]
    return InternVLConfig(
        text_config=AutoConfig.for_model(decoder, **text),
        vision_config=InternVLVisionConfig(
            **{name: vision[name] for name in _VISION if name in vision},
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
            image_size=size,
        ),
        image_token_id=_image_token_id(folder),
        image_seq_length=int((size // patch) ** 2 * ratio**2),
        downsample_ratio=ratio,
        tie_word_embeddings=False,
    )


_NOT_STOCK = ("model_type", "architectures", "auto_map", "attn_implementation", "_attn_implementation")
_VISION = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "hidden_act",
    "norm_type",
    "layer_norm_eps",
)


def _image_token_id(folder: Path) -> int:
    try:
        return int(read_json(folder / "added_tokens.json")[IMAGE_TOKEN])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}/added_tokens.json: doesn't say which token {IMAGE_TOKEN} is; copy the tokenizer's files"
        ) from None
