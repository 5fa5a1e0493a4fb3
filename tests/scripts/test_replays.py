"""The replay benchmark's own parts, on a table of a few invented trials in the format of record_table.py."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from raysearch.config.dimensions import RecipeSuggester
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.files import read_json_lines
from raysearch.study.plan import plan_study
from scripts.replays import run
from scripts.replays.methods import ConfigAsk, ExpertSweep
from scripts.replays.record_table import HEADS_SPACE, first_space, recipes, write_table
from scripts.replays.run import Replay
from scripts.replays.tables import FULL, Early, GridTable, PowerWorld, RecordedWorld, load_recorded_table

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


@pytest.mark.parametrize("method", ["random", "ray-asha", "ray-optuna-asha", "optuna-nsga2", "optuna-gp", "ours"])
def test_methods_that_stop_nothing_find_the_whole_front_of_a_small_table(table, method):
    areas, regrets = Replay("recorded", 27, method, "few", 0).run(table, [0.5, 50])
    assert areas[0] <= areas[1] <= 1 + 1e-9
    assert areas[1] == pytest.approx(1.0) if method in ("random", "optuna-nsga2", "optuna-gp") else areas[1] > 0.6
    assert np.isfinite(regrets).all()


def test_an_expert_sweeps_sizes_from_both_ends_with_the_nearest_recipes(table):
    sweep = ExpertSweep(table, 0, table.full, 37)
    rows = [sweep.suggest(str(number)) for number in range(10)]
    assert rows.pop() is None
    ratios = [table.recipes[row].ratio for row in rows]
    assert ratios[:2] == [0.7, 0.1]
    first = table.recipes[rows[0]]
    assert (first.trained, first.data_fraction) == ("projector", 1.0)  # none trains both; others have less data
    assert len(set(rows)) == 9


def test_rows_of_other_recipes_stay_and_get_fields_that_are_newer(tmp_path):
    path = tmp_path / "grown.parquet"
    wide = {"mode": "widthwise", "criterion": "taylor", "ratio": 0.3}
    old, new = Recipe(**wide), Recipe(**wide, attention_share=0.0)
    assert write_table([line(old, 0.5)], [old], path) == 1
    before = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(before.drop_columns(["attention_share"]), path)
    earlier = load_recorded_table(path, SPACE)
    assert "attention_share" not in earlier.search_params()
    assert write_table([line(new, 0.7)], [new], path) == 1
    grown = load_recorded_table(path, SPACE)
    assert [made.attention_share for made in grown.recipes] == [1.0, 0.0]
    assert "attention_share" in grown.search_params()
    assert write_table([line(new, 0.8)], [new], path) == 1  # in the place of its earlier row
    assert [float(final) for final in load_recorded_table(path, SPACE).finals[:, 0]] == [0.5, 0.8]


def test_more_recipes_have_a_share_of_heads_and_the_first_keep_their_sequence():
    more = recipes(plan_study(SearchSpace.load(HEADS_SPACE)), 12, repeat_every=0, modes=("widthwise", "both"))
    assert {made.mode for made in more} == {"widthwise", "both"}
    assert all(0 <= made.attention_share <= 1 for made in more)
    assert len({made.attention_share for made in more}) > 2
    first = recipes(plan_study(first_space()), 11)
    recorded = pyarrow.parquet.read_table(ROOT / "docs" / "data" / "pocket-trials.parquet", columns=["key", "seed"])
    assert [made.key for made in first[:11]] == recorded["key"].to_pylist()[:11]
    assert [made.seed for made in first] == [0] * 11 + [1, 1]


def test_power_curves_by_kind_of_training_and_harmful_ones():
    """Nine rows: three kinds by three learning rates."""
    choices = [("trained", ["a", "b", "c"]), ("init_lr", [0.1, 0.2, 0.3])]
    index = {(kind, rate): 3 * kind + rate for kind in range(3) for rate in range(3)}
    facts = (np.arange(1.0, 10), np.linspace(0, 1, 9), np.ones((9, 1)), FULL, 0.0, (0.5,))
    grid = GridTable("nine", *facts, choices, index)
    world = grid.world("kinds", 0, FULL / 9)
    assert isinstance(world, PowerWorld)
    early = np.array([world.progress(row, FULL / 9) for row in range(9)])
    assert [world.progress(row, FULL) for row in range(9)] == pytest.approx([1.0] * 9)
    missing = (1 - early).reshape(3, 3).mean(1)
    assert 0 < missing[0] < 0.05 < missing[1] < 0.3 < missing[2]
    harmful = grid.world("harmful", 0, FULL / 9)
    assert [harmful.progress(row, FULL / 9) for row in (2, 5, 8)] == pytest.approx([1.15] * 3)
    assert harmful.progress(0, FULL / 9) == world.progress(0, FULL / 9)


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
