import math

import numpy as np
import pytest

from raysearch.config.dimensions import Choices, Range, RecipeSuggester
from raysearch.config.space import SearchSpace
from raysearch.searching.samplers.encoding import Encoding, place
from raysearch.searching.samplers.suggesters import suggest

ASKED = {
    "mode": Choices(choices=["a", "b"]),
    "lr": Range(low=1e-4, high=1e-2, log=True),
    "rank": Choices(choices=[32, 8, 16]),
    "flag": Choices(choices=[True, False]),
}


def test_numbers_have_a_place_and_say_whether_they_were_asked_for_and_words_a_column_each():
    encoding = Encoding(ASKED)
    assert encoding.names == ["size", "mode", "lr", "rank", "flag"]
    assert encoding.groups.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    point = encoding.point({"mode": "b", "lr": 1e-3, "rank": 32, "flag": True}, 1.0)
    assert point.tolist() == [1, 0, 0.7, pytest.approx(0.5), 0.7, 1, 0.7, 0.7, 0]
    bare = encoding.point({"mode": "a"}, math.exp(-1))
    assert bare.tolist() == [pytest.approx(0.8), 0.7, 0, 0.5, 0, 0.5, 0, 0, 0]


def test_a_choice_of_numbers_goes_by_their_order():
    assert [place(ASKED["rank"], value) for value in (8, 16, 32)] == [0, 0.5, 1]
    assert [place(ASKED["lr"], value) for value in (1e-4, 1e-2)] == [0, 1]


def test_points_of_a_space_do_not_depend_on_the_order_of_its_fields():
    recipe = {
        "criterion": ["taylor", "deepest", "wanda"],
        "mode": ["layerwise", "both"],
        "ratio": {"low": 0.1, "high": 0.5},
        "lr": [{"when": {"mode": "both"}, "low": 1e-4, "high": 1e-3}, {"low": 1e-5, "high": 1e-3, "log": True}],
        "epochs": [1.0],
    }
    spaces = [
        SearchSpace.model_validate({"name": "a", "model": "pocket", "recipe": fields})
        for fields in (recipe, dict(reversed(recipe.items())))
    ]
    asked = [space.search_params() for space in spaces]
    # What has one value is not asked for.
    assert list(asked[0]) == list(asked[1]) == ["mode", "ratio", "width_criterion", "lr#0", "lr#1"]
    chosen = {"mode": "both", "ratio": 0.3, "criterion": "deepest+wanda", "lr": 4e-4}
    params = [suggest(space, RecipeSuggester(chosen))[1] for space in spaces]
    points = [Encoding(a).point(p, 0.7) for a, p in zip(asked, params, strict=True)]
    assert np.array_equal(*points)
