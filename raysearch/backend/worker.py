"""Worker loop of a slot: load the model and data once, then handle commands; only rank 0 replies."""

import concurrent.futures
import gc
import itertools
import logging
import pickle
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, assert_never

from raysearch import progress
from raysearch.backend.coordinator import Coordinator, CoordinatorClient
from raysearch.backend.messages import (
    CheckpointWritten,
    EndSlot,
    Failed,
    FinishTrial,
    HeldoutScored,
    NextRung,
    Reply,
    RungScored,
    RunRecipe,
    SaveScores,
    ScoreHeldout,
    ScoresWritten,
    TrialCommand,
)
from raysearch.backend.node_check import check_node
from raysearch.backend.runtime import TrialRuntime
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.data.bad_rows import BadData
from raysearch.errors import InputError, first_line
from raysearch.files import StorageProblem, is_storage_problem
from raysearch.logging import logger
from raysearch.study.folder import RUNNING, TEACHER
from raysearch.study.front import CHECKPOINTS
from raysearch.study.records import Score

T = TypeVar("T")
SECONDS_BETWEEN_HEARTBEATS = 5.0
SECONDS_ALONE = 60.0
"""Without an answer of the coordinator, after which a worker ends itself: longer than Ray takes to give up a node."""
SHARED = (FloatingPointError, InputError, StorageProblem)
"""What goes wrong on all workers of a slot at the same place."""


def run_worker(config: dict[str, Any], rank: int, num_workers: int) -> None:
    """Join the slot, load, and handle commands until told to end.

    Args:
        config: of `Slot`.
        rank: of this worker in its slot.
        num_workers: of the slot.

    Raises:
        InputError: this worker can't be used, and it isn't the one that replies.
    """
    coordinator, slot = config["coordinator"], config["slot"]
    coordinator.call(Coordinator.join, slot, *config["runtime"].this_worker())
    is_over = threading.Event()
    threading.Thread(target=leave_when_alone, args=(coordinator, config["runtime"], is_over), daemon=True).start()
    try:
        _handle_commands(config, rank, num_workers)
    finally:
        is_over.set()


def leave_when_alone(coordinator: CoordinatorClient, runtime: TrialRuntime, is_over: threading.Event) -> None:
    """End this process when its study is gone: once the coordinator is dead, or hasn't answered for `SECONDS_ALONE`.

    Its training would go on where Ray can't end it: on a host that is cut off.
    """
    while not is_over.wait(SECONDS_BETWEEN_HEARTBEATS):
        waiting = coordinator.submit(Coordinator.log_level)
        answered = concurrent.futures.wait([waiting], timeout=SECONDS_ALONE).done
        if not is_over.is_set() and (not answered or waiting.exception() is not None):
            runtime.leave()
            return


def send_heartbeats(coordinator: CoordinatorClient, slot: str) -> None:
    """Send a heartbeat whenever this process has computed something; never returns."""
    before = -1
    while True:
        time.sleep(SECONDS_BETWEEN_HEARTBEATS)
        if (now := progress.num_steps()) != before:
            before = now
            coordinator.submit(Coordinator.heartbeat, slot)


def _handle_commands(config: dict[str, Any], rank: int, num_workers: int) -> None:
    coordinator, slot = config["coordinator"], config["slot"]
    logger.setLevel(coordinator.call(Coordinator.log_level))
    logger.addHandler(to_driver := _ToDriver(coordinator))
    if rank == 0:
        threading.Thread(target=send_heartbeats, args=(coordinator, slot), daemon=True).start()
    worker = Worker(config, rank, num_workers)
    index = 0
    while not isinstance(command := coordinator.call(Coordinator.command, slot, index), EndSlot):
        index += 1
        reply = worker.handle_command(command)
        if rank == 0:
            coordinator.call(Coordinator.reply, slot, reply)
    logger.removeHandler(to_driver)


class Worker:
    """Handles the commands of a slot, one recipe at a time."""

    def __init__(self, config: dict[str, Any], rank: int, num_workers: int) -> None:
        self._coordinator: CoordinatorClient = config["coordinator"]
        self._runtime: TrialRuntime = config["runtime"]
        self._slot, self._folder, self._rungs = config["slot"], Path(config["folder"]), config["rungs"]
        self._rank, self._num_workers = rank, num_workers
        self._refusal: InputError | None = None
        self._trial: Any = None
        self._scores: Iterator[Score] = iter(())
        self._has_frozen = False
        space = SearchSpace.model_validate(config["space"])
        try:
            self._runtime.start_process(max(1, int(space.slots.cpus_per_worker)))
            self._enter("loading", "the model and the data")
            self._load(config, space)
        except InputError:
            raise
        except Exception as error:
            # Said here already: a search that ends by it says it last, and one whose other slots fare better, never.
            reason = f"no trial can be started: {type(error).__name__}: {first_line(error)}"
            self._coordinator.call(Coordinator.log, logging.ERROR, reason)
            raise
        if rank == 0:
            self._coordinator.call(Coordinator.ready, self._slot)

    def _enter(self, state: str, reason: str = "") -> None:
        """Tell what this slot does."""
        if self._rank == 0:
            self._coordinator.submit(Coordinator.enter, self._slot, state, reason)

    def _load(self, config: dict[str, Any], space: SearchSpace) -> None:
        """Load what trials need, and measure what is measured once per study; or note why no trial can be run."""
        try:
            problem = check_node(self._folder, config["space"], config["versions"])
            if problem:
                raise problem
            once = partial(measure_once_per_study, self._coordinator, self._slot, self._rank)
            started = time.monotonic()
            self._context = self._runtime.open_context(space, self._folder / TEACHER, once)
            logger.info("%s: model and data loaded in %.0f s", self._slot, time.monotonic() - started)
            self._context.first_of_study = partial(first_of_study, self._coordinator, self._slot, self._rank)
        except InputError as error:
            self._refuse(error)
            if self._rank:  # the others of this slot may have found nothing amiss
                raise
            return
        try:
            self._measure(once)
        except InputError as error:
            self._refuse(error)

    def _measure(self, once: Callable[[Mapping[str, Callable[[], Any]]], dict[str, Any]]) -> None:
        """Measure the dense model and judge shapes, together with the other slots."""
        started = time.monotonic()
        self._enter("measuring the dense model")
        found = self._context.baselines
        logger.info("%s: dense model measured in %.0f s", self._slot, time.monotonic() - started)
        layers = {name: units.per_layer().tolist() for name, units in found.importances.items()}
        self._coordinator.call(Coordinator.post_dense, found.search.means(), layers)
        if self._coordinator.call(Coordinator.shapes) is None:
            self._study_shapes(once)

    def _study_shapes(self, once: Callable[[Mapping[str, Callable[[], Any]]], dict[str, Any]]) -> None:
        """Judge shapes and post all of them."""
        started = time.monotonic()
        self._enter("judging shapes", "before the first proposals")
        with self._runtime.shape_study(self._context) as parts:
            found = once(parts)
        num = sum(map(len, found.values()))
        logger.info("%s: %d shapes judged in %.0f s", self._slot, num, time.monotonic() - started)
        self._coordinator.call(Coordinator.post_shapes, list(itertools.chain.from_iterable(found.values())))

    def _refuse(self, error: InputError) -> None:
        """Tell all slots, whichever worker has found it."""
        self._refusal = error
        self._coordinator.call(Coordinator.refuse, pickle.dumps(error))

    def handle_command(self, command: TrialCommand) -> Reply:
        """Carry out a command; what goes wrong with one recipe is a reply, not the end of the slot.

        Several workers go on together only after what goes wrong on all of them; anything else is raised and ends them.
        """
        if self._refusal:
            return self._failed(self._refusal)
        try:
            match command:
                case RunRecipe():
                    self._start(command.recipe)
                    return self._next()
                case NextRung():
                    return self._next()
                case SaveScores():
                    return self._save_scores(Path(command.folder))
                case FinishTrial():
                    return self._finish(Path(command.folder))
                case ScoreHeldout():
                    return self._score_heldout(Path(command.folder))
                case _:
                    assert_never(command)
        except BadData as error:  # all other trials would meet it too
            self._refusal = error
            return self._failed(error)
        except Exception as error:  # the slot outlives any recipe; the reason goes into the trial's record
            if self._num_workers > 1 and not isinstance(error, SHARED):
                raise
            return self._failed(error)

    def _start(self, recipe: Recipe) -> None:
        self._end_trial()
        self._enter("training", f"{recipe.mode} {recipe.ratio:.0%}, {recipe.trained}")
        self._trial = self._runtime.open_trial(recipe, self._context)
        self._scores = self._trial.scores(self._rungs, keep_in=self._folder / RUNNING / recipe.key)

    def _end_trial(self) -> None:
        if not self._trial:
            return
        self._trial.close()
        self._trial, self._scores = None, iter(())
        if not self._has_frozen:  # all is loaded by now, and need not be looked through after every trial
            gc.freeze()
            self._has_frozen = True

    def _next(self) -> RungScored:
        score = next(self._scores)
        size, dense = self._trial.size, self._context.dense_size
        return RungScored(
            score=score,
            **asdict(size),
            size_ratio=size.size_bytes / dense.size_bytes,
            is_last=score.samples_seen >= self._trial.end,
            **self._trial.seconds,
        )

    def _finish(self, folder: Path) -> CheckpointWritten:
        """Held-out scores are here where they are known already, or the checkpoint can't give them later."""
        trial = self._trial
        self._enter("writing a checkpoint")
        heldout = None if trial.scores_heldout_later else trial.heldout_quality()
        trial.export(folder, heldout)
        self._enter("waiting for a recipe")
        return CheckpointWritten(checkpoint=f"{CHECKPOINTS}/{folder.name}", heldout=heldout, **trial.seconds)

    def _score_heldout(self, folder: Path) -> HeldoutScored:
        """While another slot measures the dense model, which all scores are relative to, this one goes on."""
        self._end_trial()
        self._enter("asking held-out questions", folder.name)
        if self._coordinator.call(Coordinator.is_free, "heldout"):
            assert self._context.heldout_baseline is not None
        return HeldoutScored(heldout=self._runtime.score_heldout(folder, self._context))

    def _save_scores(self, folder: Path) -> ScoresWritten:
        from raysearch.evaluation.retention import save_results
        from raysearch.recovery.deepspeed_engine import collective_io

        results, dense = self._trial.heldout_results(), self._context.heldout_baseline
        with collective_io():
            if self._rank == 0:
                save_results(folder / "dense.npz", dense)
                save_results(folder / f"{self._trial.recipe.key}.npz", results)
        return ScoresWritten()

    def _failed(self, error: Exception) -> Failed:
        self._end_trial()
        return Failed(
            reason=f"{type(error).__name__}: {error}".splitlines()[0],
            may_pass=isinstance(error, OSError | RuntimeError | MemoryError),
            by_storage=is_storage_problem(error),
            refusal=str(error) if error is self._refusal else None,
        )


def measure_once_per_study(
    coordinator: CoordinatorClient, slot: str, rank: int, measures: Mapping[str, Callable[[], Any]]
) -> dict[str, Any]:
    """All parts of the baselines, each measured by rank 0 of whichever slot is free.

    Args:
        measures: how to measure each part.

    Raises:
        InputError: the study is refused.
    """
    if rank == 0:
        while (name := _wait_for_others(coordinator, Coordinator.next_part, slot, list(measures))) is not None:
            coordinator.call(Coordinator.publish, name, pickle.dumps(measures[name]()))
    refusal, parts = _wait_for_others(coordinator, Coordinator.prepared, list(measures))
    if refusal:
        raise pickle.loads(refusal)
    return {name: pickle.loads(parts[name]) for name in measures}


def _wait_for_others(coordinator: CoordinatorClient, method: Callable[..., Awaitable[T]], *args: Any) -> T:
    """As `coordinator.call`, with heartbeats: other slots may measure for long, and have their own."""
    answer = coordinator.submit(method, *args)
    while not concurrent.futures.wait([answer], timeout=SECONDS_BETWEEN_HEARTBEATS).done:
        progress.step()
    return answer.result()


def first_of_study(coordinator: CoordinatorClient, slot: str, rank: int, name: str, measure: Callable[[], Any]) -> Any:
    """A part that is measured late, by rank 0 of the first slot that needs it; all workers of a slot must call it."""
    try:
        return measure_once_per_study(coordinator, slot, rank, {name: measure})[name]
    except Exception:  # this slot may go on, and others wait for the part
        if rank == 0:
            coordinator.call(Coordinator.give_up_part, slot, name)
        raise


class _ToDriver(logging.Handler):
    """Sends what a worker logs to the driver, whose handler shows it."""

    def __init__(self, coordinator: CoordinatorClient) -> None:
        super().__init__()
        self._coordinator = coordinator

    def emit(self, record: logging.LogRecord) -> None:
        self._coordinator.submit(Coordinator.log, record.levelno, record.getMessage())
