"""The replay benchmark's own parts, on a table of a few invented trials in the format of record_table.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.files import read_json_lines
from raysearch.search.samplers.suggesters import RecipeSuggester
from scripts.replays import run
from scripts.replays.methods import ConfigAsk
from scripts.replays.record_table import write_table
from scripts.replays.run import Replay
from scripts.replays.tables import Early, RecordedWorld, load_recorded_table

ROOT = Path(__file__).parents[2]
SPACE = SearchSpace.load(ROOT / "search_spaces" / "pocket-table.yaml")
LEVELS = (37, 111, 333, 1000)


def recipe(ratio, trained="projector", fraction=1.0, **more):
    fields = {"mode": "layerwise", "criterion": "block_influence", "ratio": ratio, "trained": trained}
    return Recipe(**fields, **({"data_fraction": fraction} if trained != "nothing" else {}), **more)


def line(made, final):
    """A trial that rises in a straight line to `final`."""
    end = made.samples_to_see(1000)
    seen = [*(level for level in LEVELS if level < end), end] if end else [0]
    rungs = [
        {
            "samples_seen": at,
            "retention": final * at / end if end else final,
            "retention_se": 0.02,
            "scores": {"digits": 0.5},
            "losses": {"sft": 1.0},
        }
        for at in seen
    ]
    return {
        "key": made.key,
        "recipe": made.as_dict(),
        "seconds": 2.0 * len(seen) + 0.01 * end,
        "end": "finished",
        "num_params": 1000,
        "size_bytes": round(2000 * (1 - 0.9 * made.ratio)),
        "dense_bytes": 2000,
        "answers": ["ff"] * len(seen),
        "rungs": rungs,
    }


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixteen recipes, one of them twice, and one that failed."""
    made = [
        recipe(ratio, trained, fraction)
        for ratio in (0.1, 0.3, 0.5, 0.7)
        for trained, fraction in (("nothing", None), ("projector", 0.05), ("projector", 1.0), ("decoder", 0.2))
    ]
    again = made[2].model_copy(update={"seed": 1})
    failed = recipe(0.2, "decoder", lr=3e-3)
    lines = [line(one, 1 - one.ratio**2 - 0.2 * (one.trained == "nothing")) for one in made]
    lines.append(line(again, lines[2]["rungs"][-1]["retention"] - 0.1))
    lines.append(line(failed, 0.0) | {"end": "failed", "rungs": [], "answers": []})
    path = tmp_path_factory.mktemp("table") / "few.parquet"
    assert write_table(lines, [*made, again, failed], path) == 18
    return load_recorded_table(path, SPACE)


def test_a_recorded_table_has_recipes_repeats_and_no_failures(table):
    assert len(table.recipes) == 16
    assert table.full == 1000
    assert [table.world("recorded", 0, rung).first_rung for rung in (37.1, 111, 300)] == [37, 111, 111]
    assert table.cost_of_result == pytest.approx(200)  # two seconds a result, a hundredth of one a sample
    assert table.recipes[0].trained == "nothing"
    assert list(table.curves[0]) == [(0, pytest.approx(0.79), 0.02)]
    assert [seen for seen, _, _ in table.curves[1]] == [37, 50]
    assert table.sizes[0] == pytest.approx(0.91)
    at_the_end = (table.curves[2][-1][1], table.truths[2][1000], table.finals[2, 0])
    assert at_the_end == pytest.approx((0.99, 0.94, 0.94))  # the mean of two repeats


def test_a_proposal_stands_for_the_nearest_recorded_recipe_once(table):
    wanted = RecipeSuggester(recipe(0.48, "decoder", 0.2).as_dict())
    order: list[int] = []
    while len(order) < 16:
        order.append(table.suggest(wanted, order))
    nearest = [table.recipes[row] for row in order]
    assert (nearest[0].ratio, nearest[0].trained) == (0.5, "decoder")
    assert [near.ratio for near in nearest[1:4]].count(0.5) >= 2  # a word weighs less than a third of the ratios
    assert sorted(order) == list(range(16))
    assert table.suggest(wanted, range(16)) == order[0]  # nothing else is left


def test_a_flat_configuration_covers_every_condition(table):
    found = table.search_params()
    assert {"lr#0", "lr#1", "lr#2", "layer_criterion", "width_criterion", "kl"} <= set(found)
    values = {name: getattr(asked, "low", None) or asked.choices[0] for name, asked in found.items()}
    values |= {"mode": "layerwise", "ratio": 0.7, "sft": 1.0, "trained": "nothing"}
    assert table.recipes[table.suggest(ConfigAsk(values), ())].ratio == 0.7


def test_costs_are_samples_and_repeats_are_no_second_chance(table):
    world = RecordedWorld(table, 111)
    assert world.checkpoints(2) == [111, 333, 1000]
    assert world.checkpoints(0) == [0]
    assert world.cost_of_result(2, 111) == pytest.approx(table.cost_of_result + 10)
    assert world.cost_of_full_run == pytest.approx(1200)
    assert world.measure("t", 2, 1000) == (table.sizes[2], pytest.approx(0.99), 0.02)
    assert world.truth(2, 1000) == pytest.approx(0.94)


def test_early_verdicts_rest_on_the_values_of_a_share_and_cost_that_share(table):
    halves = [{seen: (value / 2, 0.1) for seen, value, _ in curve} for curve in table.curves]
    world = RecordedWorld(table, 37, Early(0.25, halves))
    assert world.measure("t", 2, 37) == (table.sizes[2], pytest.approx(table.curves[2][0][1] / 2), 0.1)
    assert world.measure("t", 2, 1000) == (table.sizes[2], pytest.approx(0.99), 0.02)
    costs = [world.cost_of_result(2, seen) for seen in (37, 1000)]
    assert costs == pytest.approx([0.25 * 200 + 10, 210])


@pytest.mark.parametrize("method", ["random", "ray-asha", "ray-optuna-asha", "optuna-nsga2", "ours"])
def test_methods_that_stop_nothing_find_the_whole_front_of_a_small_table(table, method):
    areas, regrets = Replay("recorded", 27, method, "few", 0).run(table, [0.5, 50])
    assert areas[0] <= areas[1] <= 1 + 1e-9
    assert areas[1] == pytest.approx(1.0) if method in ("random", "optuna-nsga2") else areas[1] > 0.6
    assert np.isfinite(regrets).all()


def test_what_is_no_table_is_refused(tmp_path):
    path = tmp_path / "none.parquet"
    path.write_text("no")
    with pytest.raises(InputError, match="no table of trials"):
        load_recorded_table(path, SPACE)


def test_a_benchmark_goes_on_where_it_was_cut_short(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "load_recorded_table", lambda *facts: table)
    out = tmp_path / "out.jsonl"
    arguments = [
        "bench",
        "--table",
        "few.parquet",
        "--out",
        str(out),
        "--methods",
        "random",
        "ours",
        "--seeds",
        "0",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*arguments, "--worker", "0/2"])
    run.main()
    assert len(read_json_lines(out)) == 2
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    lines = read_json_lines(out)
    assert {(row["method"], row["seed"]) for row in lines} == {(m, s) for m in ("random", "ours") for s in (0, 1)}
    assert len(lines) == 4
    assert "| ours | 2 |" in capsys.readouterr().out
