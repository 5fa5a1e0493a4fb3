"""What further full runs are expected to add, by hand on few trials."""

import math

import numpy as np
import pytest

from raysearch.config.recipe import Recipe
from raysearch.searching.forecast import Ended, Values, expected_gains, forecast, high_of
from raysearch.searching.samplers.sized_space import Candidate
from raysearch.searching.trial_history import TrialHistory


def history_of(*trials):
    """(size ratio, retention, samples, end) each."""
    history = TrialHistory()
    for number, (size, retention, samples, end) in enumerate(trials):
        recipe = Recipe(mode="layerwise", ratio=0.01 * (number + 1), criterion="deepest")
        history.add(str(number), Candidate(recipe, {}, size))
        history.report(str(number), samples, retention)
        if end:
            history.end(str(number), end)
    return history


def test_values_by_hand():
    trials = [Ended(0.5, 0.8, 1), Ended(0.4, None, 1), Ended(0.75, 0.9, 1)]
    # .8 from .5 to .75, .9 from there to 1
    assert Values(trials, [0.6, 0.8]).of(slice(None)).tolist() == pytest.approx([42.5, 80, 90])
    first, none = Values(trials, [0.6, 0.45]).of(np.array([0, 1])).tolist()[0::2]
    assert (first, math.isnan(none)) == (pytest.approx(40), True)


def test_equal_trials_are_expected_to_add_nothing():
    gains = expected_gains([Ended(0.5, 0.8, 10)] * 6, 10, [0.6])
    assert gains.tolist() == [0, 0]


def test_one_good_trial_of_four_by_hand():
    """Half of four trials lacks the best one in half of all orders: 10 points less, so 5 for each doubling."""
    trials = [Ended(0.5, value, 10) for value in (0.7, 0.8, 0.7, 0.7)]
    gains = expected_gains(trials, 10, [0.6])
    doublings = math.log2((40 + 100) / 40)
    assert gains[1] == pytest.approx(5 * doublings, rel=0.35)  # 40 orders: half of them, give or take
    assert gains[0] == pytest.approx(gains[1] / 2)  # the hypervolume counts from .5 on


def test_more_has_been_done_and_less_is_expected():
    trials = [Ended(0.5, 0.8 + 0.01 * number, 10) for number in range(8)]
    assert expected_gains(trials * 4, 10, [0.6])[1] < expected_gains(trials, 10, [0.6])[1]


@pytest.mark.parametrize(("num_finished", "samples"), [(0, 10), (2, 10), (3, 6)])
def test_too_few_trials_tell_nothing(num_finished, samples):
    trials = [Ended(0.5, 0.8 if number < num_finished else None, samples) for number in range(3)]
    assert expected_gains(trials, 10, [0.6]) is None


def test_no_trials_tell_nothing():
    assert expected_gains([], 10, [0.6]) is None
    assert forecast(TrialHistory(), 10, {}) is None


def test_the_forecast_of_a_history_names_budgets_and_leaves_out_what_runs():
    ended = [(0.5, 0.8, 10, "finished"), (0.5, 0.9, 10, "finished"), (0.4, 0.3, 5, "stopped"), (0.5, 0.7, 10, "failed")]
    ended.append((0.5, 0.8, 10, "finished"))
    found = forecast(history_of(*ended, (0.5, 0.95, 10, None)), 10, {"60%": 0.6, "45%": 0.45, "10%": 0.1})
    assert found == forecast(history_of(*ended), 10, {"60%": 0.6, "45%": 0.45, "10%": 0.1})
    assert list(found.at_budgets) == ["60%"]
    assert found.unanswered == ("45%",)  # no trial is within 10%
    assert found.most_points == math.inf
    missing = pytest.approx(10.0)  # to the dense model
    assert (found.at_budgets["60%"].points, found.at_budgets["60%"].high) == (missing, missing)
    lower = forecast(history_of(*[(size, 0.4 * kept, seen, end) for size, kept, seen, end in ended]), 10, {"60%": 0.6})
    assert lower.at_budgets["60%"].high == high_of(lower.at_budgets["60%"].points)
    assert forecast(history_of(*ended), 10, {"60%": 0.6}).most_points == found.at_budgets["60%"].points
    without = forecast(history_of(*ended), 10, {})
    assert without.most_points == without.front.points > 0
