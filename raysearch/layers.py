"""Non-domination layers of a growing set of points, kept up to date by insertion."""

import bisect
from collections.abc import Iterable

Point = tuple[float, float]


class Layers:
    """Points of two minimised coordinates, peeled into layers; equal points share a layer.

    Layer 0 holds the points that no point dominates, layer 1 those that layer 0 alone dominates, and so on. Each layer
    is a list sorted by the first coordinate, hence falling in the second. Finding a point's place costs
    O(log n log L) for L layers; adding it moves, layer by layer, one slice of the points that it dominates.
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._layers: list[list[Point]] = []
        for point in points:
            self.add(point)

    def place(self, point: Point) -> int:
        """Index of the layer that `point` would be in; the number of layers if it needs a new one."""
        low, high = 0, len(self._layers)
        while low < high:
            middle = (low + high) // 2
            if _is_dominated(point, self._layers[middle]):
                low = middle + 1
            else:
                high = middle
        return low

    def num_better(self, layer: int) -> int:
        """How many points the layers before `layer` hold."""
        return sum(map(len, self._layers[:layer]))

    def company(self, point: Point, layer: int) -> list[Point]:
        """The points that would share `layer` with `point`: its present ones but those that `point` dominates."""
        if layer == len(self._layers):
            return []
        members = self._layers[layer]
        start, end = _dominated_slice(members, [point])
        return members[:start] + members[end:]

    def add(self, point: Point) -> None:
        """Insert a point; what it pushes out of its layer pushes on in the next."""
        layer, moving = self.place(point), [point]
        while moving:
            if layer == len(self._layers):
                self._layers.append(moving)
                return
            members = self._layers[layer]
            start, end = _dominated_slice(members, moving)
            displaced = members[start:end]
            if len(displaced) == len(members):  # then every layer behind moves by one, too
                self._layers.insert(layer, moving)
                return
            members[start:end] = moving
            layer, moving = layer + 1, displaced

    def as_lists(self) -> list[list[Point]]:
        """The layers, best first, each sorted by the first coordinate."""
        return [list(layer) for layer in self._layers]


def _is_dominated(point: Point, layer: list[Point]) -> bool:
    at = bisect.bisect_right(layer, point) - 1
    return at >= 0 and layer[at] != point and layer[at][1] <= point[1]


def _dominated_slice(layer: list[Point], group: list[Point]) -> tuple[int, int]:
    """Bounds of the points of `layer` that a point of `group` dominates.

    `group` is a single point that `layer` doesn't dominate, or a slice pushed out of the layer before; for these the
    dominated points are adjacent.
    """
    start = bisect.bisect_right(layer, group[0])
    end = bisect.bisect_right(layer, -group[-1][1], lo=start, key=lambda member: -member[1])
    return start, max(start, end)
