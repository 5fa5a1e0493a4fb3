import json

import numpy as np
import pytest
from scipy.stats import t as student

from scripts.replays.report import ALL, by_problem, main, paired, reach, read_lines, summary, tables


def line(method, table, seed, values, curves="late"):
    return {
        "curves": curves,
        "first_rung": 9,
        "method": method,
        "table": table,
        "seed": seed,
        "costs": [5, 50],
        "hypervolume": values,
        "regret": [1 - value for value in values],
    }


@pytest.fixture
def path(tmp_path):
    rows = [line("ours", table, seed, [0.6 + seed / 10, 0.9]) for table in "ab" for seed in (0, 1)]
    rows += [
        line("random", table, seed, [0.4 + seed / 10, 0.6 + 0.05 * (table == "b")]) for table in "ab" for seed in (0, 1)
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def results(path):
    return by_problem(read_lines([path]))


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
    assert "has 0.625 after 50 full runs; ours has as much after 5 (+0.025 ± 0.318, run by run)." in text
    assert "| random, no stopping | 4 | -0.200 ± 0.000 | -0.275 ± 0.318 |" in tables(results, "ours")


def test_what_ours_never_reaches_is_said(results):
    chosen = {method: found for (_, method), found in results.items()}
    for values in chosen["ours"]["hypervolume"].values():
        for run in values:
            values[run] = 0.1
    assert reach(chosen).endswith("at no cost measured.")


def test_over_all_tables_each_counts_once_however_many_problems_it_is_in():
    lines = [line("ours", "a", 0, [0.2, 0.4], "late"), line("ours", "a", 0, [0.4, 0.8], "alike")]
    lines += [line("ours", "b", 0, [0.5, 1.0], "recorded")]
    lines += [line("random", "a", 0, [0.1, 0.1], "late"), line("random", "b", 0, [0.1, 0.1], "recorded")]
    results = by_problem(lines)
    assert results[ALL, "ours"]["hypervolume"][5] == {("a", 0): pytest.approx(0.3), ("b", 0): 0.5}
    assert summary(results[ALL, "ours"]["hypervolume"][50])[0] == pytest.approx(0.8)
    assert (ALL, "random") not in results  # it has no run of a in all that a is in


def test_all_lines_are_kept_in_one_file(path, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "kept.parquet"
    monkeypatch.setattr("sys.argv", ["report.py", str(path), "--keep", str(kept)])
    main()
    assert capsys.readouterr().out.strip() == tables(by_problem(read_lines([kept]))).strip()
    assert read_lines([kept]) == sorted(
        read_lines([path]), key=lambda line: (line["method"], line["table"], line["seed"])
    )
