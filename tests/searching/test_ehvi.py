import json

import pytest

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.searching.samplers.ehvi import NUM_CHILDREN, NUM_RANDOM, RENEWED_EVERY, CandidatePool
from raysearch.searching.samplers.sized_space import SizedSpace, bare_recipe
from tests.searching.test_searcher import DENSE, SPACE, make, run, size_of


def sized(*budgets, size_of=size_of):
    return SizedSpace(SPACE, size_of, DENSE, [Budget.parse(budget) for budget in budgets])


def candidates(*budgets):
    return CandidatePool(sized(*budgets), seed=3)


def test_the_solved_ratio_is_the_smallest_within_the_size():
    sizes = sized("60%")
    ratio = sizes.solve(0.6, "widthwise")
    assert size_of(bare_recipe(ratio, "widthwise")).num_params == 600
    assert size_of(bare_recipe(ratio - 0.002, "widthwise")).num_params > 600
    assert size_of(bare_recipe(sizes.solve(0.6, "layerwise"), "layerwise")).num_params == 550  # four layers of eight
    assert size_of(bare_recipe(sizes.solve(0.6, "layerwise") - 0.001, "layerwise")).num_params > 600


def test_a_ratio_that_no_shape_has_lies_beyond_the_solution():
    sizes = sized(size_of=lambda recipe: size_of(recipe) if recipe.ratio < 0.45 else None)
    assert sizes.solve(0.7, "widthwise") == pytest.approx(1 / 3, abs=2e-3)


def test_the_smallest_size_that_fits_no_budget_is_known():
    sizes = sized("50%")
    assert sizes.size_ratio(bare_recipe(0.3, "widthwise")) is None
    assert sizes.size_ratio(bare_recipe(0.2, "widthwise")) is None
    assert sizes.smallest == 0.73
    assert sizes.size_ratio(bare_recipe(0.7, "widthwise")) == 0.37


def test_candidates_depend_on_the_number_and_the_parents_alone():
    parents = [{"mode": "widthwise", "ratio": 0.4}]
    fresh, used = candidates(), candidates()
    for number in range(2 * RENEWED_EVERY):
        used.of_proposal(number, [])
    number = RENEWED_EVERY + 1
    found = [[c.recipe for c in each.of_proposal(number, parents)] for each in (fresh, used)]
    assert found[0] == found[1]
    assert len(found[0]) == NUM_RANDOM + NUM_CHILDREN
    after = [c.recipe for c in fresh.of_proposal(number + 1, parents)]
    assert after[:NUM_RANDOM] == found[0][:NUM_RANDOM]
    assert after[NUM_RANDOM:] != found[0][NUM_RANDOM:]
    assert [c.recipe for c in fresh.of_proposal(2 * RENEWED_EVERY, [])] != found[0][:NUM_RANDOM]


def test_children_are_mostly_like_their_parents():
    parent = Recipe(mode="widthwise", ratio=0.4, criterion="taylor", trained="projector", lr=1e-4)
    values = {**parent.as_dict(), "width_criterion": "taylor"}
    children = candidates().of_proposal(0, [values])[NUM_RANDOM:]
    assert sum(c.recipe.mode == "widthwise" for c in children) >= NUM_CHILDREN * 0.7
    assert sum(abs(c.recipe.ratio - 0.4) < 0.15 for c in children) >= NUM_CHILDREN * 0.6


def test_half_of_the_candidates_lie_just_below_a_budget():
    found = candidates("60%", "40%").of_proposal(0, [])
    assert all(c.size_ratio <= 0.6 for c in found)
    near = [c for c in found if 0.59 < c.size_ratio <= 0.6 or 0.39 < c.size_ratio <= 0.4]
    assert len(near) >= len(found) / 5  # of widths; of layers there are few sizes


def test_a_model_is_found_where_all_candidates_have_been_tried():
    space = SearchSpace.model_validate(
        {
            "name": "narrow",
            "model": "pocket",
            "recipe": {
                "mode": "widthwise",
                "ratio": [step / 200 for step in range(1, 161)],
                "criterion": "taylor",
                "trained": "nothing",
            },
        }
    )
    searcher = make(sampler="ehvi", space=space)
    recipes = run(searcher, map(str, range(100)), stop_every=1000)
    made = {(size_of(recipe).num_params, recipe.key_without_ratio) for recipe in recipes}
    assert len(made) == 100


def test_a_long_search_by_gain_resumes_exactly():
    unbroken, broken = make(sampler="ehvi", seed=2), make(sampler="ehvi", seed=2)
    num = 60
    expected = run(unbroken, map(str, range(num)))
    run(broken, map(str, range(47)))
    resumed = make(sampler="ehvi", seed=2)
    resumed.set_state(json.loads(json.dumps(broken.state())))
    assert run(resumed, map(str, range(47, num))) == expected[47:]
