"""A slot as its trial sees it: commands and replies."""

import concurrent.futures
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysearch.backend.coordinator import Coordinator, CoordinatorClient
from raysearch.backend.messages import Command, EndSlot, Reply
from raysearch.backend.node_check import versions
from raysearch.backend.runtime import TrialRuntime
from raysearch.backend.worker import SECONDS_BETWEEN_HEARTBEATS, run_worker
from raysearch.config.space import SearchSpace
from raysearch.files import is_storage_problem

MIN_PATIENCE_S, PATIENCE = 1800.0, 10.0  # without a heartbeat; see settings.Slots.timeout_s


class SlotDied(RuntimeError):
    """The workers of a slot are gone; another slot may go on with their recipe.

    Attributes:
        nodes: ids of the nodes they were on.
        by_storage: whether a full disk or lost storage has ended them.
        at_start: whether they had not come so far as to take a recipe.
    """

    def __init__(self, message: str, nodes: Sequence[str], by_storage: bool = False, at_start: bool = False) -> None:
        super().__init__(message)
        self.nodes, self.by_storage, self.at_start = nodes, by_storage, at_start


class Slot:
    """Workers that run one recipe after another until the slot is closed.

    Args:
        coordinator: carries commands and replies.
        runtime: starts the workers.
        rungs: samples seen at each rung.
        folder: of the study.
        owner: the actor that commands this slot, whose death ends it.
    """

    def __init__(
        self,
        coordinator: CoordinatorClient,
        runtime: TrialRuntime,
        space: SearchSpace,
        rungs: Sequence[int],
        folder: Path,
        owner: Any = None,
    ) -> None:
        self.name = f"slot-{uuid.uuid4().hex[:8]}"
        self._coordinator, self._runtime, self._timeout_s = coordinator, runtime, space.slots.timeout_s
        self._num_replies, self._longest_s = 0, 0.0
        coordinator.call(Coordinator.begin, self.name, owner)
        config = {
            "coordinator": coordinator,
            "runtime": runtime,
            "slot": self.name,
            "space": space.model_dump(mode="json"),
            "rungs": list(rungs),
            "folder": folder,
            "versions": versions(),
        }
        self._failure: BaseException | None = None
        arguments = (run_worker, config, space.slots, self.name, folder / "slots")
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True, name=self.name)
        self._thread.start()

    def ask(self, command: Command) -> Reply:
        """Send a command and wait for its reply.

        Raises:
            SlotDied: the workers ended before they replied, or sent no heartbeat for too long.
        """
        coordinator = self._coordinator
        coordinator.call(Coordinator.send, self.name, command)
        waiting = coordinator.submit(Coordinator.reply_to, self.name, self._num_replies)
        started = last_heartbeat = time.monotonic()
        num_heartbeats = 0
        while not concurrent.futures.wait([waiting], timeout=SECONDS_BETWEEN_HEARTBEATS).done:
            if not self._thread.is_alive():
                raise self._died(f"its workers ended: {self._failure or 'no reason given'}")
            found, now = coordinator.call(Coordinator.num_heartbeats, self.name), time.monotonic()
            if found != num_heartbeats:
                num_heartbeats, last_heartbeat = found, now
            elif now - last_heartbeat > self.patience_s:
                raise self._died(f"no heartbeat for {now - last_heartbeat:.0f} s")
        self._num_replies += 1
        self._longest_s = max(self._longest_s, time.monotonic() - started)
        return waiting.result()

    @property
    def patience_s(self) -> float:
        """Seconds without a heartbeat after which the slot counts as dead."""
        return self._timeout_s or max(MIN_PATIENCE_S, PATIENCE * self._longest_s)

    def _died(self, reason: str) -> SlotDied:
        """Make sure that the workers are gone."""
        workers = self._coordinator.call(Coordinator.workers, self.name)
        for worker, _ in workers:
            self._runtime.kill(worker)
        self._thread.join(60)
        is_ready = self._coordinator.call(Coordinator.is_ready, self.name)
        self._coordinator.call(Coordinator.forget, self.name)
        nodes = [node for _, node in workers]
        return SlotDied(f"{self.name}: {reason}", nodes, is_by_storage(self._failure), not is_ready)

    def close(self) -> None:
        """Let the workers end, and wait a little for it."""
        if self._thread.is_alive():
            self._coordinator.call(Coordinator.send, self.name, EndSlot())
            self._thread.join(20)
        self._coordinator.call(Coordinator.forget, self.name)

    def _run(self, *arguments: Any) -> None:
        try:
            self._runtime.run_workers(*arguments)
        except BaseException as error:  # a thread has nobody to raise to; `ask` reports it
            self._failure = error


def is_by_storage(failure: Any) -> bool:
    """Whether storage has failed a worker, or Ray Train itself, which writes into the study's folder too."""
    causes = [failure, getattr(failure, "controller_failure", None)]
    causes += getattr(failure, "worker_failures", {}).values()
    return any(map(is_storage_problem, causes))
