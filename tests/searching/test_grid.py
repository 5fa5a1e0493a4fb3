"""A grid is every recipe of a space without ranges, each once."""

import itertools

import pytest

from raysearch.config.budget import Size
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.searching.samplers.grid import grid
from raysearch.searching.searcher import Searcher


def space(**recipe):
    base = {"mode": ["layerwise", "widthwise"], "ratio": [0.1, 0.2], "criterion": ["deepest", "magnitude", "wanda"]}
    return SearchSpace(name="a", model="pocket", recipe={**base, **recipe})


def test_the_product_of_what_applies_in_the_order_of_the_file():
    found = grid(space(trained="nothing"))
    assert [(r.mode, r.ratio, r.criterion) for r in found] == [
        *itertools.product(["layerwise"], [0.1, 0.2], ["deepest"]),
        *itertools.product(["widthwise"], [0.1, 0.2], ["magnitude", "wanda"]),
    ]


def test_conditions_exclusions_and_repetitions():
    found = grid(
        space(
            mode="layerwise",
            ratio=0.1,
            trained=["nothing", "projector", "projector+lora"],
            lora_rank=[2, 4],
            sft=[0.0, 1.0],
            hidden_kd=[0.0, 1.0],
            hidden_match=["mse", "cosine"],
        )
    )
    # Nothing: 1. Each regime: (sft 0: hidden 1 by two matches) + (sft 1: hidden 0, or 1 by two matches) = 5.
    assert len(found) == 1 + 5 + 2 * 5
    assert len({recipe.key for recipe in found}) == len(found)


def test_a_range_has_no_grid():
    with pytest.raises(InputError, match=r"recipe\.ratio: a range from 0\.1 to 0\.5; a grid needs a list"):
        grid(space(ratio={"low": 0.1, "high": 0.5}))


def test_a_grid_has_an_end():
    many = [number / 1000 for number in range(1, 500)]
    with pytest.raises(InputError, match=r"recipe: more than 50,000 combinations of its values; .* name fewer"):
        grid(space(lr=many, ratio=many))


def test_the_sampler_takes_every_recipe_in_order():
    made = space(trained=["nothing", "projector"], seed=[0, 1])
    searcher = Searcher(
        made, size_of=lambda recipe: Size(10, round(20 - 20 * recipe.ratio)), dense=Size(10, 20), sampler="grid"
    )
    wanted = grid(made)
    assert [searcher.suggest(str(index)).key for index in range(len(wanted))] == [recipe.key for recipe in wanted]
    assert searcher.suggest("one more") is None
