"""Whole experts are units: counted exactly, their routers go with them, what is left computes what it did."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from transformers import AutoModelForCausalLM, PreTrainedModel

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace, load_recipe
from raysearch.errors import InputError
from raysearch.models import decoder_layout, family_for
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import exact_shape, shape_for, shape_for_budget, shape_for_ratio
from raysearch.pruning import checkpoint, prune
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.pruning.importance import Importance, importance
from raysearch.pruning.routing import LINEAR, routing_among
from raysearch.pruning.shape_divergence import ShapeDivergence
from raysearch.pruning.slicing import full_units
from raysearch.searching.samplers.suggesters import RandomSuggester
from raysearch.study.plan import plan_study
from tests.support.tiny_models import EXPERTS, dense


@pytest.fixture(autouse=True)
def _one_linear_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of ZeRO 3 in this process leaves another, which rounds otherwise: in bf16 experts that nearly tie swap."""
    monkeypatch.setattr(torch.nn.functional, "linear", LINEAR)


EVERY = pytest.mark.parametrize("name", EXPERTS)


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**batch, use_cache=False).logits.float()


def scores_of(model: PreTrainedModel, kept: list[list[int]]) -> Importance:
    """By which each layer keeps these experts."""
    scores = np.zeros((len(kept), shape_of(model.config).num_experts), np.float32)
    for i, experts in enumerate(kept):
        scores[i, experts] = 1
    return Importance("reap", experts=scores)


KEPT = [[0, 2, 3], [1, 2, 3], [0, 1, 3], [0, 1, 2]]


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_without_experts_is_the_dense_one_routed_among_the_others(name: str, dtype: torch.dtype) -> None:
    model, batch = copy.deepcopy(dense(name)).to(dtype), EXPERTS[name].batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shape = exact_shape(counts_of(model.config), {"num_experts": 3})
    pruned = prune(model, shape, {"experts": scores_of(model, KEPT)})
    assert shape_of(pruned.config) == shape
    units = {i: {**kept, "experts": np.array(KEPT[i])} for i, kept in full_units(model).items()}
    with routing_among(model, units):
        wanted = logits(model, batch)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # bf16 adds the same experts in another order
    torch.testing.assert_close(logits(pruned, batch), wanted, atol=tolerance, rtol=tolerance)
    assert (wanted - logits(model, batch)).abs().max() > 1e-2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_routers_are_seen_where_zero_3_has_replaced_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    model, batch = dense("mixtral"), EXPERTS["mixtral"].batch()
    pruned = prune(model, exact_shape(counts_of(model.config), {"num_experts": 3}), {"experts": scores_of(model, KEPT)})
    units = {i: {**kept, "experts": np.array(KEPT[i])} for i, kept in full_units(model).items()}
    with routing_among(model, units):
        wanted = logits(model, batch)
    assert torch.nn.functional.linear is zero3_linear_wrap
    torch.testing.assert_close(logits(pruned, batch), wanted, atol=1e-5, rtol=1e-5)


@EVERY
def test_sizes_are_those_of_the_built_models(name: str) -> None:
    model = dense(name)
    scores = importance(model, None, "random")
    counts = counts_of(model.config)
    for mode, ratio, expert_ratio in (("widthwise", 0.35, 0.25), ("layerwise", 0.6, 0.5), ("both", 0.5, 0.25)):
        shape = shape_for_ratio(counts, mode, ratio, expert_ratio=expert_ratio)
        pruned = prune(model, shape, {"depth": scores, "width": scores, "experts": scores})
        assert shape.num_experts == 4 * (1 - expert_ratio)
        assert shape_of(pruned.config) == shape
        state = {value.data_ptr(): value for value in pruned.state_dict().values()}
        assert counts.size(shape, 4).num_params == sum(p.numel() for p in pruned.parameters())
        assert counts.size(shape, 4).size_bytes == sum(value.numel() * 4 for value in state.values())


@torch.no_grad()
def test_scores_by_hand() -> None:
    """A router that knows the tokens: what each expert gets and gives is computed one by one."""
    model, batch = dense("qwen3_moe"), EXPERTS["qwen3_moe"].batch()
    layer, block = 2, family_for(model).decoder(model).layers[2].mlp
    seen = []
    hook = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    logits(model, batch)
    hook.remove()
    states = seen[0][batch["attention_mask"].flatten().bool()]
    chances = (states @ block.gate.weight.T).softmax(-1)
    weights, chosen = chances.topk(2)
    if model.config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    for expert in range(4):
        rows, places = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (states[rows] @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
        outputs = (torch.nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].T
        by_hand = (outputs.norm(dim=-1) * weights[rows, places]).mean() if len(rows) else 0.0
        assert importance(model, [batch], "reap").experts[layer, expert] == pytest.approx(float(by_hand), rel=1e-4)
        frequency = importance(model, [batch], "frequency").experts[layer, expert]
        assert frequency == pytest.approx(len(rows) / len(states))


def test_shapes_are_judged_without_the_experts_and_their_channels() -> None:
    model, batch = dense("qwen2_moe"), EXPERTS["qwen2_moe"].batch()
    scores = {"experts": scores_of(model, KEPT)}
    scores["width"] = importance(model, None, "magnitude")
    shape = exact_shape(counts_of(model.config), {"num_experts": 3, "num_ffn_channels": 16})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    judged = ShapeDivergence(model, [batch])(shape, scores)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    answers = batch["labels"][:, 1:] != -100
    log_probs = [logits(m, batch)[:, :-1][answers].log_softmax(-1) for m in (prune(model, shape, scores), model)]
    divergence = torch.nn.functional.kl_div(*log_probs, reduction="sum", log_target=True) / answers.sum()
    assert judged == pytest.approx(float(divergence), rel=1e-3)


def test_what_cannot_be_is_one_line() -> None:
    counts = counts_of(dense("qwen3_moe").config)
    with pytest.raises(InputError, match=r"expert_ratio 0.7: leaves 1 of 4 experts, fewer than .*; at most 0.5"):
        shape_for_ratio(counts, "widthwise", 0.5, expert_ratio=0.7)
    with pytest.raises(InputError, match=r"ratio 0.05: with expert_ratio 0.5 no model .* the nearest removes 0\.\d+"):
        shape_for_ratio(counts, "widthwise", 0.05, expert_ratio=0.5)
    with pytest.raises(InputError, match="num_experts 1: outside 2 to 4"):
        exact_shape(counts, {"num_experts": 1})
    with pytest.raises(InputError, match=r"expert_ratio 0\.5: this decoder has no experts that can be dropped"):
        shape_for_ratio(counts_of(dense("llama").config), "widthwise", 0.3, expert_ratio=0.5)
    in_groups = copy.deepcopy(dense("glm4_moe").config)
    in_groups.n_group = in_groups.topk_group = 2  # experts are numbered through the groups
    with pytest.raises(InputError, match="no experts that can be dropped"):
        shape_for_ratio(counts_of(in_groups), "widthwise", 0.5, expert_ratio=0.25)
    with pytest.raises(ValueError, match="expert_criterion needs expert_ratio above 0"):
        Recipe(mode="widthwise", ratio=0.3, criterion="taylor", expert_criterion="reap")
    model = dense("qwen3_moe")
    with pytest.raises(InputError, match="the shape needs experts scores"):
        prune(model, exact_shape(counts, {"num_experts": 3}), {"width": importance(model, None, "magnitude")})


def test_a_budget_and_a_recipe_may_name_experts() -> None:
    counts = counts_of(dense("mixtral").config)
    shape = shape_for_budget(counts, "widthwise", Budget.parse("70%"), expert_ratio=0.25)
    dense_size = counts.size(counts.dense)
    assert shape.num_experts == 3
    assert 0.6 < counts.size(shape).size_bytes / dense_size.size_bytes <= 0.7
    recipe = Recipe(mode="widthwise", ratio=0.4, criterion="taylor", expert_ratio=0.5)
    assert recipe.expert_criterion == "frequency"
    assert recipe.scored_by == {"width": "taylor", "experts": "frequency"}
    assert shape_for(counts, recipe).num_experts == 2
    plain = Recipe(mode="widthwise", ratio=0.4, criterion="taylor")
    assert shape_for(counts, plain).num_experts == 4
    assert plain.key == Recipe(mode="widthwise", ratio=0.4, criterion="taylor", expert_ratio=0.0).key != recipe.key


def test_a_folder_without_experts_is_loaded_by_transformers_alone(tmp_path: Path) -> None:
    model, batch = dense("qwen3_moe"), EXPERTS["qwen3_moe"].batch()
    model.save_pretrained(tmp_path / "dense")
    done = prune_checkpoint(
        tmp_path / "dense", mode="widthwise", exact={"num_experts": 3}, to=tmp_path / "pruned",
        expert_criterion="magnitude",
    )  # fmt: skip
    assert done["shape"]["num_experts"] == 3
    recipe = load_recipe(tmp_path / "pruned" / "recipe.yaml")
    assert (recipe.expert_ratio, recipe.expert_criterion) == (0.25, "magnitude")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    wanted = prune(model, Shape(4, 4, 8, 32, 3), {"experts": importance(model, None, "magnitude")})
    assert torch.equal(logits(loaded, batch), logits(wanted, batch))
    assert done["num_params"] == sum(p.numel() for p in loaded.parameters())
    assert decoder_layout(loaded)[1].num_experts == 3


def test_only_what_a_shape_removes_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense("qwen2_moe").save_pretrained(tmp_path / "dense")
    scored: list[str] = []

    def counted(model: PreTrainedModel, data: object, name: str, *rest: object) -> Importance:
        scored.append(name)
        return importance(model, data, name)

    monkeypatch.setattr(checkpoint, "importance", counted)
    prune_checkpoint(
        tmp_path / "dense", mode="widthwise", exact={"num_experts": 2}, to=tmp_path / "a", expert_criterion="random"
    )
    assert scored == ["random"]
    with pytest.raises(InputError, match="expert_criterion random: no experts are removed"):
        prune_checkpoint(tmp_path / "dense", mode="widthwise", ratio=0.2, to=tmp_path / "b", expert_criterion="random")
    with pytest.raises(InputError, match="expert_ratio: not beside an exact shape"):
        prune_checkpoint(
            tmp_path / "dense", mode="widthwise", exact={"num_layers": 3}, to=tmp_path / "b", expert_ratio=0.5
        )


def test_a_space_may_search_over_experts(tmp_path: Path) -> None:
    dense("mixtral").save_pretrained(tmp_path / "dense")
    recipe = {
        "mode": ["widthwise", "layerwise"], "ratio": {"low": 0.3, "high": 0.6}, "criterion": ["magnitude", "deepest"],
        "expert_ratio": [0.25, 0.0], "expert_criterion": ["frequency", "magnitude"], "trained": "nothing",
    }  # fmt: skip
    first = {"mode": "widthwise", "ratio": 0.3, "criterion": "magnitude", "trained": "nothing"}  # keeps all experts
    content = {"name": "experts", "model": str(tmp_path / "dense"), "recipe": recipe, "start": [first]}
    space = SearchSpace.model_validate(content)
    assert space.criteria() == ["magnitude", "deepest", "frequency"]
    assert {"expert_ratio", "expert_criterion"} <= space.search_params().keys()
    plan, drawn = plan_study(space), set()
    for seed in range(12):
        suggested = space.suggest(RandomSuggester(np.random.default_rng(seed)))
        size = plan.size_of(suggested)
        assert size is not None
        assert size.num_params / plan.dense.num_params < 0.8
        assert shape_for(plan.counts, suggested).num_experts == (3 if suggested.expert_ratio else 4)
        drawn.add((suggested.expert_ratio, suggested.expert_criterion))
    assert drawn == {(0.0, None), (0.25, "frequency"), (0.25, "magnitude")}
