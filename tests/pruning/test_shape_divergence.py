"""Masked judgements against models that are really pruned."""

import math

import pytest
import torch

from raysearch.models import family_for
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.pruning import prune
from raysearch.pruning.importance import importance
from raysearch.pruning.shape_divergence import ShapeDivergence
from tests.support.tiny_models import FAMILIES, dense

SHAPES = [Shape(4, 4, 8, 40), Shape(2, 4, 8, 96), Shape(3, 2, 4, 17), Shape(3, 4, 4, 60)]


def scores_of(name, width="taylor"):
    batches = [FAMILIES[name].batch(), FAMILIES[name].batch(seed=1)]
    scored = {"depth": importance(dense(name), batches, "block_influence")}
    return batches, scored | {"width": importance(dense(name), batches, width)}


def log_probs(model, batches):
    """Of all answer tokens, (tokens, vocabulary)."""
    rows = []
    for batch in batches:
        logits = model(**batch, use_cache=False).logits[:, :-1]
        chosen = batch["labels"][:, 1:] != -100
        rows.append(logits[chosen].float().log_softmax(-1))
    return torch.cat(rows)


@torch.no_grad()
def really(name, shape, scores, batches):
    """KL(dense || pruned) per answer token, of the sliced model."""
    whole = log_probs(dense(name), batches)
    pruned = log_probs(prune(dense(name), shape, scores), batches)
    return float((whole.exp() * (whole - pruned)).sum(-1).mean())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["llava_llama", "qwen2_5_vl", "gemma3", "internvl", "llama"])
def test_a_masked_model_predicts_as_the_sliced_one(name, shape):
    if (shape.num_kv_heads, shape.num_heads) not in _choices(name):
        pytest.skip("no stock class holds these heads")
    batches, scores = scores_of(name)
    judged = ShapeDivergence(dense(name), batches)(shape, scores)
    assert judged == pytest.approx(really(name, shape, scores, batches), rel=1e-3, abs=1e-4)


def _choices(name):
    from raysearch.models.param_count import counts_of

    return counts_of(dense(name).config).attention_choices


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_means_fill_what_biases_make_up_for(shape):
    batches, scores = scores_of("bunny", width="fluctuation")
    if (shape.num_kv_heads, shape.num_heads) not in _choices("bunny"):
        shape = Shape(shape.num_layers, 4, 4, shape.num_ffn_channels)
    judged = ShapeDivergence(dense("bunny"), batches)(shape, scores)
    assert judged == pytest.approx(really("bunny", shape, scores, batches), rel=1e-3, abs=1e-4)


def test_the_dense_shape_diverges_by_nothing_and_the_model_stays_as_it_was():
    batches, scores = scores_of("llava_llama")
    model = dense("llava_llama")
    before = log_probs(model, batches)
    divergence = ShapeDivergence(model, batches)
    assert divergence(shape_of(model.config), scores) == pytest.approx(0, abs=1e-6)
    assert divergence(SHAPES[2], scores) > 0
    assert torch.equal(log_probs(model, batches), before)
    assert divergence.num_answer_tokens == len(before)


def test_a_prediction_that_is_not_finite_is_infinitely_far():
    batches, scores = scores_of("llama")
    divergence = ShapeDivergence(dense("llama"), batches)
    with torch.no_grad():
        head = family_for(dense("llama")).lm_head(dense("llama")).weight
        kept = head.clone()
        head.fill_(math.nan)
    try:
        assert divergence(SHAPES[0], scores) == math.inf
    finally:
        head.data.copy_(kept)
