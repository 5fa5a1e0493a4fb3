"""Dominance and hypervolume of points with two columns, both minimised: size, and quality with its sign flipped.

One rule for ties everywhere: a point dominates another that it equals in one column if it is lower in the other; equal
points don't dominate each other, and share a rank.
"""

import bisect
from collections.abc import Sequence

import numpy as np


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether `a` is at most `b` in both columns, and below it in one."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def nondomination_ranks(points: np.ndarray) -> np.ndarray:
    """Rank a set of points by non-domination, in O(n log n).

    Args:
        points: (n, 2), both columns minimised, in any order; infinities are allowed.

    Returns:
        (n,) integers, one per row of `points`: 0 for rows that no row dominates, 1 for rows that only rows of rank 0
        dominate, and so on. Equal rows share a rank.

    Raises:
        ValueError: `points` is not (n, 2) or holds a NaN.
    """
    points = _checked(points)
    order = np.lexsort((points[:, 1], points[:, 0]))  # by the first column, then the second
    ranks = [0] * len(points)
    lowest: list[float] = []  # per rank, the smallest second column so far; increasing from rank to rank
    previous, rank = None, 0
    for row, point in zip(order.tolist(), points[order].tolist(), strict=True):
        if point != previous:
            rank = bisect.bisect_right(lowest, point[1])
            lowest[rank : rank + 1] = [point[1]]
        ranks[row], previous = rank, point
    return np.array(ranks, int)


def exclusive_hypervolume(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Area that each point alone adds to the dominated region of a 2-D front.

    Args:
        points: (n, 2), both columns minimised, mutually non-dominated, in any order.
        reference: (2,), weakly worse than every point in both columns.

    Returns:
        (n,), one value per row of `points`, >= 0; 0 for duplicates.

    Raises:
        ValueError: `points` is not (n, 2) or holds a NaN, or a point lies beyond `reference`.
    """
    points, reference = _checked(points), np.asarray(reference, float)
    if (points > reference).any():
        raise ValueError(f"a point lies beyond the reference {reference.tolist()}")
    if not len(points):
        return np.zeros(0)
    order = np.lexsort((points[:, 1], points[:, 0]))
    first, second = points[order].T
    right = np.append(first[1:], reference[0])
    above = np.insert(second[:-1], 0, reference[1])
    area = np.empty(len(points))
    area[order] = (right - first) * (above - second)
    return area


def hypervolume(sizes: Sequence[float] | np.ndarray, retentions: Sequence[float] | np.ndarray) -> float:
    """Area under the front over size ratios 0 to 1: the mean over all budgets of the best retention that fits.

    Args:
        sizes: (n,) sizes as shares of the dense model's; those above 1 never fit.
        retentions: (n,), counted from 0 to 1; the reference point is (1, 0).

    Returns:
        A number from 0 to 1; 0 for an empty set.
    """
    sizes, values = np.asarray(sizes, float), np.clip(np.asarray(retentions, float), 0, 1)
    order = np.argsort(sizes, kind="stable")
    sizes, values = np.append(np.clip(sizes[order], 0, 1), 1.0), values[order]
    return float(np.sum(np.diff(sizes) * np.maximum.accumulate(values))) if len(values) else 0.0


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] != 2 or np.isnan(points).any():
        raise ValueError(f"points must be (n, 2) numbers without NaN, not {points.shape}")
    return points
