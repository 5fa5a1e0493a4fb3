"""The known families as data; CONTRIBUTING.md shows how to add one."""

from typing import Any

_LLAVA = {
    "decoder_path": "model.language_model",
    "vision_paths": ("model.vision_tower",),
    "projector_paths": ("model.multi_modal_projector",),
}
_IDEFICS = {
    "decoder_path": "model.text_model",
    "vision_paths": ("model.vision_model",),
    "projector_paths": ("model.connector",),
}
_QWEN = {
    "decoder_path": "model.language_model",
    "vision_paths": ("model.visual.patch_embed", "model.visual.blocks"),
    "projector_paths": ("model.visual.merger",),
}
_QWEN3 = {
    "decoder_path": "model.language_model",
    "vision_paths": ("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
    "projector_paths": ("model.visual.merger", "model.visual.deepstack_merger_list"),
}
_LANGUAGE_MODEL = {"decoder_path": "model", "is_multimodal": False}

KNOWN_FAMILIES: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,  # LLaVA-1.5; Bunny as SigLIP + Phi, see published/bunny.py
    "llava_next": _LLAVA,
    "llava_onevision": _LLAVA,
    "internvl": _LLAVA,  # InternVL 2.5 and 3; Mini-InternVL as InternViT + Phi-3
    "gemma3": _LLAVA,
    "paligemma": _LLAVA,
    "mistral3": _LLAVA,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN3,
    "llama": _LANGUAGE_MODEL,
    "mistral": _LANGUAGE_MODEL,
    "qwen2": _LANGUAGE_MODEL,
    "qwen3": _LANGUAGE_MODEL,
    "phi": _LANGUAGE_MODEL,
    "phi3": _LANGUAGE_MODEL,
    "gemma": _LANGUAGE_MODEL,
    "gemma2": _LANGUAGE_MODEL,
    "gemma3_text": _LANGUAGE_MODEL,
    "smollm3": _LANGUAGE_MODEL,
    "granite": _LANGUAGE_MODEL,
}
"""Fields of a `Family` by `model_type`."""
