"""Shapes judged before any is trained: what is tried, what is found, and what follows from it."""

import math

import numpy as np
import pytest

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape_solver import shape_for, size_for
from raysearch.searching.judged_shapes import JudgedShape, best_near
from raysearch.searching.samplers.sized_space import SizedSpace
from raysearch.searching.searcher import Searcher
from raysearch.searching.shape_study import FIELDS, ShapeModel, smallest_size, study_parts, study_size, study_sizes

COUNTS = counts_of_model("pocket")
DENSE = COUNTS.size(COUNTS.dense)
SPACE = SearchSpace.model_validate(
    {
        "name": "shapes",
        "model": "pocket",
        "recipe": {
            "mode": ["layerwise", "widthwise", "both"],
            "ratio": {"low": 0.05, "high": 0.75},
            "criterion": ["greedy_loss", "block_influence", "taylor", "activation"],
            "depth_share": {"low": 0.1, "high": 0.9},
            "attention_share": {"low": 0, "high": 1},
            "trained": ["projector", "projector+decoder"],
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
    }
)


def sized(*budgets):
    return SizedSpace(SPACE, lambda recipe: size_for(COUNTS, recipe), DENSE, [Budget.parse(text) for text in budgets])


def judge(recipe: Recipe) -> float:
    """Least for five layers and all heads kept, and for the criteria greedy_loss and taylor."""
    shape = shape_for(COUNTS, recipe)
    away = abs(shape.num_layers - 5) + (12 - shape.num_heads) + 0.1 * (shape.num_ffn_channels < 50)
    return 0.01 + away + 0.5 * ("greedy_loss" not in recipe.criterion) + 0.5 * ("taylor" not in recipe.criterion)


def identity(recipe: Recipe):
    return shape_for(COUNTS, recipe), recipe.criteria


def studied(limit=0.6, num=60, seed=0, judge=judge, space=None):
    return study_size(space or sized(), limit, judge, identity, num, seed)


def test_the_best_shape_of_a_size_is_found():
    found = studied()
    best = found[0]
    recipe = SPACE.suggest(_Fixed(best.params))
    assert identity(recipe)[0].num_layers == 5
    assert identity(recipe)[0].num_heads == 12
    assert recipe.criterion == "greedy_loss+taylor"
    assert best.divergence == pytest.approx(0.01)
    assert [shape.divergence for shape in found] == sorted(shape.divergence for shape in found)


class _Fixed:
    def __init__(self, params):
        self.params = params

    def choice(self, name, choices):
        return self.params.get(name, choices[0])

    def number(self, name, low, high, log, step):
        return self.params.get(name, low)


@pytest.mark.parametrize("limit", [0.45, 0.6, 0.83])
def test_shapes_are_within_the_size_and_each_is_judged_once(limit):
    seen = []

    def noting(recipe):
        seen.append(identity(recipe))
        return judge(recipe)

    found = studied(limit, 40, judge=noting)
    assert 12 < len(seen) == len(set(seen)) <= 40  # where little is removed there are few shapes
    assert all(shape.size_ratio <= limit for shape in found)
    assert max(shape.size_ratio for shape in found) > limit - 0.01
    assert all(name.partition("#")[0] in FIELDS for shape in found for name in shape.params)


def test_the_same_seed_gives_the_same_study():
    assert studied(seed=3) == studied(seed=3)
    assert studied(seed=3) != studied(seed=4)


def test_what_can_not_be_judged_is_left_out():
    assert studied(judge=lambda recipe: math.inf) == []
    mostly = studied(judge=lambda recipe: math.nan if recipe.mode == "both" else 1.0)
    assert mostly
    assert all(shape.params["mode"] != "both" for shape in mostly)


def test_sizes_are_the_budgets_and_others_between():
    sizes = study_sizes(sized("60%", "45%"))
    assert [size for size in sizes if min(abs(size - 0.45), abs(size - 0.6)) < 1e-3] == sized("45%", "60%").limits
    assert sizes == sorted(sizes)
    assert min(np.diff(sizes)) > 0.03
    assert max(sizes) == pytest.approx(0.6, abs=1e-3)  # no recipe above the largest budget is ever run
    free = study_sizes(sized())
    assert min(free) == pytest.approx(smallest_size(sized()) + 0.01)
    assert max(free) > 0.85


def test_parts_together_judge_no_more_than_asked_for():
    parts = study_parts(sized("60%"), judge, identity, 50, 0)
    found = [shape for part in parts.values() for shape in part()]
    assert 0.7 * 50 < len(found) <= 50
    assert len(parts) == len(study_sizes(sized("60%")))


def test_the_divergence_of_other_shapes_is_predicted():
    shapes = [shape for size in (0.45, 0.6, 0.75) for shape in studied(size, 50)]
    held_out = studied(0.6, 30, seed=9)
    model = ShapeModel(SPACE.search_params(), shapes)
    predicted = model.scaled([s.params for s in held_out], [s.size_ratio for s in held_out])
    actual = [math.log(s.divergence) for s in held_out]
    assert np.corrcoef(predicted, actual)[0, 1] > 0.6
    assert -0.5 < predicted.min() < predicted.max() < 1.5


def test_what_is_trained_does_not_change_the_predicted_divergence():
    shapes = studied(0.6, 40)
    model = ShapeModel(SPACE.search_params(), shapes)
    params = shapes[0].params
    pair = model.scaled([params, {**params, "lr": 1e-2, "trained": "projector"}], [0.6, 0.6])
    assert pair[0] == pair[1]


def test_the_best_near_a_size():
    shapes = [JudgedShape(params={}, size_ratio=size, divergence=d) for size, d in ((0.5, 1), (0.58, 3), (0.6, 2))]
    assert best_near(shapes, 0.6) == shapes[2]
    assert best_near(shapes, 0.59) == shapes[1]
    assert best_near(shapes, 0.56) == shapes[0]
    assert best_near(shapes, 0.7) is None
    assert best_near(shapes, 0.4) is None


def searcher(*budgets, sampler="ehvi"):
    limits = [Budget.parse(text) for text in budgets]
    return Searcher(SPACE, lambda recipe: size_for(COUNTS, recipe), DENSE, limits, 30, sampler)


@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "random"])
def test_openers_take_the_best_shape_known_when_their_turn_comes(sampler):
    search = searcher("60%", "75%", sampler=sampler)
    assert 2 < search.enqueue_openers() <= 30 // 4
    first = search.suggest("0")
    assert first.attention_share == 0
    shapes = studied(0.75, 60)
    search.learn_shapes(shapes)
    second = search.suggest("1")
    assert identity(second) == identity(SPACE.suggest(_Fixed(shapes[0].params)))
    assert size_for(COUNTS, second).size_bytes <= 0.75 * DENSE.size_bytes


def test_proposals_follow_judged_shapes_and_a_saved_search_goes_on_alike():
    search = searcher("60%")
    search.enqueue_openers()
    search.learn_shapes(studied(0.6, 80))
    for number in range(12):
        recipe = search.suggest(str(number))
        search.report(str(number), 100, 0.9 - 0.1 * abs(identity(recipe)[0].num_layers - 5))
        search.finish(str(number))
    again = searcher("60%")
    again.set_state(search.state())
    following = [search.suggest(f"next {i}") for i in range(4)]
    assert [again.suggest(f"next {i}") for i in range(4)] == following
    near = [identity(p.recipe)[0].num_layers for p in search.history.proposals.values()]
    assert sum(abs(num - 5) <= 1 for num in near) > len(near) / 2


def lengthening(**more):
    recipe = {"data_fraction": [0.05, 0.2, 1.0], "epochs": [1, 4]}
    space = SPACE.model_dump(mode="json")
    space["recipe"] = {**space["recipe"], **recipe}
    return Searcher(
        SearchSpace.model_validate(space),
        lambda recipe: size_for(COUNTS, recipe),
        DENSE,
        samples_of=lambda recipe: recipe.samples_to_see(1000),
        full_run=4000,
        **more,
    )


def finish(search, trial, retention):
    recipe = search.history.proposals[trial].recipe
    search.report(trial, recipe.samples_to_see(1000), retention)
    search.finish(trial)


def test_no_trial_is_longer_than_all_before_it_and_leaders_are_trained_longer():
    search, seen, longer = lengthening(), 0, []
    for number in range(30):
        recipe = search.suggest(str(number))
        length = recipe.samples_to_see(1000)
        assert length <= max(seen, 50), number
        if search.trains_a_leader_longer(str(number)):
            longer.append(number)
        finish(search, str(number), 0.5 + 0.4 * recipe.ratio * recipe.data_fraction)
        seen += length
    assert sum(number % 2 == 1 for number in longer) >= 3
    lengths = [p.recipe.samples_to_see(1000) for p in search.history.proposals.values()]
    assert max(lengths[15:]) > max(lengths[:3])
