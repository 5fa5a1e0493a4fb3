"""An architecture is right, or refused in one line before anything large is loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from raysearch.errors import InputError
from raysearch.models import layout, pruned_config
from raysearch.models.tiny_copy import tiny_config
from raysearch.pruning import self_check
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.pruning.self_check import NO_EXPERTS, Verdict, check_architecture, examine
from tests.support.tiny_models import CLIP, FAMILIES, IMAGE, dense

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raysearch" / "checks"


def idefics2() -> hf.PretrainedConfig:
    """Its connector takes the decoder's number of FFN channels for a width of its own."""
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4, "resampler_head_dim": 8}
    return hf.Idefics2Config(
        text_config=hf.MistralConfig(**TEXT),
        vision_config=CLIP,
        perceiver_config={**perceiver, "num_key_value_heads": 4, "hidden_size": 32},
        image_token_id=IMAGE,
    )


RIGHT: dict[str, Any] = {
    "llava_llama": FAMILIES["llava_llama"].config,
    "qwen3_vl": FAMILIES["qwen3_vl"].config,
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "glm4_moe": lambda: hf.Glm4MoeConfig(
        **TEXT, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1, n_group=1,
        topk_group=1,
    ),
    "lfm2": lambda: hf.Lfm2Config(**TEXT, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False),
    "qwen3_5_text": lambda: hf.Qwen3_5TextConfig(
        **TEXT, layer_types=["linear_attention", "full_attention"] * 2, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    ),
    "gemma4_text": lambda: hf.Gemma4TextConfig(
        **TEXT, layer_types=["sliding_attention", "full_attention"] * 2, hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=96,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_uniform_hybrid_and_expert_decoders_are_right(name: str) -> None:
    verdict = examine(RIGHT[name]())
    assert (verdict.layers, verdict.widths) == ("", "")
    assert verdict.experts == ("" if name.endswith("moe") else NO_EXPERTS)
    assert verdict.picture == (name in FAMILIES)


def test_what_another_part_takes_from_the_decoder_is_refused_with_the_mode_that_works(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="idefics2: mode widthwise would not be right") as caught:
        check_architecture(idefics2(), "widthwise")
    assert "connector" in str(caught.value)
    assert str(caught.value).endswith("choose mode layerwise")
    assert "\n" not in str(caught.value)
    check_architecture(idefics2(), "layerwise")
    idefics2().save_pretrained(tmp_path / "model")
    dense("llama").save_pretrained(tmp_path / "weights")  # of another model: they are not read
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match="mode widthwise would not be right"):
        prune_checkpoint(tmp_path / "model", mode="widthwise", ratio=0.2, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_by_layer_that_is_not_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a new class kept its layers' kinds in a way that is not known: the first kinds stay, not those of the
    layers."""
    cut = pruned_config._cut_to
    monkeypatch.setattr(pruned_config, "_cut_to", lambda layers, *rest: cut(range(len(layers)), *rest))
    kinds = ["sliding_attention"] * 3 + ["full_attention"] * 3  # of four layers that stay, two and two
    verdict = examine(hf.Gemma3TextConfig(**TEXT | {"num_hidden_layers": 6}, layer_types=kinds, sliding_window=4))
    assert "on text, a tiny copy's logits are" in verdict.layers
    assert "away from the dense model without these layers" in verdict.layers
    assert verdict.widths == ""


def test_units_that_do_not_belong_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a class held the channels of its output weights in another order than those of its input weights."""
    positions = layout._positions

    def moved(part: layout.WeightSlice, kept: np.ndarray) -> np.ndarray:
        shift = part.axis == 1 and part.kind == "ffn_channels"
        return positions(part, (kept + 1) % part.num_units if shift else kept)

    monkeypatch.setattr(layout, "_positions", moved)
    verdict = examine(hf.LlamaConfig(**TEXT))
    assert verdict.layers == ""
    assert "away from the dense model with zeroed units" in verdict.widths


def test_whatever_an_architecture_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> torch.Tensor:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(self_check, "logits_of", broken)
    with pytest.raises(InputError) as caught:
        check_architecture(hf.LlamaConfig(**TEXT), "both")
    assert "llama: mode both would not be right: ZeroDivisionError: first line; no mode works" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verdict_is_kept_for_the_same_configuration(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        self_check, "examine", lambda config: calls.append(config) or Verdict("", "odd", "", "", picture=True)
    )
    config = hf.LlamaConfig(**TEXT)
    for _ in range(2):
        check_architecture(config, "layerwise")
        with pytest.raises(InputError, match="would not be right: odd; choose mode layerwise"):
            check_architecture(config, "both")
    assert len(calls) == 1
    (kept,) = cache.iterdir()
    kept.write_text(json.dumps({"layers": 3}))  # spoilt: examined again
    check_architecture(config, "layerwise")
    check_architecture(hf.LlamaConfig(**{**TEXT, "hidden_size": 64}), "layerwise")
    assert len(calls) == 3


def test_a_tiny_copy_keeps_flags_tokens_and_kinds_of_layers() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20]}
    text = hf.Qwen3VLTextConfig(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, attention_bias=True, rope_parameters=rope, vocab_size=151936,
    )  # fmt: skip
    config = hf.Qwen3VLConfig(
        text_config=text.to_dict(),
        vision_config={
            "hidden_size": 1024,
            "out_hidden_size": 2048,
            "depth": 24,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        image_token_id=151655,
    )
    tiny = tiny_config(config)
    small = tiny.text_config
    assert (small.hidden_size, small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (64, 4, 2, 16)
    assert (small.intermediate_size, small.num_hidden_layers) == (96, 6)  # all layers alike
    assert small.rope_parameters["mrope_section"] == [4, 2, 2]  # 8 frequencies
    assert (small.attention_bias, small.vocab_size, tiny.image_token_id) == (True, 151936, 151655)
    assert (tiny.vision_config.hidden_size, tiny.vision_config.out_hidden_size) == (32, 64)
    assert (tiny.vision_config.depth, tiny.vision_config.deepstack_visual_indexes) == (24, [5, 11, 17])
    kinds = ["sliding_attention", "full_attention"] * 15
    assert tiny_config(hf.Gemma3TextConfig(layer_types=kinds, num_hidden_layers=30)).layer_types == kinds
