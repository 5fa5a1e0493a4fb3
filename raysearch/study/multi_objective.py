"""Non-domination and hypervolume of (size, quality) points."""

import bisect
from collections.abc import Sequence

import numpy as np


def nondomination_layers(points: np.ndarray) -> np.ndarray:
    """Peel a set of points into layers, in O(n log n).

    Args:
        points: (n, 2), both columns minimised, in any order; infinities are allowed.

    Returns:
        (n,) integers, one per row of `points`: 0 for rows that no row dominates, 1 for rows dominated by layer 0
        alone, and so on. Equal rows share a layer.

    Raises:
        ValueError: `points` is not (n, 2) or holds a NaN.
    """
    points = _checked(points)
    order = np.lexsort((points[:, 1], points[:, 0]))  # by the first column, then the second
    layers = [0] * len(points)
    lowest: list[float] = []  # per layer, the smallest second column so far; increasing from layer to layer
    previous, layer = None, 0
    for row, point in zip(order.tolist(), points[order].tolist(), strict=True):
        if point != previous:
            layer = bisect.bisect_right(lowest, point[1])
            lowest[layer : layer + 1] = [point[1]]
        layers[row], previous = layer, point
    return np.array(layers, int)


def exclusive_hypervolume(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Area that each point alone adds to the dominated region of a 2-D front.

    Args:
        points: (n, 2), both columns minimised, mutually non-dominated, in any order.
        reference: (2,), weakly worse than every point in both columns.

    Returns:
        (n,), one value per row of `points`, >= 0; 0 for duplicates.

    Raises:
        ValueError: `points` is not (n, 2), or a point lies beyond `reference`.
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
