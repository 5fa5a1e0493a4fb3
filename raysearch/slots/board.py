"""The board: commands to slots, their replies, and what all slots share."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray

from raysearch.front import FrontPoint
from raysearch.slots.cluster import ON_HEAD


class _Board:
    """Commands to slots, their replies, and what all slots share."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._commands: dict[str, list[Any]] = defaultdict(list)
        self._replies: dict[str, list[Any]] = defaultdict(list)
        self._workers: dict[str, list[tuple[Any, str]]] = defaultdict(list)
        self._signs: dict[str, int] = defaultdict(int)
        self._preparing: str | None = None
        self._prepared: bytes | None = None
        self._dense_scores: dict[str, float] | None = None
        self._layer_importance: dict[str, list[float]] = {}
        self._front: list[tuple[float, float]] = []

    async def send(self, slot: str, command: dict[str, Any]) -> None:
        async with self._changed:
            self._commands[slot].append(command)
            self._changed.notify_all()

    async def command(self, slot: str, index: int) -> dict[str, Any]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._commands[slot]) > index)
            return self._commands[slot][index]

    async def reply(self, slot: str, value: dict[str, Any]) -> None:
        async with self._changed:
            self._replies[slot].append(value)
            self._changed.notify_all()

    async def reply_to(self, slot: str, index: int) -> dict[str, Any]:
        """The slot's reply number `index`, which is handed out once: a slot may live for thousands."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._replies[slot]) > index)
            value, self._replies[slot][index] = self._replies[slot][index], None
            return value

    async def join(self, slot: str, worker: Any, node: str) -> None:
        """A slot's worker begins: its actor, and the id of its node."""
        self._workers[slot].append((worker, node))

    async def workers(self, slot: str) -> list[tuple[Any, str]]:
        return self._workers[slot]

    async def sign(self, slot: str) -> None:
        """The slot has come on."""
        self._signs[slot] += 1

    async def signs(self, slot: str) -> int:
        return self._signs[slot]

    async def prepared(self, slot: str) -> bytes | None:
        """What is measured once per study, pickled (this process never loads torch).

        None for the one slot that shall measure and `publish` it; the others wait for that.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._prepared is not None or self._preparing is None)
            if self._prepared is None:
                self._preparing = slot
            return self._prepared

    async def publish(
        self,
        prepared: bytes,
        dense_scores: dict[str, float] | None,
        layer_importance: dict[str, list[float]],
    ) -> None:
        async with self._changed:
            self._prepared, self._dense_scores = prepared, dense_scores
            self._layer_importance = layer_importance
            self._changed.notify_all()

    async def dense_scores(self) -> dict[str, float] | None:
        """Mean score per benchmark of the dense model on the search split, once it has been measured."""
        return self._dense_scores

    async def layer_importance(self) -> dict[str, list[float]]:
        """What each decoder layer is worth, by criterion."""
        return self._layer_importance

    async def forget(self, slot: str) -> None:
        """The slot is gone; if it was preparing, another one may."""
        async with self._changed:
            for known in (self._commands, self._replies, self._workers, self._signs):
                known.pop(slot, None)  # type: ignore[attr-defined]
            if self._preparing == slot and self._prepared is None:
                self._preparing = None
            self._changed.notify_all()

    async def post_front(self, points: list[tuple[float, float]]) -> None:
        self._front = points

    async def is_dominated(self, size_ratio: float, retention: float) -> bool:
        """Whether a model on the front is no larger and better, or smaller and as good."""
        return any(
            size <= size_ratio and kept >= retention and (size, kept) != (size_ratio, retention)
            for size, kept in self._front
        )


def start_board() -> Any:
    """The board of a study: an actor without a share of any CPU, on the head node, since a node that works may be
    lost."""
    return ray.remote(num_cpus=0, resources=ON_HEAD)(_Board).remote()


def post_front(board: Any, points: Sequence[FrontPoint]) -> None:
    """Tell the slots the front so far: what it dominates needs no checkpoint."""
    ray.get(board.post_front.remote([(point.size_ratio, point.retention) for point in points]))
