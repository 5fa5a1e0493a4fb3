"""The command line: `raysearch search | best | export | prune | report | estimate | sync`.

Every command imports what it needs when it runs: `--help`, `best` and mistakes answer without torch, ray or MLflow.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raysearch import pareto
from raysearch.door import Door
from raysearch.errors import InputError
from raysearch.recipe import check_ratio

app = Door(no_args_is_help=True, help="Search for the pruning and recovery recipe that fits a size budget.")
app.command()(pareto.search)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study: the --out of a search.")]
BudgetText = Annotated[str, typer.Option("--budget", "-b", help="Largest size: 60%, 3.2GB, 900MiB, 3B.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command()
def best(folder: Folder, budget: BudgetText, as_json: AsJson = False) -> None:
    """The best recipe that fits a size budget.

    Of the front's points no larger than the budget, the one with the highest
    lower bound of retention; ties go to the smaller, then to the one that was
    trained on fewer samples.

    Examples:

      raysearch best runs/mine --budget 60%

      raysearch best runs/mine --budget 3.2GB --json
    """
    from raysearch.report.summary import front_table, not_told_apart, print_rich, retention_text

    front, point = _picked(folder, budget)
    fitting = [other for other in front.points if _budget(budget).admits(other.size, front.baseline.size)]
    similar = not_told_apart(point, fitting)
    if as_json:
        checkpoint = str(folder / point.checkpoint) if point.checkpoint else None
        answer: dict[str, Any] = {"study": front.study, "budget": budget, **point.model_dump(mode="json")}
        answer |= {"recipe": point.recipe.as_dict(), "checkpoint": checkpoint}
        print(json.dumps(answer | {"not_told_apart": [other.key for other in similar]}, indent=2))
        return
    print_rich(front_table([point]))
    print(f"Size        {point.num_params:,} parameters, {point.size_bytes:,} bytes")
    print(f"Recipe      {json.dumps(point.recipe.as_dict())}")
    print(f"Checkpoint  {folder / point.checkpoint if point.checkpoint else 'none kept'}")
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
) -> None:
    """Copy the best checkpoint for a budget, and prove that it loads.

    The folder is a stock Hugging Face checkpoint. A fresh process that has
    transformers alone loads it and generates before it is handed over.

    Examples:

      raysearch export runs/mine --budget 60% --to small-model
    """
    from raysearch.export.delivery import deliver
    from raysearch.report.summary import retention_text, size_text

    _, point = _picked(folder, budget)
    text = deliver(folder, point, to)
    print(
        f"{to}: {size_text(point.size_bytes)}, retention {retention_text(point)}, {point.recipe.describe()}"
    )
    print(f"Loaded by transformers in a fresh process; it answers {text!r}")


@app.command()
def prune(
    model: Annotated[
        str,
        typer.Argument(
            help="Hugging Face folder or hub id of a vision-language or language model, or pocket."
        ),
    ],
    to: Annotated[Path, typer.Option(help="New or empty folder for the pruned model.")],
    mode: Annotated[
        Literal["layerwise", "widthwise", "both"], typer.Option(help="Drop layers, slice widths, or both.")
    ] = "layerwise",
    ratio: Annotated[
        float | None, typer.Option(help="Share of the decoder's parameters to remove, below 1.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Or: largest size of the whole model: 60%, 3.2GB, 3B.")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="What goes first: block_influence, taylor, activation, ...")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Data on which importance is measured: a JSON file, or pocket; none for weights alone."
        ),
    ] = None,
    compensate: Annotated[
        bool, typer.Option("--compensate", help="Let the FFNs in front of dropped layers make up for them.")
    ] = False,
) -> None:
    """Prune without recovery, and write a stock checkpoint.

    Examples:

      raysearch prune pocket --mode layerwise --ratio 0.3 --to pruned

      raysearch prune ./llava-1.5-7b --mode widthwise --budget 60% --calibration llava.json --to pruned
    """
    if (ratio is None) == (budget is None):
        raise InputError(
            "prune: needs one of --ratio and --budget; give the share to remove, or the size to reach"
        )
    parsed = _budget(budget) if budget is not None else None
    if ratio is not None:
        check_ratio(ratio)
    from raysearch.pruning import prune_checkpoint
    from raysearch.report.summary import size_text

    done = prune_checkpoint(
        model,
        mode=mode,
        to=to,
        ratio=ratio,
        budget=parsed,
        criterion=criterion,
        calibration=calibration or ("pocket" if model == "pocket" else None),
        compensate=compensate,
    )
    print(
        f"{to}: {size_text(done['size_bytes'])}, {done['size_ratio']:.1%} of the dense model, by {done['criterion']}"
    )


@app.command()
def report(folder: Folder) -> None:
    """Write DIR/report.html, one page that needs no network.

    The front, every trial's curve, what mattered, the cost, and the findings
    of the study in words with their evidence.

    Examples:

      raysearch report runs/mine
    """
    from raysearch.report.page import write_report

    print(write_report(folder))


@app.command()
def estimate(
    space: Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="Search space.")],
) -> None:
    """What a search would take, before anything starts.

    The same as raysearch search SPACE.yaml --dry-run.

    Examples:

      raysearch estimate search_spaces/pocket.yaml
    """
    pareto.search(space=space, dry_run=True)


@app.command()
def sync(
    folder: Folder,
    uri: Annotated[str | None, typer.Option(help="Tracking server; left out, the study's own.")] = None,
) -> None:
    """Send to MLflow what could not be sent while the search ran.

    Examples:

      raysearch sync runs/mine
    """
    from raysearch.tracking.tracker import sync_unsent

    num_sent, num_left = sync_unsent(folder, uri)
    print(f"{folder}: {num_sent} events sent, {num_left} left")


def _picked(folder: Path, budget: str) -> Any:
    """The front of a study and its answer to a budget.

    Raises:
        InputError: the budget is no size, the folder no study, or nothing on the front is small enough.
    """
    parsed = _budget(budget)
    from raysearch.front import Front
    from raysearch.report.summary import size_text

    front = Front.load(folder)
    if not front.points:
        raise InputError(
            f"{folder}: no recipe has finished yet; go on with raysearch search --resume {folder}"
        )
    point = front.pick(parsed)
    if point is None:
        least = front.points[0]
        raise InputError(
            f"--budget {budget}: the smallest recipe on the front takes {size_text(least.size_bytes)} "
            f"({least.size_ratio:.1%} of the dense model); raise the budget, or search with --budget {budget}"
        )
    return front, point


def _budget(text: str) -> Any:
    from raysearch.size import Budget

    return Budget.parse(text)


if __name__ == "__main__":
    app()
