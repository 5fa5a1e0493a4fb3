"""Ratios and budgets to shapes: exact counts, errors of at most one unit, plain refusals."""

import itertools

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen3MoeConfig

from raysearch.config.budget import Budget, Limit, size_text
from raysearch.errors import InputError
from raysearch.models import empty_model
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import pruned_config, shape_of
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import exact_shape, shape_for_budget, shape_for_ratio, smallest_shape
from tests.support.tiny_models import FAMILIES

EVERY = pytest.mark.parametrize("name", list(FAMILIES))


@pytest.fixture(scope="module")
def llava_7b() -> LlavaConfig:
    """LLaVA-1.5-7B: CLIP-ViT-L/14 at 336 pixels, Vicuna-7B."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        image_size=336,
        projection_dim=768,
    )
    return LlavaConfig(text_config=LlamaConfig(vocab_size=32064), vision_config=vision)


def test_llava_7b_is_counted_without_its_weights(llava_7b: LlavaConfig) -> None:
    size = counts_of(llava_7b).size()
    assert size.num_params == 7_063_427_072
    assert size.size_bytes == 2 * size.num_params
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # 202.4M
    assert counts_of(llava_7b).layer(shape_of(llava_7b)) == layer == 202_383_360


@pytest.mark.parametrize(
    ("ratio", "dropped", "billions"),
    [(0.15, 5, 6.05), (0.30, 10, 5.04), (0.45, 15, 4.03), (0.60, 20, 3.02), (0.63, 21, 2.81)],
)
def test_llava_7b_drops_the_published_layers(
    llava_7b: LlavaConfig, ratio: float, dropped: int, billions: float
) -> None:
    """arXiv 2604.24380 drops 5, 10, 15 and 21 layers; 21 are 63.1% of the language model, called 60% there."""
    shape = shape_for_ratio(counts_of(llava_7b), "layerwise", ratio)
    assert shape.num_layers == 32 - dropped
    assert counts_of(llava_7b).size(shape).num_params / 1e9 == pytest.approx(billions, abs=0.005)


def test_no_part_of_llava_7b_makes_the_published_counts_shares(llava_7b: LlavaConfig) -> None:
    """Layers nearest to 15, 30, 45 and 60% of the layers, of the language model, and of the whole model."""
    counts, dense = counts_of(llava_7b), shape_of(llava_7b)
    layer = counts.layer(dense)
    wholes = (32 * layer, counts.decoder(dense), counts.total(dense))
    nearest = [[round(share * whole / layer) for share in (0.15, 0.3, 0.45, 0.6)] for whole in wholes]
    assert nearest == [[5, 10, 14, 19], [5, 10, 15, 20], [5, 10, 16, 21]]
    assert 21 * layer / counts.decoder(dense) == pytest.approx(0.631, abs=5e-4)


@pytest.mark.parametrize(("ratio", "billions"), [(0.15, 6.0), (0.30, 5.0), (0.45, 4.0), (0.60, 3.0)])
def test_llava_7b_width_reaches_the_published_sizes(llava_7b: LlavaConfig, ratio: float, billions: float) -> None:
    shape = shape_for_ratio(counts_of(llava_7b), "widthwise", ratio)
    assert shape.num_layers == 32
    assert shape.num_kv_heads == shape.num_heads
    assert shape.num_ffn_channels % 64 == 0
    assert counts_of(llava_7b).size(shape).num_params / 1e9 == pytest.approx(billions, abs=0.06)


@EVERY
@pytest.mark.parametrize("mode", ["layerwise", "widthwise", "both"])
def test_a_ratio_is_met_to_within_one_unit(name: str, mode: str) -> None:
    config = FAMILIES[name].config()
    counts = counts_of(config)
    decoder = counts.decoder(counts.dense)
    by_depth = [counts.decoder(Shape(num, *counts.dense.widths)) for num in range(1, counts.dense.num_layers + 1)]
    largest = max(more - less for less, more in itertools.pairwise(by_depth))
    unit = largest / 2 if mode == "layerwise" else counts.channels(counts.dense)
    for ratio in (0.0, 0.05, 0.13, 0.3, 0.45):
        shape = shape_for_ratio(counts_of(config), mode, ratio, multiple=1)
        assert abs(counts.decoder(shape) - decoder * (1 - ratio)) <= unit
        if mode == "layerwise":
            assert shape == Shape(shape.num_layers, *counts.dense.widths)
        if mode == "widthwise":
            assert shape.num_layers == counts.dense.num_layers
    assert shape_for_ratio(counts_of(config), mode, 0.0) == counts.dense


@EVERY
@pytest.mark.parametrize("mode", ["layerwise", "widthwise", "both"])
def test_a_budget_is_kept_and_used_up(name: str, mode: str) -> None:
    config = FAMILIES[name].config()
    counts, dense = counts_of(config), counts_of(config).size()
    least = counts_of(config).size(smallest_shape(counts_of(config), mode))
    unit = counts.layer(counts.dense) if mode == "layerwise" else counts.channels(counts.dense)
    for share in (0.2, 0.5, 0.9):
        bound = round(least.size_bytes + share * (dense.size_bytes - least.size_bytes))
        for budget in (Budget("bytes", (Limit("bytes", bound),)), Budget("params", (Limit("params", bound // 2),))):
            size = counts_of(config).size(shape_for_budget(counts_of(config), mode, budget))
            assert budget.admits(size, dense)
            assert bound / 2 - size.num_params <= unit
    assert shape_for_budget(counts_of(config), mode, Budget.parse("100%")) == counts.dense
    tightest = Budget("tightest", (Limit("bytes", least.size_bytes),))
    assert shape_for_budget(counts_of(config), mode, tightest) == smallest_shape(counts_of(config), mode)


def test_depth_share_moves_the_work_between_layers_and_widths(llava_7b: LlavaConfig) -> None:
    layers = [
        shape_for_ratio(counts_of(llava_7b), "both", 0.4, depth_share=share).num_layers for share in (0.1, 0.5, 0.9)
    ]
    assert layers == [31, 25, 20]  # of 13.3 layers' worth: 1.3, 6.7 and 12 dropped
    with_all_widths = shape_for_ratio(counts_of(llava_7b), "both", 0.4, depth_share=0.99)
    assert with_all_widths.num_heads >= 31


def test_channels_come_in_multiples(llava_7b: LlavaConfig) -> None:
    assert counts_of(llava_7b).channels_step == 64
    assert shape_for_ratio(counts_of(llava_7b), "widthwise", 0.3, multiple=256).num_ffn_channels % 256 == 0
    exact = shape_for_ratio(counts_of(llava_7b), "widthwise", 0.3, multiple=1)
    counts = counts_of(llava_7b)
    assert abs(counts.decoder(exact) / counts.decoder(counts.dense) - 0.7) < 1e-4
    assert counts_of(FAMILIES["llama"].config()).channels_step == 1
    with pytest.raises(InputError, match="multiple 0: outside 1 to 11008"):
        shape_for_ratio(counts_of(llava_7b), "widthwise", 0.3, multiple=0)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_ratios_outside_are_refused(llava_7b: LlavaConfig, ratio: float) -> None:
    with pytest.raises(InputError, match=r"outside \[0, 1\)"):
        shape_for_ratio(counts_of(llava_7b), "layerwise", ratio)


def test_more_than_can_be_removed_is_refused_with_the_most(llava_7b: LlavaConfig) -> None:
    with pytest.raises(InputError, match=r"widthwise can remove at most 0\.9\d+"):
        shape_for_ratio(counts_of(llava_7b), "widthwise", 0.99)


def test_a_budget_below_the_smallest_model_says_what_that_is(llava_7b: LlavaConfig) -> None:
    smallest = counts_of(llava_7b).size(Shape(1, 32, 32, 11008))
    assert smallest_shape(counts_of(llava_7b), "layerwise") == Shape(1, 32, 32, 11008, 0, 4096)
    with pytest.raises(InputError, match=f"{smallest.num_params} parameters in {size_text(smallest.size_bytes)}"):
        shape_for_budget(counts_of(llava_7b), "layerwise", Budget.parse("100MB"))


def test_layers_that_take_in_visual_features_stay() -> None:
    config = FAMILIES["qwen3_vl"].config()
    assert smallest_shape(counts_of(config), "layerwise").num_layers == 2  # two deep visual features in the tiny model


def test_unequal_layers_are_counted_by_kind() -> None:
    config = Qwen3MoeConfig(
        vocab_size=96, hidden_size=16, intermediate_size=24, moe_intermediate_size=24, num_hidden_layers=6,
        num_experts=4, num_attention_heads=2, num_key_value_heads=1, head_dim=8, decoder_sparse_step=1,
        mlp_only_layers=[1, 4],
    )  # fmt: skip
    counts = counts_of(config)
    assert [kind.layers for kind in counts.kinds] == [(1, 4), (0, 2, 3, 5)]
    assert [kind.has("ffn_channels") for kind in counts.kinds] == [False, True]  # of experts; the others keep theirs
    assert counts.channels(counts.dense) == 4 * 4 * 3 * 16
    assert [counts.num_of_kinds(num) for num in range(2, 7)] == [[1, 1], [1, 2], [1, 3], [2, 3], [2, 4]]
    for layers in ([0, 1], [1, 2, 5], [0, 1, 2, 3, 4, 5]):
        shape = Shape(len(layers), 1, 2, 16)
        assert counts.total(shape) == sum(
            p.numel() for p in empty_model(pruned_config(config, shape, layers)).parameters()
        )
    assert counts.smallest == Shape(2, 1, 1, 8, 4, 16)
    assert shape_for_ratio(counts, "widthwise", 0.2).num_ffn_channels in (8, 16)
    with pytest.raises(InputError, match="num_ffn_channels 9: must be a multiple of 8"):
        exact_shape(counts, {"num_ffn_channels": 9})
