"""Only shapes that a runtime takes are made, and what no such shape can hold is one line."""

from pathlib import Path

import pytest
import transformers as hf
from pydantic import ValidationError

from raysearch.config.budget import Budget, Limit
from raysearch.config.shape_rules import ShapeRules, shape_rules
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.models.param_count import counts_of
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape import ParamCounts, Shape
from raysearch.models.shape_solver import exact_shape, shape_for_budget, shape_for_ratio, smallest_shape
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.study.plan import plan_study
from tests.support.tiny_models import FAMILIES, dense

RULES = [
    ShapeRules(heads_multiple=4, kv_heads_multiple=2, ffn_multiple=16),
    ShapeRules(tensor_parallel=2),
    ShapeRules(tensor_parallel=4, ffn_multiple=6),  # 4 and 6: 12
    ShapeRules(ffn_multiple=32, hidden_multiple=32),
]


def qwen2(**changes: int) -> ParamCounts:
    """Qwen2-0.5B's numbers: 14 query heads of 64 features, 2 KV heads, 4864 FFN channels."""
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
    return counts_of(hf.Qwen2Config(**{**sizes, **heads, **changes}, tie_word_embeddings=True))


def keeps(rules: ShapeRules, shape: Shape, dense_kv_heads: int, hidden_size: int) -> bool:
    """Written out, by the rules' descriptions."""
    degree = rules.tensor_parallel
    kv = shape.num_kv_heads % degree == 0 or (dense_kv_heads < degree and degree % shape.num_kv_heads == 0)
    heads = shape.num_heads % rules.heads_multiple == 0 and shape.num_heads % degree == 0
    ffn = shape.num_ffn_channels % (rules.ffn_multiple or 1) == 0 and shape.num_ffn_channels % degree == 0
    return (
        kv
        and heads
        and ffn
        and shape.num_kv_heads % rules.kv_heads_multiple == 0 == hidden_size % rules.hidden_multiple
    )


@pytest.mark.parametrize("name", ["llava_llama", "qwen2_vl", "bunny", "smollm3", "gemma"])
@pytest.mark.parametrize("rules", RULES, ids=ShapeRules.describe)
def test_every_shape_is_within_the_rules(name: str, rules: ShapeRules) -> None:
    config = FAMILIES[name].config()
    whole, text = counts_of(config), config.get_text_config()
    counts, num_made = whole.under(rules), 0
    unit = counts.channels_step * counts.channels(counts.dense)
    for mode in ("widthwise", "both"):
        for ratio in (0.0, 0.1, 0.22, 0.35, 0.5):
            try:
                shape = shape_for_ratio(counts, mode, ratio)
            except InputError:  # said in one line, see below
                continue
            num_made += 1
            assert keeps(rules, shape, whole.dense.num_kv_heads, text.hidden_size), shape
            assert abs(counts.decoder(shape) - counts.decoder(counts.dense) * (1 - ratio)) <= unit
        least, most = (counts.size(shape).size_bytes for shape in (smallest_shape(counts, mode), counts.largest))
        for bound in (least, (least + most) // 2, most):
            shape = shape_for_budget(counts, mode, Budget("bound", (Limit("bytes", bound),)))
            assert keeps(rules, shape, whole.dense.num_kv_heads, text.hidden_size), shape
            assert counts.size(shape).size_bytes <= bound
    assert num_made >= 2


def test_tensor_parallel_copies_kv_heads_where_there_are_fewer() -> None:
    """Qwen2-0.5B has 2 KV heads and 14 query heads: 4 devices can't split 14, but 12 or 8 or 4."""
    counts = qwen2().under(ShapeRules(tensor_parallel=4))
    assert counts.attention_choices == ((2, 12), (2, 8), (2, 4), (1, 4))
    assert counts.largest == Shape(24, 2, 12, 4864, 0, 896)
    assert qwen2().under(ShapeRules(tensor_parallel=2)).largest == counts.dense
    shape = shape_for_ratio(counts, "widthwise", 0.2)
    assert shape.num_ffn_channels % 64 == 0  # as without rules, from 4096 channels on


def test_what_breaks_the_rules_in_the_dense_model_is_said() -> None:
    counts = qwen2().under(ShapeRules(tensor_parallel=4))
    with pytest.raises(
        InputError, match=r"ratio 0.0: with shapes tensor_parallel 4 no model .* nearest removes 0.01\d+"
    ):
        shape_for_ratio(counts, "widthwise", 0.0)
    with pytest.raises(InputError, match="shapes: layerwise keeps 14 query heads, which they forbid; choose mode"):
        shape_for_ratio(counts, "layerwise", 0.2)
    with pytest.raises(
        InputError, match=r"num_heads 14: the stock class can't hold these within shapes tensor_parallel 4"
    ):
        exact_shape(counts, {"num_layers": 20})
    assert exact_shape(counts, {"num_heads": 12}).num_heads == 12
    whole = shape_for_budget(counts, "widthwise", Budget.parse("100%"))
    assert whole == counts.largest


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (ShapeRules(hidden_multiple=512), "its hidden size is 896"),
        (ShapeRules(heads_multiple=16), "no part of its 2 KV heads and 14 query heads of 64 features will do"),
        (ShapeRules(ffn_multiple=8192), "it has 4864 FFN channels"),
    ],
)
def test_rules_without_any_shape_are_refused(rules: ShapeRules, message: str) -> None:
    with pytest.raises(
        InputError, match=f"shapes: {rules.describe()}: this decoder has no such shape, since {message}"
    ):
        qwen2().under(rules)


def test_a_head_size_that_is_a_quotient_keeps_the_heads() -> None:
    assert qwen2(head_dim=128).under(ShapeRules(quotient_head_dim=True)).attention_choices == ((1, 7),)  # 896 // 7
    counts = qwen2().under(ShapeRules(quotient_head_dim=True))
    assert counts.attention_choices == ((2, 14),)
    shape = shape_for_ratio(counts, "widthwise", 0.3)
    assert (shape.num_kv_heads, shape.num_heads) == (2, 14)
    assert counts.removed_share(shape) == pytest.approx(0.3, abs=0.01)
    with pytest.raises(InputError, match="no part of its 2 KV heads and 14 query heads of 100 features"):
        qwen2(head_dim=100).under(ShapeRules(quotient_head_dim=True))


def test_a_ratio_is_rounded_to_half_a_step_and_not_further() -> None:
    """8 query heads in steps of 8 and 96 channels in steps of 96: only the dense model is left."""
    counts = counts_of(FAMILIES["llava_llama"].config()).under(ShapeRules(heads_multiple=8, ffn_multiple=96))
    half = 48 * counts.channels(counts.dense) / counts.decoder(counts.dense)
    assert shape_for_ratio(counts, "widthwise", half - 0.01) == counts.dense
    with pytest.raises(InputError, match=r"widthwise can remove at most 0\.0000"):
        shape_for_ratio(counts, "widthwise", half + 0.01)
    with pytest.raises(
        InputError,
        match=r"below the smallest model that widthwise can reach, .*\(100\.0% of the dense model\); raise it",
    ):
        shape_for_budget(counts, "widthwise", Budget.parse("80%"))


def test_no_rules_change_nothing() -> None:
    assert qwen2().under(ShapeRules()) is qwen2()
    assert ShapeRules().describe() == ""


def space(**changes: object) -> dict[str, object]:
    recipe = {"mode": "widthwise", "ratio": {"low": 0.1, "high": 0.5}, "criterion": "taylor"}
    return {"name": "rules", "model": "pocket", "recipe": recipe, **changes}


def test_a_space_names_its_rules_and_a_dry_run_repeats_them() -> None:
    loaded = SearchSpace.model_validate(space(shapes={"heads_multiple": 4, "ffn_multiple": 64}))
    plan = plan_study(loaded)
    assert "shapes     heads_multiple 4, ffn_multiple 64" in plan.describe()
    assert plan.counts.largest == Shape(7, 6, 12, 512, 0, 160)
    assert plan.counts.smallest.widths == (2, 4, 64, 0, 160)
    for wrong in ({"heads": 4}, {"heads_multiple": 0}, {"ffn_multiple": "many"}, {"tensor_parallel": 2.5}):
        with pytest.raises(ValidationError, match="shapes"):
            SearchSpace.model_validate(space(shapes=wrong))
    layerwise = {"mode": "layerwise", "ratio": 0.3, "criterion": "deepest"}
    with pytest.raises(InputError, match="shapes: layerwise keeps 6 KV heads, 12 query heads, which they forbid"):
        plan_study(SearchSpace.model_validate(space(shapes={"heads_multiple": 8}, recipe=layerwise)))


def test_a_folder_is_pruned_within_rules(tmp_path: Path) -> None:
    dense("llava_llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match=r"shapes\.heads: unknown key; known are heads_multiple"):
        shape_rules({"heads": 2})
    done = prune_checkpoint(
        tmp_path / "dense", mode="widthwise", ratio=0.3, to=tmp_path / "pruned", shapes={"tensor_parallel": 4}
    )
    shape = done["shape"]
    assert shape["num_heads"] % 4 == 0 == shape["num_ffn_channels"] % 4
    with pytest.raises(InputError, match="shapes: heads_multiple 16: this decoder has no such shape"):
        prune_checkpoint(
            tmp_path / "dense", mode="widthwise", ratio=0.3, to=tmp_path / "none", shapes={"heads_multiple": 16}
        )
    assert not (tmp_path / "none").exists()


def test_counts_of_a_model_by_name_are_not_changed_by_rules() -> None:
    counts = counts_of_model("pocket")
    assert counts.under(ShapeRules(ffn_multiple=48)).most_channels == 480
    assert counts_of_model("pocket") == counts
