"""The check of the forecast, on invented replays."""

import numpy as np
import pytest

from raysearch.searching.forecast import Ended
from scripts.replays.forecast import by_curve, calibration, compare


def line(values, seed=0):
    return {
        "table": "made", "curves": "alike", "seed": seed, "full": 10.0, "budgets": [0.6],
        "trials": [(0.5, value, 10.0) for value in values],
    }  # fmt: skip


def test_what_was_gained_is_read_from_the_next_ten_runs():
    replay = line([0.5] * 5 + [0.6] * 10)
    predicted, realised = compare(replay, 5, lambda trials, full, limits: np.array([1.0, float(len(trials))]))
    assert predicted.tolist() == [1, 5]
    assert realised.tolist() == pytest.approx([5, 10])  # the hypervolume counts from a size of .5 on
    assert compare(replay, 10, lambda *args: np.zeros(2)) is None  # only 15 runs long


def test_rows_have_means_and_coverage():
    def expected(trials, full, limits):
        return np.array([4.0, 2.0])

    rows = calibration([line([0.5] * 5 + [0.6] * 10), line([0.5] * 15, 1)], expected)
    assert rows == [["alike", "5", "2", "4.0", "2.5", "100%", "2.0", "5.0", "50%"]]  # up to 2.5 x 2 + 1 = 6, not 10


def test_the_curve_finds_its_own_form():
    """Best so far 0.8 - 0.2 / x after x full runs."""
    trials = [Ended(0.5, 0.8 - 0.2 / x, 10.0) for x in range(1, 41)]
    found = by_curve(trials, 10.0, [0.6])
    assert found[1] == pytest.approx(100 * 0.2 * (1 / 40 - 1 / 50), rel=0.15)
