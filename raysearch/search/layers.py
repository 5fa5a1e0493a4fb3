"""Non-domination layers of a growing set of (size, retention), kept up to date by insertion."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import numpy as np

Point = tuple[float, float]


class Layers:
    """Points of (size, retention), size minimised and retention maximised, peeled into layers; equals share one.

    Layer 0 holds the points that no point dominates, layer 1 those that layer 0 alone dominates, and so on. A layer
    is a pair of arrays, sizes and retentions, both rising. Finding a point's place costs O(log n log L) for L
    layers; adding it moves, layer by layer, one slice of the points that it dominates.
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._layers: list[_Layer] = []
        self._nums: list[int] = []  # points in each layer
        for size, retention in points:
            self.add(size, retention)

    def __len__(self) -> int:
        return len(self._layers)

    def place(self, size: float, retention: float) -> int:
        """Index of the layer that the point would be in; the number of layers if it needs a new one."""
        low, high = 0, len(self._layers)
        while low < high:
            middle = (low + high) // 2
            if self._layers[middle].dominates(size, retention):
                low = middle + 1
            else:
                high = middle
        return low

    def num_better(self, layer: int) -> int:
        """How many points the layers before `layer` hold."""
        return sum(self._nums[:layer])

    def num_company(self, size: float, retention: float, layer: int) -> int:
        """How many points `layer` holds with the point in it and those out of it that the point dominates."""
        if layer == len(self._layers):
            return 1
        start, end = self._layers[layer].dominated(size, retention, retention)
        return self._nums[layer] - (end - start) + 1

    def company(self, size: float, retention: float, layer: int) -> tuple[np.ndarray, int]:
        """The points that `num_company` counts.

        Returns:
            (n, 2) sizes and retentions, both rising, and the row of the point; it comes after its equals.
        """
        if layer == len(self._layers):
            return np.array([[size, retention]]), 0
        members = self._layers[layer]
        start, end = members.dominated(size, retention, retention)
        columns = []
        for column, own in ((members.sizes, size), (members.retentions, retention)):
            values = np.frombuffer(column)  # a view: it must be gone before the layer grows
            columns.append(np.concatenate([values[:start], [own], values[end:]]))
            del values
        return np.stack(columns, 1), start

    def add(self, size: float, retention: float) -> None:
        """Insert a point; what it pushes out of its layer pushes on in the next."""
        layer = self.place(size, retention)
        moving = _Layer(array("d", [size]), array("d", [retention]))
        while moving.sizes:
            if layer == len(self._layers):
                self._layers.append(moving)
                self._nums.append(len(moving.sizes))
                return
            members = self._layers[layer]
            start, end = members.dominated(moving.sizes[0], moving.retentions[0], moving.retentions[-1])
            if end - start == len(members.sizes):  # then every layer behind moves by one, too
                self._layers.insert(layer, moving)
                self._nums.insert(layer, len(moving.sizes))
                return
            moving = members.replace(start, end, moving)
            self._nums[layer] = len(members.sizes)
            layer += 1

    def as_lists(self) -> list[list[Point]]:
        """The layers, best first, each as (size, retention) in rising order."""
        return [list(zip(layer.sizes, layer.retentions, strict=True)) for layer in self._layers]


class _Layer:
    def __init__(self, sizes: "array[float]", retentions: "array[float]") -> None:
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

    def replace(self, start: int, end: int, group: "_Layer") -> "_Layer":
        displaced = _Layer(self.sizes[start:end], self.retentions[start:end])
        self.sizes[start:end], self.retentions[start:end] = group.sizes, group.retentions
        return displaced
