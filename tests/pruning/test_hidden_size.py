"""Hidden channels are units of the whole model: counted exactly, and what is left computes what it did without them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.shape_rules import ShapeRules
from raysearch.config.space import SearchSpace, load_recipe
from raysearch.errors import InputError
from raysearch.models.layout import outer_layout
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape_solver import exact_shape, shape_for, shape_for_budget, shape_for_ratio
from raysearch.pruning import prune
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.pruning.importance import Importance, importance
from raysearch.pruning.self_check import KEEPS_HIDDEN, check_architecture, examine
from raysearch.pruning.shape_divergence import ShapeDivergence
from raysearch.searching.samplers.suggesters import RandomSuggester
from raysearch.study.plan import plan_study
from tests.support.tiny_models import EXPERTS, FAMILIES, dense

HOLD = (
    "llava_llama", "llava_qwen3", "internvl", "llava_onevision", "qwen3_vl", "idefics3", "mistral3",
    "llama", "qwen3", "qwen3_moe", "mixtral",
)  # fmt: skip
KEPT = np.array([*range(0, 30), *range(34, 64, 3)])  # 40 of 64
GONE = np.setdiff1d(np.arange(64), KEPT)


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**batch, use_cache=False).logits.float()


def scores_of(kept: np.ndarray) -> Importance:
    return Importance("activation", hidden_channels=np.isin(np.arange(64), kept).astype(np.float32))


@torch.no_grad()
def without_channels_by_name(model: PreTrainedModel) -> PreTrainedModel:
    """A LLaVA with a Llama decoder whose removed channels nobody writes or reads, by the names of its weights."""
    masked = copy.deepcopy(model)
    decoder = masked.model.language_model
    decoder.embed_tokens.weight[:, GONE] = 0
    decoder.norm.weight[GONE] = 0
    projector = masked.model.multi_modal_projector
    projector.linear_1.weight[GONE] = 0
    projector.linear_1.bias[GONE] = 0
    projector.linear_2.weight[GONE] = 0
    projector.linear_2.bias[GONE] = 0
    for layer in decoder.layers:
        layer.self_attn.o_proj.weight[GONE] = 0
        layer.mlp.down_proj.weight[GONE] = 0
    return masked


def test_a_model_without_channels_is_the_dense_one_with_zeroed_channels_by_name() -> None:
    model, batch = dense("llava_llama"), FAMILIES["llava_llama"].batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shape = exact_shape(counts_of(model.config), {"hidden_size": 40})
    pruned = prune(model, shape, {"hidden": scores_of(KEPT)})
    text = pruned.config.text_config
    assert (text.hidden_size, text.head_dim, text.num_attention_heads) == (40, 8, 8)
    query = model.model.language_model.layers[1].self_attn.q_proj.weight
    assert torch.equal(pruned.model.language_model.layers[1].self_attn.q_proj.weight, query[:, KEPT])
    norm = model.model.language_model.norm.weight[KEPT] * (64 / 40) ** 0.5
    torch.testing.assert_close(pruned.model.language_model.norm.weight, norm)
    wanted = logits(without_channels_by_name(model), batch)
    torch.testing.assert_close(logits(pruned, batch), wanted, atol=2e-3, rtol=2e-3)  # epsilon weighs 64 / 40 more
    assert (wanted - logits(model, batch)).abs().max() > 1e-1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", HOLD)
def test_families_hold_it_and_sizes_are_those_of_the_built_models(name: str) -> None:
    model = dense(name)
    assert examine(model.config).hidden == ""
    scores, counts = importance(model, None, "random"), counts_of(model.config)
    for mode, ratio, hidden_ratio in (("widthwise", 0.45, 0.25), ("layerwise", 0.6, 0.4)):
        shape = shape_for_ratio(counts, mode, ratio, hidden_ratio=hidden_ratio)
        pruned = prune(model, shape, {"depth": scores, "width": scores, "hidden": scores})
        assert shape.hidden_size == {0.25: 48, 0.4: 40}[hidden_ratio]
        assert shape_of(pruned.config) == shape
        assert counts.size(shape, 4) == counts_of(pruned.config).size(None, 4)
        assert counts.total(shape) == sum(p.numel() for p in pruned.parameters())
        assert counts.removed_share(shape) == pytest.approx(ratio, abs=0.15 if mode == "layerwise" else 0.05)


@pytest.mark.parametrize("name", ["phi", "qwen2_5_vl", "gemma3"])
def test_what_a_class_computes_from_the_hidden_size_is_refused(name: str) -> None:
    """Phi the mean that norms subtract, Qwen2.5-VL its head size, Gemma the scale of its embeddings, which only loading
    shows."""
    config = dense(name).config
    with pytest.raises(InputError, match=r"a smaller hidden size would not be right: .*; leave hidden_ratio out"):
        check_architecture(config, "layerwise", drops_hidden=True)
    if name == "qwen2_5_vl":
        assert examine(config).hidden == KEEPS_HIDDEN
        with pytest.raises(InputError, match=r"hidden_ratio 0\.5: this decoder's hidden size can't be pruned"):
            shape_for_ratio(counts_of(config), "widthwise", 0.5, hidden_ratio=0.5)


@pytest.mark.parametrize("criterion", ["activation", "magnitude"])
def test_channels_that_hold_nothing_go_first_and_change_nothing(criterion: str) -> None:
    model = without_channels_by_name(dense("llava_llama"))
    with torch.no_grad():
        model.lm_head.weight[:, GONE] = 0
        for layer in model.model.language_model.layers:
            for linear in (*(getattr(layer.self_attn, f"{name}_proj") for name in "qkv"), layer.mlp.gate_proj):
                linear.weight[:, GONE] = 0
            layer.mlp.up_proj.weight[:, GONE] = 0
            layer.input_layernorm.weight[GONE] = layer.post_attention_layernorm.weight[GONE] = 0
        model.model.multi_modal_projector.linear_2.weight[:, GONE] = 0
    batch = FAMILIES["llava_llama"].batch()
    scores = importance(model, [batch], criterion)
    assert set(np.argsort(scores.hidden_channels, kind="stable")[: len(GONE)]) == set(GONE)
    pruned = prune(model, exact_shape(counts_of(model.config), {"hidden_size": 40}), {"hidden": scores})
    torch.testing.assert_close(logits(pruned, batch), logits(model, batch), atol=2e-3, rtol=2e-3)


def test_shapes_are_judged_without_the_channels() -> None:
    model, batch = dense("qwen3"), FAMILIES["qwen3"].batch()
    scores = {"hidden": scores_of(KEPT), "depth": importance(model, None, "deepest")}
    shape = exact_shape(counts_of(model.config), {"hidden_size": 40, "num_layers": 3})
    judged = ShapeDivergence(model, [batch])(shape, scores)
    answers = batch["labels"][:, 1:] != -100
    log_probs = [logits(m, batch)[:, :-1][answers].log_softmax(-1) for m in (prune(model, shape, scores), model)]
    divergence = torch.nn.functional.kl_div(*log_probs, reduction="sum", log_target=True) / answers.sum()
    assert judged == pytest.approx(float(divergence), rel=1e-2)


def test_a_budget_a_recipe_and_rules() -> None:
    counts = counts_of(dense("llava_llama").config)
    shape = shape_for_budget(counts, "widthwise", Budget.parse("60%"), hidden_ratio=0.25)
    assert shape.hidden_size == 48
    assert 0.5 < counts.size(shape).size_bytes / counts.size().size_bytes <= 0.6
    plain = Recipe(mode="widthwise", ratio=0.4, criterion="taylor")
    recipe = Recipe(**plain.as_dict() | {"hidden_ratio": 0.25, "hidden_kd": None})
    assert recipe.scored_by == {"width": "taylor", "hidden": "activation"}
    assert "25% of the hidden size by activation" in recipe.describe()
    assert (shape_for(counts, recipe).hidden_size, shape_for(counts, plain).hidden_size) == (48, 64)
    assert plain.key == Recipe(mode="widthwise", ratio=0.4, criterion="taylor", hidden_ratio=0.0).key != recipe.key
    assert plain.key == "65f4474e10"  # as before there was a hidden_ratio
    coarse = counts.under(ShapeRules(hidden_multiple=32))
    assert shape_for_ratio(coarse, "widthwise", 0.6, hidden_ratio=0.4).hidden_size == 32
    with pytest.raises(InputError, match="hidden_size 48: must be a multiple of 32"):
        exact_shape(coarse, {"hidden_size": 48})
    with pytest.raises(InputError, match=r"ratio 0.05: with hidden_ratio 0.5 no model .* the nearest removes 0\.\d+"):
        shape_for_ratio(counts, "widthwise", 0.05, hidden_ratio=0.5)
    with pytest.raises(InputError, match="the shape needs hidden scores"):
        prune(dense("llava_llama"), exact_shape(counts, {"hidden_size": 40}), {})


def test_a_folder_is_loaded_by_transformers_alone(tmp_path: Path) -> None:
    model, batch = dense("llama"), FAMILIES["llama"].batch(padded=False)
    model.save_pretrained(tmp_path / "dense")
    done = prune_checkpoint(tmp_path / "dense", mode="widthwise", exact={"hidden_size": 48}, to=tmp_path / "pruned")
    assert (done["shape"]["hidden_size"], done["hidden_ratio"]) == (48, 0.25)
    recipe = load_recipe(tmp_path / "pruned" / "recipe.yaml")
    assert (recipe.hidden_ratio, recipe.hidden_criterion) == (0.25, "magnitude")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    shape = replace(shape_of(model.config), hidden_size=48)
    assert torch.equal(
        logits(loaded, batch), logits(prune(model, shape, {"hidden": importance(model, None, "magnitude")}), batch)
    )
    assert done["num_params"] == sum(p.numel() for p in loaded.parameters())
    assert outer_layout(loaded).hidden_size == 48
    for wrong, message in (
        ({"ratio": 0.2, "hidden_criterion": "random"}, "hidden_criterion random: no hidden channels are removed"),
        ({"exact": {"num_layers": 3}, "hidden_ratio": 0.5}, "hidden_ratio: not beside an exact shape"),
    ):
        with pytest.raises(InputError, match=message):
            prune_checkpoint(tmp_path / "dense", mode="widthwise", to=tmp_path / "other", **wrong)
    assert not (tmp_path / "other").exists()


def test_a_space_may_search_over_the_hidden_size(tmp_path: Path) -> None:
    dense("mixtral").save_pretrained(tmp_path / "dense")
    recipe = {
        "mode": ["widthwise"], "ratio": {"low": 0.4, "high": 0.6}, "criterion": ["magnitude"],
        "hidden_ratio": [0.25, 0.0], "hidden_criterion": ["random", "magnitude"], "trained": "nothing",
    }  # fmt: skip
    first = {"mode": "widthwise", "ratio": 0.4, "criterion": "magnitude", "trained": "nothing"}
    space = SearchSpace.model_validate(
        {"name": "hidden", "model": str(tmp_path / "dense"), "recipe": recipe, "start": [first]}
    )
    assert space.criteria() == ["magnitude", "random"]
    plan, drawn = plan_study(space), set()
    for seed in range(12):
        suggested = space.suggest(RandomSuggester(np.random.default_rng(seed)))
        assert plan.size_of(suggested) is not None
        assert shape_for(plan.counts, suggested).hidden_size == (48 if suggested.hidden_ratio else 64)
        drawn.add((suggested.hidden_ratio, suggested.hidden_criterion))
    assert drawn == {(0.0, None), (0.25, "random"), (0.25, "magnitude")}


def test_states_are_matched_only_where_they_have_one_size() -> None:
    recipe = {
        "mode": ["widthwise"], "ratio": [0.4], "criterion": ["taylor"], "trained": ["decoder"],
        "hidden_ratio": [0.25, 0.0], "sft": [1.0], "hidden_kd": [0.5], "lr": [1e-3],
    }  # fmt: skip
    space = SearchSpace.model_validate({"name": "hidden", "model": "pocket", "recipe": recipe})
    drawn = [space.suggest(RandomSuggester(np.random.default_rng(seed))) for seed in range(12)]
    assert {(found.hidden_ratio, found.hidden_kd, found.hidden_match) for found in drawn} == {
        (0.25, None, None),
        (0.0, 0.5, "mse"),
    }


def test_experts_rows_for_hidden_channels_follow() -> None:
    model, batch = dense("qwen3_moe"), EXPERTS["qwen3_moe"].batch()
    pruned = prune(model, replace(shape_of(model.config), hidden_size=40), {"hidden": scores_of(KEPT)})
    router = model.model.layers[2].mlp.gate.weight
    assert torch.equal(pruned.model.layers[2].mlp.gate.weight, router[:, KEPT])
    assert logits(pruned, batch).isfinite().all()
