"""Join the space, the searcher, the scheduler, the slots and the tracker into a search; the result is a front."""

import contextlib
import functools
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError

from raysearch.earlier import EarlierTrial
from raysearch.errors import InputError, Refused
from raysearch.front import Baseline, Front, Measured
from raysearch.plan import Plan
from raysearch.recipe import Recipe
from raysearch.score import Score, TrialRecord
from raysearch.search.grid import grid
from raysearch.search.recipe_search import STATE, RecipeSearch
from raysearch.search.scheduler import ParetoASHA
from raysearch.search.searcher import Searcher
from raysearch.size import Budget, Size
from raysearch.slots.board import post_front, start_board
from raysearch.slots.cluster import ON_HEAD, Room, join_cluster
from raysearch.slots.recipe_trial import RecipeTrial
from raysearch.space import SearchSpace
from raysearch.study import Study


class Observer(Protocol):
    """Whoever wants to follow a search: the tracker, the terminal."""

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None: ...

    def rung(self, trial: str, score: Score) -> None: ...

    def trial_ended(self, record: TrialRecord) -> None: ...

    def front_changed(self, front: Front) -> None: ...


def search(
    plan: Plan, study: Study, observers: Sequence[Observer] = (), earlier: Sequence[EarlierTrial] = ()
) -> Front:
    """Run the trials that a study still lacks, and return its front.

    A study that starts takes up `earlier`: what was on the front there is run first, the rest informs the proposals.

    Ctrl-C and SIGTERM end it early: what has finished is kept and the front is written before the
    KeyboardInterrupt goes on.

    Raises:
        InputError: the cluster lacks what a trial asks for, no trial could be started, or all have failed.
        Refused: the dense model can't be measured, or means nothing on a benchmark.
    """
    proposals = _proposals(plan, study, earlier)
    join_cluster(plan.space.slots)
    proposals.num_slots = Room(plan.space.slots).num_slots
    recorder = Recorder(plan, study, proposals, start_board(), observers)
    if study.front:
        post_front(recorder.board, study.front.points)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends as Ctrl-C does
    try:
        for called in (proposals, proposals.scheduler, recorder):
            _let_losses_end_search(called)
        _tuner(plan, study, proposals, recorder).fit()
        front = recorder.conclude()
    except BaseException as error:
        if isinstance(error, _Lost):
            raise InputError(f"{error}, then go on with raysearch search --resume {study.folder}") from None
        with contextlib.suppress(OSError):
            recorder.conclude()
        raise
    finally:
        ray.shutdown()
    if recorder.refusal:
        raise Refused(recorder.refusal)
    if front is None:
        reason = study.records[-1].reason if study.records else "no reason given"
        raise InputError(
            f"{plan.space.model}: no trial could be started ({reason}); see {study.folder}/slots"
        )
    _refuse_all_failed(study)
    return front


def check_state(plan: Plan, study: Study) -> None:
    """See that a study can go on from what its earlier start has left; nothing is written.

    Raises:
        InputError: another version has left it.
    """
    _make_proposals(plan, study.earlier_space or plan.space).read_state(study.folder)


def _refuse_all_failed(study: Study) -> None:
    """See that a search has come to something."""
    if study.records and all(record.end == "failed" for record in study.records):
        raise InputError(
            f"{study.folder}: every trial failed (the last: {study.records[-1].reason}); put that right and start anew"
        )


def _tuner(plan: Plan, study: Study, proposals: RecipeSearch, recorder: "Recorder") -> tune.Tuner:
    trainable = tune.with_parameters(
        RecipeTrial,
        board=recorder.board,
        space=plan.space.model_dump(mode="json"),
        rungs=[round(level) for level in proposals.scheduler.levels],
        folder=str(study.folder),
    )
    # A trial only passes commands on: it sits on the head node and takes no CPU from the slots.
    head = tune.PlacementGroupFactory([ON_HEAD])
    return tune.Tuner(
        tune.with_resources(trainable, head),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=proposals.scheduler,
            num_samples=max(0, plan.space.search.trials - len(study.records)),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(study.folder),
            callbacks=[recorder],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def _proposals(plan: Plan, study: Study, earlier: Sequence[EarlierTrial]) -> RecipeSearch:
    """Who proposes and stops trials: anew, or in the state of the last event of an earlier start of the study."""
    # What was decided under the settings of then is decided so again; everything else under those of now.
    before = _make_proposals(plan, study.earlier_space or plan.space, study.folder)
    if not (study.folder / STATE).exists():
        before.recipes.learn_from((trial.recipe, trial.retention) for trial in earlier)
        before.recipes.enqueue(trial.recipe for trial in earlier if trial.on_front)
        if plan.space.search.sampler == "grid":
            before.recipes.enqueue(grid(plan.space))
        else:
            before.recipes.enqueue_published()
    before.recover(study.records)
    proposals = _make_proposals(plan, plan.space, study.folder)
    proposals.set_state(before.get_state())
    proposals.save_if_due(now=True)
    return proposals


def _make_proposals(plan: Plan, space: SearchSpace, folder: Path | None = None) -> RecipeSearch:
    settings = space.search
    budgets = [Budget.parse(text) for text in space.budgets]
    scheduler = ParetoASHA(
        max_t=plan.max_samples,
        grace_period=plan.first_rung,
        reduction_factor=settings.reduction_factor,
        budgets=[budget.size_ratio(plan.dense) for budget in budgets],
        retention_se="retention_se",
        log=folder and folder / "decisions.jsonl",
    )
    searcher = Searcher(
        space,
        size_of=plan.size_of,
        dense=plan.dense,
        budgets=budgets,
        num_trials=settings.trials,
        sampler=settings.sampler,
        seed=settings.seed,
    )
    return RecipeSearch(searcher, scheduler, folder=folder)


class _Lost(BaseException):
    """What the whole search needs is gone. No `Exception`: Tune would blame the trial at hand, and go on."""


class _LostFile(_Lost):
    """A file of the study can't be written."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; see to the storage")


class _LostBoard(_Lost):
    """The process that the slots take their commands from has died."""

    def __init__(self) -> None:
        super().__init__("the process that commands the slots has died; see to the head node's memory")


def _let_losses_end_search(called: Any) -> None:
    """Turn an `OSError` in what Tune calls into a `_LostFile`, and a board that doesn't answer into a `_LostBoard`."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                raise _LostFile(f"{where}{error.strerror}") from error
            except RayActorError as error:
                raise _LostBoard from error

        return call

    for name in (
        "suggest",
        *(f"on_trial_{event}" for event in ("add", "start", "result", "complete", "error")),
    ):
        if hasattr(called, name):
            setattr(called, name, guarded(getattr(called, name)))


class Recorder(tune.Callback):
    """Carries what Tune reports into the study's files, to the slots and to the observers."""

    def __init__(
        self, plan: Plan, study: Study, proposals: Any, board: Any, observers: Sequence[Observer]
    ) -> None:
        self.board = board
        self.refusal: str | None = None
        """Why no trial of this study can be run."""
        self._plan, self._study, self._proposals, self._observers = plan, study, proposals, observers
        self._baseline: Baseline | None = study.front.baseline if study.front else None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a file that this project never reads back."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the recipe; a trial that is tried again is noted again."""
        recipe = Recipe(**trial.config["recipe"])
        size = self._plan.size_of(recipe)
        assert size is not None, recipe
        self._study.trial_started(trial.trial_id, recipe)
        for observer in self._observers:
            observer.trial_started(trial.trial_id, recipe, size)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a rung."""
        if result.get("failed"):
            return
        score = Score(**{name: result[name] for name in Score.model_fields})
        if self._study.rung(trial.trial_id, score):
            for observer in self._observers:
                observer.rung(trial.trial_id, score)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the trial's line, and the front if it changes."""
        result = trial.last_result or {}
        if result.get("storage"):
            raise _LostFile(result["failed"])
        if result.get("refused"):
            self.refusal = result["refused"]
            self._proposals.recipes.exhausted = True
        elif result.get("failed"):
            self._end(trial, "failed", result, str(result["failed"]))
        elif self._proposals.scheduler.was_stopped(trial.trial_id):
            seen = result["samples_seen"]
            self._end(trial, "stopped", result, f"behind at the rung of {seen} samples; see decisions.jsonl")
        else:
            self._end(trial, "finished", result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune gave the trial up; without the board it would give up all others, too."""
        ray.get(self.board.dense_scores.remote())
        message = str(trial.get_error() or "the trial's process ended").strip().splitlines()[-1]
        self._end(trial, "failed", trial.last_result or {}, message)

    def conclude(self) -> Front | None:
        """Write the front as it stands; None if not even the dense model was measured."""
        baseline = self._baseline or self._measured_baseline()
        self._proposals.save_if_due(now=True)
        return self._study.write_front(baseline) if baseline else None

    def _end(self, trial: Any, end: str, result: dict[str, Any], reason: str = "") -> None:
        record = self._study.ending(trial.trial_id, end, result, reason)
        if end == "finished" and result.get("checkpoint"):
            self._offer(record, result)
        self._study.record(record)
        for observer in self._observers:
            observer.trial_ended(record)
        self._proposals.save_if_due()

    def _offer(self, record: TrialRecord, result: dict[str, Any]) -> None:
        self._baseline = self._baseline or self._measured_baseline()
        assert self._baseline is not None, record
        heldout = Measured(**result["heldout"])
        run_ids = [
            getattr(observer, "run_id", lambda trial: None)(record.trial) for observer in self._observers
        ]
        run_id = next((found for found in run_ids if found), None)
        if self._study.offer(record, self._baseline, result["checkpoint"], heldout, run_id):
            assert self._study.front is not None
            post_front(self.board, self._study.front.points)
            for observer in self._observers:
                observer.front_changed(self._study.front)

    def _measured_baseline(self) -> Baseline | None:
        scores = ray.get(self.board.dense_scores.remote())
        dense = self._plan.dense
        if scores is None:
            return None
        self._study.write_layer_importance(ray.get(self.board.layer_importance.remote()))
        return Baseline(num_params=dense.num_params, size_bytes=dense.size_bytes, scores=scores)
