"""Non-domination ranks of a growing set of (size, retention), kept up to date by insertion."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

from raysearch.study.multi_objective import dominates, nondomination_ranks

Point = tuple[float, float]
FEW = 64  # points that are always ranked


class NonDominatedRanks:
    """Points of (size, retention), size minimised and retention maximised, by non-domination rank.

    Rank 0 holds the points that no point dominates, rank 1 those that only points of rank 0 dominate, and so on; equal
    points share a rank. A rank is a pair of lists, sizes and retentions, both rising. Finding a point's rank costs
    O(log n log R) for R ranks; adding it moves, rank by rank, one slice of the points that it dominates.

    Args:
        points: the first ones, in any order.
        share: of the points that must be ranked, best first. Where sizes are few, there are as many ranks as points,
            and one that enters a good rank would move something in all worse ones; so the worst points stay unranked
            until the better ones are no longer enough.
    """

    def __init__(self, points: Iterable[Point] = (), share: float = 1.0) -> None:
        self._ranks: list[_Rank] = []
        self._nums: list[int] = []  # points in each rank
        # Each is dominated by a point of the last rank, as each of a rank is by one of the rank before.
        self._unranked = list(points)
        self._share, self._num_ranked = share, 0
        self._rank_enough()

    def rank_of(self, size: float, retention: float) -> int:
        """The rank that the point would have; the number of ranks there are if it would be in none of them."""
        low, high = 0, len(self._ranks)
        while low < high:
            middle = (low + high) // 2
            if self._ranks[middle].dominates(size, retention):
                low = middle + 1
            else:
                high = middle
        return low

    def num_better(self, rank: int) -> int:
        """How many points the ranks before `rank` hold."""
        return sum(self._nums[:rank])

    def num_with(self, size: float, retention: float, rank: int) -> int:
        """How many points `rank` holds with the point in it and those out of it that the point dominates."""
        if rank == len(self._ranks):
            return 1
        start, end = self._ranks[rank].dominated(size, retention, retention)
        return self._nums[rank] - (end - start) + 1

    def members_with(self, size: float, retention: float, rank: int) -> tuple[np.ndarray, int]:
        """The points that `num_with` counts.

        Returns:
            (n, 2) sizes and retentions, both rising, and the row of the point; it comes after its equals.
        """
        if rank == len(self._ranks):
            return np.array([[size, retention]]), 0
        members = self._ranks[rank]
        start, end = members.dominated(size, retention, retention)
        columns = [
            [*column[:start], own, *column[end:]]
            for column, own in ((members.sizes, size), (members.retentions, retention))
        ]
        return np.array(columns).T, start

    def add(self, size: float, retention: float) -> None:
        """Insert a point; the points that it pushes out of its rank push others out of the next."""
        rank = self.rank_of(size, retention)
        sizes, retentions = [size], [retention]
        self._num_ranked += 1
        while rank < len(self._ranks):
            members = self._ranks[rank]
            start, end = members.dominated(sizes[0], retentions[0], retentions[-1])
            if end - start == len(members.sizes):
                break  # then every worse rank moves by one, too
            members.sizes[start:end], sizes = sizes, members.sizes[start:end]
            members.retentions[start:end], retentions = retentions, members.retentions[start:end]
            self._nums[rank] = len(members.sizes)
            if not sizes:
                break
            rank += 1
        if sizes:
            self._ranks.insert(rank, _Rank(sizes, retentions))
            self._nums.insert(rank, len(sizes))
            if self._unranked and rank == len(self._ranks) - 1:
                self._drop_last()
        self._rank_enough()

    def as_lists(self) -> list[list[Point]]:
        """The points of each rank, best rank first, each as (size, retention) in rising order."""
        return [list(zip(rank.sizes, rank.retentions, strict=True)) for rank in self._ranks]

    def _rank_enough(self) -> None:
        """Rank all points when too few are ranked; drop the worst ranks when there are too many."""
        num = self._num_ranked + len(self._unranked)
        least = max(FEW, self._share * num + 1)
        if self._unranked and self._num_ranked < least:
            for rank in _ranked(self._unranked):
                self._ranks.append(rank)
                self._nums.append(len(rank.sizes))
            self._num_ranked, self._unranked = num, []
        if self._num_ranked > 2 * least:
            while self._num_ranked - self._nums[-1] >= 1.5 * least:
                self._drop_last()

    def _drop_last(self) -> None:
        last = self._ranks.pop()
        self._num_ranked -= self._nums.pop()
        self._unranked += zip(last.sizes, last.retentions, strict=True)


def _ranked(points: Sequence[Point]) -> list["_Rank"]:
    ordered = sorted(points)
    at = nondomination_ranks(np.array(ordered) * [1, -1])
    ranks = [_Rank([], []) for _ in range(int(at.max()) + 1)]
    for (size, retention), rank in zip(ordered, at.tolist(), strict=True):
        ranks[rank].sizes.append(size)
        ranks[rank].retentions.append(retention)
    return ranks


class _Rank:
    def __init__(self, sizes: list[float], retentions: list[float]) -> None:
        self.sizes, self.retentions = sizes, retentions

    def dominates(self, size: float, retention: float) -> bool:
        """Whether any point here dominates another: only the best of those that are no larger can."""
        at = bisect_right(self.sizes, size) - 1
        return at >= 0 and dominates((self.sizes[at], -self.retentions[at]), (size, -retention))

    def dominated(self, size: float, retention: float, last_retention: float) -> tuple[int, int]:
        """Bounds of the points that a group dominates, given its first point and the retention of its last.

        The group is one point that no point here dominates, or a slice pushed out of the rank before; for these the
        dominated points are adjacent.
        """
        start = bisect_left(self.sizes, size)
        if start < len(self.sizes) and (self.sizes[start], self.retentions[start]) == (size, retention):
            start = bisect_right(self.sizes, size)  # after its equals
        return start, max(start, bisect_right(self.retentions, last_retention))
