"""A Tune trial on a warm slot: Ray Train workers that outlive one recipe.

Starting a TorchTrainer per trial costs tens of seconds of processes and imports. A slot pays that once: its workers
load the dense model and the data, then take one recipe after another. Tune's trials are thin: they pass a command to
their slot and hand its reply to the scheduler. Commands and replies travel over one asynchronous actor, the board.
"""

import asyncio
import math
import os
import pickle
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raysearch.errors import InputError
from raysearch.front import FrontPoint
from raysearch.recipe import Recipe
from raysearch.space import SearchSpace
from raysearch.study import CHECKPOINTS, RUNNING

SECONDS_BETWEEN_LIFE_SIGNS = 5.0
MIN_PATIENCE_S, PATIENCE = 1800.0, 10.0  # without a sign of life; see space.Slots.timeout_s
MAX_FAILURES = 2  # of one recipe, for reasons of its own


class SlotDied(RuntimeError):
    """The workers of a slot are gone; their recipe may be taken up by another slot.

    Attributes:
        nodes: ids of the nodes they were on.
    """

    def __init__(self, message: str, nodes: Sequence[str]) -> None:
        super().__init__(message)
        self.nodes = nodes

    def with_node(self) -> bool:
        """Whether a node went with them: then it was no fault of their recipe."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return not alive.issuperset(self.nodes)


FAILED = {"done": True, "retention": math.nan, "samples_seen": 0}


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
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._replies[slot]) > index)
            return self._replies[slot][index]

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
    """The board of a study: an actor without a share of any CPU."""
    return ray.remote(num_cpus=0)(_Board).remote()


def post_front(board: Any, points: Sequence[FrontPoint]) -> None:
    """Tell the slots the front so far: what it dominates needs no checkpoint."""
    ray.get(board.post_front.remote([(point.size_ratio, point.retention) for point in points]))


class Slot:
    """One Ray Train run whose workers take recipes until it is closed."""

    def __init__(self, board: Any, space: SearchSpace, rungs: Sequence[int], folder: str) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        self.name = f"slot-{uuid.uuid4().hex[:8]}"
        self._board, self._num_replies, self._longest_s = board, 0, 0.0
        slots = space.slots
        self._timeout_s = slots.timeout_s
        resources = {"CPU": slots.cpus_per_worker} | (
            {"GPU": slots.gpus_per_worker} if slots.gpus_per_worker else {}
        )
        shared = {
            "board": board,
            "slot": self.name,
            "space": space.model_dump(mode="json"),
            "rungs": list(rungs),
            "teacher_folder": str(Path(folder) / "teacher"),
            "running": str(Path(folder) / RUNNING),
        }
        trainer = TorchTrainer(
            _serve,
            train_loop_config=shared,
            scaling_config=ScalingConfig(
                num_workers=slots.workers, resources_per_worker=resources, use_gpu=slots.gpus_per_worker > 0
            ),
            run_config=RunConfig(name=self.name, storage_path=str(Path(folder) / "slots")),
        )
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True, name=self.name)
        self._thread.start()

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its reply.

        Raises:
            SlotDied: the workers ended before they replied, or gave no sign of life for too long.
        """
        board = self._board
        ray.get(board.send.remote(self.name, command))
        waiting = board.reply_to.remote(self.name, self._num_replies)
        started = last_sign = time.monotonic()
        num_signs = 0
        while not ray.wait([waiting], timeout=SECONDS_BETWEEN_LIFE_SIGNS)[0]:
            if not self._thread.is_alive():
                raise self._died(f"its workers ended: {self._failure or 'no reason given'}")
            found, now = ray.get(board.signs.remote(self.name)), time.monotonic()
            if found != num_signs:
                num_signs, last_sign = found, now
            elif now - last_sign > self._patience_s:
                raise self._died(f"no sign of life for {now - last_sign:.0f} s")
        self._num_replies += 1
        self._longest_s = max(self._longest_s, time.monotonic() - started)
        return ray.get(waiting)

    @property
    def _patience_s(self) -> float:
        return self._timeout_s or max(MIN_PATIENCE_S, PATIENCE * self._longest_s)

    def _died(self, reason: str) -> SlotDied:
        """Make sure that the workers are gone."""
        workers = ray.get(self._board.workers.remote(self.name))
        for worker, _ in workers:
            ray.kill(worker)
        self._thread.join(60)
        ray.get(self._board.forget.remote(self.name))
        return SlotDied(f"{self.name}: {reason}", [node for _, node in workers])

    def close(self) -> None:
        """Let the workers end, and wait a little for it."""
        if self._thread.is_alive():
            ray.get(self._board.send.remote(self.name, {"do": "end"}))
            self._thread.join(20)
        ray.get(self._board.forget.remote(self.name))

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # a thread has nobody to raise to; `ask` tells
            self._failure = error


class RecipeTrial(tune.Trainable):
    """A Tune trial: one recipe, one result per rung. Its slot outlives it (`reuse_actors=True`)."""

    def setup(
        self, config: dict[str, Any], board: Any, space: dict[str, Any], rungs: list[int], folder: str
    ) -> None:
        self._board, self._rungs, self._folder = board, rungs, folder
        self._space = SearchSpace.model_validate(space)
        self._slot: Slot | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._recipe = Recipe(**new_config["recipe"])
        self._num_scores, self._started = 0, time.monotonic()
        self._num_asked = 0  # scores of this recipe that the slot has been asked for
        self._failures: list[str] = []
        self._deaths: list[SlotDied] = []
        return True

    def step(self) -> dict[str, Any]:
        """The recipe's next rung, and at the last one its checkpoint.

        A slot that dies is replaced, and the recipe goes on from its last rung: twice at most, nodes that were lost
        apart. So is a recipe that fails for a reason that may pass.
        """
        while True:
            try:
                reply = self._next_score()
            except SlotDied as death:
                self._slot, self._num_asked = None, 0
                self._deaths.append(death)
                reply = {"failed": str(death), "may_pass": True}
            if not reply.get("failed"):
                break
            own = [death for death in self._deaths if not death.with_node()]
            if not reply["may_pass"] or len(self._failures) + len(own) >= MAX_FAILURES:
                reply = {**FAILED, "failed": reply["failed"]}
                break
        self._num_scores += 1
        return {**reply, "seconds": time.monotonic() - self._started}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the slot keeps the recipe's state at its rungs."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load; see `save_checkpoint`."""

    def cleanup(self) -> None:
        if self._slot:
            self._slot.close()

    def _next_score(self) -> dict[str, Any]:
        """The next score from the slot; a new one hands out those before it again."""
        if self._slot is None:
            self._slot = Slot(self._board, self._space, self._rungs, self._folder)
        reply: dict[str, Any] = {}
        while self._num_asked <= self._num_scores and not reply.get("failed"):
            command = {"do": "next"} if self._num_asked else {"do": "run", "recipe": self._recipe.as_dict()}
            reply = self._slot.ask(command)
            self._num_asked += 1
        if not reply.get("failed") and reply["done"]:
            reply |= self._finish(reply)
        if reply.get("failed"):
            self._failures.append(reply["failed"])
            self._num_asked = 0
        return reply

    def _finish(self, last: dict[str, Any]) -> dict[str, Any]:
        """Keep the checkpoint of a model that the front doesn't dominate, and score it on held-out questions."""
        assert self._slot is not None
        if self._space.search.keep_scores:
            self._slot.ask({"do": "keep", "folder": os.path.join(self._folder, "scores")})
        dominated = ray.get(self._board.is_dominated.remote(last["size_ratio"], last["retention"]))
        if dominated:
            return {}
        folder = os.path.join(self._folder, CHECKPOINTS, self._recipe.key)
        return self._slot.ask({"do": "finish", "folder": folder})


def _serve(config: dict[str, Any]) -> None:
    """A worker's life: load once, then obey until told to end. All ranks obey; rank 0 replies."""
    from ray.train import get_context

    context = ray.get_runtime_context()
    ray.get(config["board"].join.remote(config["slot"], context.current_actor, context.get_node_id()))
    worker = _Worker(config, get_context().get_world_rank(), get_context().get_world_size())
    if worker.rank == 0:
        threading.Thread(target=worker.give_signs, daemon=True).start()
    index = 0
    while True:
        command = ray.get(config["board"].command.remote(config["slot"], index))
        index += 1
        if command["do"] == "end":
            return
        reply = worker.obey(command)
        if worker.rank == 0:
            ray.get(config["board"].reply.remote(config["slot"], reply))


class _Worker:
    def __init__(self, config: dict[str, Any], rank: int, num_workers: int) -> None:
        import torch

        from raysearch.recovery.loop import start_distributed
        from raysearch.trial import Workbench

        self.rank, self._num_workers, self._rungs = rank, num_workers, config["rungs"]
        self._running = Path(config["running"])
        self._sign = partial(config["board"].sign.remote, config["slot"])
        space = SearchSpace.model_validate(config["space"])
        torch.set_num_threads(max(1, int(space.slots.cpus_per_worker)))
        start_distributed()
        self._refusal: InputError | None = None
        self._trial: Any = None
        self._scores: Any = None
        board, slot, teacher_folder = config["board"], config["slot"], Path(config["teacher_folder"])
        known = ray.get(board.prepared.remote(slot)) if rank == 0 else None
        if rank == 0 and known is None:
            found = self._measure(space, teacher_folder)
            scores, layers = None, {}
            if not isinstance(found, InputError):
                scores = found.search.means()
                layers = {name: units.per_layer().tolist() for name, units in found.importances.items()}
            ray.get(board.publish.remote(pickle.dumps(found), scores, layers))
        else:
            found = pickle.loads(known or ray.get(board.prepared.remote(slot)))
            if isinstance(found, InputError):
                self._refusal = found
            else:
                self._bench = Workbench(space, found, teacher_folder)

    def _measure(self, space: SearchSpace, teacher_folder: Path) -> Any:
        """What all slots share; or the mistake that stands in the way of every trial."""
        from raysearch.trial import Workbench

        try:
            self._bench = Workbench(space, teacher_folder=teacher_folder)
        except InputError as error:
            self._refusal = error
            return error
        return self._bench.prepared

    def give_signs(self) -> None:
        """For ever: a sign of life whenever training has come on."""
        seen = None
        while True:
            time.sleep(SECONDS_BETWEEN_LIFE_SIGNS)
            now = self._trial.samples_seen if self._trial else None
            if now != seen:
                seen = now
                self._sign()

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do as told; what goes wrong with one recipe is a reply, not the end of the slot.

        Several workers go on together only after what goes wrong on all of them; else the slot must end.
        """
        if self._refusal:
            return {**self._failed(self._refusal), "refused": str(self._refusal)}
        try:
            if command["do"] == "finish":
                return self._finish(Path(command["folder"]))
            if command["do"] == "keep":
                return self._keep(Path(command["folder"]))
            if command["do"] == "run":
                self._start(Recipe(**command["recipe"]))
            return self._next()
        except Exception as error:  # the slot outlives any recipe; the reason goes into the trial's record
            if self._num_workers > 1 and not isinstance(error, FloatingPointError | InputError):
                raise
            return self._failed(error)

    def _start(self, recipe: Recipe) -> None:
        from raysearch.trial import Trial

        if self._trial:
            self._trial.close()
        self._trial = Trial(recipe, self._bench)
        self._scores = self._trial.scores(self._rungs, keep_in=self._running / recipe.key)

    def _next(self) -> dict[str, Any]:
        score = next(self._scores)
        size, dense = self._trial.size, self._bench.dense_size
        return {
            **score.model_dump(),
            "num_params": size.num_params,
            "size_bytes": size.size_bytes,
            "size_ratio": size.size_bytes / dense.size_bytes,
            "done": score.samples_seen >= self._trial.end,
        }

    def _finish(self, folder: Path) -> dict[str, Any]:
        heldout = self._trial.finish(folder)
        return {"checkpoint": f"{CHECKPOINTS}/{folder.name}", "heldout": heldout.model_dump()}

    def _keep(self, folder: Path) -> dict[str, Any]:
        from raysearch.retention import save_results

        results = self._trial.heldout_results()
        if self.rank == 0:
            save_results(folder / "dense.npz", self._bench.prepared.heldout)
            save_results(folder / f"{self._trial.recipe.key}.npz", results)
        return {}

    def _failed(self, error: Exception) -> dict[str, Any]:
        if self._trial:
            self._trial.close()
            self._trial = self._scores = None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"failed": reason, "may_pass": isinstance(error, OSError | RuntimeError | MemoryError)}
