"""The command line: `raysearch search | best | export | measure | prune | report | estimate | study | sync`.

Every command imports what it needs when it runs: `--help`, `best` and mistakes answer without torch, ray or MLflow.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raysearch.cli import search
from raysearch.cli.exit_codes import App
from raysearch.config.recipe import check_ratio
from raysearch.config.settings import EMBEDDED_MODELS
from raysearch.errors import InputError

app = App(no_args_is_help=True, help="Search for the pruning and recovery recipe that fits a size budget.")
app.command()(search.search)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study: the --out of a search.")]
BudgetText = Annotated[str, typer.Option("--budget", "-b", help="Largest size: 60%, 3.2GB, 900MiB, 3B.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command()
def best(
    budget: BudgetText,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a study: the --out of a search.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="EXPERIMENT", help="Read the newest front of it in MLflow instead.")
    ] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow's server, if not MLFLOW_TRACKING_URI.")] = None,
    as_json: AsJson = False,
) -> None:
    """The best recipe that fits a size budget.

    Of the front's points no larger than the budget, the one with the highest
    lower bound of retention; ties go to the smaller, then to the one that was
    trained on fewer samples.

    Examples:

      raysearch best runs/mine --budget 60%

      raysearch best runs/mine --budget 3.2GB --json

      raysearch best --mlflow mine --budget 60% --uri http://127.0.0.1:5000
    """
    from raysearch.report.terminal import front_table, print_rich, speed_text, statistically_tied
    from raysearch.study.front import Front, retention_text

    wanted = _budget(budget)
    if (folder is None) == (mlflow is None):
        raise InputError("best: needs DIR, the folder of a study, or --mlflow EXPERIMENT; give one of them")
    if mlflow:
        from raysearch.tracking.lookup import front_of_experiment

        front, folder = front_of_experiment(mlflow, uri)
    else:
        assert folder is not None, mlflow
        front = Front.load(folder)
    point = _picked(front, wanted, str(folder))
    fitting = [other for other in front.points if wanted.admits(other.size, front.baseline.size)]
    similar = statistically_tied(point, fitting)
    checkpoint = point.checkpoint_path(folder)
    if as_json:
        answer: dict[str, Any] = {"study": front.study, "budget": budget, **point.model_dump(mode="json")}
        answer |= {"recipe": point.recipe.as_dict(), "checkpoint": str(checkpoint) if checkpoint else None}
        print(json.dumps(answer | {"not_told_apart": [other.key for other in similar]}, indent=2))
        return
    print_rich(front_table([point]))
    print(f"Size        {point.num_params:,} parameters, {point.size_bytes:,} bytes")
    print(f"Recipe      {json.dumps(point.recipe.as_dict())}")
    print(f"Checkpoint  {checkpoint or 'none kept; export --retrain makes it again'}")
    if point.measured:
        print(f"Measured    {speed_text(point.measured)}")
    for other in similar:
        print(
            f"Not told apart statistically: {other.key}, {other.recipe.describe()}, "
            f"{other.size_ratio:.1%} of the dense size, retention {retention_text(other)}"
        )


@app.command()
def export(
    folder: Folder,
    budget: BudgetText,
    to: Annotated[Path, typer.Option(help="New or empty folder for the checkpoint.")],
    rebuild_checkpoint: Annotated[
        bool, typer.Option("--retrain", help="Make the checkpoint again if the study's quota has cost it.")
    ] = False,
    finetune: Annotated[
        bool, typer.Option("--polish", help="First train it further, on all of the data; the better one goes.")
    ] = False,
    epochs: Annotated[
        float, typer.Option(min=0.001, help="With --polish: passes over the data.", show_default=True)
    ] = 1.0,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make it a version of this registered model in MLflow.")
    ] = None,
) -> None:
    """Hand over the best checkpoint for a budget, and prove that it loads.

    The folder is a stock Hugging Face checkpoint. A fresh process that has
    transformers alone loads it, generates, and measures its speed before it is
    handed over. The model card says what it is, how good, how fast and how made.

    Examples:

      raysearch export runs/mine --budget 60% --to small-model

      raysearch export runs/mine --budget 60% --to small-model --polish --register small-llava
    """
    wanted = _budget(budget)
    from raysearch.config.budget import size_text
    from raysearch.export.export_checkpoint import check_free, export_checkpoint
    from raysearch.report.terminal import speed_text
    from raysearch.study.front import Front, retention_text

    front, note = Front.load(folder), ""
    point = _picked(front, wanted, str(folder))
    check_free(to)
    if rebuild_checkpoint and point.checkpoint is None:
        from raysearch.trials.rebuild_checkpoint import rebuild_checkpoint as train_again

        point = train_again(folder, point)
    if finetune:
        from raysearch.trials.finetune import finetune as go_on

        polished = go_on(folder, point, epochs)
        point, note = polished.point, polished.describe()
        print(note)
    point = export_checkpoint(folder, point, to, front, note)
    print(f"{to}: {size_text(point.size_bytes)}, retention {retention_text(point)}, {point.recipe.describe()}")
    assert point.measured is not None, point.key
    print(f"Loaded by transformers in a fresh process: {speed_text(point.measured)}")
    if register:
        from raysearch.tracking.lookup import register as make_version

        print(f"Registered in MLflow: {register}, version {make_version(folder, point, to, register)}")


@app.command()
def measure(folder: Folder) -> None:
    """Measure speed and memory of every recipe on the front, on this machine.

    Prefill, decoding, peak memory, files and KV cache of the dense model and of
    each checkpoint, one after another, each in a process of its own. They go to
    front.json, to MLflow, to the report and to the model cards.

    Examples:

      raysearch measure runs/mine
    """
    from raysearch.export.export_checkpoint import measure_front
    from raysearch.report.terminal import print_rich, speed_table
    from raysearch.tracking.tracker import log_speeds

    front = measure_front(folder)
    log_speeds(folder, front)
    print_rich(speed_table(front))


@app.command()
def prune(
    model: Annotated[
        str,
        typer.Argument(
            help="Hugging Face folder or hub id of a vision-language or language model, or pocket or pocket-smollm2."
        ),
    ],
    to: Annotated[Path, typer.Option(help="New or empty folder for the pruned model.")],
    mode: Annotated[
        Literal["layerwise", "widthwise", "both"], typer.Option(help="Drop layers, slice widths, or both.")
    ] = "layerwise",
    ratio: Annotated[float | None, typer.Option(help="Share of the decoder's parameters to remove, below 1.")] = None,
    budget: Annotated[str | None, typer.Option(help="Or: largest size of the whole model: 60%, 3.2GB, 3B.")] = None,
    criterion: Annotated[
        str | None, typer.Option(help="What goes first: block_influence, taylor, activation, ...")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Data on which importance is measured: a JSON file, or pocket; none for weights alone."),
    ] = None,
    compensate: Annotated[
        bool, typer.Option("--compensate", help="Let the FFNs in front of dropped layers make up for them.")
    ] = False,
    quantization: Annotated[
        Literal["none", "int8", "int4"], typer.Option(help="Round the weights of the decoder's linear layers.")
    ] = "none",
) -> None:
    """Prune without recovery, and write a stock checkpoint.

    Examples:

      raysearch prune pocket --mode layerwise --ratio 0.3 --to pruned

      raysearch prune ./llava-1.5-7b --mode widthwise --budget 60% --calibration llava.json --to pruned

      raysearch prune ./llava-1.5-7b --ratio 0 --quantization int4 --to small
    """
    if (ratio is None) == (budget is None):
        raise InputError("prune: needs one of --ratio and --budget; give the share to remove, or the size to reach")
    parsed = _budget(budget) if budget is not None else None
    if ratio is not None:
        check_ratio(ratio)
    from raysearch.config.budget import size_text
    from raysearch.pruning.checkpoint import prune_checkpoint

    done = prune_checkpoint(
        model,
        mode=mode,
        to=to,
        ratio=ratio,
        budget=parsed,
        criterion=criterion,
        calibration=calibration or ("pocket" if model in EMBEDDED_MODELS else None),
        compensate=compensate,
        quantization=quantization,
    )
    print(f"{to}: {size_text(done['size_bytes'])}, {done['size_ratio']:.1%} of the dense model, by {done['criterion']}")


@app.command()
def report(folder: Folder) -> None:
    """Write DIR/report.html, one page that needs no network.

    The front, every trial's curve, what mattered, the cost, and the findings
    of the study in words with their evidence.

    Examples:

      raysearch report runs/mine
    """
    from raysearch.report.html_page import write_report

    print(write_report(folder))


@app.command()
def estimate(
    space: Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="Search space.")],
    like: Annotated[Path | None, typer.Option(metavar="DIR", help="Earlier study whose trials give the pace.")] = None,
) -> None:
    """What a search would take, before anything starts.

    Work, memory, disk and hours; the hours from the trials of an earlier
    study of the same model, data and machines, or else by arithmetic.

    Examples:

      raysearch estimate search_spaces/pocket.yaml

      raysearch estimate search_spaces/pocket.yaml --like runs/first
    """
    from raysearch.cli.cost_estimate import estimate_lines
    from raysearch.config.space import SearchSpace
    from raysearch.study.plan import plan_study

    planned = plan_study(SearchSpace.load(space))
    print("\n".join([*planned.describe(), *estimate_lines(planned, like)]))


@app.command()
def study(
    space: Annotated[Path | None, typer.Argument(metavar="SPACE.yaml", help="Space without ranges: its grid.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the study in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count; run nothing.")] = False,
) -> None:
    """Run every recipe of a space, and hold the claims of arXiv 2604.24380 against them.

    No trial is stopped. DIR/study.md has the paper's tables for this model,
    with intervals, and its claims: each holds, fails, or can't be told.

    Examples:

      raysearch study search_spaces/pocket-study.yaml --out runs/study

      raysearch study --resume runs/study
    """
    from raysearch.search.samplers.grid import as_grid, grid
    from raysearch.study.folder import Study
    from raysearch.study.plan import plan_study

    if space is None and resume is None:
        raise InputError("study: needs SPACE.yaml; start from search_spaces/pocket-study.yaml or paper-grid.yaml")
    loaded, folder = search.study_of(space, resume, out)
    if resume and not loaded.search.keep_scores:
        raise InputError(f"--resume {resume}: holds a search; go on with raysearch search --resume {resume}")
    loaded = search.with_options(as_grid(loaded), None, None, None, slots)
    planned = plan_study(loaded)
    if dry_run:
        print("\n".join(planned.describe()))
        return
    recipes = [recipe for recipe in grid(loaded) if planned.size_of(recipe)]
    if len(Study(folder, loaded).records) < len(recipes):
        search.run(planned, folder)
    if not any(record.end == "finished" and record.recipe.ratio for record in Study(folder, loaded).records):
        raise InputError(f"{folder}: no recipe that prunes has finished; {folder}/trials.jsonl has the reasons")
    from raysearch.replication.markdown_page import write_page
    from raysearch.replication.probes import measure

    measure(loaded, folder, recipes)
    print(write_page(folder, loaded, planned.dense))


@app.command()
def sync(
    folder: Folder, uri: Annotated[str | None, typer.Option(help="Tracking server; left out, the study's own.")] = None
) -> None:
    """Send to MLflow what could not be sent while the search ran.

    Examples:

      raysearch sync runs/mine
    """
    from raysearch.tracking.tracker import sync_unsent

    num_sent, num_left = sync_unsent(folder, uri)
    print(f"{folder}: {num_sent} events sent, {num_left} left")


def _picked(front: Any, budget: Any, where: str) -> Any:
    """A front's answer to a budget.

    Raises:
        InputError: nothing on the front is small enough, or nothing is there at all.
    """
    from raysearch.config.budget import size_text

    if not front.points:
        raise InputError(f"{where}: no recipe has finished yet; go on with raysearch search --resume {where}")
    point = front.pick(budget)
    if point is None:
        least = front.points[0]
        raise InputError(
            f"--budget {budget.text}: the smallest recipe on the front takes {size_text(least.size_bytes)} "
            f"({least.size_ratio:.1%} of the dense model); raise the budget, or search with --budget {budget.text}"
        )
    return point


def _budget(text: str) -> Any:
    from raysearch.config.budget import Budget

    return Budget.parse(text)


if __name__ == "__main__":
    app()
