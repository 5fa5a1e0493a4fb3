"""What Ray Tune sees of a search."""

from types import SimpleNamespace

import pytest

from raysearch.backend.messages import Failed, PointScored, RungScored
from raysearch.backend.trainable import REPLY
from raysearch.backend.tune_searcher import TuneScheduler, TuneSearcher
from raysearch.backend.tuner import resume_search
from raysearch.config.recipe import Recipe
from raysearch.searching.judged_shapes import JudgedShape
from raysearch.study.folder import StudyFolder
from raysearch.study.records import Score
from scripts.testing import stand_in


def search_of(folder, num_trials=1, sampler="ehvi"):
    plan = stand_in.plan(num_trials, sampler)
    return resume_search(plan, StudyFolder(folder, plan.space))


def scored(seen, retention, size_ratio=0.5):
    score = Score(samples_seen=seen, retention=retention, retention_se=0.0, scores={})
    sizes = {"num_params": 500, "size_bytes": 1000, "size_ratio": size_ratio}
    return {REPLY: RungScored(score=score, **sizes, is_last=False)}


def trial(name):
    return SimpleNamespace(trial_id=name, config={"recipe": {}})


def test_ray_sees_a_configuration_and_the_end(tmp_path):
    search = search_of(tmp_path)
    tune = TuneSearcher(search)
    config = tune.suggest("t")
    assert Recipe(**config["recipe"]).key == search.searcher.proposals["t"].recipe.key
    assert tune.suggest("u") is None  # the front is not final yet
    tune.on_trial_result("t", scored(10, 0.5))
    tune.on_trial_complete("t", scored(90, float("nan")))
    assert search.searcher.proposals["t"].end == "failed"
    assert tune.suggest("u") == "FINISHED"


@pytest.mark.parametrize("judged", [[], [JudgedShape(params={}, size_ratio=0.5, divergence=1.0)]])
def test_judged_shapes_are_asked_for_until_they_are_there(judged, tmp_path):
    search, answers, asked = search_of(tmp_path, num_trials=5), [None, None, judged], []

    def ask():
        asked.append(len(asked))
        return answers[asked[-1]]

    tune = TuneSearcher(search, judged_shapes=ask)
    for name in "abcde":
        tune.suggest(name)
    assert asked == [0, 1, 2]
    assert search.searcher.shapes == judged
    assert ("shapes_judged" in (tmp_path / "search-events.jsonl").read_text()) == bool(judged)


def test_slots_without_a_further_recipe_wait_for_the_last_trial_and_share_the_points(tmp_path):
    search, unscored, posted = search_of(tmp_path, num_trials=3), ["a"], []
    search.begin()
    tune = TuneSearcher(search, lambda: 2, unscored=lambda: unscored, post_unscored=posted.append)
    scheduler = TuneScheduler(search)
    assert [isinstance(tune.suggest(name), dict) for name in "abc"] == [True, True, False]
    tune.on_trial_complete("a", scored(90, 0.9))
    assert "recipe" in tune.suggest("c")
    tune.on_trial_complete("b", scored(90, 0.8))
    events = (tmp_path / "search-events.jsonl").read_bytes()
    assert tune.suggest("d") == {"heldout": True}
    assert tune.suggest("e") is None
    without = SimpleNamespace(trial_id="d", config={"heldout": True})
    scheduler.on_trial_add(None, without)
    result = {REPLY: PointScored(key="a", reason="gone")}
    assert scheduler.on_trial_result(None, without, result) == "CONTINUE"
    tune.on_trial_result("d", result)
    scheduler.on_trial_error(None, without)
    assert (tmp_path / "search-events.jsonl").read_bytes() == events
    assert posted == []
    tune.on_trial_complete("c", scored(90, 0.7))
    unscored[:] = ["a", "c", "f"]
    assert tune.suggest("e") == {"heldout": True}
    assert posted == [["a", "c", "f"]]
    assert tune.suggest("f") == "FINISHED"
    assert len(posted) == 1


@pytest.mark.parametrize(("keys", "num_asked"), [([], 0), (["a"], 1), (["a", "b", "c"], 2)])
def test_a_finished_study_that_goes_on_has_only_points_to_score(tmp_path, keys, num_asked):
    stand_in.drive(stand_in.plan(2), tmp_path)
    posted = []
    tune = TuneSearcher(search_of(tmp_path, 2, "tpe"), lambda: 2, unscored=lambda: keys, post_unscored=posted.append)
    answers = [tune.suggest(str(number)) for number in range(num_asked + 1)]
    assert answers == [{"heldout": True}] * num_asked + ["FINISHED"]
    assert posted == [keys]


def test_no_more_trials_run_than_there_are_slots(tmp_path):
    slots = [1]
    tune = TuneSearcher(search_of(tmp_path, num_trials=4), lambda: slots[0])
    assert isinstance(tune.suggest("a"), dict)
    assert tune.suggest("b") is None
    slots[0] = 2
    assert isinstance(tune.suggest("b"), dict)
    tune.on_trial_complete("a", {REPLY: Failed(reason="out of memory", may_pass=True)})
    assert isinstance(tune.suggest("c"), dict)


@pytest.mark.parametrize("sampler", ["tpe", "ehvi"])
def test_a_refused_trial_is_run_when_the_study_goes_on(tmp_path, sampler):
    """Bad data is no fault of the recipe that met them first."""
    search = search_of(tmp_path, sampler=sampler)
    search.searcher.enqueue([Recipe(mode="layerwise", ratio=0.15, criterion="block_influence")])
    search.begin()
    refused = TuneSearcher(search)
    config = refused.suggest("t")
    refused.on_trial_complete("t", {REPLY: Failed(reason="BadData: rows.json", may_pass=False, refusal="rows.json")})
    search.searcher.exhausted = True
    assert refused.suggest("u") == "FINISHED"
    search.save_if_due(now=True)
    assert TuneSearcher(search_of(tmp_path, sampler=sampler)).suggest("v") == config


def test_the_scheduler_stops_what_is_behind_and_ends_what_is_at_its_end(tmp_path):
    search = search_of(tmp_path, num_trials=9)
    scheduler, tune = TuneScheduler(search), TuneSearcher(search)
    first = round(search.bracket.levels[0])
    search.bracket.num_spared, answers = 1, []
    for number in range(6):
        name = str(number)
        tune.suggest(name)
        scheduler.on_trial_add(None, trial(name))
        result = scored(first, 0.9 - number / 10, 0.5 + number / 100)
        answers.append(scheduler.on_trial_result(None, trial(name), result))
    assert answers == ["CONTINUE"] + ["STOP"] * 5
    assert search.bracket.was_stopped("1")
    assert scheduler.on_trial_result(None, trial("0"), scored(search.bracket.max_t, 0.95)) == "STOP"
    assert not search.bracket.was_stopped("0")
    failed = {REPLY: Failed(reason="nan", may_pass=False)}
    assert scheduler.on_trial_result(None, trial("1"), failed) == "CONTINUE"
    scheduler.on_trial_error(None, trial("0"))
    assert "0" in search.bracket.rungs[0].failed


def test_one_metric_is_refused(tmp_path):
    search = search_of(tmp_path)
    for tune in (TuneScheduler(search), TuneSearcher(search)):
        assert tune.set_search_properties(None, None, config={})
        assert not tune.set_search_properties("retention", "max", config={})
