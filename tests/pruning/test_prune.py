"""What pruning does to configurations and biases, family by family, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
import transformers as hf

from raysearch.errors import InputError
from raysearch.models import Family, family_for
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.pruning import prune
from raysearch.pruning.importance import Importance, importance
from raysearch.pruning.select_layers import layers_to_keep
from raysearch.pruning.slicing import full_units, slice_model
from tests.support.tiny_models import FAMILIES, NUM_LAYERS, dense


def without(name: str, *dropped: int) -> hf.PreTrainedModel:
    model = dense(name)
    return slice_model(model, [i for i in range(NUM_LAYERS) if i not in dropped], full_units(model))


def narrowed(name: str, num_kv_heads: int, num_heads: int) -> hf.PreTrainedModel:
    model = dense(name)
    shape = Shape(NUM_LAYERS, num_kv_heads, num_heads, shape_of(model.config).num_ffn_channels)
    return prune(model, shape, {"width": importance(model, None, "magnitude")})


def test_lists_per_layer_stay_in_step() -> None:
    gemma = without("gemma3", 0).config.text_config
    assert gemma.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert gemma.num_hidden_layers == 3
    smol = without("smollm3", 0, 2)
    assert smol.config.no_rope_layers == [0, 1]
    assert len(smol.config.layer_types) == 2
    assert [layer.self_attn.use_rope for layer in smol.model.layers] == [0, 1]
    assert [layer.self_attn.layer_idx for layer in smol.model.layers] == [0, 1]


def test_the_dense_configuration_is_left_as_it_is() -> None:
    before = dense("gemma3").config.to_dict()
    without("gemma3", 1, 2)
    assert dense("gemma3").config.to_dict() == before
    assert len(dense("gemma3").model.language_model.layers) == NUM_LAYERS


@pytest.mark.parametrize(
    ("name", "heads", "expected"),
    [
        ("llava_llama", (3, 6), hf.MistralConfig),  # 64 is no multiple of 6
        ("llava_llama", (4, 4), hf.LlamaConfig),  # 64 is one of 4
        ("mini_internvl", (4, 4), hf.MistralConfig),  # long rotary factors fix the quotient
        ("internvl", (3, 6), hf.Qwen2Config),
        ("bunny", (7, 7), hf.PhiConfig),
    ],
)
def test_the_stock_class_that_holds_the_heads(name: str, heads: tuple[int, int], expected: type) -> None:
    pruned = narrowed(name, *heads)
    text = pruned.config.text_config
    assert type(text) is expected
    assert (text.num_key_value_heads, text.num_attention_heads, text.head_dim) == (*heads, 8)
    assert type(pruned) is type(dense(name))
    assert type(pruned.model.language_model).__name__.startswith(expected.__name__.removesuffix("Config"))


def test_a_language_model_changes_its_class_with_its_decoder() -> None:
    pruned = narrowed("llama", 3, 6)
    assert type(pruned) is hf.MistralForCausalLM
    assert pruned.config.sliding_window is None
    assert type(without("llama", 1)) is hf.LlamaForCausalLM


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "olmo2"])
def test_heads_that_no_stock_class_holds_stay(name: str) -> None:
    """Qwen2-VL's attention takes the head size from the hidden size; OLMo 2 normalises over all heads at once."""
    assert counts_of(FAMILIES[name].config()).attention_choices == ((4, 8),)
    with pytest.raises((InputError, AssertionError)):
        narrowed(name, 2, 4)


def test_llama_with_biases_keeps_to_divisors() -> None:
    config = FAMILIES["llama"].config()
    config.attention_bias = True
    assert {heads for _, heads in counts_of(config).attention_choices} == {8, 4, 2, 1}


@pytest.mark.parametrize("name", ["bunny", "phi"])
def test_output_biases_make_up_for_constant_channels(name: str) -> None:
    """A channel whose input weights are zero always gives act(bias): its mean, folded into the output bias, replaces
    it exactly."""
    model, batch = copy.deepcopy(dense(name)), FAMILIES[name].batch()
    channels = shape_of(model.config).num_ffn_channels
    for layer in family_for(model).decoder(model).layers:
        layer.mlp.fc1.weight.data[10:40] = 0
        layer.mlp.fc1.bias.data[10:40] = 2.0
    scores = importance(model, [batch], "fluctuation")
    shape = Shape(NUM_LAYERS, 8, 8, channels - 30)
    pruned = prune(model, shape, {"width": scores})
    blind = prune(model, shape, {"width": Importance(**{**vars(scores), "ffn_means": None})})
    with torch.inference_mode():
        expected = model(**batch).logits
        torch.testing.assert_close(pruned(**batch).logits, expected, atol=1e-4, rtol=1e-4)
        assert (blind(**batch).logits - expected).abs().max() > 0.1


def test_query_heads_are_chosen_inside_their_groups() -> None:
    model = dense("llava_llama")
    heads = np.tile(np.array([1, 9, 8, 2, 0, 0, 3, 4], np.float32), (NUM_LAYERS, 1))
    groups = np.tile(np.array([10, 10, 0, 7], np.float32), (NUM_LAYERS, 1))
    scores = Importance("activation", heads=heads, kv_groups=groups, ffn_channels=np.ones((NUM_LAYERS, 96)))
    pruned = prune(model, Shape(NUM_LAYERS, 3, 3, 96), {"width": scores})
    query = pruned.model.language_model.layers[0].self_attn.q_proj.weight
    full = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(query, torch.cat([full[8 * h : 8 * h + 8] for h in (1, 2, 7)]))
    key = pruned.model.language_model.layers[0].self_attn.k_proj.weight
    dense_key = model.model.language_model.layers[0].self_attn.k_proj.weight
    assert torch.equal(key, torch.cat([dense_key[8 * g : 8 * g + 8] for g in (0, 1, 3)]))


def test_layers_by_order_and_by_block() -> None:
    order = Importance("greedy_loss", layers=np.zeros(5), layer_order=np.array([3, 1, 0, 4, 2]))
    assert layers_to_keep(order, 5) == [0, 1, 2, 3, 4]
    assert layers_to_keep(order, 3) == [0, 2, 4]
    assert layers_to_keep(order, 3, fixed=(0, 1)) == [0, 1, 2]
    distance = np.array([[0.5, 0.9, 0.8], [0.4, 0.7, np.inf], [0.6, np.inf, np.inf]], np.float32)
    block = Importance("angular", layers=distance[:, 0], block_distance=distance)
    assert layers_to_keep(block, 3) == [0, 1, 2]
    assert layers_to_keep(block, 2) == [0, 2]  # layer 1 alone moves the state the least
    assert layers_to_keep(block, 1) == [0]  # layers 1 and 2 together 0.7, 0 and 1 together 0.9
    assert layers_to_keep(block, 2, fixed=(0, 1)) == [0, 1]


def test_memory_is_shared_only_if_asked_for() -> None:
    model, batch = dense("llava_llama"), FAMILIES["llava_llama"].batch()
    scores = {"width": importance(model, None, "magnitude"), "depth": importance(model, None, "deepest")}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = {value.data_ptr() for value in model.state_dict().values()}
    for shape in (Shape(4, 4, 8, 60), Shape(3, 4, 8, 96)):
        copied, sharing = prune(model, shape, scores), prune(model, shape, scores, share=True)
        assert own.isdisjoint({value.data_ptr() for value in copied.state_dict().values()})
        assert sharing.get_input_embeddings().weight.data_ptr() in own
        with torch.inference_mode():
            assert torch.equal(copied(**batch).logits, sharing(**batch).logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wrong_uses_are_refused() -> None:
    model = dense("qwen3_vl")
    with pytest.raises(InputError, match=r"layers \[0, 1\] of qwen3_vl must stay"):
        slice_model(model, [0, 2, 3], full_units(model))
    for layers in ([2, 0], [0, 0, 1], [], [0, 9]):
        with pytest.raises(InputError, match="must be increasing"):
            slice_model(model, layers, full_units(model))
    scores = importance(model, None, "magnitude")
    with pytest.raises(InputError, match="needs depth scores"):
        prune(model, Shape(3, 4, 8, 96), {"width": scores})
    with pytest.raises(InputError, match="needs width scores"):
        prune(model, Shape(4, 4, 8, 90), {"depth": importance(model, None, "deepest")})
    with pytest.raises(InputError, match="scores no layers"):
        prune(model, Shape(3, 4, 8, 96), {"depth": scores})
    with pytest.raises(InputError, match="scores no FFN channels"):
        prune(model, Shape(4, 4, 8, 90), {"width": importance(model, None, "deepest")})
    uneven = full_units(model)
    uneven[1] = {**uneven[1], "ffn_channels": np.arange(5)}
    with pytest.raises(InputError, match="layers keep different numbers"):
        slice_model(model, range(NUM_LAYERS), uneven)


def test_layers_of_several_kinds_are_dropped_in_proportion() -> None:
    scores = Importance("deepest", layers=np.zeros(6), layer_order=np.array([5, 4, 3, 2, 1, 0]))
    kinds = [0, 0, 1, 0, 0, 1]
    assert layers_to_keep(scores, 3, kinds=kinds, nums=[2, 1]) == [0, 1, 2]
    assert layers_to_keep(scores, 3, (5,), kinds, [2, 1]) == [0, 1, 5]
    distance = np.full((6, 6), np.inf, np.float32)
    for start in range(6):
        distance[start, : 6 - start] = 6 - start
    block = Importance("angular", layers=distance[:, 0], block_distance=distance)
    assert layers_to_keep(block, 3, kinds=kinds, nums=[2, 1]) == [0, 1, 2]
    assert layers_to_keep(block, 4, kinds=kinds, nums=[2, 2]) == [0, 1, 2, 5]  # 3 and 4 are the last pair of kind 0


def test_parts_of_an_unknown_architecture_are_found_by_structure() -> None:
    model = dense("aya_vision")
    family = family_for(model)
    assert family.vision_paths == ("model.vision_tower",)
    assert family.projector_paths == ("model.multi_modal_projector",)
    model = copy.deepcopy(model)
    model.model.seeing = model.model.vision_tower
    del model.model.vision_tower
    model.config.initializer_range = 0.5  # another configuration, so that nothing is remembered
    assert family_for(model).vision_paths == ("model.seeing",)
    without_projector = Family("aya_vision", vision_paths=("model.seeing",))
    with pytest.raises(InputError, match=r"aya_vision.*projector not found.*known_families.py"):
        without_projector.projector(model)
    del model.model.language_model.layers
    with pytest.raises(InputError, match="decoder not found"):
        Family("aya_vision").decoder(model)


def test_encoder_decoders_are_refused() -> None:
    with pytest.raises(InputError, match="no vision-language or causal language model"):
        counts_of(hf.T5Config())
