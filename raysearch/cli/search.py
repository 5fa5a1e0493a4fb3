"""`raysearch search`: check a space, run its search on Ray, and print the front."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysearch.config.budget import Budget
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError, Refused
from raysearch.logging import configure

if TYPE_CHECKING:
    from raysearch.backend.runtime import TrialRuntime
    from raysearch.study.plan import StudyPlan
    from raysearch.tracking.earlier_studies import PriorTrial


EMBEDDED_SPACE = Path(__file__).parents[1] / "pocket" / "space.yaml"
Verbosity = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, callback=configure, show_default=False, help="Log info; -vv: debug."),
]
"""Option of every command; sets the log level before the command runs."""


def search(
    space: Annotated[Path | None, typer.Argument(help="Search space; left out, that of the embedded LVLM.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Size budget: 60%, 3.2GB, 3B; may be repeated.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to run, stopped ones included.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampler and the data order.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    warm_start: Annotated[
        list[str] | None, typer.Option(help="Earlier study to start from: folder or MLflow experiment; repeatable.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the study in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; run nothing.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Search for the Pareto front of model size against retention.

    Examples:

      raysearch search

      raysearch search my-space.yaml --budget 3.2GB --budget 60% --out runs/mine

      raysearch search --resume runs/mine --trials 60

    Raises:
        InputError: the space, an option or an earlier study can't be used.
    """
    study_space, folder = study_of(space, resume, out)
    if resume is not None and seed not in (None, study_space.search.seed):
        raise InputError(f"--seed {seed}: a resumed study keeps its seed, {study_space.search.seed}; leave it out")
    prior_trials = _prior_trials(warm_start or [], resume, folder)
    from raysearch.study.plan import plan_study

    plan = plan_study(with_options(study_space, budget, trials, seed, slots))
    if dry_run:
        from raysearch.cli.cost_estimate import estimate_lines

        print("\n".join([*plan.describe(), *estimate_lines(plan)]))
        return
    run(plan, folder, prior_trials)


def run(
    plan: "StudyPlan", folder: Path, prior_trials: Sequence["PriorTrial"] = (), runtime: "TrialRuntime | None" = None
) -> None:
    """Run the trials that a study lacks, show their progress, and print the front.

    Args:
        prior_trials: finished trials of other studies to start from.
        runtime: runs the trials in the workers; left out, real ones.

    Raises:
        InputError: as `resume_search` and `run_trials`.
    """
    from raysearch.backend.cluster import join_cluster
    from raysearch.backend.tuner import resume_search, run_trials
    from raysearch.report.live_view import LiveView
    from raysearch.report.plots import write_pictures
    from raysearch.report.terminal import print_result
    from raysearch.study.folder import Study, locked
    from raysearch.tracking.tracker import Tracker

    with _nothing_left_if_refused(folder), locked(folder):
        study = Study(folder, plan.space)
        # A study that can't be resumed, or a cluster too small for a trial, is refused before anything is written.
        search = resume_search(plan, study, prior_trials)
        join_cluster(plan.space.slots)
        study.create()
        with closing(Tracker(study, dense=plan.dense)) as tracker:
            try:
                # Closed before the tracker, so that an interrupted search says at once how to resume it.
                with LiveView(plan, study) as view:
                    front = run_trials(plan, study, search, [tracker, view], runtime)
            finally:
                if study.front:
                    write_pictures(study.folder, study.front, study.records)
    print_result(front, folder)
    num_run, num_wanted = len(study.records), plan.space.search.trials
    if num_run < num_wanted:
        reason = "the space has no further recipe to try" if search.searcher.exhausted else f"see {folder}/tune"
        print(f"\nEnded after {num_run} of {num_wanted} trials: {reason}")


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


def study_of(space: Path | None, resume: Path | None, out: Path | None) -> tuple[SearchSpace, Path]:
    """The space and the folder of a new study, or of the one to resume.

    Raises:
        InputError: the space or the folder can't be used.
    """
    from raysearch.study.folder import is_study, read_space

    if resume is not None:
        if space is not None or out is not None:
            raise InputError("--resume: takes the space and the folder of the study; leave out SPACE and --out")
        return read_space(resume), resume.resolve()
    loaded = SearchSpace.load(space or EMBEDDED_SPACE)
    folder = out or _default_folder(loaded.name)
    if is_study(folder):
        raise InputError(
            f"--out {folder}: holds a study already; resume it with --resume {folder}, or choose another folder"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder}: exists and is not an empty folder; choose another")
    return loaded, folder.resolve()


def _prior_trials(sources: list[str], resume: Path | None, folder: Path) -> list["PriorTrial"]:
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
    runs = Path.home() / "raysearch-runs" if in_job else Path("runs")
    return runs / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def with_options(
    space: SearchSpace, budget: list[str] | None, trials: int | None, seed: int | None, slots: int | None
) -> SearchSpace:
    """The space with the options of the command line in place of its own."""
    searching = {name: value for name, value in (("trials", trials), ("seed", seed)) if value is not None}
    changes: dict[str, Any] = {"search": space.search.model_copy(update=searching)}
    if budget:
        changes["budgets"] = [Budget.parse(text).text for text in budget]
    if slots:
        changes["slots"] = space.slots.model_copy(update={"num": slots})
    return space.model_copy(update=changes)
