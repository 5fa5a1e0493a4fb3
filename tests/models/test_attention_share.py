"""How the removal is split between heads and FFN channels."""

import pytest

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import exact_shape, shape_for, shape_for_budget, shape_for_ratio

COUNTS = counts_of_model("pocket")  # 7 layers, 6 x 2 heads of 16, 512 channels, hidden 160


def share_removed(shape):
    """Of the heads' parameters and of the channels'."""
    dense = COUNTS.dense
    heads = COUNTS.attention((shape.num_kv_heads, shape.num_heads)) / COUNTS.attention((6, 12))
    return 1 - heads, 1 - shape.num_ffn_channels / dense.num_ffn_channels


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6])
def test_a_share_of_0_keeps_all_heads_as_long_as_the_ffn_suffices(ratio):
    shape = shape_for_ratio(COUNTS, "widthwise", ratio, attention_share=0.0)
    assert (shape.num_layers, shape.num_kv_heads, shape.num_heads) == (7, 6, 12)
    assert COUNTS.removed_share(shape) == pytest.approx(
        ratio, abs=COUNTS.channels(COUNTS.dense) / COUNTS.decoder(COUNTS.dense)
    )


def test_where_the_ffn_does_not_suffice_heads_go_too():
    shape = shape_for_ratio(COUNTS, "widthwise", 0.85, attention_share=0.0)
    assert shape.num_heads < 12
    assert COUNTS.removed_share(shape) == pytest.approx(0.85, abs=0.02)


@pytest.mark.parametrize("ratio", [0.2, 0.4])
def test_between_0_and_1_heads_lose_that_multiple_of_the_channels_share(ratio):
    for attention_share in (0.25, 0.5, 0.75):
        heads, channels = share_removed(shape_for_ratio(COUNTS, "widthwise", ratio, attention_share=attention_share))
        nearest = COUNTS.attention((1, 1)) / COUNTS.attention((6, 12))  # whole heads: half a group at most beside it
        assert heads == pytest.approx(attention_share * channels, abs=nearest)


@pytest.mark.parametrize("mode", ["widthwise", "both"])
def test_left_out_it_is_1_which_is_the_papers_equal_share(mode):
    for ratio in (0.0, 0.15, 0.3, 0.45, 0.6):
        assert shape_for_ratio(COUNTS, mode, ratio) == shape_for_ratio(COUNTS, mode, ratio, attention_share=1.0)
    heads, channels = share_removed(shape_for_ratio(COUNTS, "widthwise", 0.45))
    assert heads == pytest.approx(channels, abs=0.06)


def test_layers_and_the_ffn_may_share_the_removal():
    shape = shape_for_ratio(COUNTS, "both", 0.5, depth_share=0.5, attention_share=0.0)
    assert shape.num_layers < 7
    assert (shape.num_kv_heads, shape.num_heads) == (6, 12)
    assert shape == shape_for(COUNTS, Recipe(mode="both", ratio=0.5, criterion="deepest+magnitude", attention_share=0))


def test_a_budget_is_met_with_all_heads():
    shape = shape_for_budget(COUNTS, "widthwise", Budget.parse("60%"), attention_share=0.0)
    size, dense = COUNTS.size(shape), COUNTS.size()
    assert (shape.num_kv_heads, shape.num_heads) == (6, 12)
    assert (
        size.size_bytes <= 0.6 * dense.size_bytes < COUNTS.size(Shape(7, 6, 12, shape.num_ffn_channels + 1)).size_bytes
    )


def test_recipes_of_before_keep_their_keys():
    old = Recipe(mode="widthwise", ratio=0.3, criterion="taylor")
    assert old.attention_share == 1.0
    assert old.key == Recipe(**old.as_dict()).key == Recipe(mode="widthwise", ratio=0.3, criterion="taylor").key
    assert old.key != old.model_copy(update={"attention_share": 0.0}).key
    assert Recipe(mode="layerwise", ratio=0.3, criterion="deepest").attention_share is None


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_outside_0_and_1_are_refused(share):
    with pytest.raises(ValueError, match="attention_share"):
        Recipe(mode="widthwise", ratio=0.3, criterion="taylor", attention_share=share)
    with pytest.raises(ValueError, match="mode: widthwise or both"):
        Recipe(mode="layerwise", ratio=0.3, criterion="deepest", attention_share=0.5)


def test_more_than_can_be_removed_is_refused():
    with pytest.raises(InputError, match="can remove at most"):
        shape_for_ratio(COUNTS, "widthwise", 0.97, attention_share=0.0)


def test_an_exact_shape_is_the_dense_one_but_for_what_is_given():
    assert exact_shape(COUNTS, {"num_layers": 5, "num_ffn_channels": 196}) == Shape(5, 6, 12, 196, 0, 160)
    assert exact_shape(COUNTS, {"num_kv_heads": 5, "num_heads": 10}) == Shape(7, 5, 10, 512, 0, 160)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"num_layers": 8}, "num_layers 8: outside 1 to 7"),
        ({"num_ffn_channels": 0}, "num_ffn_channels 0: outside 1 to 512"),
        ({"num_heads": 7}, "num_kv_heads 6 and num_heads 7: the stock class can't hold these; choose 6 and 12"),
    ],
)
def test_a_shape_that_cannot_be_held_is_refused(kept, says):
    with pytest.raises(InputError, match=says):
        exact_shape(COUNTS, kept)
