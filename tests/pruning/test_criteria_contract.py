"""The contract of a pruning criterion, for every row of `CRITERIA`, on tiny models with random weights."""

import copy
import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from raysearch.config.criteria import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA
from raysearch.errors import InputError
from raysearch.models import family_for
from raysearch.models.pruned_config import shape_of
from raysearch.pruning import prune
from raysearch.pruning.importance import TOKENS, Importance, importance
from tests.support.tiny_models import EXPERTS, FAMILIES, NUM_LAYERS, dense

NAME = "llava_llama"
every_criterion = pytest.mark.parametrize("criterion", CRITERIA)
every_with_data = pytest.mark.parametrize("criterion", [name for name, row in CRITERIA.items() if row.needs_data])


def batches_of(name: str = NAME) -> list[dict[str, torch.Tensor]]:
    family = (FAMILIES | EXPERTS)[name]
    return [family.batch(), family.batch(seed=1)]


def name_of(criterion: str) -> str:
    """A model that the criterion scores something of."""
    return "qwen3_moe" if CRITERIA[criterion].scores == ("experts",) else NAME


def scored(criterion: str, batches: Iterable[dict] | None = None, name: str | None = None, seed: int = 0) -> Importance:
    name = name or name_of(criterion)
    if not CRITERIA[criterion].needs_data:
        return importance(dense(name), None, criterion, seed)
    return importance(dense(name), batches_of(name) if batches is None else batches, criterion, seed)


def arrays(scores: Importance) -> dict[str, np.ndarray]:
    return {key: value for key, value in vars(scores).items() if isinstance(value, np.ndarray)}


def same(a: Importance, b: Importance, **tolerance: float) -> None:
    assert arrays(a).keys() == arrays(b).keys()
    for key, value in arrays(a).items():
        if key != "layer_order":  # follows from the scores, but for near ties
            np.testing.assert_allclose(value, arrays(b)[key], **tolerance)


@every_criterion
@pytest.mark.parametrize("name", [NAME, "bunny", "mini_internvl", "llama", "qwen3_moe"])
def test_scores_have_the_shapes_of_what_the_row_says(criterion: str, name: str) -> None:
    has_experts = name in EXPERTS
    if CRITERIA[criterion].scores == (("widths",) if has_experts else ("experts",)):
        with pytest.raises(InputError, match=f"criterion {criterion}: "):
            scored(criterion, name=name)
        return
    scores, row, shape = scored(criterion, name=name), CRITERIA[criterion], shape_of(dense(name).config)
    assert scores.criterion == criterion
    assert (scores.layers is not None) == (criterion in LAYER_CRITERIA) == ("layers" in row.scores)
    reads_outputs = has_experts and criterion == "activation"  # which experts don't give: hidden channels alone
    assert (scores.heads is not None) == (criterion in WIDTH_CRITERIA and not reads_outputs)
    assert (criterion in WIDTH_CRITERIA) == ("widths" in row.scores)
    assert (scores.hidden_channels is not None) == ("hidden" in row.scores)
    if scores.layers is not None:
        assert scores.layers.shape == (NUM_LAYERS,)
        assert scores.layers.dtype == np.float32
        assert np.isfinite(scores.layers).all()
        assert (scores.layer_order is None) != (scores.block_distance is None)
    if scores.layer_order is not None:
        assert sorted(scores.layer_order) == list(range(NUM_LAYERS))
    widths = {"kv_groups": shape.num_kv_heads, "heads": shape.num_heads, "ffn_channels": shape.num_ffn_channels}
    for field, num in widths.items():
        values = getattr(scores, field)
        assert (values is None) == (scores.heads is None)
        if values is not None:
            assert values.shape == (NUM_LAYERS, num)
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert values.min() >= 0
            assert values.std(axis=1)[has_experts:].min() > 0  # the first layer has no experts, so no channels to prune
    if has_experts:
        assert (scores.experts is not None) == ("experts" in row.scores)
    if has_experts and scores.experts is not None:
        assert scores.experts.shape == (NUM_LAYERS, shape.num_experts)
        assert scores.experts.dtype == np.float32
        assert scores.experts.min() >= 0
        assert scores.experts.std(axis=1)[1:].min() > 0


@every_criterion
def test_scores_are_reproducible(criterion: str) -> None:
    first, again = scored(criterion, seed=1), scored(criterion, seed=1)
    for key, value in arrays(first).items():
        assert np.array_equal(value, arrays(again)[key]), key


@every_criterion
@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_as_it_was(criterion: str, is_training: bool) -> None:
    name = name_of(criterion)
    model = copy.deepcopy(dense(name)).train(is_training)
    frozen = (family_for(model).vision(model) or [family_for(model).final_norm(model)])[0].eval().requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    importance(model, batches_of(name) if CRITERIA[criterion].needs_data else None, criterion)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training == is_training
    assert not frozen.training


@every_with_data
def test_padding_changes_nothing(criterion: str) -> None:
    batches = batches_of(name_of(criterion))
    for batch in batches:
        batch["input_ids"] = batch["input_ids"].clone()
        batch["input_ids"][-1, -3:] = 77
    same(scored(criterion), scored(criterion, batches), rtol=1e-3, atol=1e-6)


@every_with_data
def test_batches_are_read_once_in_any_order(criterion: str) -> None:
    batches = batches_of(name_of(criterion))
    same(scored(criterion, iter(batches)), scored(criterion, reversed(batches)), rtol=1e-4, atol=1e-6)


@every_with_data
def test_samples_can_be_in_any_order(criterion: str) -> None:
    turned = [{key: value.flip(0) for key, value in batch.items()} for batch in batches_of(name_of(criterion))]
    same(scored(criterion), scored(criterion, turned), rtol=1e-3, atol=1e-5)


@every_criterion
def test_a_model_can_be_pruned_by_the_scores(criterion: str) -> None:
    model = dense(name_of(criterion))
    scores, full = scored(criterion), shape_of(model.config)
    if criterion in LAYER_CRITERIA:
        fewer = dataclasses.replace(full, num_layers=NUM_LAYERS - 2)
        assert shape_of(prune(model, fewer, {"depth": scores}).config) == fewer
    if criterion in WIDTH_CRITERIA:
        narrower = dataclasses.replace(full, num_kv_heads=2, num_heads=4, num_ffn_channels=60)
        assert shape_of(prune(model, narrower, {"width": scores}).config) == narrower
    if "hidden" in CRITERIA[criterion].scores:
        assert scores.hidden_channels.shape == (full.hidden_size,)
        narrower = dataclasses.replace(full, hidden_size=40)
        assert shape_of(prune(model, narrower, {"hidden": scores}).config) == narrower
    if full.num_experts:
        fewer = dataclasses.replace(full, num_experts=3)
        assert shape_of(prune(model, fewer, {"experts": scores}).config) == fewer


@every_with_data
def test_missing_data_is_refused(criterion: str) -> None:
    with pytest.raises(InputError, match=f"criterion {criterion}: needs calibration data"):
        importance(dense(name_of(criterion)), None, criterion)
    with pytest.raises(InputError, match="has no samples"):
        importance(dense(name_of(criterion)), [], criterion)


@every_with_data
def test_answers_are_required_where_the_row_says(criterion: str) -> None:
    batch = batches_of(name_of(criterion))[0]
    silent = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    unlabelled = {key: value for key, value in batch.items() if key != "labels"}
    for batches in ([silent], [unlabelled]):
        if CRITERIA[criterion].needs_labels:
            with pytest.raises(InputError, match="no answer tokens"):
                importance(dense(name_of(criterion)), batches, criterion)
        else:
            same(scored(criterion, batches), scored(criterion, [batch]), rtol=0, atol=0)


def test_rows_hold_together() -> None:
    for name, row in CRITERIA.items():
        assert row.tokens in TOKENS, name
        assert row.needs_data or not row.needs_labels, name
        assert "+" not in name
