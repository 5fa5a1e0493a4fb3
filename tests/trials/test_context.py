"""What a context offers beside trials."""

import math

import pytest

from raysearch.config.recipe import Recipe
from raysearch.recovery.deepspeed_engine import start_distributed
from raysearch.trials import context as context_module
from raysearch.trials.context import TrialContext
from tests.support.pocket_space import pocket_space

RECIPE = Recipe(mode="widthwise", ratio=0.1, criterion="magnitude", trained="nothing")


@pytest.fixture(scope="module")
def context():
    start_distributed()
    return TrialContext(pocket_space(RECIPE.as_dict(), num_samples=16, num_search=20, precision="fp32"))


def test_more_removed_diverges_more(context):
    more = Recipe(**{**RECIPE.as_dict(), "ratio": 0.5})
    with context.judging_shapes() as judge:
        assert 0 < judge(RECIPE) < judge(more) < math.inf
        assert judge(RECIPE) == judge(RECIPE)
    assert context.pruned_identity(RECIPE) != context.pruned_identity(more)
    assert context.size_of(more).size_bytes < context.size_of(RECIPE).size_bytes


def test_a_model_whose_shapes_can_not_be_judged_is_searched_without(context, monkeypatch, caplog):
    built = []

    class Failing:
        def __init__(self, model, batches):
            built.append(model)
            raise RuntimeError("no such hook\nand more")

    monkeypatch.setattr(context_module, "ShapeDivergence", Failing)
    with context.judging_shapes() as judge:
        assert judge(RECIPE) == judge(RECIPE) == math.inf
    assert len(built) == 1
    (line,) = caplog.messages
    assert line.startswith("shapes can't be judged before training: ")
    assert "\n" not in line
