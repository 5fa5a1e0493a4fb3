"""A tiny LLaVA, its processor and a few samples, for tests of recovery."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, SiglipVisionConfig

from raysearch.config.recipe import Recipe
from raysearch.data.encoding import Encoder
from raysearch.data.loading import load_samples
from raysearch.data.samples import Sample
from raysearch.models import Family, family_for
from raysearch.pocket.model import PATCH_SIZE, make_processor
from raysearch.recovery.teacher_cache import CachedTeacher
from scripts.pocket.architecture import make_tokenizer


@functools.cache
def samples() -> list[Sample]:
    """Forty of the embedded conversations."""
    return list(load_samples("pocket"))[:40]


@functools.cache
def processor() -> Any:
    return make_processor(make_tokenizer())


def tiny_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Two decoder layers of width 32."""
    tokenizer = processor().tokenizer
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=48,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        ),
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            sliding_window=None,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=36,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    for param in model.parameters():
        if param.ndim == 2:
            torch.nn.init.normal_(param, std=0.15)
    return model.eval()


def tiny_family() -> Family:
    return family_for(tiny_model())


def tiny_encoder(max_length: int = 512) -> Encoder:
    return Encoder(processor(), tiny_family(), max_length)


def recipe(**values: Any) -> Recipe:
    """Recovery by all three losses, unless told otherwise."""
    defaults = {"logits_kd": 0.5, "hidden_kd": 0.5, "lr": 3e-3}
    return Recipe(mode="layerwise", ratio=0.15, criterion="block_influence", **(defaults | values))


def cached_teacher(folder: Path, rows: list[Sample] | None = None, **more: Any) -> CachedTeacher:
    """The tiny model's states of `samples()` in `folder`; `more` are arguments of `CachedTeacher`."""
    given = {"model": tiny_model(), "encoder": tiny_encoder(), "quota_gb": 1.0} | more
    return CachedTeacher(family=tiny_family(), samples=rows or samples(), folder=folder, **given)


@functools.cache
def shared_teacher() -> CachedTeacher:
    """One for a whole run of tests."""
    folder = tempfile.mkdtemp(prefix="teacher-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return cached_teacher(Path(folder))
