"""What goes by layer in a decoder's configuration follows the layers that stay, whatever its name."""

import pytest
import transformers as hf

from raysearch.errors import InputError
from raysearch.models.pruned_config import _cut_to, channels_key, fixed_layers, pruned_config, shape_of
from raysearch.models.shape import Shape

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("kinds_of_anything", ["a", "b", "a", "b", "a", "b"], ["b", "b", "a"]),  # an entry per layer
        ("no_rope_layers", [1, 1, 0, 1, 1, 0], [1, 1, 1]),
        ("rope_scaling_layers", [3, 4, 5], [1, 2]),  # numbers of layers: 3 and 4 are now the second and third
        ("full_attn_idxs", [1, 3, 5], [0, 1]),
        ("cross_attention_layers", (0, 2), []),
        ("full_attn_idxs", [0, 1, 2, 3, 4, 5], [0, 1, 2]),
        ("per_layer_config", {"3": {"head_dim": 4}, 5: {"head_dim": 2}}, {1: {"head_dim": 4}}),
        ("first_k_dense_replace", 2, 1),
        ("num_kv_shared_layers", 3, 2),
        ("num_kv_shared_layers", 0, 0),
    ],
)
def test_entries_by_layer_are_cut_to_the_layers_that_stay(name: str, value: object, kept: object) -> None:
    assert _cut_to([1, 3, 4], {name: value}, 6) == {name: kept}


def test_other_entries_stay_as_they_are() -> None:
    fields = {
        "mrope_section": [2, 1, 1],
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "architectures": ["A"] * 6,
        "sizes": [1, 2, 3],
        "layer_norm_eps": 1e-6,
        "layers_of_tower": [3, 9],
        "empty_layers": [],
    }
    assert _cut_to([1, 3, 4], fields, 6) == {}


def test_kept_layers_keep_their_kind_in_a_real_configuration() -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    text = hf.Gemma3TextConfig(**TEXT, layer_types=kinds)
    config = pruned_config(text, Shape(3, 2, 4, 48), [0, 1, 4])
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert fixed_layers(text) == ()


def test_a_class_with_a_rule_for_its_last_layer_keeps_that_layer() -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    text = hf.Gemma4TextConfig(**TEXT, layer_types=kinds, hidden_size_per_layer_input=0, per_layer_config={})
    assert fixed_layers(text) == (5,)
    with pytest.raises(InputError, match="Gemma4TextConfig has rules of its own for layer_types"):
        pruned_config(text, Shape(3, 2, 4, 48), [0, 1, 4])
    assert pruned_config(text, Shape(3, 2, 4, 48), [0, 1, 5]).layer_types[-1] == "full_attention"


def test_the_first_layers_that_take_in_visual_features_are_fixed() -> None:
    config = hf.Qwen3VLConfig(text_config=TEXT, vision_config={"deepstack_visual_indexes": [1, 2]})
    assert fixed_layers(config) == (0, 1)


def test_channels_are_those_of_experts_where_there_are_some() -> None:
    assert channels_key(hf.LlamaConfig(**TEXT)) == "intermediate_size"
    experts = hf.Qwen3MoeConfig(**TEXT, num_experts=4, moe_intermediate_size=16)
    assert channels_key(experts) == "moe_intermediate_size"
    assert shape_of(experts) == Shape(6, 2, 4, 16, 4, 32)
    narrow = pruned_config(experts, Shape(6, 2, 4, 9))
    assert (narrow.moe_intermediate_size, narrow.intermediate_size) == (9, 48)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 0), ("num_attention_heads", -4)])
def test_a_decoder_without_layers_or_heads_is_refused(key: str, value: int) -> None:
    config = hf.LlamaConfig(**TEXT)
    setattr(config, key, value)
    with pytest.raises(InputError, match="only decoders with one positive number of each are pruned"):
        shape_of(config)


def test_what_a_class_refuses_is_one_line() -> None:
    config = hf.PhiConfig(**{**TEXT, "num_key_value_heads": 4})
    config.layer_types = "not a list"
    config.rope_parameters = {"rope_type": 7}
    with pytest.raises(InputError, match="phi: PhiConfig refuses Shape") as caught:
        pruned_config(config, Shape(2, 4, 4, 48), [0, 1])
    assert "\n" not in str(caught.value)
