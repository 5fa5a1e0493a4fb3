"""A Tune trial on a warm slot: Ray Train workers that outlive one recipe.

Starting a TorchTrainer per trial costs tens of seconds of processes and imports. A slot pays that once: its workers
load the dense model and the data, then take one recipe after another. Tune's trials are thin: they pass a command to
their slot and hand its reply to the scheduler. Commands and replies travel over one asynchronous actor, the board.
"""

import asyncio
import os
import pickle
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raysearch.errors import InputError
from raysearch.front import FrontPoint
from raysearch.recipe import Recipe
from raysearch.space import SearchSpace

SECONDS_BETWEEN_LIFE_SIGNS = 5.0


class SlotDied(RuntimeError):
    """The workers of a slot are gone; their recipe may be taken up by another slot."""


class _Board:
    """Commands to slots, their replies, and what all slots share."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._commands: dict[str, list[Any]] = defaultdict(list)
        self._replies: dict[str, list[Any]] = defaultdict(list)
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
            self._commands.pop(slot, None)
            self._replies.pop(slot, None)
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
        self._board, self._num_replies = board, 0
        slots = space.slots
        resources = {"CPU": slots.cpus_per_worker} | (
            {"GPU": slots.gpus_per_worker} if slots.gpus_per_worker else {}
        )
        shared = {
            "board": board,
            "slot": self.name,
            "space": space.model_dump(mode="json"),
            "rungs": list(rungs),
            "teacher_folder": str(Path(folder) / "teacher"),
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
            SlotDied: the workers ended before they replied.
        """
        ray.get(self._board.send.remote(self.name, command))
        waiting = self._board.reply_to.remote(self.name, self._num_replies)
        while not ray.wait([waiting], timeout=SECONDS_BETWEEN_LIFE_SIGNS)[0]:
            if not self._thread.is_alive():
                ray.get(self._board.forget.remote(self.name))
                raise SlotDied(f"{self.name}: its workers ended: {self._failure or 'no reason given'}")
        self._num_replies += 1
        return ray.get(waiting)

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
        return True

    def step(self) -> dict[str, Any]:
        """The recipe's next rung; a slot that dies is replaced once, and the recipe taken up from its start."""
        try:
            reply = self._next_score()
        except SlotDied:
            self._slot = None
            reply = self._next_score(replay=True)
        self._num_scores += 1
        if reply["done"] and not reply.get("failed"):
            reply |= self._finish(reply)
        return {**reply, "seconds": time.monotonic() - self._started}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a recipe is deterministic and is taken up from its start."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load; see `save_checkpoint`."""

    def cleanup(self) -> None:
        if self._slot:
            self._slot.close()

    def _next_score(self, replay: bool = False) -> dict[str, Any]:
        if self._slot is None:
            self._slot = Slot(self._board, self._space, self._rungs, self._folder)
        first = {"do": "run", "recipe": self._recipe.as_dict()}
        if self._num_scores == 0:
            return self._slot.ask(first)
        if replay:
            self._slot.ask(first)
            for _ in range(1, self._num_scores):
                self._slot.ask({"do": "next"})
        return self._slot.ask({"do": "next"})

    def _finish(self, last: dict[str, Any]) -> dict[str, Any]:
        """Keep the checkpoint of a model that the front doesn't dominate, and score it on held-out questions."""
        assert self._slot is not None
        if self._space.search.keep_scores:
            self._slot.ask({"do": "keep", "folder": os.path.join(self._folder, "scores")})
        dominated = ray.get(self._board.is_dominated.remote(last["size_ratio"], last["retention"]))
        if dominated:
            return {}
        folder = os.path.join(self._folder, "checkpoints", self._recipe.key)
        return self._slot.ask({"do": "finish", "folder": folder})


def _serve(config: dict[str, Any]) -> None:
    """A worker's life: load once, then obey until told to end. All ranks obey; rank 0 replies."""
    from ray.train import get_context

    worker = _Worker(config, get_context().get_world_rank())
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
    def __init__(self, config: dict[str, Any], rank: int) -> None:
        import torch

        from raysearch.recovery.loop import start_distributed
        from raysearch.trial import Workbench

        self.rank, self._rungs = rank, config["rungs"]
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

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do as told; what goes wrong with one recipe is a reply, not the end of the slot."""
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
            return self._failed(error)

    def _start(self, recipe: Recipe) -> None:
        from raysearch.trial import Trial

        if self._trial:
            self._trial.close()
        self._trial = Trial(recipe, self._bench)
        self._scores = self._trial.scores(self._rungs)

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
        return {"checkpoint": f"checkpoints/{folder.name}", "heldout": heldout.model_dump()}

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
        return {"failed": reason, "done": True, "retention": float("nan"), "samples_seen": 0}
