"""The published InternVL-Chat layout, on a tiny Mini-InternVL written under the published names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import InternVLForConditionalGeneration, Phi3Config

from raysearch.errors import InputError
from raysearch.models import load, load_config
from raysearch.models.param_count import counts_of
from tests.support.tiny_models import FAMILIES, IMAGE

NAMES = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_": "ls",
    "model.vision_tower.": "vision_model.",
    "model.multi_modal_projector.layer_norm": "mlp1.0",
    "model.multi_modal_projector.linear_1": "mlp1.1",
    "model.multi_modal_projector.linear_2": "mlp1.3",
    "model.language_model.": "language_model.model.",
    "lm_head": "language_model.lm_head",
}


def tiny() -> InternVLForConditionalGeneration:
    """InternViT with biases, and Phi-3 with fused weights and long rotary factors."""
    config = FAMILIES["mini_internvl"].config()
    config.vision_config.attention_bias = True
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def published(model: InternVLForConditionalGeneration, folder: Path, **changes: Any) -> None:
    """Write a stock model as InternVL's authors would."""
    vision, text = model.config.vision_config, model.config.text_config.to_dict()
    rope = text.pop("rope_parameters")
    config = {
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "downsample_ratio": 0.5,
        "force_image_size": 32,
        "llm_config": {
            **text,
            "attn_implementation": "flash_attention_2",
            "rope_scaling": {"type": "su", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]},
        },
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "patch_size": 8,
            "image_size": 32,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        },
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": IMAGE}))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for stock, theirs in NAMES.items():
            name = name.replace(stock, theirs)
        part = re.fullmatch(r"(vision_model.*)\.attention\.([qkv])_proj\.(.*)", name)
        if part:  # query, key and value come in this order
            name = f"{part[1]}.attn.qkv.{part[3]}"
            tensor = torch.cat([tensors[name], tensor]) if name in tensors else tensor
        tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors")


def test_published_names_load_into_the_stock_class(tmp_path: Path) -> None:
    model, batch = tiny(), FAMILIES["mini_internvl"].batch()
    published(model, tmp_path)
    loaded, _ = load(tmp_path)
    assert type(loaded) is InternVLForConditionalGeneration
    assert type(loaded.config.text_config) is Phi3Config
    assert loaded.config.image_seq_length == 4
    assert counts_of(load_config(tmp_path)).size().num_params == sum(p.numel() for p in model.parameters())
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ps_version": "v1"}, "ps_version v1 and select_layer -1; the stock"),
        ({"llm_config": {"model_type": "internlm2"}}, "its decoder internlm2 is no class of transformers"),
        ({"vision_config": {}}, "no configuration of internvl_chat"),
    ],
)
def test_what_the_stock_class_lacks_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    published(tiny(), tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unnamed_image_token_is_refused(tmp_path: Path) -> None:
    published(tiny(), tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(InputError, match="doesn't say which token <IMG_CONTEXT> is"):
        load_config(tmp_path)
