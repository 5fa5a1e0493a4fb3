"""The coordinator: an actor with the commands to slots, their replies, and what all slots share."""

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import ActorDiedError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raysearch.backend.cluster import ON_HEAD
from raysearch.backend.messages import Command, Reply
from raysearch.logging import logger
from raysearch.searching.judged_shapes import JudgedShape
from raysearch.study.multi_objective import dominates
from raysearch.study.status import Stage

SECONDS_TO_ANSWER = 1.0
WAITING_FOR_ROOM = "waiting for room"
P = ParamSpec("P")
T = TypeVar("T")


class Coordinator:
    """Passes commands and replies on, shares out what is measured once per study, and knows the front so far."""

    def __init__(self, log_level: int = logging.WARNING) -> None:
        self._log_level = log_level
        self._changed = asyncio.Condition()
        self._commands: dict[str, list[Command]] = defaultdict(list)
        self._replies: dict[str, list[Reply | None]] = defaultdict(list)
        self._workers: dict[str, list[tuple[Any, str]]] = defaultdict(list)
        self._num_heartbeats: dict[str, int] = defaultdict(int)
        self._owners: dict[str, Any] = {}
        self._groups: dict[str, PlacementGroup] = {}
        self._stages: dict[str, Stage] = {}
        self._ready: set[str] = set()
        self._measuring: dict[str, str] = {}
        self._parts: dict[str, bytes] = {}
        self._refusal: bytes | None = None
        self._dense_scores: dict[str, float] | None = None
        self._layer_importance: dict[str, list[float]] = {}
        self._shapes: list[JudgedShape] | None = None
        self._front: list[tuple[float, float]] = []
        self._unscored: list[str] | None = None
        self.log_lines: list[tuple[int, str]] = []
        """Level and message of what workers have logged, each once."""

    async def begin(self, slot: str, owner: Any) -> None:
        """A slot begins, which the actor `owner`, if any, commands.

        What the slots of dead owners held is given back: Ray Train does so by itself only where Ray's dashboard runs.
        """
        others = list(self._owners)
        are_dead = await asyncio.gather(*(_is_dead(self._owners[other]) for other in others))
        for other in itertools.compress(others, are_dead):
            group = self._groups.get(other)
            if group is not None:
                remove_placement_group(group)
            await self.forget(other)
        if owner is not None:
            self._owners[slot] = owner
        self._stages[slot] = Stage(state=WAITING_FOR_ROOM)

    async def send(self, slot: str, command: Command) -> None:
        """Queue a command for a slot."""
        async with self._changed:
            self._commands[slot].append(command)
            self._changed.notify_all()

    async def command(self, slot: str, index: int) -> Command:
        """The slot's command number `index`, from 0; waits for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._commands[slot]) > index)
            return self._commands[slot][index]

    async def reply(self, slot: str, reply: Reply) -> None:
        """Queue a slot's reply."""
        async with self._changed:
            self._replies[slot].append(reply)
            self._changed.notify_all()

    async def reply_to(self, slot: str, index: int) -> Reply:
        """The slot's reply number `index`, from 0; waits for it. Each is given once: a slot may live for thousands."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._replies[slot]) > index)
            reply, self._replies[slot][index] = self._replies[slot][index], None
            assert reply is not None, (slot, index)
            return reply

    async def join(self, slot: str, worker: Any, node: str, group: PlacementGroup | None) -> None:
        """A slot's worker begins: its actor, the id of its node, and the placement group of the slot."""
        self._workers[slot].append((worker, node))
        if group is not None:
            self._groups[slot] = group
        self._stages[slot] = Stage(state="joining", reason=f"{len(self._workers[slot])} workers are there")

    async def enter(self, slot: str, state: str, reason: str = "") -> None:
        """The slot does something else from now on."""
        if slot in self._stages:
            self._stages[slot] = Stage(state=state, reason=reason)

    async def groups(self) -> list[str]:
        """Ids of the placement groups of slots whose workers have joined."""
        return [group.id.hex() for group in self._groups.values()]

    async def ready(self, slot: str) -> None:
        """The slot has loaded all, and takes recipes."""
        self._ready.add(slot)
        await self.enter(slot, "waiting for a recipe")

    async def is_ready(self, slot: str) -> bool:
        """Whether the slot has ever been ready."""
        return slot in self._ready

    async def stages(self) -> list[Stage]:
        """What the slots do, in the order of their beginning."""
        return list(self._stages.values())

    async def workers(self, slot: str) -> list[tuple[Any, str]]:
        """The workers of a slot, and the ids of their nodes."""
        return self._workers[slot]

    async def heartbeat(self, slot: str) -> None:
        """The slot's training has advanced."""
        self._num_heartbeats[slot] += 1

    async def num_heartbeats(self, slot: str) -> int:
        """Heartbeats of a slot so far."""
        return self._num_heartbeats[slot]

    async def log_level(self) -> int:
        """The level from which workers log, that of the driver."""
        return self._log_level

    async def log(self, level: int, message: str) -> None:
        """Pass a worker's message on to the driver; one that several workers log, once."""
        async with self._changed:
            if (level, message) not in self.log_lines:
                self.log_lines.append((level, message))
                self._changed.notify_all()

    async def logged(self, index: int) -> tuple[int, str]:
        """Level and message of line number `index`, from 0; waits for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.log_lines) > index)
            return self.log_lines[index]

    async def next_part(self, slot: str, names: Sequence[str]) -> str | None:
        """Which of the parts that are measured once per study this slot shall measure and `publish`; waits while others
        measure the last of them.

        Returns:
            None once all are there, or the study is refused.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_prepared(names) or self._free_parts(names))
            if self._is_prepared(names):
                return None
            name = self._free_parts(names)[0]
            self._measuring[name] = slot
            if slot in self._stages:
                await self.enter(slot, self._stages[slot].state, name)
            return name

    async def publish(self, name: str, part: bytes) -> None:
        """A part has been measured; pickled, since this process never loads torch."""
        async with self._changed:
            self._parts[name] = part
            self._measuring.pop(name, None)
            self._changed.notify_all()

    async def is_free(self, name: str) -> bool:
        """Whether a part has been neither measured nor begun."""
        return bool(self._free_parts([name]))

    async def give_up_part(self, slot: str, name: str) -> None:
        """The slot couldn't measure the part; another one may."""
        async with self._changed:
            if self._measuring.get(name) == slot:
                del self._measuring[name]
            self._changed.notify_all()

    async def refuse(self, error: bytes) -> None:
        """Let no trial of this study be run, by a pickled `InputError`."""
        async with self._changed:
            self._refusal = error
            self._changed.notify_all()

    async def prepared(self, names: Sequence[str]) -> tuple[bytes | None, dict[str, bytes]]:
        """Why the study is refused, if it is, and these parts, all of them if it isn't; waits for either."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_prepared(names))
            return self._refusal, {name: self._parts[name] for name in names if name in self._parts}

    def _free_parts(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self._parts and name not in self._measuring]

    def _is_prepared(self, names: Sequence[str]) -> bool:
        return self._parts.keys() >= set(names) or self._refusal is not None

    async def post_dense(self, scores: dict[str, float], layer_importance: dict[str, list[float]]) -> None:
        """What the driver wants to know of the dense model; every slot posts the same."""
        self._dense_scores, self._layer_importance = scores, layer_importance

    async def post_shapes(self, shapes: list[JudgedShape]) -> None:
        """The shapes that were judged before any was trained; every slot posts the same."""
        self._shapes = shapes

    async def shapes(self) -> list[JudgedShape] | None:
        """The judged shapes, of this process or an earlier one; None while there are none."""
        return self._shapes

    async def dense_scores(self) -> dict[str, float] | None:
        """Mean score per benchmark of the dense model on the search split, once it has been measured."""
        return self._dense_scores

    async def layer_importance(self) -> dict[str, list[float]]:
        """Importance of each decoder layer, by criterion."""
        return self._layer_importance

    async def forget(self, slot: str) -> None:
        """The slot is gone; what it was measuring, another one may."""
        self._ready.discard(slot)
        async with self._changed:
            known: dict[str, Any]
            slots = (
                self._commands,
                self._replies,
                self._workers,
                self._num_heartbeats,
                self._owners,
                self._groups,
                self._stages,
            )
            for known in slots:
                known.pop(slot, None)
            self._measuring = {name: busy for name, busy in self._measuring.items() if busy != slot}
            self._changed.notify_all()

    async def post_front(self, points: list[tuple[float, float]]) -> None:
        """The front so far, (size ratio, retention) each: what it dominates needs no checkpoint."""
        self._front = points

    async def is_dominated(self, size_ratio: float, retention: float) -> bool:
        """Whether a model on the front is no larger and better, or smaller and as good."""
        return any(dominates((size, -kept), (size_ratio, -retention)) for size, kept in self._front)

    async def post_unscored(self, keys: list[str]) -> None:
        """The search is over: the points of its front that have no score on held-out questions."""
        async with self._changed:
            self._unscored = keys
            self._changed.notify_all()

    async def next_unscored(self) -> str | None:
        """A point to be scored on held-out questions; waits for the end of the search. None once all are given out."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._unscored is not None)
            return self._unscored.pop(0) if self._unscored else None


class CoordinatorClient:
    """Calls the coordinator from another process: `client.call(Coordinator.send, slot, command)`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def submit(
        self, method: Callable[Concatenate[Coordinator, P], Awaitable[T]], *args: P.args, **named: P.kwargs
    ) -> "Future[T]":
        """Start a call and return its future."""
        return getattr(self._actor, method.__name__).remote(*args, **named).future()

    def call(self, method: Callable[Concatenate[Coordinator, P], Awaitable[T]], *args: P.args, **named: P.kwargs) -> T:
        """Call and wait for the answer.

        Raises:
            RayActorError: the coordinator has died.
        """
        return self.submit(method, *args, **named).result()

    def end(self) -> None:
        """End the coordinator, so that what waits for its answers fails."""
        ray.kill(self._actor)


async def _is_dead(actor: Any) -> bool:
    """Whether an actor's process has ended; one that is busy doesn't answer, and lives."""
    answer = actor.__ray_ready__.remote().as_future()
    done, _ = await asyncio.wait({answer}, timeout=SECONDS_TO_ANSWER)
    return bool(done) and isinstance(answer.exception(), ActorDiedError)


def start_coordinator() -> CoordinatorClient:
    """Start a study's coordinator: without a share of any CPU, on the head node, since other nodes may be lost."""
    remote = ray.remote(num_cpus=0, resources=ON_HEAD)(Coordinator)
    return CoordinatorClient(remote.remote(logger.getEffectiveLevel()))
