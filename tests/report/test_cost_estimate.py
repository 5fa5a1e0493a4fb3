"""What a search would take: by hand where it is arithmetic, and against real models where it is counted."""

import re

import pytest
import torch

from raysearch import models
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.files import append_json
from raysearch.models.shape_solver import shape_for
from raysearch.pruning import prune
from raysearch.pruning.importance import importance
from raysearch.recovery.memory_planner import needs_of
from raysearch.recovery.trainable_params import choose_trained
from raysearch.report.cost_estimate import (
    MAX_DRAWN,
    Pace,
    Work,
    draw_recipes,
    estimate_lines,
    measured_pace,
    memory_needs,
    total_work,
)
from raysearch.study.plan import plan_study
from raysearch.study.records import Score, TrialRecord
from tests.support import synthetic_study

POCKET = SearchSpace.load(synthetic_study.POCKET)


def planned(recipe=None, **search):
    """The embedded space with some dimensions fixed."""
    content = POCKET.model_dump(mode="json")
    content["recipe"] |= recipe or {}
    content["search"] |= {"runs": None, "trials": 40} | search
    return plan_study(SearchSpace.model_validate(content))


def write_trials(folder, rows):
    """A study in which trials took 2 s a rung and 10 ms a sample, and these many seconds more."""
    folder.mkdir()
    for number, (num_rungs, samples, more) in enumerate(rows):
        rungs = [
            Score(samples_seen=samples * (i + 1) // num_rungs, retention=0.5, retention_se=0, scores={})
            for i in range(num_rungs)
        ]
        recipe = Recipe(mode="layerwise", ratio=0.1 + number / 1000, criterion="deepest")
        seconds = 2 * num_rungs + 0.01 * samples + more
        record = TrialRecord(
            trial=str(number), key=recipe.key, recipe=recipe, num_params=1, size_bytes=2, rungs=rungs,
            end="finished", seconds=seconds,
        )  # fmt: skip
        append_json(folder / "trials.jsonl", record.model_dump(mode="json", exclude_none=True))
    return folder


def test_the_pace_is_found_though_the_first_trials_loaded_the_model(tmp_path):
    rows = [(3, 1000, 60), (3, 1000, 50), (1, 100, 0), (3, 1000, 0), (1, 50, 0), (2, 300, 0), (1, 100, 0), (1, 80, 0)]
    pace = measured_pace(write_trials(tmp_path / "study", rows))
    assert pace.seconds_per_evaluation == pytest.approx(2)
    assert pace.seconds_per_sample == pytest.approx(0.01)
    assert pace.seconds(Work(samples=100, evaluations=3)) == pytest.approx(7)


@pytest.mark.parametrize("rows", [[], [(1, 100, 0)], [(1, 100, 0)] * 5])
def test_trials_that_tell_no_pace_are_refused(tmp_path, rows):
    folder = write_trials(tmp_path / "study", rows)
    (folder / "trials.jsonl").touch()
    with pytest.raises(InputError, match=r"--like .*too few trials"):
        measured_pace(folder)


def test_work_without_stopping_is_what_the_recipes_ask_for():
    plan = planned({"data_fraction": [{"choices": [0.2, 1.0]}]}, trials=12)
    recipes = draw_recipes(plan, seed=0)
    work = total_work(plan, recipes, stopping=False)
    assert len(recipes) == 12
    assert work.samples == sum(round(1000 * (recipe.data_fraction or 0) * (recipe.epochs or 0)) for recipe in recipes)
    assert work.evaluations == 12
    stopped = total_work(plan, recipes, stopping=True)
    assert 12 * 37 < stopped.samples < work.samples
    assert 12 * 0.1 < stopped.evaluations < 12  # a verdict takes a tenth of the questions


def test_operations_by_hand():
    plan = planned(trials=1)
    recipe = Recipe(mode="layerwise", ratio=0.3, criterion="deepest", logits_kd=1.0, data_fraction=0.2)
    size = plan.size_of(recipe)
    assert total_work(plan, [recipe], stopping=False).operations == 200 * 256 * (6 * size.num_params + 2 * 2_758_592)


def test_no_recipe_is_drawn_above_the_budgets():
    plan = planned(trials=10)
    tight = planned(trials=10).__class__(**{**plan.__dict__, "budgets": plan.budgets[:1]})
    bound = 0.45 * plan.dense.size_bytes
    assert all(plan.size_of(recipe).size_bytes <= bound for recipe in draw_recipes(tight, seed=1))


@pytest.mark.parametrize("trained", ["projector", "projector+lora", "projector+decoder", "decoder"])
@pytest.mark.parametrize("mode", ["layerwise", "widthwise"])
def test_counted_needs_are_those_of_the_model(trained, mode):
    plan, (model, _) = planned(), models.load("pocket")
    criterion = {"layerwise": "deepest", "widthwise": "magnitude"}[mode]
    recipe = Recipe(mode=mode, ratio=0.4, criterion=criterion, trained=trained)
    scores = {"depth" if mode == "layerwise" else "width": importance(model, [], criterion)}
    small = prune(model, shape_for(plan.counts, recipe), scores)
    family = models.family_for(small)
    chosen = choose_trained(small, family, recipe)
    found = needs_of(small, family, chosen, torch.float32, need_logits=True)
    counted = memory_needs(plan, recipe)
    added = sum(p.numel() for name, p in small.named_parameters() if "lora_" in name)
    assert counted.num_trained == found.num_trained
    assert counted.num_params == found.num_params - added
    assert (counted.hidden, counted.layer_width) == (found.hidden, found.layer_width)
    assert (counted.num_layers, counted.vocabulary) == (found.num_layers, found.vocabulary)
    assert counted.online_bytes == plan.dense.size_bytes


def test_the_lines_say_what_they_rest_on(tmp_path):
    plan = planned()
    counted = "\n".join(estimate_lines(plan))
    assert "not measured but counted" in counted
    assert "shapes     150 judged before any is trained: at most 2,400 rows" in counted
    assert "judged" not in "\n".join(estimate_lines(planned(shapes=0)))
    # 7 layers, of which 7, 6, 5, 4, 3 and 2 are tried, on 64 samples
    layers = planned({"criterion": "greedy_loss", "mode": "layerwise"}, shapes=0)
    assert "criteria   greedy_loss takes at most 1,728 rows" in "\n".join(estimate_lines(layers))
    widths = planned({"criterion": "taylor", "mode": "widthwise"}, shapes=0)
    assert "criteria" not in "\n".join(estimate_lines(widths))
    assert planned(sampler="random").space.search.num_shapes == 150
    assert planned({"mode": "layerwise"}, sampler="grid").space.search.num_shapes == 0
    assert "ZeRO 1" in counted
    assert f"at the very most {4000 * plan.space.search.trials:,} samples" in counted
    rows = [(3, 1000, 0), (1, 100, 0), (2, 300, 0), (1, 50, 0)]
    measured = "\n".join(estimate_lines(plan, write_trials(tmp_path / "study", rows)))
    assert "measured: 2 s per evaluation and 0.01 s per sample in the 4 trials of" in measured
    assert "not measured" not in measured


def test_what_is_not_drawn_is_extrapolated(tmp_path):
    study = write_trials(tmp_path / "study", [(3, 1000, 0), (1, 100, 0), (2, 300, 0), (1, 50, 0)])

    def samples(**limits):
        text = "\n".join(estimate_lines(planned({"trained": "decoder"}, shapes=0, **limits), study))
        return float(re.search(r"work .*about ([\d,.]+) samples", text)[1].replace(",", ""))

    assert samples(trials=1000 * MAX_DRAWN) == pytest.approx(1000 * samples(trials=MAX_DRAWN), rel=0.02)
    assert samples(trials=None, runs=1000) == pytest.approx(1000 * 4000, rel=0.02)
    assert "150,000 trials were on it" in "\n".join(estimate_lines(planned(trials=150_000)))


def test_gpus_that_are_not_here_are_not_made_up(monkeypatch):
    monkeypatch.setattr("raysearch.report.cost_estimate.shutil.which", lambda name: None)
    content = POCKET.model_dump(mode="json")
    content["slots"] = {"workers": 2, "gpus_per_worker": 1}
    lines = estimate_lines(plan_study(SearchSpace.model_validate(content)))
    assert "no GPU here to fit it into" in next(line for line in lines if line.startswith("memory"))
    assert "GPU-hours" in next(line for line in lines if line.startswith("time"))
    slots = next(line for line in lines if line.startswith("slots"))
    assert "2 x 1 CPU and 1 GPU each" in slots
    assert slots.endswith("and 0 GPU has no room for one, so a search needs a cluster that has")


@pytest.mark.parametrize(("workers", "room"), [(1, 3), (2, 1), (4, 0)])
def test_the_slots_that_fit_here_are_counted(monkeypatch, workers, room):
    monkeypatch.setattr("raysearch.report.cost_estimate.os.sched_getaffinity", lambda pid: set(range(6)))
    content = POCKET.model_dump(mode="json")
    content["slots"] = {"num": 64, "workers": workers, "cpus_per_worker": 2}
    lines = estimate_lines(plan_study(SearchSpace.model_validate(content)))
    has = f"has room for {room}" if room else "has no room for one, so a search needs a cluster that has"
    asked = f"slots      64 at a time, {workers} x 2 CPU each; this machine with 6 CPU {has}"
    assert next(line for line in lines if line.startswith("slots")) == asked


def test_a_pace_adds_up():
    assert Pace(2.0, 0.5, "").seconds(Work(samples=10, evaluations=3)) == 11
