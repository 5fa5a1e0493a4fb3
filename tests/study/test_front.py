"""Dominance, hypervolume and the answer to a budget, against values worked out by hand and by brute force."""

import itertools
import json
import time

import numpy as np
import pytest

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.study.front import Baseline, Front, FrontPoint
from raysearch.study.multi_objective import dominates, exclusive_hypervolume, hypervolume, nondomination_ranks

BASELINE = Baseline(num_params=1000, size_bytes=2000, scores={"qa": 0.8})


def point(size_ratio, retention, half_width=0.02, samples_seen=100, ratio=None):
    recipe = Recipe(mode="widthwise", ratio=ratio or round(1 - size_ratio, 4), criterion="taylor")
    return FrontPoint(
        key=recipe.key,
        recipe=recipe,
        num_params=int(1000 * size_ratio),
        size_bytes=int(2000 * size_ratio),
        size_ratio=size_ratio,
        retention=retention,
        retention_ci=(retention - half_width, retention + half_width),
        scores={"qa": 0.8 * retention},
        samples_seen=samples_seen,
    )


def ranks_by_brute_force(points):
    ranks, left, rank = np.full(len(points), -1), set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(tuple(points[j]), tuple(points[i])) for j in left)}
        ranks[list(front)] = rank
        left, rank = left - front, rank + 1
    return ranks


def test_equal_points_do_not_dominate_and_a_tie_in_one_column_is_decided_by_the_other():
    assert dominates((1, 2), (2, 3))
    assert dominates((1, 2), (1, 3))
    assert dominates((1, 2), (2, 2))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))
    assert not dominates((2, 2), (1, 2))
    assert dominates((-np.inf, 0), (0, np.inf))


def test_ranks_of_an_unsorted_chain():
    # Syne Tune's ranks fail on this very input: the third item is dominated, and came out best.
    assert nondomination_ranks(np.array([[3, 3], [1, 1], [2, 2]])).tolist() == [2, 0, 1]


def test_ranks_with_ties_duplicates_and_infinities():
    points = np.array([[1, 5], [2, 5], [1, 5], [1, 6], [np.inf, 0], [0, np.inf]])
    assert nondomination_ranks(points).tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_ranks_agree_with_brute_force(seed):
    points = np.random.default_rng(seed).integers(0, 6, (40, 2)).astype(float)
    assert nondomination_ranks(points).tolist() == ranks_by_brute_force(points).tolist()


def test_ranks_of_ten_thousand_points_take_a_moment():
    points = np.random.default_rng(0).random((10_000, 2))
    started = time.perf_counter()
    ranks = nondomination_ranks(points)
    assert ranks.max() > 50
    assert time.perf_counter() - started < 5  # quadratic peeling takes minutes


def test_ranks_refuse_nan_and_other_shapes():
    with pytest.raises(ValueError, match="NaN"):
        nondomination_ranks(np.array([[1, np.nan]]))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        nondomination_ranks(np.zeros((3, 3)))


def test_exclusive_hypervolume_by_hand():
    points = np.array([[2.0, 1.0], [1.0, 2.0], [0.0, 3.0]])
    # From the right: (4-2)*(2-1), (2-1)*(3-2), (1-0)*(4-3).
    assert exclusive_hypervolume(points, np.array([4.0, 4.0])).tolist() == [2, 1, 1]
    assert exclusive_hypervolume(np.array([[1.0, 1], [1, 1]]), np.array([2.0, 2])).tolist() == [0, 0]
    assert exclusive_hypervolume(np.zeros((0, 2)), np.array([1.0, 1])).tolist() == []


def test_exclusive_hypervolume_is_what_the_union_loses():
    generator = np.random.default_rng(3)
    points = generator.random((30, 2))
    points = points[nondomination_ranks(points) == 0]
    reference = np.array([1.0, 1.0])

    def union(chosen):
        return hypervolume(chosen[:, 0], 1 - chosen[:, 1]) if len(chosen) else 0.0

    expected = [union(points) - union(np.delete(points, i, axis=0)) for i in range(len(points))]
    assert exclusive_hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


def test_exclusive_hypervolume_refuses_points_beyond_the_reference():
    with pytest.raises(ValueError, match="beyond"):
        exclusive_hypervolume(np.array([[2.0, 1.0]]), np.array([1.0, 1.0]))


def test_hypervolume_is_the_mean_retention_over_budgets():
    assert hypervolume([0.5, 0.75], [0.5, 0.9]) == pytest.approx(0.25 * 0.5 + 0.25 * 0.9)
    assert hypervolume([], []) == 0
    assert hypervolume([0.5, 1.2], [1.3, 9]) == pytest.approx(0.5)  # above 1 counts as 1, too large as nothing
    assert hypervolume([0.4, 0.6], [-0.5, 0.5]) == pytest.approx(0.2)


def test_hypervolume_knows_no_order():
    sizes, kept = [0.3, 0.5, 0.5, 0.9], [0.2, 0.7, 0.6, 0.65]
    values = {
        round(hypervolume(*zip(*order, strict=True)), 12)
        for order in itertools.permutations(zip(sizes, kept, strict=True))
    }
    assert values == {round(0.2 * 0.2 + 0.5 * 0.7, 12)}


def test_front_is_sorted_and_none_is_dominated():
    points = [point(0.9, 0.98), point(0.5, 0.9), point(0.7, 0.85), point(0.4, 0.6), point(0.5, 0.9, ratio=0.51)]
    front = Front.build("s", "m", BASELINE, points, [Budget.parse("60%"), Budget.parse("30%")])
    assert [p.size_ratio for p in front.points] == [0.4, 0.5, 0.9]
    assert front.points[1].key == points[1].key  # of equals the first stays
    assert front.budgets == {"60%": points[1].key, "30%": None}
    assert front.hypervolume == pytest.approx(0.1 * 0.6 + 0.4 * 0.9 + 0.1 * 0.98)


def test_pick_takes_the_best_lower_bound():
    shaky, steady = point(0.55, 0.92, half_width=0.2), point(0.5, 0.9)
    front = Front.build("s", "m", BASELINE, [shaky, steady])
    assert front.pick(Budget.parse("60%")) == steady
    assert front.pick(Budget.parse("1100B")) == steady  # parameters
    assert front.pick(Budget.parse("0.5KB")) is None


def test_front_survives_its_file(tmp_path):
    front = Front.build("s", "m", BASELINE, [point(0.5, 0.9)], [Budget.parse("60%")])
    front.save(tmp_path)
    assert Front.load(tmp_path) == front
    content = json.loads((tmp_path / "front.json").read_text())
    assert content["schema"] == 1
    assert set(content["points"][0]) >= {"key", "recipe", "size_ratio", "retention_ci", "checkpoint"}


def test_a_folder_without_a_front_and_a_broken_one_are_told(tmp_path):
    with pytest.raises(InputError, match="so this is no study"):
        Front.load(tmp_path)
    for text in ("", "{", "[]", '{"schema": 1}', "null"):
        (tmp_path / "front.json").write_text(text)
        with pytest.raises(InputError, match=r"front\.json: not a front"):
            Front.load(tmp_path)
