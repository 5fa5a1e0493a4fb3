"""A slot's worker: loads the model and the data once, then does what it is told."""

import gc
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray

from raysearch.backend.node_check import check_node
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.data.samples import BadData
from raysearch.errors import InputError
from raysearch.files import StorageProblem, is_storage_problem
from raysearch.study.folder import CHECKPOINTS

SECONDS_BETWEEN_LIFE_SIGNS = 5.0
SHARED = (FloatingPointError, InputError, StorageProblem)
"""What goes wrong on all workers of a slot at the same place."""


def serve(config: dict[str, Any]) -> None:
    """A worker's life: load once, then obey until told to end. All ranks obey; rank 0 replies."""
    from ray.train import get_context

    context = ray.get_runtime_context()
    group = ray.util.get_current_placement_group()
    joined = config["board"].join.remote(config["slot"], context.current_actor, context.get_node_id(), group)
    ray.get(joined)
    worker = _Worker(config, get_context().get_world_rank(), get_context().get_world_size())
    if worker.rank == 0:
        threading.Thread(target=worker.send_heartbeats, daemon=True).start()
    index = 0
    while True:
        command = ray.get(config["board"].command.remote(config["slot"], index))
        index += 1
        if command["do"] == "end":
            return
        reply = worker.handle_command(command)
        if worker.rank == 0:
            ray.get(config["board"].reply.remote(config["slot"], reply))


def _measure_once(board: Any, slot: str, rank: int, measures: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """All parts of what is measured once per study, each measured by the first worker of whichever slot comes to it."""
    if rank == 0:
        while (name := ray.get(board.next_part.remote(slot, list(measures)))) is not None:
            ray.get(board.publish.remote(name, pickle.dumps(measures[name]())))
    refusal, parts = ray.get(board.prepared.remote())
    if refusal:
        raise pickle.loads(refusal)
    return {name: pickle.loads(parts[name]) for name in measures}


class _Worker:
    def __init__(self, config: dict[str, Any], rank: int, num_workers: int) -> None:
        import torch

        from raysearch.recovery.deepspeed_engine import start_distributed

        self.rank, self._num_workers, self._rungs = rank, num_workers, config["rungs"]
        self._running = Path(config["running"])
        self._sign = partial(config["board"].sign.remote, config["slot"])
        space = SearchSpace.model_validate(config["space"])
        torch.set_num_threads(max(1, int(space.slots.cpus_per_worker)))
        start_distributed()
        self._refusal: InputError | None = None
        self._trial: Any = None
        self._scores: Any = None
        self._has_frozen = False
        self._load(config, space)

    def _load(self, config: dict[str, Any], space: SearchSpace) -> None:
        """Load what trials need, and measure what is measured once per study; or note why no trial can be run.

        Raises:
            InputError: this worker can't be used, and it isn't the one that replies.
        """
        from raysearch.trials.context import TrialContext

        board = config["board"]
        measure_once_per_study = partial(_measure_once, board, config["slot"], self.rank)
        try:
            problem = check_node(self._running.parent, config["space"], config["versions"])
            if problem:
                raise problem
            self._context = TrialContext(
                space, teacher_folder=Path(config["teacher_folder"]), measure_once_per_study=measure_once_per_study
            )
        except InputError as error:
            self._refuse(board, error)
            if self.rank:  # the others of this slot may have found nothing amiss
                raise
            return
        try:
            found = self._context.baselines
        except InputError as error:
            self._refuse(board, error)
            return
        layers = {name: units.per_layer().tolist() for name, units in found.importances.items()}
        ray.get(board.post_dense.remote(found.search.means(), layers))

    def _refuse(self, board: Any, error: InputError) -> None:
        """All slots shall hear of it, whichever worker has found it."""
        self._refusal = error
        ray.get(board.refuse.remote(pickle.dumps(error)))

    def send_heartbeats(self) -> None:
        """For ever: a sign of life whenever training has come on."""
        seen = None
        while True:
            time.sleep(SECONDS_BETWEEN_LIFE_SIGNS)
            now = self._trial.samples_seen if self._trial else None
            if now != seen:
                seen = now
                self._sign()

    def handle_command(self, command: dict[str, Any]) -> dict[str, Any]:
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
        except BadData as error:  # all other trials would meet it too
            self._refusal = error
            return self.handle_command(command)
        except Exception as error:  # the slot outlives any recipe; the reason goes into the trial's record
            if self._num_workers > 1 and not isinstance(error, SHARED):
                raise
            return self._failed(error)

    def _start(self, recipe: Recipe) -> None:
        from raysearch.trials.trial import Trial

        self._end_trial()
        self._trial = Trial(recipe, self._context)
        self._scores = self._trial.scores(self._rungs, keep_in=self._running / recipe.key)

    def _end_trial(self) -> None:
        if not self._trial:
            return
        self._trial.close()
        self._trial = self._scores = None
        if not self._has_frozen:  # all is loaded by now, and need not be looked through after every trial
            gc.freeze()
            self._has_frozen = True

    def _next(self) -> dict[str, Any]:
        score = next(self._scores)
        size, dense = self._trial.size, self._context.dense_size
        return {
            **score.model_dump(),
            **self._trial.seconds,
            "num_params": size.num_params,
            "size_bytes": size.size_bytes,
            "size_ratio": size.size_bytes / dense.size_bytes,
            "done": score.samples_seen >= self._trial.end,
        }

    def _finish(self, folder: Path) -> dict[str, Any]:
        heldout = self._trial.finish(folder)
        made = {"checkpoint": f"{CHECKPOINTS}/{folder.name}", "heldout": heldout.model_dump()}
        return made | self._trial.seconds

    def _keep(self, folder: Path) -> dict[str, Any]:
        from raysearch.evaluation.retention import save_results
        from raysearch.recovery.deepspeed_engine import collective_io

        results = self._trial.heldout_results()
        with collective_io():
            if self.rank == 0:
                save_results(folder / "dense.npz", self._context.baselines.heldout)
                save_results(folder / f"{self._trial.recipe.key}.npz", results)
        return {}

    def _failed(self, error: Exception) -> dict[str, Any]:
        self._end_trial()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {
            "failed": reason,
            "may_pass": isinstance(error, OSError | RuntimeError | MemoryError),
            "storage": is_storage_problem(error),
        }
