"""A search from a space to a front: checked, run on Ray, and printed.

Importing this module loads neither Ray nor torch, so that mistakes are told at once.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raysearch.config.budget import Budget
from raysearch.config.problems import first_problem
from raysearch.config.settings import LIMITS, SearchSettings
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError, Refused
from raysearch.files import check_free, home_folder

if TYPE_CHECKING:
    from raysearch.backend.runtime import TrialRuntime
    from raysearch.report.narrator import Narrator
    from raysearch.searching.pace import Pace
    from raysearch.searching.searcher import Searcher
    from raysearch.study.plan import StudyPlan
    from raysearch.tracking.earlier_studies import PriorTrial


EMBEDDED_SPACE = Path(__file__).parents[1] / "pocket" / "space.yaml"


@dataclass(frozen=True)
class CheckedSearch:
    """What a search needs to start.

    Attributes:
        pace: of the study that is resumed; None for a new one.
    """

    plan: "StudyPlan"
    folder: Path
    prior_trials: "Sequence[PriorTrial]"
    pace: "Pace | None"


def check(
    space: Path | SearchSpace | None,
    resume: Path | None,
    out: Path | None,
    budget: Sequence[str] | None,
    limits: Mapping[str, Any],
    seed: int | None,
    slots: int | None,
    warm_start: Sequence[str] | None,
    began: float,
    is_silent: bool = False,
) -> CheckedSearch:
    """Check a search before anything is loaded or written.

    Args:
        began: when the person's waiting began, by `time.monotonic`.
        is_silent: whether nothing is said while that takes long.

    Raises:
        InputError: the space, an option or an earlier study can't be used.
    """
    study_space, folder = study_of(space, resume, out)
    if resume is not None and seed not in (None, study_space.search.seed):
        raise InputError(f"--seed {seed}: a resumed study keeps its seed, {study_space.search.seed}; leave it out")
    prior_trials = _prior_trials(warm_start or [], resume, folder)
    from raysearch.report.narrator import Narrator
    from raysearch.study.plan import plan_study

    with Narrator("checking the space, its model and its data", began) as narrator:
        narrator.is_silent = is_silent
        plan = plan_study(with_options(study_space, budget, limits, seed, slots))
        check_architecture(plan)
        from raysearch.report.cost_estimate import check_limits, pace_of_study

        pace = pace_of_study(folder) if resume else None
        check_limits(plan, pace)
    return CheckedSearch(plan, folder, prior_trials, pace)


def run(
    plan: "StudyPlan",
    folder: Path,
    prior_trials: Sequence["PriorTrial"] = (),
    runtime: "TrialRuntime | None" = None,
    began: float | None = None,
    is_live: bool = False,
) -> None:
    """Run the trials that a study lacks, show their progress, and print the front.

    Args:
        prior_trials: finished trials of other studies to start from.
        runtime: runs the trials in the workers; left out, real ones.
        began: when the time of this start began, by `time.monotonic`; left out, now.
        is_live: serve the report on this machine while the search runs.

    Raises:
        InputError: as `resume_search` and `run_trials`.
    """
    from raysearch.report.narrator import Narrator
    from raysearch.study.folder import StudyFolder, locked

    began = monotonic() if began is None else began
    slots = plan.space.slots
    with _nothing_left_if_refused(folder), locked(folder), Narrator("loading Ray", began) as narrator:
        from raysearch.backend.cluster import join_cluster, joining_text
        from raysearch.backend.tuner import resume_search, run_trials
        from raysearch.report.live_view import LiveView
        from raysearch.report.outlook import Outlook
        from raysearch.report.plots import write_pictures
        from raysearch.report.terminal import print_result
        from raysearch.searching.pace import Deadline
        from raysearch.study.provenance import Start, note_start
        from raysearch.tracking.tracker import Tracker

        narrator.enter("reading the study", str(folder))
        study = StudyFolder(folder, plan.space)
        # A study that can't be resumed, or a cluster too small for a trial, is refused before anything is written.
        search = resume_search(plan, study, prior_trials)
        narrator.enter(*joining_text())
        num_slots = join_cluster(slots)
        outlook = Outlook(study, search.searcher, num_slots)
        seconds = plan.space.search.seconds(num_slots * slots.workers * slots.gpus_per_worker)
        deadline = None
        if seconds is not None:
            deadline = Deadline(seconds, study.records, num_evaluations(plan), began)
            seconds -= monotonic() - began
        study.create()
        start = Start(num_slots=num_slots)
        note_start(folder, start)
        narrator.listeners.append(lambda status: status.write(folder))
        narrator.enter("starting the slots")
        with closing(Tracker(study, dense=plan.dense)) as tracker, ExitStack() as serving:
            narrator.listeners.append(tracker.status)
            if is_live:
                serving.enter_context(_live_page(plan, folder, narrator))
            try:
                # Closed before the tracker, so that an interrupted search says at once how to resume it.
                with LiveView(plan, study, outlook.text, seconds, narrator) as view:
                    front = run_trials(plan, study, search, [tracker, view], runtime, deadline, narrator)
                tracker.is_complete = True
                if outlook.save():
                    tracker.forecast(outlook.text(), outlook.points())
            finally:
                narrator.follow_slots([])
                narrator.enter("writing the report and sending the rest to MLflow")
                note_start(folder, start.model_copy(update={"ended": time()}))
                if study.front:
                    write_pictures(folder, study.front, study.records)
                    if tracker.is_complete:  # an interrupted search ends at once
                        _write_report(folder)
    print_result(front, folder)
    for line in filter(None, (_end_text(plan, search.searcher, folder), outlook.advice())):
        print(f"\n{line}")


@contextmanager
def _live_page(plan: "StudyPlan", folder: Path, narrator: "Narrator") -> Iterator[None]:
    """Serve the report inside, and say where."""
    from raysearch.report.live_page import LivePage
    from raysearch.study.front import Baseline, Front

    dense = Baseline(**asdict(plan.dense), scores={})
    with LivePage(folder, Front.build(plan.space.name, plan.space.model, dense, [], plan.budgets)) as page:
        narrator.listeners.append(page.follow)
        for line in page.how_to_reach():
            narrator.say(line)
        yield


def _write_report(folder: Path) -> None:
    """Write `report.html`; what goes wrong costs no search, since `raysearch report` writes it at any time."""
    from raysearch.errors import first_line
    from raysearch.logging import logger
    from raysearch.report.html_page import write_report

    try:
        write_report(folder)
    except Exception as error:
        logger.warning("%s: no report.html: %s", folder, first_line(error))


def num_evaluations(plan: "StudyPlan") -> float:
    """Evaluations of a trial that runs to its end, the early ones by their share of the questions."""
    from raysearch.searching.early_stopping.asha import AshaBracket

    settings = plan.space.search
    if not settings.early_stopping:
        return 1.0
    levels = AshaBracket(plan.max_samples, plan.first_rung, settings.reduction_factor).levels
    return 1 + settings.early_questions * sum(level < plan.max_samples for level in levels)


def _end_text(plan: "StudyPlan", searcher: "Searcher", folder: Path) -> str:
    """Why the search has ended; nothing to say of one that ran all the trials that were asked for."""
    settings, num_run = plan.space.search, len(searcher.history)
    wanted = settings.num_trials
    if wanted is not None and num_run >= wanted:
        return ""
    if searcher.exhausted:
        reason = "the space has no further recipe to try"
    elif searcher.ended_by == "time":
        reason = f"there is no time for another in {settings.limits_text()}; --resume {folder} has as much again"
    elif searcher.ended_by == "until_gain":
        reason = f"another 10 full runs are expected to add less than {settings.until_gain:g} points"
    elif settings.runs is not None and not searcher.running():
        reason = f"they make {searcher.num_samples / plan.max_samples:.1f} of {settings.runs:g} full runs"
    else:
        reason = f"see {folder}/tune"
    return f"Ended after {num_run}{f' of {wanted}' if wanted is not None else ''} trials: {reason}"


def check_architecture(plan: "StudyPlan") -> None:
    """Check that the model's architecture can be pruned in the space's modes; known for the embedded LVLM.

    Raises:
        InputError: a mode would not be right.
    """
    from raysearch.models.param_count_cache import is_shipped

    if not is_shipped(plan.space.model):
        from raysearch.pruning.self_check import check_model

        drops_experts = any(plan.space.values_of("expert_ratio"))
        drops_hidden = any(plan.space.values_of("hidden_ratio"))
        check_model(plan.space.model, plan.space.values_of("mode"), drops_experts, drops_hidden)


@contextmanager
def _nothing_left_if_refused(folder: Path) -> Iterator[None]:
    """Delete a new study's folder if it was refused before a trial ended, so that the same command can be repeated."""
    from raysearch.study.folder import SPACE, TRIALS

    is_new = not folder.exists()
    try:
        yield
    except InputError as error:
        if is_new and not (folder / TRIALS).exists() and (isinstance(error, Refused) or not (folder / SPACE).exists()):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def study_of(space: Path | SearchSpace | None, resume: Path | None, out: Path | None) -> tuple[SearchSpace, Path]:
    """The space and the folder of a new study, or of the one to resume.

    Raises:
        InputError: the space or the folder can't be used.
    """
    from raysearch.study.folder import is_study, read_space

    if resume is not None:
        if space is not None or out is not None:
            raise InputError("--resume: takes the space and the folder of the study; leave out SPACE and --out")
        return read_space(resume), resume.resolve()
    loaded = space if isinstance(space, SearchSpace) else SearchSpace.load(space or EMBEDDED_SPACE)
    folder = out or _default_folder(loaded.name)
    if is_study(folder):
        raise InputError(
            f"--out {folder}: holds a study already; resume it with --resume {folder}, or choose another folder"
        )
    return loaded, check_free(folder, "--out")


def _prior_trials(sources: Sequence[str], resume: Path | None, folder: Path) -> list["PriorTrial"]:
    """The finished trials of the studies to start from."""
    if not sources:
        return []
    if resume is not None:
        raise InputError("--warm-start: holds for a new study only; leave it out with --resume")
    from raysearch.tracking.earlier_studies import read_prior_trials
    from raysearch.tracking.tracker import tracking_uri

    return [trial for source in sources for trial in read_prior_trials(source, tracking_uri(folder))]


def _default_folder(name: str) -> Path:
    """runs/NAME-TIME here; under the home folder in a Ray job, whose working folder is deleted."""
    in_job = "runtime_resources" in Path.cwd().parts
    runs = home_folder() / "raysearch-runs" if in_job else Path("runs")
    return runs / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def with_options(
    space: SearchSpace, budget: Sequence[str] | None, limits: Mapping[str, Any], seed: int | None, slots: int | None
) -> SearchSpace:
    """The space with the options of the command line in place of its own.

    Args:
        limits: by field of `SearchSettings`; if one is given, they replace all those of the space.

    Raises:
        InputError: a budget or a limit is wrong.
    """
    searching: dict[str, Any] = {} if seed is None else {"seed": seed}
    given = {name: value for name, value in limits.items() if value is not None}
    if given:
        try:
            checked = SearchSettings.model_validate(given)
        except ValidationError as error:
            option, _, problem = first_problem(error, given).partition(": ")
            raise InputError(f"--{option.replace('_', '-')}: {problem}") from None
        searching |= {name: getattr(checked, name) for name in LIMITS}
    changes: dict[str, Any] = {"search": space.search.model_copy(update=searching)}
    if budget:
        changes["budgets"] = [Budget.parse(text).text for text in budget]
    if slots:
        changes["slots"] = space.slots.model_copy(update={"num": slots})
    return space.model_copy(update=changes)
