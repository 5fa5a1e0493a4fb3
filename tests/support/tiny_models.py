"""Tiny models with random weights of every family, from the real configuration classes, and batches for them.

A row added to `FAMILIES` is tested by every test that runs over families.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.models import model_class

VOCABULARY, IMAGE, VIDEO, START = 96, 90, 91, 92
NUM_LAYERS = 4
SEQUENCE = 20
IMAGE_SIZE, PATCH = 32, 16  # 2 x 2 patches

CLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": IMAGE_SIZE,
}


@dataclass(frozen=True)
class TinyFamily:
    """A family under test.

    Attributes:
        config: makes the configuration.
        num_image_tokens: per image; 0 for a language model.
        inputs: makes the image inputs of the samples, given their input ids (batch, seq).
        caches_vision: whether the vision cache can be used: the tower takes and gives one row per image.
        adds_ffn_output: whether the FFN's output is added unchanged, so that linear compensation fits into its weights.
    """

    config: Callable[[], PretrainedConfig]
    num_image_tokens: int = 0
    inputs: Callable[[torch.Tensor], dict[str, torch.Tensor]] = lambda ids: {}
    caches_vision: bool = True
    adds_ffn_output: bool = True

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A model with weights large enough that every unit matters."""
        torch.manual_seed(seed)
        config = self.config()
        model = model_class(config)._from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
            else:  # norms and biases, so that none is trivial
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    def batch(self, num_samples: int = 2, padded: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
        """Image tokens at the start, answers at the end; the last sample is shorter if `padded`."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, 80, (num_samples, SEQUENCE), generator=generator)
        ids[:, 1 : 1 + self.num_image_tokens] = IMAGE
        mask = torch.ones_like(ids)
        labels = ids.clone()
        labels[:, : SEQUENCE - 5] = -100
        if padded:
            ids[-1, -3:], mask[-1, -3:], labels[-1, -3:] = 0, 0, -100
        torch.manual_seed(seed)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **self.inputs(ids)}


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def _pixels(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(len(ids), 3, IMAGE_SIZE, IMAGE_SIZE)}


def _tiles(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(len(ids), 2, 3, IMAGE_SIZE, IMAGE_SIZE),
        "image_sizes": torch.tensor([[IMAGE_SIZE, IMAGE_SIZE]] * len(ids)),
    }


def _qwen(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """4 x 4 patches, two frames, merged 2 x 2 into 4 tokens."""
    return {
        "pixel_values": torch.randn(len(ids) * 16, 3 * 2 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * len(ids)),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


def _with_sizes(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**_pixels(ids), "image_sizes": torch.tensor([[IMAGE_SIZE, IMAGE_SIZE]] * len(ids))}


def _with_types(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**_pixels(ids), "token_type_ids": (ids == IMAGE).long()}


def _with_suffix_types(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    types = torch.zeros_like(ids)
    types[:, -5:] = 1
    return {**_pixels(ids), "token_type_ids": types}


def _several_images(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(len(ids), 1, 3, IMAGE_SIZE, IMAGE_SIZE)}


def _llava(text: PretrainedConfig) -> hf.LlavaConfig:
    return hf.LlavaConfig(
        text_config=text, vision_config=hf.CLIPVisionConfig(**CLIP), image_token_id=IMAGE, image_seq_length=4
    )


def _bunny() -> hf.LlavaConfig:
    return hf.LlavaConfig(
        text_config=hf.PhiConfig(**_text(num_key_value_heads=8, partial_rotary_factor=0.5)),
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_id=IMAGE,
        image_seq_length=4,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )


def _internvl(text: PretrainedConfig) -> hf.InternVLConfig:
    vision = hf.InternVLVisionConfig(**{**CLIP, "patch_size": [8, 8], "image_size": [32, 32]})
    return hf.InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, image_seq_length=4, tie_word_embeddings=False
    )


def _long_phi3() -> hf.Phi3Config:
    """Phi-3-mini-128k: fused weights and two sets of rotary factors."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3],
        "original_max_position_embeddings": 32,
    }
    return hf.Phi3Config(**_text(), rope_parameters=rope)


def _llava_next() -> hf.LlavaNextConfig:
    return hf.LlavaNextConfig(
        text_config=hf.MistralConfig(**_text(sliding_window=None)),
        vision_config=hf.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
    )


def _llava_onevision() -> hf.LlavaOnevisionConfig:
    return hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**_text(tie_word_embeddings=True)),
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        tie_word_embeddings=True,
    )


_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": START + 1,
}


def _qwen2_vl() -> hf.Qwen2VLConfig:
    return hf.Qwen2VLConfig(
        text_config=_text(rope_parameters=_MROPE),
        vision_config={**_QWEN_VISION, "embed_dim": 16, "hidden_size": 64, "mlp_ratio": 2},
        **_QWEN_TOKENS,
    )


def _qwen2_5_vl() -> hf.Qwen2_5_VLConfig:
    vision = {**_QWEN_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 64}
    return hf.Qwen2_5_VLConfig(
        text_config=_text(rope_parameters=_MROPE),
        vision_config={**vision, "window_size": 32, "fullatt_block_indexes": [1]},
        **_QWEN_TOKENS,
    )


def _qwen3_vl() -> hf.Qwen3VLConfig:
    vision = {**_QWEN_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 64}
    return hf.Qwen3VLConfig(
        text_config=_text(head_dim=8, rope_parameters={**_MROPE, "mrope_interleaved": True}),
        vision_config={**vision, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
        **_QWEN_TOKENS,
    )


def _idefics3() -> hf.Idefics3Config:
    vision = {**CLIP, "patch_size": 8}
    return hf.Idefics3Config(
        text_config=hf.LlamaConfig(**_text()), vision_config=vision, image_token_id=IMAGE, scale_factor=2
    )


def _smolvlm() -> hf.SmolVLMConfig:
    vision = {**CLIP, "patch_size": 8}
    return hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**_text(tie_word_embeddings=True)),
        vision_config=vision,
        image_token_id=IMAGE,
        scale_factor=2,
        tie_word_embeddings=True,
    )


def _gemma3_text() -> dict[str, Any]:
    return _text(
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        final_logit_softcapping=5.0,
    )


def _gemma3() -> hf.Gemma3Config:
    return hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**_gemma3_text()),
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=START + 1,
        mm_tokens_per_image=4,
    )


def _paligemma() -> hf.PaliGemmaConfig:
    text = hf.GemmaConfig(**_text(head_dim=16, num_attention_heads=4, num_key_value_heads=1))
    return hf.PaliGemmaConfig(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
    )


def _mistral3() -> hf.Mistral3Config:
    vision = {**CLIP, "head_dim": 8, "patch_size": 8}
    return hf.Mistral3Config(
        text_config=hf.MistralConfig(**_text(head_dim=16, sliding_window=None)),
        vision_config=hf.PixtralVisionConfig(**vision),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )


def _smollm3() -> hf.SmolLM3Config:
    return hf.SmolLM3Config(**_text(), no_rope_layers=[1, 0, 1, 1])


def _qwen3_5() -> hf.Qwen3_5TextConfig:
    """A hybrid: layers of gated linear attention beside layers of gated attention."""
    kinds = ["full_attention", "linear_attention", "full_attention", "full_attention"]
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    dims = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    return hf.Qwen3_5TextConfig(**_text(head_dim=16), layer_types=kinds, **sizes, **dims)


def _aya_vision() -> hf.AyaVisionConfig:
    """It has no row in `KNOWN_FAMILIES`; its parts are found by transformers' conventions."""
    text = _text(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8, logit_scale=0.5)
    return hf.AyaVisionConfig(
        text_config=hf.Cohere2Config(**text),
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_index=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=32,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


FAMILIES: dict[str, TinyFamily] = {
    "llava_llama": TinyFamily(lambda: _llava(hf.LlamaConfig(**_text())), 4, _pixels),
    "llava_mistral": TinyFamily(lambda: _llava(hf.MistralConfig(**_text(sliding_window=8))), 4, _pixels),
    "llava_qwen3": TinyFamily(lambda: _llava(hf.Qwen3Config(**_text(head_dim=8))), 4, _pixels),
    "bunny": TinyFamily(_bunny, 4, _pixels),
    "mini_internvl": TinyFamily(lambda: _internvl(_long_phi3()), 4, _pixels),
    "internvl": TinyFamily(lambda: _internvl(hf.Qwen2Config(**_text())), 4, _pixels),
    "llava_next": TinyFamily(_llava_next, 10, _tiles),
    "llava_onevision": TinyFamily(_llava_onevision, 10, _tiles),
    "qwen2_vl": TinyFamily(_qwen2_vl, 4, _qwen, caches_vision=False),
    "qwen2_5_vl": TinyFamily(_qwen2_5_vl, 4, _qwen, caches_vision=False),
    "qwen3_vl": TinyFamily(_qwen3_vl, 4, _qwen, caches_vision=False),
    "idefics3": TinyFamily(_idefics3, 4, _several_images),
    "smolvlm": TinyFamily(_smolvlm, 4, _several_images),
    "gemma3": TinyFamily(_gemma3, 4, _with_types, adds_ffn_output=False),
    "paligemma": TinyFamily(_paligemma, 4, _with_suffix_types),
    "mistral3": TinyFamily(_mistral3, 4, _with_sizes, caches_vision=False),
    "aya_vision": TinyFamily(_aya_vision, 1, _pixels),
    "llama": TinyFamily(lambda: hf.LlamaConfig(**_text(tie_word_embeddings=True))),
    "mistral": TinyFamily(lambda: hf.MistralConfig(**_text(sliding_window=8))),
    "qwen2": TinyFamily(lambda: hf.Qwen2Config(**_text())),
    "qwen3": TinyFamily(lambda: hf.Qwen3Config(**_text(head_dim=8))),
    "phi": TinyFamily(lambda: hf.PhiConfig(**_text(num_key_value_heads=8))),
    "phi3": TinyFamily(_long_phi3),
    "gemma": TinyFamily(lambda: hf.GemmaConfig(**_text(head_dim=16, num_attention_heads=4, num_key_value_heads=4))),
    "gemma2": TinyFamily(lambda: hf.Gemma2Config(**_gemma3_text()), adds_ffn_output=False),
    "gemma3_text": TinyFamily(lambda: hf.Gemma3TextConfig(**_gemma3_text()), adds_ffn_output=False),
    "smollm3": TinyFamily(_smollm3),
    "granite": TinyFamily(
        lambda: hf.GraniteConfig(**_text(), logits_scaling=3.0, residual_multiplier=0.5), adds_ffn_output=False
    ),
    "qwen3_5": TinyFamily(_qwen3_5),
    "olmo2": TinyFamily(lambda: hf.Olmo2Config(**_text()), adds_ffn_output=False),
}


_FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERTS: dict[str, TinyFamily] = {
    "qwen3_moe": TinyFamily(lambda: hf.Qwen3MoeConfig(**_text(head_dim=8), **_FOUR, mlp_only_layers=[0])),
    "qwen2_moe": TinyFamily(lambda: hf.Qwen2MoeConfig(**_text(), **_FOUR, shared_expert_intermediate_size=24)),
    "glm4_moe": TinyFamily(
        lambda: hf.Glm4MoeConfig(
            **_text(head_dim=8), n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
            first_k_dense_replace=1, n_group=1, topk_group=1,
        )
    ),
    "mixtral": TinyFamily(lambda: hf.MixtralConfig(**_text(), num_local_experts=4, num_experts_per_tok=2)),
    "gpt_oss": TinyFamily(
        lambda: hf.GptOssConfig(**_text(head_dim=8), num_local_experts=4, num_experts_per_tok=2, sliding_window=8)
    ),
}  # fmt: skip
"""Decoders with experts; the first layers of some have none."""


@cache
def dense(name: str) -> PreTrainedModel:
    """The family's model, shared by tests that don't change it."""
    return (FAMILIES | EXPERTS)[name].model()
