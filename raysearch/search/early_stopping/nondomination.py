"""Non-domination layers of a growing set of (size, retention), kept up to date by insertion."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

from raysearch.study.multi_objective import nondomination_layers

Point = tuple[float, float]
FEW = 64  # points that are always told apart


class NonDominatedRanks:
    """Points of (size, retention), size minimised and retention maximised, peeled into layers; equals share one.

    Layer 0 holds the points that no point dominates, layer 1 those that layer 0 alone dominates, and so on. A layer
    is a pair of lists, sizes and retentions, both rising. Finding a point's place costs O(log n log L) for L
    layers; adding it moves, layer by layer, one slice of the points that it dominates.

    Args:
        points: the first ones, in any order.
        share: of the points that must be told apart, best layers first. Where sizes are few, there are as many layers
            as points, and one that comes into a good layer would move something in all of those behind it; so the
            points behind lie unsorted until the better ones are no longer enough.
    """

    def __init__(self, points: Iterable[Point] = (), share: float = 1.0) -> None:
        self._layers: list[_Layer] = []
        self._nums: list[int] = []  # points in each layer
        # Unsorted; each is dominated by a point of the last layer, as each of a layer is by one of the layer before.
        self._behind = list(points)
        self._share, self._num_sorted = share, 0
        self._keep_enough()

    def place(self, size: float, retention: float) -> int:
        """Index of the layer that the point would be in; the number of sorted layers if it is in none of them."""
        low, high = 0, len(self._layers)
        while low < high:
            middle = (low + high) // 2
            if self._layers[middle].dominates(size, retention):
                low = middle + 1
            else:
                high = middle
        return low

    def num_better(self, layer: int) -> int:
        """How many points the sorted layers before `layer` hold."""
        return sum(self._nums[:layer])

    def layer_size(self, size: float, retention: float, layer: int) -> int:
        """How many points `layer` holds with the point in it and those out of it that the point dominates."""
        if layer == len(self._layers):
            return 1
        start, end = self._layers[layer].dominated(size, retention, retention)
        return self._nums[layer] - (end - start) + 1

    def company(self, size: float, retention: float, layer: int) -> tuple[np.ndarray, int]:
        """The points that `layer_size` counts.

        Returns:
            (n, 2) sizes and retentions, both rising, and the row of the point; it comes after its equals.
        """
        if layer == len(self._layers):
            return np.array([[size, retention]]), 0
        members = self._layers[layer]
        start, end = members.dominated(size, retention, retention)
        columns = [
            [*column[:start], own, *column[end:]]
            for column, own in ((members.sizes, size), (members.retentions, retention))
        ]
        return np.array(columns).T, start

    def add(self, size: float, retention: float) -> None:
        """Insert a point; what it pushes out of its layer pushes on in the next."""
        layer = self.place(size, retention)
        sizes, retentions = [size], [retention]
        self._num_sorted += 1
        while layer < len(self._layers):
            members = self._layers[layer]
            start, end = members.dominated(sizes[0], retentions[0], retentions[-1])
            if end - start == len(members.sizes):
                break  # then every layer behind moves by one, too
            members.sizes[start:end], sizes = sizes, members.sizes[start:end]
            members.retentions[start:end], retentions = retentions, members.retentions[start:end]
            self._nums[layer] = len(members.sizes)
            if not sizes:
                break
            layer += 1
        if sizes:
            self._layers.insert(layer, _Layer(sizes, retentions))
            self._nums.insert(layer, len(sizes))
            if self._behind and layer == len(self._layers) - 1:
                self._put_last_behind()
        self._keep_enough()

    def as_lists(self) -> list[list[Point]]:
        """The sorted layers, best first, each as (size, retention) in rising order."""
        return [list(zip(layer.sizes, layer.retentions, strict=True)) for layer in self._layers]

    def _keep_enough(self) -> None:
        """Sort points from behind in when too few are told apart, and put layers behind when there are too many."""
        num = self._num_sorted + len(self._behind)
        least = max(FEW, self._share * num + 1)
        if self._behind and self._num_sorted < least:
            for layer in _peeled(self._behind):
                self._layers.append(layer)
                self._nums.append(len(layer.sizes))
            self._num_sorted, self._behind = num, []
        if self._num_sorted > 2 * least:
            while self._num_sorted - self._nums[-1] >= 1.5 * least:
                self._put_last_behind()

    def _put_last_behind(self) -> None:
        last = self._layers.pop()
        self._num_sorted -= self._nums.pop()
        self._behind += zip(last.sizes, last.retentions, strict=True)


def _peeled(points: Sequence[Point]) -> list["_Layer"]:
    ordered = sorted(points)
    at = nondomination_layers(np.array(ordered) * [1, -1])
    layers = [_Layer([], []) for _ in range(int(at.max()) + 1)]
    for (size, retention), number in zip(ordered, at.tolist(), strict=True):
        layers[number].sizes.append(size)
        layers[number].retentions.append(retention)
    return layers


class _Layer:
    def __init__(self, sizes: list[float], retentions: list[float]) -> None:
        self.sizes, self.retentions = sizes, retentions

    def dominates(self, size: float, retention: float) -> bool:
        at = bisect_right(self.sizes, size) - 1
        if at < 0 or self.retentions[at] < retention:
            return False
        return (self.sizes[at], self.retentions[at]) != (size, retention)

    def dominated(self, size: float, retention: float, last_retention: float) -> tuple[int, int]:
        """Bounds of the points that a group dominates, given its first point and the retention of its last.

        The group is one point that the layer doesn't dominate, or a slice pushed out of the layer before; for these the
        dominated points are adjacent.
        """
        start = bisect_left(self.sizes, size)
        if start < len(self.sizes) and (self.sizes[start], self.retentions[start]) == (size, retention):
            start = bisect_right(self.sizes, size)  # behind its equals
        return start, max(start, bisect_right(self.retentions, last_retention))
