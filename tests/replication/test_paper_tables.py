"""Our arithmetic on published tables: AVG and AVG-% follow from the entries, except in two rows."""

import numpy as np
import pytest

from raysearch.evaluation.retention import retention
from tests.support import paper_tables

PRUNED, RECOVERED = (paper_tables.rows(table) for table in (paper_tables.PRUNED, paper_tables.RECOVERED))
DENSE = {row.model: row for row in PRUNED if row.mode == "dense"}
# Both print more than their entries give.
DO_NOT_ADD_UP = {("internvl", "width", 60), ("internvl", "layer", 60)}
ROUNDING = 0.0101  # entries and AVG are printed to two decimals
TWICE = 0.0201  # AVG-% is printed as the ratio of two printed averages


def name(row):
    return f"{row.model}-{row.mode}-{row.ratio}"


def average(row):
    return 100 * np.mean(list(row.results.means().values()))


@pytest.mark.parametrize("row", PRUNED + RECOVERED, ids=name)
def test_average_and_retention_follow_from_the_entries(row):
    kept = 100 * retention(row.results, DENSE[row.model].results).value
    adds_up = row in RECOVERED or (row.model, row.mode, row.ratio) not in DO_NOT_ADD_UP
    assert (average(row) == pytest.approx(row.average, abs=ROUNDING)) == adds_up
    assert (kept == pytest.approx(row.retention, abs=TWICE)) == adds_up


def test_the_two_rows_that_do_not_add_up():
    found = {(row.model, row.mode, row.ratio): (average(row), row.average) for row in PRUNED}
    assert found["internvl", "width", 60] == pytest.approx((4.19, 5.12), abs=0.01)
    assert found["internvl", "layer", 60] == pytest.approx((2.81, 3.48), abs=0.01)


def test_all_rows_are_there():
    assert (len(PRUNED), len(RECOVERED)) == (27, 12)


def test_the_recovered_rows_of_internvl_are_its_dense_row_times_a_constant():
    """Nine independent measurements cannot be; so no claim is taken from them."""
    for row in RECOVERED:
        dense = DENSE[row.model].results.means()
        ratios = [row.results.means()[benchmark] / dense[benchmark] for benchmark in dense]
        assert (np.ptp(ratios) < 0.004) == (row.model == "internvl")
