import json

import numpy as np
import pytest
from report_search import paired, reach, read, summary, tables
from scipy.stats import t as student


def line(method, table, seed, values):
    return {
        "curves": "late",
        "first_rung": 9,
        "method": method,
        "table": table,
        "seed": seed,
        "costs": [5, 50],
        "hypervolume": values,
        "regret": [1 - value for value in values],
    }


@pytest.fixture
def results(tmp_path):
    rows = [line("ours", table, seed, [0.6 + seed / 10, 0.9]) for table in "ab" for seed in (0, 1)]
    rows += [
        line("random", table, seed, [0.4 + seed / 10, 0.6 + 0.05 * (table == "b")])
        for table in "ab"
        for seed in (0, 1)
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read([path])


def test_intervals_are_over_tables_not_over_their_seeds():
    values = {("a", 0): 0.0, ("a", 1): 0.2, ("b", 0): 0.4, ("b", 1): 0.4, ("b", 2): 0.4}
    mean, half = summary(values)
    assert mean == pytest.approx(0.25)  # of .1 and .4
    assert half == pytest.approx(student.ppf(0.975, 1) * np.std([0.1, 0.4], ddof=1) / np.sqrt(2))
    single = {("a", seed): value for seed, value in enumerate((1.0, 2.0, 3.0))}
    assert summary(single) == pytest.approx((2.0, student.ppf(0.975, 2) / np.sqrt(3)))
    assert summary({("a", 0): 1.0}) == (1.0, 0.0)


def test_differences_are_run_by_run():
    assert paired({("a", 0): 3.0, ("a", 1): 5.0}, {("a", 1): 1.0, ("b", 1): 9.0}) == {("a", 1): 4.0}


def test_the_table_has_a_row_per_method_and_says_when_ours_has_as_much(results):
    text = tables(results)
    assert "| random, no stopping | 4 | 0.450 ± 0.000 | 0.625 ± 0.318 |" in text
    assert "has 0.625 after 50 full runs; ours has as much after 5." in text
    assert "| random, no stopping | 4 | -0.200 ± 0.000 | -0.275 ± 0.318 |" in tables(results, "ours")


def test_what_ours_never_reaches_is_said(results):
    chosen = {method: found for (_, method), found in results.items()}
    for values in chosen["ours"]["hypervolume"].values():
        for run in values:
            values[run] = 0.1
    assert reach(chosen).endswith("at no cost measured.")
