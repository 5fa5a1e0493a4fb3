"""Commands that train or plan it: `search`, `retry`, `estimate`, `replicate`."""

from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from raysearch.backend import search_job
from raysearch.config.settings import MAX_SEED, MAX_SLOTS
from raysearch.errors import InputError
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


def retry(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe.yaml, or the output of best --json.")],
    space: Annotated[
        Path | None, typer.Argument(metavar="SPACE.yaml", help="Model, data and benchmarks; the embedded ones if none.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the space's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; run nothing.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Train one recipe, here or on another model: one trial, never stopped.

    Examples:

      raysearch best runs/mine --budget 60% --json > best.json

      raysearch retry best.json my-space.yaml --model ./llava-1.5-13b --out runs/larger

    Raises:
        InputError: no recipe or space, or the model can't hold the recipe's shape.
    """
    from raysearch.config.space import SearchSpace, load_recipe

    chosen = load_recipe(recipe)
    loaded = SearchSpace.load(space or search_job.EMBEDDED_SPACE).fixed_to(chosen)
    settings = loaded.search.model_copy(update={"early_stopping": False, "shapes": 0})
    single = loaded.model_copy(update={"search": settings, "start": [], **({"model": model} if model else {})})
    checked = search_job.check(single, None, out, None, {"trials": 1}, None, 1, None, monotonic(), is_silent=dry_run)
    if checked.plan.size_of(chosen) is None:
        raise InputError(f"{recipe}: {single.model} can't hold its shape; change ratio, mode or attention_share")
    if dry_run:
        from raysearch.report.cost_estimate import estimate_lines

        print("\n".join([*checked.plan.describe(), *estimate_lines(checked.plan)]))
        return
    search_job.run(checked.plan, checked.folder)


def estimate(
    space: Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="Search space.")],
    like: Annotated[Path | None, typer.Option(metavar="DIR", help="Earlier study whose trials give the speed.")] = None,
    verbose: Verbosity = 0,
) -> None:
    """Estimate what a search would take, without starting it.

    Work, memory, disk and hours. The hours come from the trials of an earlier
    study of the same model, data and machines, or else from operation counts.

    Examples:

      raysearch estimate search_spaces/pocket.yaml

      raysearch estimate search_spaces/pocket.yaml --like runs/first
    """
    from raysearch.config.space import SearchSpace
    from raysearch.report.cost_estimate import estimate_lines
    from raysearch.study.plan import plan_study

    plan = plan_study(SearchSpace.load(space))
    print("\n".join([*plan.describe(), *estimate_lines(plan, like)]))


def replicate(
    space: Annotated[Path | None, typer.Argument(metavar="SPACE.yaml", help="Space without ranges: its grid.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=MAX_SLOTS, help="Trials at a time.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the study in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count; run nothing.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Run every recipe of a space, and test the claims of arXiv 2604.24380 on them.

    No trial is stopped early. DIR/study.md has the paper's tables for this
    model, with intervals, and the verdict on its claims: holds, fails, can't tell.

    Examples:

      raysearch replicate search_spaces/pocket-study.yaml --out runs/study

      raysearch replicate --resume runs/study

    Raises:
        InputError: the space, an option or the folder can't be used, or no recipe that prunes has finished.
    """
    from raysearch.searching.samplers.grid import as_grid, grid
    from raysearch.study.folder import StudyFolder
    from raysearch.study.plan import plan_study

    if space is None and resume is None:
        raise InputError("replicate: needs SPACE.yaml; start from search_spaces/pocket-study.yaml or paper-grid.yaml")
    loaded, folder = search_job.study_of(space, resume, out)
    if resume and not loaded.search.keep_scores:
        raise InputError(f"--resume {resume}: holds a search; resume it with raysearch search --resume {resume}")
    plan = plan_study(search_job.with_options(as_grid(loaded), None, {}, None, slots))
    search_job.check_architecture(plan)
    if dry_run:
        print("\n".join(plan.describe()))
        return
    recipes = [recipe for recipe in grid(plan.space) if plan.size_of(recipe)]
    if len(StudyFolder(folder, plan.space).records) < len(recipes):
        search_job.run(plan, folder)
    if not any(record.end == "finished" and record.recipe.ratio for record in StudyFolder(folder, plan.space).records):
        raise InputError(f"{folder}: no recipe that prunes has finished; {folder}/trials.jsonl has the reasons")
    from raysearch.replication.markdown_page import write_page
    from raysearch.replication.probes import measure

    measure(plan.space, folder, recipes)
    print(write_page(folder, plan.space, plan.dense))
