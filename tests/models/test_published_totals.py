"""Counts on the meta device equal the totals that published checkpoints have.

The shapes are those of each repository's `config.json` on the Hugging Face Hub, the totals those that stand on the
model's page ("Safetensors") and in GGUF conversions (`general.parameter_count`), tied weights once.
"""

from typing import Any

import pytest
import transformers as hf

from raysearch.models.param_count import counts_of

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "vision_use_head": False, "projection_dim": 2048,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def text(vocabulary: int, hidden: int, ffn: int, layers: int, heads: int, kv: int, **others: Any) -> dict[str, Any]:
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": kv, **others}


def qwen2_vl(**numbers: Any) -> hf.Qwen2VLConfig:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    vision["hidden_size"] = numbers["hidden_size"]
    tied = {"tie_word_embeddings": numbers["tie_word_embeddings"]}
    return hf.Qwen2VLConfig(text_config={**numbers, "rope_parameters": MROPE}, vision_config=vision, **tied)


def qwen2_5_vl(**numbers: Any) -> hf.Qwen2_5_VLConfig:
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "patch_size": 14, "intermediate_size": 3420}
    vision["out_hidden_size"] = numbers["hidden_size"]
    tied = {"tie_word_embeddings": numbers["tie_word_embeddings"]}
    return hf.Qwen2_5_VLConfig(text_config={**numbers, "rope_parameters": MROPE}, vision_config=vision, **tied)


PUBLISHED: dict[str, tuple[Any, dict[str, Any], int]] = {
    "Qwen2-0.5B": (hf.Qwen2Config, text(151936, 896, 4864, 24, 14, 2, **TIED), 494_032_768),
    "Qwen2.5-1.5B": (hf.Qwen2Config, text(151936, 1536, 8960, 28, 12, 2, **TIED), 1_543_714_304),
    "Qwen3-1.7B": (hf.Qwen3Config, text(151936, 2048, 6144, 28, 16, 8, head_dim=128, **TIED), 1_720_574_976),
    "Llama-3.2-1B": (hf.LlamaConfig, text(128256, 2048, 8192, 16, 32, 8, head_dim=64, **TIED), 1_235_814_400),
    "TinyLlama-1.1B": (hf.LlamaConfig, text(32000, 2048, 5632, 22, 32, 4, **UNTIED), 1_100_048_384),
    "SmolLM2-135M": (hf.LlamaConfig, text(49152, 576, 1536, 30, 9, 3, **TIED), 134_515_008),
    "Mistral-7B-v0.1": (hf.MistralConfig, text(32000, 4096, 14336, 32, 32, 8, **UNTIED), 7_241_732_096),
    "Mistral-Nemo": (hf.MistralConfig, text(131072, 5120, 14336, 40, 32, 8, head_dim=128, **UNTIED), 12_247_782_400),
    "phi-2": (hf.PhiConfig, text(51200, 2560, 10240, 32, 32, 32, **UNTIED), 2_779_683_840),
    "Phi-3-mini": (hf.Phi3Config, text(32064, 3072, 8192, 32, 32, 32, **UNTIED), 3_821_079_552),
    "gemma-2b": (hf.GemmaConfig, text(256000, 2048, 16384, 18, 8, 1, head_dim=256, **TIED), 2_506_172_416),
    "gemma-2-2b": (hf.Gemma2Config, text(256000, 2304, 9216, 26, 8, 4, head_dim=256, **TIED), 2_614_341_888),
    "Qwen3-30B-A3B": (
        hf.Qwen3MoeConfig,
        text(
            151936, 2048, 6144, 48, 32, 4, head_dim=128, num_experts=128, num_experts_per_tok=8,
            moe_intermediate_size=768, **UNTIED,
        ),
        30_532_122_624,
    ),
    "Mixtral-8x7B": (hf.MixtralConfig, text(32000, 4096, 14336, 32, 32, 8, **UNTIED), 46_702_792_704),
    "Qwen2-VL-2B": (qwen2_vl, text(151936, 1536, 8960, 28, 12, 2, **TIED), 2_208_985_600),
    "Qwen2-VL-7B": (qwen2_vl, text(152064, 3584, 18944, 28, 28, 4, **UNTIED), 8_291_375_616),
    "Qwen2.5-VL-3B": (qwen2_5_vl, text(151936, 2048, 11008, 36, 16, 2, **TIED), 3_754_622_976),
    "Qwen2.5-VL-7B": (qwen2_5_vl, text(152064, 3584, 18944, 28, 28, 4, **UNTIED), 8_292_166_656),
    "paligemma-3b-pt-224": (
        lambda **numbers: hf.PaliGemmaConfig(
            text_config=hf.GemmaConfig(**numbers), vision_config=SIGLIP, projection_dim=2048
        ),
        text(257216, 2048, 16384, 18, 8, 1, head_dim=256, **TIED),
        2_923_466_480,
    ),
}  # fmt: skip
"""By repository: the configuration's class, its numbers, and the total."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_totals(name: str) -> None:
    make, numbers, total = PUBLISHED[name]
    counts = counts_of(make(**numbers))
    assert counts.size().num_params == total
    assert counts.total(counts.dense) == total  # as a sum over rows of units
