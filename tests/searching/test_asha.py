import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest

from raysearch.errors import InputError
from raysearch.searching.early_stopping.asha import AshaBracket, Rule
from raysearch.searching.early_stopping.nondomination import NonDominatedRanks
from raysearch.study.multi_objective import nondomination_ranks


def rung_of(points, **settings):
    """A rung at 10 samples to which trials with these (size, retention) came earlier."""
    rungs = AshaBracket(90, 10, 3, **settings)
    for number, (size, retention) in enumerate(points):
        rungs.decide(f"earlier{number}", size, retention, 0.01, 10)
    return rungs


def random_points(seed, num, ties=False):
    draw = random.Random(seed)
    digits = 1 if ties else 12
    return [(round(0.05 + draw.random(), digits) + 0.01, round(draw.random(), digits)) for _ in range(num)]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_grown_point_by_point_are_those_of_the_whole_set(seed, ties):
    points = random_points(seed, 150, ties)
    ranks = NonDominatedRanks(points).as_lists()
    expected = nondomination_ranks(np.array(points) * [1, -1])
    for number, members in enumerate(ranks):
        assert members == sorted(point for point, at in zip(points, expected, strict=True) if at == number)
    assert sum(map(len, ranks)) == 150


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("digits", [1, 12])
def test_of_many_points_the_better_ranks_alone_are_kept(seed, digits):
    draw = random.Random(seed)
    points = [(draw.randrange(1, 9), round(draw.random(), digits)) for _ in range(1500)]
    ranks, num_ranked = NonDominatedRanks(points[:200], share=1 / 3), []
    for point in points[200:]:
        ranks.add(*point)
        num_ranked.append(sum(map(len, ranks.as_lists())))
    expected = nondomination_ranks(np.array(points) * [1, -1])
    for number, members in enumerate(ranks.as_lists()):
        assert members == sorted(point for point, at in zip(points, expected, strict=True) if at == number)
    assert all(num > (200 + came) / 3 for came, num in enumerate(num_ranked, 1))
    assert num_ranked[-1] < 1500
    worst = ranks.rank_of(9, -1)
    assert ranks.num_better(worst) == num_ranked[-1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_members_with_a_newcomer_are_its_rank_after_it_came(seed, ties):
    *points, newcomer = random_points(seed, 80, ties)
    ranks = NonDominatedRanks(points)
    at = ranks.rank_of(*newcomer)
    (members, row), better = ranks.members_with(*newcomer, at), ranks.num_better(at)
    assert ranks.num_with(*newcomer, at) == len(members)
    ranks.add(*newcomer)
    assert members.tolist() == [list(point) for point in ranks.as_lists()[at]]
    assert tuple(members[row]) == newcomer
    assert better == sum(map(len, ranks.as_lists()[:at]))


def test_rule_by_hand():
    # Six at the rung with the newcomer, so two may continue. Ranks: {(1, .9)}, then {(2, .8)}, ...
    chain = [(1.0, 0.9), (2.0, 0.8), (3.0, 0.7), (4.0, 0.6), (5.0, 0.5)]
    assert rung_of(chain).decide("new", 0.5, 0.95, 0, 10).reason == "its layer goes on whole"
    behind = rung_of(chain).decide("new", 2.5, 0.75, 0, 10)
    assert (behind.go_on, behind.num_better, behind.num_own) == (False, 2, 0)  # which rank it is in was not needed
    second = rung_of(chain).decide("new", 1.5, 0.85, 0, 10)
    assert (second.go_on, second.num_better, second.num_own) == (True, 1, 1)


def test_ties_in_a_rank_go_by_exclusive_hypervolume():
    front = [(0.1, 0.1), (0.2, 0.45), (0.3, 0.5), (0.4, 0.55), (0.95, 0.93)]  # one rank of six, two continue
    crowded = rung_of(front).decide("new", 0.31, 0.51, 0, 10)
    assert not crowded.go_on
    assert crowded.rank > 2
    alone = rung_of(front).decide("new", 0.6, 0.85, 0, 10)
    assert alone.go_on
    assert alone.rank == 2  # behind the second smallest


def test_a_small_model_counts_for_all_that_it_retains():
    rungs = rung_of([(0.5, 0.8), (0.9, 0.9)])  # one of three goes on
    small = rungs.decide("new", 0.3, 0.7, 0, 10)  # log(5/3) * 0.7 = 0.36; log(9/5) * 0.1 and 0.11 * 0.1 are less
    assert (small.go_on, small.rank) == (True, 1)
    assert not rungs.decide("next", 0.29, 0.05, 0, 10).go_on  # log(30/29) * 0.05


def test_earlier_arrivals_may_be_permuted():
    points = random_points(3, 60)
    shuffled = points[:]
    random.Random(1).shuffle(shuffled)
    for size, retention in random_points(4, 40, ties=True):
        decisions = [rung_of(order).decide("new", size, retention, 0.02, 10) for order in (points, shuffled)]
        assert decisions[0].go_on == decisions[1].go_on
        assert decisions[0].rank == decisions[1].rank


def test_axes_may_be_rescaled():
    points = random_points(5, 60)
    for size, retention in random_points(6, 40):
        plain = rung_of(points).decide("new", size, retention, 0.01, 10)
        other = AshaBracket(90, 10, 3)
        for number, (s, r) in enumerate(points):
            other.decide(f"earlier{number}", s * 7e9, r * 40, 0.4, 10)
        scaled = other.decide("new", size * 7e9, retention * 40, 0.4, 10)
        assert (plain.go_on, plain.rank, plain.num_better) == (scaled.go_on, scaled.rank, scaled.num_better)


def test_qualities_below_0_may_be_moved():
    points = random_points(5, 60)
    for size, quality in random_points(6, 40):
        found = []
        for offset in (-3, -300):
            rungs = rung_of([(s, r + offset) for s, r in points])
            found.append(rungs.decide("new", size, quality + offset, 0.01, 10))
        assert (found[0].go_on, found[0].rank) == (found[1].go_on, found[1].rank)


@pytest.mark.parametrize("rule", [Rule(), Rule(keep_budget_leaders=False)])
@pytest.mark.parametrize("num", [0, 1, 2, 3, 10, 50])
def test_a_newcomer_that_dominates_all_goes_on(rule, num):
    for seed in range(5):
        points = random_points(seed, num)
        best = max([retention for _, retention in points], default=0.5)
        assert rung_of(points, rule=rule).decide("new", 0.001, best + 1e-9, 0.05, 10).go_on


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_retention_that_is_no_number_is_a_failure(value):
    rungs = rung_of([(0.5, 0.5)])
    decision = rungs.decide("new", 0.1, value, 0, 10)
    assert not decision.go_on
    assert "failed" in decision.reason
    assert rungs.decide("next", 0.6, 0.6, 0, 10).num_trials == 2  # the failed one isn't counted


def test_equal_trials_do_not_all_go_on():
    rungs = rung_of([(0.5, 0.5)] * 11)
    assert not rungs.decide("new", 0.5, 0.5, 0, 10).go_on


def test_failed_trials_hold_back_no_other_until_revived():
    rungs = rung_of([(0.1, 0.9), (0.1, 0.89), (0.3, 0.3), (0.4, 0.2), (0.5, 0.1)])
    rungs.fail("earlier0")
    first = rungs.decide("a", 0.2, 0.88, 0, 10)
    assert (first.go_on, first.num_better, first.num_trials) == (False, 1, 5)
    rungs.revive("earlier0")
    second = rungs.decide("b", 0.05, 0.885, 0, 10)  # in the first rank, with "earlier0"
    assert (second.go_on, second.num_own, second.num_trials) == (True, 2, 7)


def test_results_between_rungs_and_repeated_ones_change_nothing():
    rungs = rung_of([(0.1, 0.9)])
    assert rungs.decide("new", 0.5, 0.5, 0, 5).rung is None
    first = rungs.decide("new", 0.05, 0.5, 0, 10)
    assert first.rung == 10
    again = rungs.decide("new", 0.05, 0.1, 0, 10)
    assert (again.go_on, again.rung) == (first.go_on, None)
    assert rungs.decide("new", 0.05, 0.1, 0, 29).rung is None
    assert rungs.decide("new", 0.05, 0.6, 0, 30).rung == 30


def test_a_trial_that_ended_below_a_rung_counts_in_later_rungs():
    rungs = AshaBracket(90, 10, 3)
    for number in range(6):
        rungs.finish(f"short{number}", 0.2, 0.8 + number / 100, 0, 4)
    late = rungs.decide("long", 0.5, 0.79, 0, 30)
    assert (late.go_on, late.num_better, late.num_trials) == (False, 2, 7)  # of six better ones, the two that may
    alone = AshaBracket(90, 10, 3, rule=Rule(count_finished=False))
    alone.finish("short", 0.2, 0.8, 0, 4)
    assert alone.decide("long", 0.5, 0.79, 0, 30).go_on


def test_the_best_within_a_budget_is_not_stopped_while_no_finished_trial_is_as_good():
    front = [(0.1, 0.1), (0.2, 0.45), (0.3, 0.5), (0.4, 0.55), (0.95, 0.93)]
    assert not rung_of(front).decide("new", 0.31, 0.51, 0, 10).go_on
    leading = rung_of(front, budgets=[0.35]).decide("new", 0.31, 0.51, 0, 10)
    assert leading.go_on
    assert leading.reason == "leads budget 0.35, and no finished trial is as good"
    assert not rung_of(front, budgets=[0.35]).decide("new", 0.31, 0.499, 0, 10).go_on
    for size, final, go_on in ((0.35, 0.509, True), (0.35, 0.51, False), (0.36, 0.6, True)):
        rungs = rung_of(front, budgets=[0.35], rule=Rule(count_finished=False))
        rungs.finish("finished", size, final, 0, 90)
        for restored in (rungs, AshaBracket.from_state(rungs.state())):
            assert restored.decide("new", 0.31, 0.51, 0, 10).go_on is go_on


@pytest.mark.parametrize("seed", range(4))
def test_every_budget_keeps_a_survivor_at_every_rung(seed):
    budgets = [0.2, 0.4, 0.7]
    rungs, draw = AshaBracket(90, 10, 3, budgets), random.Random(seed)
    survivors = dict.fromkeys(budgets, 0)
    for number in range(60):
        size = draw.uniform(0.05, 1.0)
        go_on = rungs.decide(str(number), size, draw.random(), 0, 10).go_on
        for budget in budgets:
            survivors[budget] += size <= budget and go_on
            fitting = any(value[0] <= budget for value in rungs.rungs[0].values.values())
            assert survivors[budget] >= fitting


@pytest.mark.parametrize(("max_t", "grace"), [(10, 20), (10, 0), (10, -1)])
def test_contradictory_rungs_are_refused(max_t, grace):
    with pytest.raises(InputError, match="grace_period"):
        AshaBracket(max_t, grace)
    with pytest.raises(InputError, match="reduction_factor"):
        AshaBracket(10, 1, 1)


def test_a_value_before_recovery_is_no_verdict_and_stands_at_no_rung():
    rungs = AshaBracket(90, 10, 3)
    for number in range(12):
        decision = rungs.decide(str(number), 0.5, 0.9 - number / 20, 0.0, 0)
        assert (decision.go_on, decision.reason, decision.rung) == (True, "between rungs", None)
    assert rungs.num_decisions == 0
    assert all(rung.num_trials == 0 for rung in rungs.rungs)
    assert rungs.decide("11", 0.5, 0.1, 0.0, 10).num_trials == 1


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="schema 1 where 4 is read"):
        AshaBracket.from_state({**AshaBracket(90, 10).state(), "schema": 1})


def test_the_rule_loads_neither_ray_nor_torch():
    loaded = (
        "import sys, raysearch.searching.early_stopping.asha; print('ray' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"


def test_levels_lie_a_factor_apart_and_well_below_the_end():
    assert AshaBracket(90, 10, 3).levels == [10, 30]
    assert AshaBracket(100, 10, 3).levels == [10, 30]  # one at 90 would save a tenth of a trial
    assert AshaBracket(1000, 37, 3).levels == [37, 111, 333]
    assert AshaBracket(1000, 111, 3).levels == [111, 333]
    assert AshaBracket(10, 10, 3).levels == [10]  # the first one stays wherever it is


@pytest.mark.parametrize("eta", [1.5, 2, 3, 4])
@pytest.mark.parametrize("max_t", [9.5, 27, 40, 81.0, 1000])
def test_the_last_rung_leaves_at_least_half_a_step_to_the_end_and_no_rung_is_missing(max_t, eta):
    *_, last = levels = AshaBracket(max_t, 1.25, eta).levels
    assert levels == [pytest.approx(1.25 * eta**power) for power in range(len(levels))]
    assert last <= max_t / eta**0.5 < last * eta


def test_the_first_trials_are_never_stopped_and_count_at_the_rungs():
    bracket = AshaBracket(27, 1)
    bracket.num_spared = 2
    for name in "abc":
        bracket.revive(name)
    assert bracket.decide("a", 0.5, 0.9, 0, 1).go_on
    spared = bracket.decide("b", 0.6, 0.1, 0, 1)
    assert (spared.go_on, spared.reason) == (True, "one of the first 2 trials")
    assert not bracket.decide("c", 0.6, 0.2, 0, 1).go_on
    bracket.rename("b", "again")
    resumed = AshaBracket.from_state(json.loads(json.dumps(bracket.state())))
    assert resumed.decide("again", 0.6, 0.1, 0, 3).go_on
    assert resumed.rungs[0].num_trials == 3


def test_a_spared_trial_is_never_stopped_and_its_reason_survives():
    bracket = AshaBracket(27, 1)
    for number in range(9):
        bracket.decide(f"good {number}", 0.5, 0.9, 0, 1)
    bracket.spare("long", "trains a recipe of the front for longer")
    again = AshaBracket.from_state(json.loads(json.dumps(bracket.state())))
    for one in (bracket, again):
        one.rename("long", "renamed")
        decision = one.decide("renamed", 0.9, 0.1, 0, 1)
        assert (decision.go_on, decision.reason) == (True, "trains a recipe of the front for longer")
        assert not one.decide("other", 0.9, 0.1, 0, 1).go_on
