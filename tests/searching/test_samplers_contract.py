"""What every sampler must do; a sampler comes in here by its row in `SAMPLERS`."""

import itertools
import json
import math
import typing

import pytest

from raysearch.config.budget import Budget
from raysearch.config.settings import SearchSettings
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.searching.samplers.sized_space import SizedSpace
from raysearch.searching.searcher import SAMPLERS, Searcher
from raysearch.searching.trial_history import TrialHistory
from tests.searching.test_searcher import DENSE, retention_of, run, size_of

BUDGETS = [Budget.parse("60%"), Budget.parse("40%")]
pytestmark = pytest.mark.parametrize("sampler", SAMPLERS)


def space(**recipe):
    """Without ranges, so that a grid has an end, too."""
    fields = {
        "mode": ["layerwise", "widthwise"],
        "ratio": [step / 20 for step in range(1, 17)],
        "criterion": ["block_influence", "greedy_loss", "taylor", "activation"],
        "trained": ["nothing", "projector", "projector+decoder"],
        "sft": [0, 1],
        "logits_kd": [0, 1],
        "lr": [1e-5, 1e-4, 1e-3],
        "data_fraction": [0.05, 0.2, 1.0],
    }
    return SearchSpace.model_validate({"name": "contract", "model": "pocket", "recipe": fields | recipe})


SMALL = space(
    mode="layerwise", ratio=[0.1, 0.3], criterion=["deepest", "random"], trained="nothing", sft=1, logits_kd=0
)


def make(sampler, made=None, budgets=BUDGETS, seed=5, **settings):
    return Searcher(made or space(), size_of, DENSE, budgets, sampler=sampler, seed=seed, **settings)


def names(start, end):
    return map(str, range(start, end))


def test_the_names_are_those_of_the_settings(sampler):
    assert sampler in typing.get_args(SearchSettings.model_fields["sampler"].annotation)
    assert SearchSettings(sampler=sampler).sampler == sampler


def test_recipes_lie_in_the_space_and_within_the_budgets_and_none_comes_twice(sampler):
    made = space()
    recipes = run(make(sampler, made), names(0, 30))
    for recipe in recipes:
        chosen = {name: value for name, value in recipe.as_dict().items() if name in made.recipe}
        assert all(value in made.values_of(name) for name, value in chosen.items())
        assert size_of(recipe).size_bytes <= 0.6 * DENSE.size_bytes
    assert len({recipe.key for recipe in recipes}) == 30


def test_one_seed_gives_one_search(sampler):
    first, again, other = (run(make(sampler, seed=seed), names(0, 24)) for seed in (5, 5, 6))
    assert first == again
    assert first != other or sampler == "grid"


def test_a_resumed_search_proposes_what_an_unbroken_one_would(sampler):
    unbroken, broken, resumed = make(sampler), make(sampler), make(sampler)
    queue = run(make("random", seed=1), names(0, 3))
    for searcher in (unbroken, broken):
        searcher.learn_from((recipe, 0.5) for recipe in run(make("random", seed=2), names(0, 8)))
        assert searcher.enqueue(queue) == 3
    expected = run(unbroken, names(0, 30))
    assert expected[:3] == queue
    assert run(broken, names(0, 17)) == expected[:17]
    resumed.set_state(json.loads(json.dumps(broken.state())))
    assert run(resumed, names(17, 30)) == expected[17:]


def test_nothing_is_learned_from_a_failed_trial(sampler):
    found = []
    for value in (None, 0.1, 0.9):
        searcher = make(sampler)
        run(searcher, names(0, 12))
        searcher.suggest("failed")
        if value is not None:
            searcher.report("failed", 10, value)
        searcher.fail("failed")
        found.append(run(searcher, names(12, 18)))
    assert found[0] == found[1] == found[2]


def test_a_value_that_is_not_finite_counts_as_none(sampler):
    plain, odd = make(sampler), make(sampler)
    prior = run(make("random", seed=2), names(0, 2))
    assert odd.learn_from(zip(prior, (math.nan, math.inf), strict=True)) == 0
    for searcher in (plain, odd):
        recipes = [searcher.suggest(f"failed {number}") for number in range(3)]
        assert None not in recipes
    for number, value in enumerate((math.nan, math.inf, -math.inf)):
        odd.report(f"failed {number}", 10, value)
        plain.fail(f"failed {number}")
        odd.finish(f"failed {number}")
        assert odd.proposals[f"failed {number}"].end == "failed"
    assert run(odd, names(0, 14)) == run(plain, names(0, 14))


def test_equal_values_are_no_problem(sampler):
    searcher = make(sampler)
    for number in range(20):
        assert searcher.suggest(str(number)) is not None
        searcher.report(str(number), 90, 0.5)
        searcher.finish(str(number))
    assert len(searcher.history.identities) == 20


def test_the_order_in_which_trials_end_does_not_matter(sampler):
    found = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        searcher = make(sampler)
        run(searcher, names(0, 12), stop_every=100)
        recipes = [searcher.suggest(f"parallel {number}") for number in range(4)]
        for number in order:
            searcher.report(f"parallel {number}", 90, retention_of(recipes[number], 90))
            searcher.finish(f"parallel {number}")
        found.append([*recipes, *run(searcher, names(12, 18))])
    assert found[0] == found[1]


def test_a_space_that_is_used_up_ends_the_search(sampler):
    searcher = make(sampler, SMALL, budgets=())
    recipes = [searcher.suggest(str(number)) for number in range(4)]
    assert len({recipe.key for recipe in recipes}) == 4
    fresh = SAMPLERS[sampler](SizedSpace(SMALL, size_of, DENSE), 5)
    more = list(itertools.islice(fresh.candidates(TrialHistory()), 10_000))
    assert len(more) < 10_000, "the candidates never end"
    assert {candidate.recipe.key for candidate in more} == {recipe.key for recipe in recipes}
    assert searcher.suggest("4") is None
    assert searcher.exhausted


def test_an_unreachable_budget_names_the_smallest_size(sampler):
    with pytest.raises(InputError, match=r"budgets 10%.*28\.\d% of the dense size"):
        make(sampler, budgets=[Budget.parse("10%")]).suggest("0")


def test_recipes_that_were_run_elsewhere_are_adopted_and_not_proposed(sampler):
    searcher = make(sampler, SMALL, budgets=())
    first, second = (make("grid", SMALL, budgets=()).suggest("0"), make("random", SMALL, budgets=()).suggest("0"))
    adopted = [recipe for number, recipe in enumerate((first, second, first)) if searcher.adopt(f"a{number}", recipe)]
    for number in range(len(searcher.proposals)):
        searcher.report(f"a{number}", 90, 0.5)
        searcher.finish(f"a{number}")
    found = [searcher.suggest(str(number)) for number in range(5)]
    keys = [recipe.key for recipe in (*adopted, *found) if recipe]
    assert len(keys) == len(set(keys)) == 4
