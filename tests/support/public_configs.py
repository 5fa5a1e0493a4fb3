"""Configurations of published models: the numbers of their public config.json files, without the weights."""

import transformers as hf

CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}
INTERNVIT_300M = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "attention_bias": True,
    "use_absolute_position_embeddings": True,
}


def llava_1_5_7b() -> hf.PretrainedConfig:
    text = hf.LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    return hf.LlavaConfig(text_config=text, vision_config=hf.CLIPVisionConfig(**CLIP_LARGE_336), image_token_id=32000)


def bunny_v1_0_3b() -> hf.PretrainedConfig:
    text = hf.PhiConfig(
        vocab_size=51200,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        partial_rotary_factor=0.4,
    )
    return hf.LlavaConfig(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(**SIGLIP_SO400M, image_size=384),
        image_token_id=50295,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )


def mini_internvl_4b() -> hf.PretrainedConfig:
    text = hf.Phi3Config(
        vocab_size=32020,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    return hf.InternVLConfig(
        text_config=text,
        vision_config=hf.InternVLVisionConfig(**INTERNVIT_300M),
        image_token_id=32011,
        tie_word_embeddings=False,
    )


def internvl3_2b() -> hf.PretrainedConfig:
    text = hf.Qwen2Config(
        vocab_size=151674,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    )
    return hf.InternVLConfig(
        text_config=text,
        vision_config=hf.InternVLVisionConfig(**INTERNVIT_300M),
        image_token_id=151667,
        tie_word_embeddings=False,
    )


def qwen2_5_vl_3b() -> hf.PretrainedConfig:
    text = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
    }
    return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def qwen3_vl_4b() -> hf.PretrainedConfig:
    text = {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "deepstack_visual_indexes": [5, 11, 17],
        "num_position_embeddings": 2304,
    }
    return hf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def smolvlm2_2_2b() -> hf.PretrainedConfig:
    text = hf.LlamaConfig(
        vocab_size=49280,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    vision = {**SIGLIP_SO400M, "image_size": 384}
    vision.pop("vision_use_head")
    return hf.SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=49190, scale_factor=3, tie_word_embeddings=False
    )


def gemma_3_4b() -> hf.PretrainedConfig:
    text = hf.Gemma3TextConfig(
        vocab_size=262208,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=1024,
    )
    vision = hf.SiglipVisionConfig(**SIGLIP_SO400M, image_size=896)
    return hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=256)


PUBLIC = {
    "llava-1.5-7b": llava_1_5_7b,
    "bunny-v1.0-3b": bunny_v1_0_3b,
    "mini-internvl-4b": mini_internvl_4b,
    "internvl3": internvl3_2b,
    "qwen2.5-vl-3b": qwen2_5_vl_3b,
    "qwen3-vl-4b": qwen3_vl_4b,
    "smolvlm2-2.2b": smolvlm2_2_2b,
    "gemma-3-4b": gemma_3_4b,
}
