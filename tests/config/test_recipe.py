"""Recipes: what fits together, and keys that name them."""

import json

import pytest
from pydantic import ValidationError

from raysearch.config.recipe import Recipe, applies


def recipe(**fields):
    return Recipe(**{"mode": "layerwise", "ratio": 0.3, "criterion": "block_influence"} | fields)


def test_defaults_fill_only_what_applies():
    assert recipe(trained="nothing").as_dict() == {
        "mode": "layerwise",
        "quantization": "none",
        "ratio": 0.3,
        "criterion": "block_influence",
        "expert_ratio": 0.0,
        "hidden_ratio": 0.0,
        "trained": "nothing",
        "seed": 0,
    }
    full = recipe(logits_kd=0.5)
    assert (full.temperature, full.kl, full.hidden_match, full.lora_rank) == (2.0, "forward", None, None)
    assert recipe(trained="projector+lora").lora_rank == 16
    assert recipe(mode="both", criterion="deepest+taylor").depth_share == 0.5


def test_equal_recipes_have_equal_keys_whatever_the_way_they_were_written():
    assert recipe().key == recipe(sft=1.0, data_fraction=1.0, hidden_kd=0).key
    assert recipe().key == Recipe(**json.loads(json.dumps(recipe().as_dict()))).key
    assert recipe(lr=1 / 3).key == Recipe(**recipe(lr=1 / 3).as_dict()).key
    assert len({recipe(seed=seed).key for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"criterion": "taylor"}, "names no layer criterion"),
        ({"mode": "widthwise"}, "names no width criterion"),
        ({"mode": "both", "criterion": "block_influence"}, "names no width criterion"),
        ({"ratio": 1.0}, "less than 1"),
        ({"ratio": -0.1}, "greater than or equal to 0"),
        ({"ratio": float("nan")}, "finite"),
        ({"trained": "nothing", "sft": 1.0}, "sft needs something to train"),
        ({"lora_rank": 4}, "lora_rank needs trained: projector"),
        ({"temperature": 2.0}, "temperature needs logits_kd above 0"),
        ({"hidden_match": "mse"}, "hidden_match needs hidden_kd above 0"),
        ({"depth_share": 0.5}, "depth_share needs mode: both"),
        ({"hidden_criterion": "activation"}, "hidden_criterion needs hidden_ratio above 0"),
        ({"hidden_ratio": 0.1, "hidden_kd": 0.5}, "hidden_kd needs something to train and hidden_ratio 0"),
        ({"sft": 0.0}, "are all 0"),
        ({"data_fraction": 0.0}, "greater than 0"),
        ({"tau": 1.0}, "Extra inputs"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        recipe(**fields)


def test_criteria_of_each_mode():
    assert recipe().criteria == ("block_influence", None)
    assert recipe(mode="widthwise", criterion="taylor").criteria == (None, "taylor")
    assert recipe(mode="both", criterion="deepest+wanda").criteria == ("deepest", "wanda")


def test_samples_to_see():
    assert recipe(data_fraction=0.05, epochs=2).samples_to_see(2000) == 200
    assert recipe(data_fraction=0.001).samples_to_see(100) == 1
    assert recipe(trained="nothing").samples_to_see(2000) == 0


def test_applies_follows_the_fields_before():
    assert applies("ratio", {})
    assert not applies("temperature", {"logits_kd": 0.0})
    assert applies("temperature", {"logits_kd": 0.5})


def test_a_recipe_that_trains_less_than_another():
    short = Recipe(mode="layerwise", ratio=0.3, criterion="deepest", lr=0.000123456789123, data_fraction=0.2)
    longer = Recipe(**{**short.as_dict(), "data_fraction": 1.0})
    longest = Recipe(**{**longer.as_dict(), "epochs": 4})
    assert short.trains_less_than(longer)
    assert longer.trains_less_than(longest)
    assert short.trains_less_than(longest)
    assert not longer.trains_less_than(short)
    assert not short.trains_less_than(short)
    assert not short.trains_less_than(Recipe(**{**longer.as_dict(), "lr": 0.001}))
    assert not short.trains_less_than(Recipe(mode="layerwise", ratio=0.3, criterion="deepest", trained="nothing"))
