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

if TYPE_CHECKING:
    from raysearch.study.plan import StudyPlan
    from raysearch.tracking.earlier_studies import PriorTrial


EMBEDDED_SPACE = Path(__file__).parents[1] / "pocket" / "space.yaml"


def search(
    space: Annotated[Path | None, typer.Argument(help="Search space; left out, the embedded LVLM's.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Size to answer for: 60%, 3.2GB, 3B; may be repeated.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to run, stopped ones included.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sampler and data order.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(help="Start from an earlier study: its folder, or an MLflow experiment; may be repeated."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the study in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; run nothing.")] = False,
) -> None:
    """Search for the best recipes: a Pareto front of model size against quality kept.

    Examples:

      raysearch search

      raysearch search my-space.yaml --budget 3.2GB --budget 60% --out runs/mine

      raysearch search --resume runs/mine --trials 60
    """
    study_space, folder = study_of(space, resume, out)
    earlier = _earlier(warm_start or [], resume, folder)
    study_space = with_options(study_space, budget, trials, seed, slots)
    from raysearch.study.plan import plan_study

    planned = plan_study(study_space)
    if dry_run:
        from raysearch.cli.cost_estimate import estimate_lines

        print("\n".join([*planned.describe(), *estimate_lines(planned)]))
        return
    run(planned, folder, earlier)


def run(planned: "StudyPlan", folder: Path, earlier: Sequence["PriorTrial"] = ()) -> None:
    """Run the trials that a study lacks, in view of the person, and print what came of them.

    Args:
        earlier: finished trials of other studies to start from.

    Raises:
        InputError: as `tuner.search`.
    """
    from raysearch.backend.cluster import join_cluster
    from raysearch.backend.tuner import check_state
    from raysearch.backend.tuner import search as run_search
    from raysearch.report.live_view import LiveView
    from raysearch.report.plots import write_pictures
    from raysearch.report.terminal import print_result
    from raysearch.study.folder import Study, locked
    from raysearch.tracking.tracker import Tracker

    check_state(planned, Study(folder, planned.space))
    join_cluster(planned.space.slots)  # one too small for a trial is found before anything is written
    is_new = not folder.exists()
    with locked(folder), _nothing_left(folder, if_refused=is_new):
        study = Study(folder, planned.space)
        study.create()
        with closing(Tracker(study, dense=planned.dense)) as tracker:
            try:
                # Closed before the tracker: it says at once how to go on, should the search be stopped.
                with LiveView(planned, study) as view:
                    front = run_search(planned, study, [tracker, view], earlier)
            finally:
                if study.front:
                    write_pictures(study.folder, study.front, study.records)
    print_result(front, folder)


@contextmanager
def _nothing_left(folder: Path, if_refused: bool) -> Iterator[None]:
    """The same command may be given again once a mistake in the space has been put right; what has ended stays."""
    from raysearch.study.folder import TRIALS

    try:
        yield
    except Refused:
        if if_refused and not (folder / TRIALS).exists():
            shutil.rmtree(folder)
        raise


def study_of(space: Path | None, resume: Path | None, out: Path | None) -> tuple[SearchSpace, Path]:
    """The space and the folder, from a new start or from an earlier one."""
    from raysearch.study.folder import is_study, read_space

    if resume is not None:
        if space is not None or out is not None:
            raise InputError("--resume: goes on with the space and the folder of the study; leave out SPACE and --out")
        return read_space(resume), resume.resolve()
    loaded = SearchSpace.load(space or EMBEDDED_SPACE)
    folder = out or _default_folder(loaded.name)
    if is_study(folder):
        raise InputError(
            f"--out {folder}: holds a study already; go on with --resume {folder}, or choose another folder"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder}: exists and is not an empty folder; choose another")
    return loaded, folder.resolve()


def _earlier(sources: list[str], resume: Path | None, folder: Path) -> list["PriorTrial"]:
    """The finished trials of the studies to start from."""
    if not sources:
        return []
    if resume is not None:
        raise InputError("--warm-start: a study starts only once; leave it out with --resume")
    from raysearch.tracking.earlier_studies import read_prior_trials
    from raysearch.tracking.tracker import tracking_uri

    return [trial for source in sources for trial in read_prior_trials(source, tracking_uri(folder))]


def _default_folder(name: str) -> Path:
    """runs/NAME-TIME here; under the home folder in a Ray job, whose working folder is swept away."""
    in_job = "runtime_resources" in Path.cwd().parts
    runs = Path.home() / "raysearch-runs" if in_job else Path("runs")
    return runs / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def with_options(
    space: SearchSpace, budget: list[str] | None, trials: int | None, seed: int | None, slots: int | None
) -> SearchSpace:
    """The space with what the command line overrides."""
    searching = {name: value for name, value in (("trials", trials), ("seed", seed)) if value is not None}
    changes: dict[str, Any] = {"search": space.search.model_copy(update=searching)}
    if budget:
        changes["budgets"] = [Budget.parse(text).text for text in budget]
    if slots:
        changes["slots"] = space.slots.model_copy(update={"num": slots})
    return space.model_copy(update=changes)
