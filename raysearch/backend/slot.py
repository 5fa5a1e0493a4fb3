"""A slot as its trial sees it: ask, and be answered."""

import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from raysearch.backend.node_check import versions
from raysearch.backend.worker import SECONDS_BETWEEN_LIFE_SIGNS, serve
from raysearch.config.space import SearchSpace
from raysearch.files import is_storage_problem
from raysearch.study.folder import RUNNING, TEACHER

MIN_PATIENCE_S, PATIENCE = 1800.0, 10.0  # without a sign of life; see settings.Slots.timeout_s


class SlotDied(RuntimeError):
    """The workers of a slot are gone; their recipe may be taken up by another slot.

    Attributes:
        nodes: ids of the nodes they were on.
        storage: whether a full disk or lost storage has ended them.
    """

    def __init__(self, message: str, nodes: Sequence[str], storage: bool = False) -> None:
        super().__init__(message)
        self.nodes, self.storage = nodes, storage

    def node_lost(self) -> bool:
        """Whether a node went with them: then it was no fault of their recipe."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return not alive.issuperset(self.nodes)


class Slot:
    """One Ray Train run whose workers take recipes until it is closed."""

    def __init__(self, board: Any, space: SearchSpace, rungs: Sequence[int], folder: str) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        self.name = f"slot-{uuid.uuid4().hex[:8]}"
        self._board, self._num_replies, self._longest_s = board, 0, 0.0
        ray.get(board.begin.remote(self.name, ray.get_runtime_context().current_actor))
        slots = space.slots
        self._timeout_s = slots.timeout_s
        resources = {"CPU": slots.cpus_per_worker} | ({"GPU": slots.gpus_per_worker} if slots.gpus_per_worker else {})
        shared = {
            "board": board,
            "slot": self.name,
            "space": space.model_dump(mode="json"),
            "rungs": list(rungs),
            "teacher_folder": str(Path(folder) / TEACHER),
            "running": str(Path(folder) / RUNNING),
            "versions": versions(),
        }
        trainer = TorchTrainer(
            serve,
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
        nodes = [node for _, node in workers]
        return SlotDied(f"{self.name}: {reason}", nodes, _is_by_storage(self._failure))

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


def _is_by_storage(failure: Any) -> bool:
    """Whether storage has failed a worker, or Ray Train itself, which writes into the study's folder, too."""
    causes = [failure, getattr(failure, "controller_failure", None)]
    causes += getattr(failure, "worker_failures", {}).values()
    return any(map(is_storage_problem, causes))
