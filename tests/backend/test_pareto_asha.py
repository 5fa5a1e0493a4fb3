import json
import random
import signal
from types import SimpleNamespace

import pytest
import ray
from ray import tune

from raysearch.backend.pareto_asha import ParetoASHA
from raysearch.errors import InputError
from raysearch.searching.early_stopping.asha import Rule


def trial(name):
    return SimpleNamespace(trial_id=name)


def result(size, retention, seen, **more):
    return {"size_ratio": size, "retention": retention, "samples_seen": seen, **more}


def feed(scheduler, seed, num, first=0):
    """Answers to `num` random trials that go on until they are stopped."""
    draw, answers = random.Random(seed), []
    for number in range(num):
        size, quality = draw.uniform(0.1, 1), draw.random()
        if number < first:
            continue
        scheduler.on_trial_add(None, trial(str(number)))
        for seen in (1, 3, 9, 27):
            answer = scheduler.on_trial_result(None, trial(str(number)), result(size, quality + seen / 100, seen))
            answers.append(answer)
            if answer == "STOP":
                break
        scheduler.on_trial_complete(None, trial(str(number)), result(size, quality + seen / 100, seen))
    return answers


def test_trials_behind_are_stopped_and_those_at_the_end_are_ended():
    scheduler = ParetoASHA(max_t=27, grace_period=1)
    answers = feed(scheduler, 0, 60)
    assert answers[0] == "CONTINUE"
    assert answers.count("STOP") == 60
    assert sum(scheduler.was_stopped(str(number)) for number in range(60)) > 30
    assert "1: 60 trials" in scheduler.debug_string()


def test_results_without_the_keys_are_passed_over():
    scheduler = ParetoASHA(max_t=27)
    assert scheduler.on_trial_result(None, trial("a"), {"loss": 1.0}) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial("a"), result(0.5, None, 3)) == "STOP"


def test_one_metric_is_refused_by_ray():
    assert ParetoASHA().set_search_properties(None, None)
    assert not ParetoASHA().set_search_properties("retention", "max")


def test_contradictory_rungs_are_refused():
    with pytest.raises(InputError, match="grace_period 30"):
        ParetoASHA(max_t=27, grace_period=30)


@pytest.mark.parametrize("rule", [None, Rule(keep_budget_leaders=False)])
def test_a_resumed_scheduler_decides_as_an_unbroken_one(tmp_path, rule):
    def make(name):
        return ParetoASHA(max_t=27, budgets=[0.3, 0.6], rule=rule, log=tmp_path / name, retention_se="retention_se")

    unbroken = make("unbroken.jsonl")
    feed(unbroken, 3, 80)
    broken = make("broken.jsonl")
    feed(broken, 3, 50)
    broken.save(str(tmp_path / "state.json"))
    broken.on_trial_result(None, trial("lost"), result(0.01, 0.99, 1))  # after the last save
    resumed = make("broken.jsonl")
    resumed.restore(str(tmp_path / "state.json"))
    feed(resumed, 3, 80, first=50)
    assert (tmp_path / "broken.jsonl").read_text() == (tmp_path / "unbroken.jsonl").read_text()
    assert resumed.bracket.state() == unbroken.bracket.state()


def test_every_decision_is_logged_with_its_reason(tmp_path):
    scheduler = ParetoASHA(max_t=27, log=tmp_path / "decisions.jsonl")
    feed(scheduler, 1, 30)
    scheduler.on_trial_result(None, trial("bad"), result(0.5, float("nan"), 1))
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert len(lines) == sum(len(rung.values) for rung in scheduler.bracket.rungs) + 1
    assert all(line["reason"] for line in lines)
    assert lines[0] | {"decision": 1, "trial": "0", "go_on": True, "rung": 1, "num_trials": 1} == lines[0]
    assert lines[-1]["retention"] is None
    assert "failed" in lines[-1]["reason"]


def test_a_trial_that_is_tried_again_keeps_its_place():
    scheduler = ParetoASHA(max_t=27)
    for name, size, retention in (("a", 0.1, 0.9), ("b", 0.2, 0.8)):
        scheduler.on_trial_add(None, trial(name))
        scheduler.on_trial_result(None, trial(name), result(size, retention, 1))
    scheduler.on_trial_error(None, trial("a"))
    assert scheduler.bracket.rungs[0].num_trials == 1
    scheduler.on_trial_add(None, trial("a"))
    assert scheduler.bracket.rungs[0].num_trials == 2


def test_the_journal_brings_a_scheduler_back_without_trials_that_ray_has_lost(tmp_path):
    def stored(name):
        storage = SimpleNamespace(experiment_driver_staging_path=str(tmp_path))
        return SimpleNamespace(trial_id=name, storage=storage)

    before = ParetoASHA(max_t=27)
    for name, size, retention in (("a", 0.1, 0.9), ("b", 0.2, 0.8), ("lost", 0.05, 0.95)):
        before.on_trial_add(None, stored(name))
        before.on_trial_result(None, stored(name), result(size, retention, 1))
    after = ParetoASHA(max_t=27)
    known = [stored("a"), stored("b"), stored("c")]
    for trial_ in known:
        after.on_trial_add(None, trial_)
    assert after.bracket.rungs[0].values == before.bracket.rungs[0].values
    controller = SimpleNamespace(get_trials=lambda: known)
    assert after.on_trial_result(controller, stored("b"), result(0.2, 0.8, 1)) == "STOP"  # stopped before, too
    assert after.on_trial_result(controller, stored("c"), result(0.09, 0.91, 1)) == "CONTINUE"
    assert after.bracket.rungs[0].failed == {"lost"}


class Break(tune.Callback):
    """Presses Ctrl-C when six trials have ended."""

    num_ended = 0

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.num_ended += 1
        if self.num_ended == 6:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_in_ray_tune_an_interrupted_experiment_is_restored_with_its_rungs(tmp_path):
    def train(config):  # in here, since workers cannot import this file
        quality = random.Random(config["number"]).random()
        for seen in (1, 3, 9, 27):
            tune.report({"size_ratio": 0.1 + config["number"] / 100, "retention": quality, "samples_seen": seen})

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        scheduler = ParetoASHA(max_t=27)
        tuner = tune.Tuner(
            train,
            param_space={"number": tune.grid_search(list(range(12)))},
            tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
            run_config=tune.RunConfig(name="joint", storage_path=str(tmp_path), verbose=0, callbacks=[Break()]),
        )
        tuner.fit()
        before = scheduler.bracket.rungs[0].values
        assert 6 <= len(before) <= 8
        restored = tune.Tuner.restore(str(tmp_path / "joint"), train, resume_unfinished=True)
        restored._local_tuner._run_config.callbacks = []
        restored.fit()
        after = restored._local_tuner._tune_config.scheduler.bracket.rungs[0].values
        assert len(after) >= 12
        assert {name: after[name] for name in list(before)[:6]} == {name: before[name] for name in list(before)[:6]}
    finally:
        ray.shutdown()
