"""Join the space, the searcher, the scheduler, the slots and the tracker into a search; the result is a front."""

import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import tune

from raysearch.backend.cluster import ON_HEAD, SlotCapacity, join_cluster
from raysearch.backend.coordinator import post_front, start_coordinator
from raysearch.backend.faults import FatalSearchError, _let_losses_end_search
from raysearch.backend.pareto_asha import ParetoASHA
from raysearch.backend.recorder import Callback, Recorder
from raysearch.backend.trainable import RecipeTrial
from raysearch.backend.tune_searcher import STATE, TuneSearcher
from raysearch.config.budget import Budget
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError, Refused
from raysearch.search.samplers.grid import grid
from raysearch.search.searcher import Searcher
from raysearch.study.folder import Study
from raysearch.study.front import Front
from raysearch.study.plan import StudyPlan
from raysearch.tracking.earlier_studies import PriorTrial


def search(
    plan: StudyPlan, study: Study, observers: Sequence[Callback] = (), earlier: Sequence[PriorTrial] = ()
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
    proposals.num_slots = SlotCapacity(plan.space.slots).num_slots
    recorder = Recorder(plan, study, proposals, start_coordinator(), observers)
    if study.front:
        post_front(recorder.board, study.front.points)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends as Ctrl-C does
    try:
        for called in (proposals, proposals.scheduler, recorder):
            _let_losses_end_search(called)
        _tuner(plan, study, proposals, recorder).fit()
        front = recorder.conclude()
    except BaseException as error:
        if isinstance(error, FatalSearchError):
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
        raise InputError(f"{plan.space.model}: no trial could be started ({reason}); see {study.folder}/slots")
    _refuse_all_failed(study)
    return front


def check_state(plan: StudyPlan, study: Study) -> None:
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


def _tuner(plan: StudyPlan, study: Study, proposals: TuneSearcher, recorder: "Recorder") -> tune.Tuner:
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


def _proposals(plan: StudyPlan, study: Study, earlier: Sequence[PriorTrial]) -> TuneSearcher:
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


def _make_proposals(plan: StudyPlan, space: SearchSpace, folder: Path | None = None) -> TuneSearcher:
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
    return TuneSearcher(searcher, scheduler, folder=folder)
