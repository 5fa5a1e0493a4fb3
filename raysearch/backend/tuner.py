"""Run a study's trials on Ray Tune; the result is a front.

Tune's controller calls, for each new trial, `TuneSearcher.suggest`, `TuneScheduler.on_trial_add` and
`Recorder.on_trial_start`; for each result the scheduler, the searcher unless the trial ends, and the recorder; at a
trial's end the three `on_trial_complete` in the same order. docs/architecture.md has the whole walk.
"""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ray
from ray import tune
from ray.exceptions import RayError

from raysearch.backend.cluster import ON_HEAD, SlotCapacity, leave_without_head, room_text
from raysearch.backend.coordinator import WAITING_FOR_ROOM, Coordinator, CoordinatorClient, start_coordinator
from raysearch.backend.faults import FatalSearchError
from raysearch.backend.placement_groups import GroupSweeper, remove, reserved
from raysearch.backend.recorder import Callback, Recorder
from raysearch.backend.runtime import TrialRuntime
from raysearch.backend.trainable import RecipeTrial
from raysearch.backend.tune_searcher import TuneScheduler, TuneSearcher
from raysearch.config.budget import Budget
from raysearch.config.settings import Slots
from raysearch.errors import InputError, Refused
from raysearch.logging import logger
from raysearch.report.narrator import Narrator
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.searching.journaled_search import JournaledSearch
from raysearch.searching.limits import Limits
from raysearch.searching.pace import Deadline
from raysearch.searching.searcher import Searcher
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Front
from raysearch.study.plan import StudyPlan
from raysearch.study.records import TrialRecord
from raysearch.tracking.earlier_studies import PriorTrial

SECONDS_BETWEEN_LOOKS, SECONDS_TO_FIND_ROOM, SECONDS_TO_END = 1.0, 5.0, 30.0


def resume_search(plan: StudyPlan, study: StudyFolder, prior_trials: Sequence[PriorTrial] = ()) -> JournaledSearch:
    """The searcher and the bracket of a study, in the state of the last event of an earlier start if there was one.

    Nothing is written. A study that starts takes up `prior_trials`: what was on the front there is run first, the rest
    informs the proposals.

    Raises:
        InputError: the earlier start's files are damaged, or of another version.
    """
    settings = plan.space.search
    budgets = [Budget.parse(text) for text in plan.space.budgets]
    bracket = AshaBracket(
        max_t=plan.max_samples,
        grace_period=plan.first_rung,
        reduction_factor=settings.reduction_factor,
        budgets=[budget.size_ratio(plan.dense) for budget in budgets],
    )
    searcher = Searcher(
        plan.space,
        size_of=plan.size_of,
        dense=plan.dense,
        budgets=budgets,
        num_trials=settings.num_trials,
        sampler=settings.sampler,
        seed=settings.seed,
        samples_of=lambda recipe: recipe.samples_to_see(plan.num_samples),
        full_run=plan.max_samples,
        limits=Limits(settings.runs and settings.runs * plan.max_samples, settings.until_gain),
    )
    search = JournaledSearch(searcher, bracket, study.folder)
    if not search.resume(study.records):
        searcher.learn_from((trial.recipe, trial.retention) for trial in prior_trials)
        num_first = searcher.enqueue(trial.recipe for trial in prior_trials if trial.on_front)
        if settings.sampler != "grid":
            num_first += searcher.enqueue_openers()
        bracket.num_spared = num_first
    return search


def run_trials(
    plan: StudyPlan,
    study: StudyFolder,
    search: JournaledSearch,
    callbacks: Sequence[Callback] = (),
    runtime: TrialRuntime | None = None,
    deadline: Deadline | None = None,
    narrator: Narrator | None = None,
) -> Front:
    """Run the trials that a study still lacks, and return its front.

    Ctrl-C and SIGTERM end it early: what has finished is kept and the front is written before the KeyboardInterrupt
    goes on.

    `join_cluster` comes before.

    Args:
        search: of `resume_search`.
        runtime: what runs in the workers; left out, real trials.
        deadline: of this start.
        narrator: is told what the slots do.

    Raises:
        InputError: no trial could be started, or all have failed; or the study's folder or the coordinator was lost.
        Refused: the dense model can't be measured, or means nothing on a benchmark.
    """
    search.begin()
    coordinator = start_coordinator()
    if search.searcher.shapes:
        coordinator.call(Coordinator.post_shapes, search.searcher.shapes)
    recorder = Recorder(plan, study, search, coordinator, callbacks)
    relaying = threading.Thread(target=relay_log, args=(coordinator,), daemon=True)
    relaying.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends as Ctrl-C does
    is_over = threading.Event()
    arguments = (coordinator, plan.space.slots, narrator or Narrator("searching"), is_over)
    following = threading.Thread(target=follow_slots, args=arguments, daemon=True)
    following.start()
    watch = (ray.get_runtime_context().gcs_address, study.folder, is_over)
    threading.Thread(target=leave_without_head, args=watch, daemon=True).start()
    try:
        _tuner(plan, study, search, recorder, coordinator, runtime or TrialRuntime(), deadline).fit()
        front = recorder.conclude()
    except BaseException as error:
        if isinstance(error, FatalSearchError):
            raise InputError(f"{error}, then go on with raysearch search --resume {study.folder}") from None
        with contextlib.suppress(OSError):
            recorder.conclude()
        raise
    finally:
        is_over.set()
        with contextlib.suppress(Exception):  # the head may be gone
            remove(reserved())
            coordinator.end()
        # A call after the shutdown starts another Ray, or ends this process; a busy machine answers late.
        until = time.monotonic() + SECONDS_TO_END
        for thread in (following, relaying):
            thread.join(max(0.0, until - time.monotonic()))
        if not (following.is_alive() or relaying.is_alive()):
            ray.shutdown()
    if recorder.refusal:
        raise Refused(recorder.refusal)
    if front is None:
        reason = study.records[-1].reason if study.records else "no reason given"
        raise InputError(f"{plan.space.model}: no trial could be started ({reason}); see {study.folder}/slots")
    refuse_all_failed(study.folder, study.records)
    return front


def refuse_all_failed(folder: Path, records: Sequence[TrialRecord]) -> None:
    """See that a search has come to something.

    Raises:
        InputError: every trial failed.
    """
    if records and all(record.end == "failed" for record in records):
        raise InputError(
            f"{folder}: every trial failed (the last: {records[-1].reason}); put that right and start anew"
        )


def _tuner(
    plan: StudyPlan,
    study: StudyFolder,
    search: JournaledSearch,
    recorder: Recorder,
    coordinator: CoordinatorClient,
    runtime: TrialRuntime,
    deadline: Deadline | None,
) -> tune.Tuner:
    trainable = tune.with_parameters(
        RecipeTrial,
        coordinator=coordinator,
        runtime=runtime,
        space=plan.space.model_dump(mode="json"),
        rungs=[round(level) for level in search.bracket.levels],
        folder=study.folder,
    )
    return tune.Tuner(
        # A trial only passes commands on: it sits on the head node and takes no CPU from the slots.
        tune.with_resources(trainable, tune.PlacementGroupFactory([ON_HEAD])),
        tune_config=tune.TuneConfig(
            search_alg=TuneSearcher(
                search,
                SlotCapacity(plan.space.slots).num_slots,
                partial(coordinator.call, Coordinator.shapes),
                deadline,
                recorder.unscored,
                lambda keys: coordinator.call(Coordinator.post_unscored, keys),
            ),
            scheduler=TuneScheduler(search),
            num_samples=-1,  # the search ends by itself
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


def follow_slots(coordinator: CoordinatorClient, slots: Slots, narrator: Narrator, is_over: threading.Event) -> None:
    """Tell a narrator what the slots do, and what one without room lacks, and give back what dead slots had reserved,
    until the search or its coordinator ends."""
    sweeper = GroupSweeper()
    with contextlib.suppress(RayError):
        while not is_over.wait(SECONDS_BETWEEN_LOOKS):
            stages, groups = coordinator.call(Coordinator.stages), coordinator.call(Coordinator.groups)
            waiting = [stage.since for stage in stages if stage.state == WAITING_FOR_ROOM]
            if waiting and time.time() - min(waiting) > SECONDS_TO_FIND_ROOM:
                room = {"reason": room_text(slots)}
                stages = [s.model_copy(update=room) if s.state == WAITING_FOR_ROOM else s for s in stages]
            narrator.follow_slots(stages)
            for group in sweeper.sweep(groups, waiting):
                logger.info("placement group %s: given back, since its slot is gone", group)


def relay_log(coordinator: CoordinatorClient) -> None:
    """Log here, where the person sees it, what workers have logged, until the coordinator ends."""
    with contextlib.suppress(RayError):
        for index in itertools.count():
            level, message = coordinator.call(Coordinator.logged, index)
            logger.log(level, "%s", message)
