import json

import pytest
from pydantic import ValidationError

from raysearch.config.budget import Budget, Size
from raysearch.config.dimensions import RecipeSuggester
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.searching.samplers.base import Sampler
from raysearch.searching.samplers.sized_space import Candidate
from raysearch.searching.searcher import Searcher
from raysearch.searching.trial_history import TrialHistory

SPACE = SearchSpace.model_validate(
    {
        "name": "joint",
        "model": "pocket",
        "recipe": {
            "mode": ["layerwise", "widthwise"],
            "ratio": {"low": 0.05, "high": 0.8},
            "criterion": ["block_influence", "greedy_loss", "taylor", "activation"],
            "trained": ["nothing", "projector", "projector+decoder"],
            "sft": [0, 1],
            "logits_kd": [0, 1],
            "temperature": [1, 2],
            "hidden_kd": [0, 1],
            "lr": {"low": 1e-5, "high": 1e-2, "log": True},
            "data_fraction": [0.05, 0.2, 1.0],
        },
    }
)
DENSE = Size(1000, 2000)


def size_of(recipe):
    """Layers go eight at a time, widths one by one; nine tenths of the model are the decoder."""
    removed = round(recipe.ratio * 8) / 8 if recipe.mode == "layerwise" else recipe.ratio
    num_params = 1000 - int(900 * removed)
    return Size(num_params, 2 * num_params)


def make(space=SPACE, **settings):
    return Searcher(space, size_of, DENSE, **settings)


def retention_of(recipe, seen, total=90):
    loss = (1 - size_of(recipe).num_params / 1000) ** 2 + 0.2 * (recipe.trained == "nothing")
    return 1 - loss - 0.3 * (1 - seen / total)


def run(searcher, names, stop_every=3):
    """Drive a search in which every third trial is stopped at its first rung."""
    recipes = []
    for name in names:
        recipe = searcher.suggest(name)
        recipes.append(recipe)
        searcher.report(name, 10, retention_of(recipe, 10))
        if int(name) % stop_every == 0:
            searcher.stop(name)
        else:
            searcher.report(name, 90, retention_of(recipe, 90))
            searcher.finish(name)
    return recipes


def optuna_trials(searcher):
    """What Optuna's samplers know."""
    return searcher.state()["sampler"]["trials"]


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="schema 2 where 4 is read"):
        make().set_state({**make().state(), "schema": 2})


def test_named_budgets_draw_the_proposals_just_below_them():
    searcher = make(budgets=[Budget.parse("60%"), Budget.parse("40%")], sampler="tpe")
    recipes = run(searcher, map(str, range(40)))
    sizes = [size_of(recipe).num_params / 1000 for recipe in recipes]
    assert sum(0.5 < size <= 0.6 or 0.3 < size <= 0.4 for size in sizes) >= 26


def test_without_budgets_the_proposals_are_spread_over_size():
    recipes = run(make(sampler="tpe"), map(str, range(32)))
    sizes = [size_of(recipe).num_params / 1000 for recipe in recipes]
    for low in (0.28, 0.45, 0.6, 0.78):
        assert sum(low <= size < low + 0.2 for size in sizes) >= 4


def test_an_unknown_sampler_is_refused_at_once():
    with pytest.raises(InputError, match=r"search\.sampler 'magic'.*tpe, nsga2"):
        make(sampler="magic")


def test_an_own_sampler_needs_no_name():
    class Smallest(Sampler):
        def candidates(self, history):
            made = self.space.candidate(RecipeSuggester({"ratio": 0.8}))
            yield from [made, made]

    searcher = make(sampler=Smallest)
    assert searcher.suggest("0").ratio == 0.8
    assert searcher.suggest("1") is None
    assert searcher.exhausted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "magic"}, r"search\.sampler: .*'ehvi', 'tpe'.*not 'magic'"),
        ({"first_rung": 1.5}, r"search\.first_rung: must be at most 1, not 1\.5"),
        ({"first_rung": 0}, r"search\.first_rung: must be above 0, not 0"),
        ({"reduction_factor": 1}, r"search\.reduction_factor: must be at least 1.1, not 1"),
        ({"trials": 0}, r"search\.trials: must be at least 1, not 0"),
    ],
)
def test_settings_that_no_search_can_have_are_refused(settings, message, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({**SPACE.model_dump(mode="json"), "search": settings}))
    with pytest.raises(InputError, match=message):
        SearchSpace.load(path)


def test_budgets_and_the_number_of_trials_may_be_replaced():
    searcher = make(budgets=[Budget.parse("60%")], num_trials=12)
    run(searcher, map(str, range(12)))
    assert searcher.suggest("12") is None
    searcher.set_targets([Budget.parse("40%")], 14)
    assert [budget.text for budget in searcher.budgets] == ["40%"]
    assert all(size_of(recipe).num_params <= 400 for recipe in run(searcher, ["12", "13"]))
    assert searcher.suggest("14") is None


def test_the_number_of_trials_is_kept():
    searcher = make(num_trials=3)
    assert [searcher.suggest(str(number)) is None for number in range(4)] == [False, False, False, True]


def test_a_stopped_trial_is_told_an_extrapolated_value_and_marked():
    searcher = make(sampler="random")
    for name, end in (("a", 0.9), ("b", 0.8), ("c", None)):
        searcher.suggest(name)
        searcher.report(name, 10, 0.5)
        if end:
            searcher.report(name, 90, end)
            searcher.finish(name)
    searcher.stop("c")
    told = next(trial for trial in optuna_trials(searcher) if trial["params"] == searcher.proposals["c"].params)
    assert told["values"][1] == pytest.approx(0.5 + (0.4 + 0.3) / 2)
    assert told["user_attrs"] == {"extrapolated_from": 10}
    finished = optuna_trials(searcher)[0]
    assert finished["values"] == [searcher.proposals["a"].size_ratio, 0.9]
    assert finished["user_attrs"] == {}


def test_queued_recipes_come_first_in_a_form_that_the_space_admits():
    searcher = make(budgets=[Budget.parse("90%")])
    queued = [
        Recipe(mode="layerwise", ratio=0.15, criterion="block_influence", trained="projector", hidden_kd=1.0),
        Recipe(mode="widthwise", ratio=0.6, criterion="taylor"),
    ]
    assert searcher.enqueue(queued) == 2
    first = searcher.suggest("0")
    assert (first.mode, first.ratio, first.criterion) == ("layerwise", 0.15, "block_influence")
    assert (first.sft, first.hidden_kd, first.logits_kd) == (1, 1, 0)
    assert searcher.suggest("1").mode == "widthwise"
    assert searcher.enqueue([first]) == 0  # never run twice
    assert searcher.enqueue([Recipe(mode="layerwise", ratio=0.06, criterion="block_influence")]) == 0  # too large


def test_openers_meet_the_budgets_and_name_every_field():
    searcher = make(budgets=[Budget.parse("80%"), Budget.parse("50%")], num_trials=24)
    assert 2 < searcher.enqueue_openers() <= 24 // 4  # the budgets first, then sizes between them
    first, second = searcher.suggest("0"), searcher.suggest("1")
    assert (first.mode, size_of(first).num_params) == ("widthwise", 800)
    assert 495 <= size_of(second).num_params <= 500
    assert (second.trained, second.sft, second.data_fraction) == ("projector+decoder", 1, 0.2)
    assert 1e-5 < first.lr < second.lr < 1e-3  # the range is 1e-5 to 1e-2: it rises as the model shrinks
    free = make()
    assert free.enqueue_openers() > 4
    sizes = [size_of(free.suggest(str(number))).num_params for number in range(4)]
    assert all(abs(size - 1000 * target) < 80 for size, target in zip(sizes, (0.9, 0.75, 0.6, 0.45), strict=True))


def test_a_space_may_name_the_recipes_that_it_starts_with():
    start = [{"mode": "layerwise", "ratio": 0.5, "criterion": "greedy_loss", "trained": "projector", "lr": 1e-3}]
    space = SearchSpace.model_validate({**SPACE.model_dump(), "start": start})
    searcher = make(space=space)
    assert searcher.enqueue_openers() == 1
    first = searcher.suggest("0")
    assert (first.mode, first.ratio, first.criterion, first.lr) == ("layerwise", 0.5, "greedy_loss", 1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.5}, r"start.0.lr: 0.5 is outside of the space; the nearest inside is 0.01"),
        (
            {"criterion": "deepest"},
            r"start.0.criterion: deepest is outside of the space; the nearest inside is block_inf",
        ),
        ({"ratio": 0.9}, r"start.0.ratio: 0.9 is outside of the space; the nearest inside is 0.8"),
        ({"epochs": 2.0}, r"start.0.epochs: 2.0 is outside of the space; the nearest inside is 1.0"),
        ({"mode": "sideways"}, r"start.0: mode: .*not 'sideways'"),
        ({"colour": 1}, r"start.0: colour: unknown key"),
    ],
)
def test_a_start_outside_of_the_space_is_named_with_the_nearest_inside(change, says):
    start = {"mode": "layerwise", "ratio": 0.5, "criterion": "greedy_loss", "trained": "projector", **change}
    with pytest.raises(ValidationError, match=says):
        SearchSpace.model_validate({**SPACE.model_dump(), "start": [start]})


@pytest.mark.parametrize("sampler", ["tpe", "random", "ehvi"])
def test_two_ratios_that_give_one_shape_are_one_recipe(sampler):
    space = SearchSpace.model_validate(
        {
            "name": "layers",
            "model": "pocket",
            "recipe": {
                "mode": "layerwise",
                "ratio": {"low": 0.0625, "high": 0.8},
                "criterion": ["deepest", "random"],
                "trained": "nothing",
            },
        }
    )
    searcher = make(space, sampler=sampler)
    found = [searcher.suggest(str(number)) for number in range(20)]
    shapes = [(size_of(recipe), recipe.criterion) for recipe in found if recipe]
    assert len(shapes) == len(set(shapes)) >= 10  # of 12: six numbers of layers, two criteria
    assert found[-1] is None
    again = Recipe(mode="layerwise", ratio=0.26, criterion="deepest", trained="nothing")
    assert searcher.enqueue([again, again]) <= 1  # not at all, if that shape was found above


def test_proposals_that_aim_at_a_budget_do_not_pile_up_on_one_number_of_layers():
    recipes = run(make(budgets=[Budget.parse("80%")], sampler="random"), map(str, range(40)))
    sizes = [size_of(recipe).num_params for recipe in recipes if recipe.mode == "layerwise"]
    assert max(map(sizes.count, set(sizes))) <= 40 / 8 + 4
    assert all(size <= 800 for size in sizes)


def test_trials_of_earlier_studies_inform_the_first_proposals_and_are_forgotten():
    recipe = Recipe(mode="widthwise", ratio=0.3, criterion="taylor", trained="projector+decoder", logits_kd=1)
    other = [recipe.model_copy(update={"ratio": ratio}) for ratio in (0.1, 0.2, 0.4, 0.5)]
    searcher = make(sampler="tpe")
    assert searcher.learn_from([(r, retention_of(r, 90)) for r in other]) == 4
    assert searcher.learn_from([(recipe.model_copy(update={"ratio": 0.95}), 0.1)]) == 1  # as the nearest, 0.8
    assert searcher.enqueue([recipe]) == 1
    assert [trial["user_attrs"] for trial in optuna_trials(searcher)] == [{"prior": True}] * 5
    assert run(searcher, ["1"])[0].ratio == 0.3
    copy = make(sampler="tpe")
    copy.set_state(json.loads(json.dumps(searcher.state())))
    first = run(searcher, map(str, range(2, 25)))
    assert run(copy, map(str, range(2, 25))) == first
    assert not any("prior" in trial["user_attrs"] for trial in optuna_trials(searcher))
    told = [trial["values"][1] for trial in optuna_trials(searcher) if trial["values"]]
    assert told[0] == pytest.approx(retention_of(recipe, 90))
    assert len(told) == 24


@pytest.mark.parametrize("sampler", ["nsga2", "random"])
def test_a_long_search_forgets_all_but_the_best_and_the_newest(sampler, monkeypatch):
    monkeypatch.setattr("raysearch.searching.samplers.optuna_study.MAX_TRIALS", 16)
    searcher = make(sampler=sampler)
    waiting = {name: searcher.suggest(name) for name in ("early", "late")}
    recipes = run(searcher, map(str, range(1, 41)), stop_every=100)
    copy = make(sampler=sampler)
    copy.set_state(json.loads(json.dumps(searcher.state())))
    for each in (searcher, copy):
        for name, recipe in waiting.items():
            each.report(name, 90, retention_of(recipe, 90))
            each.finish(name)
        trials = optuna_trials(each)
        assert len(trials) <= 16 + 2
        values = {tuple(trial["values"]) for trial in trials if trial["values"]}
        made = [(size_of(recipe).num_params / 1000, retention_of(recipe, 90)) for recipe in recipes]
        front = {a for a in made if not any(b[0] <= a[0] and b[1] >= a[1] and b != a for b in made)}
        assert front <= values or len(front) > 8
        assert set(made[-2:]) <= values
    assert run(copy, ["98"]) == run(searcher, ["98"])


def test_the_model_believes_its_own_trials_over_earlier_ones():
    """Earlier studies say that training nothing is best; here it is worst."""
    early, late = [], []
    for seed in (0, 1, 2):
        searcher = make(sampler="ehvi", seed=seed)
        draws = run(make(sampler="random", seed=seed), map(str, range(30)))
        searcher.learn_from([(recipe, 0.5 + 0.4 * (recipe.trained == "nothing")) for recipe in draws])
        early += run(searcher, map(str, range(1, 7)), stop_every=100)
        late += run(searcher, map(str, range(7, 41)), stop_every=100)[-16:]
    assert sum(recipe.trained == "nothing" for recipe in early) >= 18 / 3  # by chance, a third
    assert sum(recipe.trained == "nothing" for recipe in late) <= 48 / 4


def test_a_value_before_recovery_is_extrapolated_by_the_gains_from_there():
    history = TrialHistory()
    for number, (before, rung, end) in enumerate([(0.5, 0.6, 0.8), (0.4, 0.3, 0.5), (0.6, 0.5, 0.6)]):
        history.add(f"t{number}", _candidate(0.1 + number / 10))
        for seen, value in ((0, before), (37, rung), (1000, end)):
            history.report(f"t{number}", seen, value)
        history.end(f"t{number}", "finished")
    history.add("new", _candidate(0.5))
    history.report("new", 0, 0.7)
    assert history.final("new")[0] == pytest.approx(0.8)  # gains from 0: .3, .1, 0
    history.report("new", 37, 0.72)
    assert history.final("new")[0] == pytest.approx(0.92)  # gains from 37: .2, .2, .1


def _candidate(ratio):
    recipe = Recipe(mode="widthwise", ratio=ratio, criterion="taylor")
    return Candidate(recipe, {}, 1 - ratio)
