"""`raysearch search`: check a space, run its search on Ray, and print the front."""

from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from raysearch.backend import search_job
from raysearch.config.settings import MAX_SEED, MAX_SLOTS
from raysearch.logging import configure

Verbosity = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, callback=configure, show_default=False, help="Log info; -vv: debug."),
]
"""Option of every command; sets the log level before the command runs."""


def search(
    space: Annotated[Path | None, typer.Argument(help="Search space; left out, that of the embedded LVLM.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Size budget: 60%, 3.2GB, 3B; may be repeated.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to run, stopped ones included.")] = None,
    runs: Annotated[
        float | None, typer.Option(help="Full runs' worth of training; a stopped trial counts by its part.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for this start: 90s, 20m, 2h, 1h30m, 1d.")
    ] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="The same as hours of all its GPUs together.")] = None,
    until_gain: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="End when ten more full runs are expected to add less at every budget."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of the sampler and the data order.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=MAX_SLOTS, help="Trials at a time.")] = None,
    warm_start: Annotated[
        list[str] | None, typer.Option(help="Earlier study to start from: folder or MLflow experiment; repeatable.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the study in this folder.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve the report on this machine while it runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; run nothing.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Search for the Pareto front of model size against retention.

    It ends at the first limit that it reaches: --trials, --runs, --time,
    --gpu-hours, --until-gain. Those given here take the place of the space's.

    Examples:

      raysearch search

      raysearch search my-space.yaml --budget 3.2GB --budget 60% --out runs/mine

      raysearch search my-space.yaml --time 2h --out runs/mine

      raysearch search --resume runs/mine --trials 60

    Raises:
        InputError: the space, an option or an earlier study can't be used.
    """
    began = monotonic()
    limits = {"trials": trials, "runs": runs, "time": time, "gpu_hours": gpu_hours, "until_gain": until_gain}
    checked = search_job.check(space, resume, out, budget, limits, seed, slots, warm_start, began, is_silent=dry_run)
    if dry_run:
        from raysearch.report.cost_estimate import estimate_lines

        print("\n".join([*checked.plan.describe(), *estimate_lines(checked.plan, pace=checked.pace)]))
        return
    search_job.run(checked.plan, checked.folder, checked.prior_trials, began=began, is_live=live)
