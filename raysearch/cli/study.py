"""Commands on a study: `best`, `status`, `benchmark`, `report`, `sync`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysearch.cli.search import Verbosity
from raysearch.config.budget import Budget
from raysearch.errors import InputError

if TYPE_CHECKING:
    from raysearch.study.front import Front, FrontPoint

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study: the --out of a search.")]
BudgetText = Annotated[str | None, typer.Option("--budget", "-b", help="Largest size: 60%, 3.2GB, 900MiB, 3B.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="Or a recipe of the front by its key.")]


def best(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder of a study.")] = None,
    budget: BudgetText = None,
    key: Key = None,
    mlflow: Annotated[str | None, typer.Option(metavar="EXPERIMENT", help="Newest front in MLflow instead.")] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow server, if not MLFLOW_TRACKING_URI.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Print the best recipe that fits a size budget; without a budget, the whole front.

    Of the front's points no larger than the budget, the one with the highest
    lower bound of retention; ties go to the smaller, then to the one trained
    on fewer samples.

    Examples:

      raysearch best runs/mine

      raysearch best runs/mine --budget 60%

      raysearch best runs/mine --budget 3.2GB --json

      raysearch best --mlflow mine --budget 60% --uri http://127.0.0.1:5000

    Raises:
        InputError: neither DIR nor an experiment is given, or both; it has no front; or no recipe is small enough or
            has this key.
    """
    from raysearch.report.terminal import front_table, print_rich, speed_text, statistically_tied, unscored_text
    from raysearch.study.front import Front, retention_text

    if (folder is None) == (mlflow is None):
        raise InputError("best: needs DIR, the folder of a study, or --mlflow EXPERIMENT; give one of them")
    parsed = one_of(budget, key)
    if mlflow:
        from raysearch.tracking.lookup import front_of_experiment

        front, folder = front_of_experiment(mlflow, uri)
    else:
        assert folder is not None, mlflow
        front = Front.load(folder)
    if parsed is None and key is None:
        if as_json:
            print(json.dumps(front.model_dump(mode="json", by_alias=True), indent=2))
            return
        print_rich(front_table(front.points))
        for text, answer in front.budgets.items():
            print(f"{text:>8}  {answer or 'no recipe is small enough'}")
        return
    point = point_of(front, folder, parsed, key)
    rivals = [other for other in front.points if parsed is None or parsed.admits(other.size, front.baseline.size)]
    tied = statistically_tied(point, rivals)
    checkpoint = point.checkpoint_path(folder)
    if as_json:
        found: dict[str, Any] = {"study": front.study, "budget": budget, **point.model_dump(mode="json")}
        found |= {"recipe": point.recipe.as_dict(), "checkpoint": str(checkpoint) if checkpoint else None}
        print(json.dumps(found | {"not_told_apart": [other.key for other in tied]}, indent=2))
        return
    print_rich(front_table([point]))
    print(f"Size        {point.num_params:,} parameters, {point.size_bytes:,} bytes")
    print(f"Recipe      {json.dumps(point.recipe.as_dict())}")
    print(f"Checkpoint  {checkpoint or 'deleted by the disk quota; export --rebuild makes it again'}")
    if point.measured:
        print(f"Measured    {speed_text(point.measured)}")
    if point.heldout is None and (unscored := unscored_text(front, folder)):
        print(f"Held out    {unscored}")
    for other in tied:
        print(
            f"Statistically tied: {other.key}, {other.recipe.describe()}, {other.size_ratio:.1%} of the dense size, "
            f"retention {retention_text(other)}"
        )


def status(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, verbose: Verbosity = 0
) -> None:
    """Say what a search does, what it has found, and how to go on.

    It also works while another process, on any machine that sees the folder,
    runs the search.

    Examples:

      raysearch status runs/mine
    """
    from raysearch.report.status_text import status_lines, study_status

    print(json.dumps(study_status(folder), indent=2) if as_json else "\n".join(status_lines(folder)))


def benchmark(folder: Folder, verbose: Verbosity = 0) -> None:
    """Measure speed and memory of every recipe on the front, on this machine.

    Prefill, decoding, peak memory, files and KV cache of the dense model and
    of each checkpoint, one after another, each in its own process. The results
    go to front.json, MLflow, the report and the model cards.

    Examples:

      raysearch benchmark runs/mine
    """
    from raysearch.export.export_checkpoint import measure_front
    from raysearch.report.terminal import print_rich, speed_table
    from raysearch.tracking.tracker import log_speeds

    front = measure_front(folder)
    log_speeds(folder, front)
    print_rich(speed_table(front))


def report(folder: Folder, verbose: Verbosity = 0) -> None:
    """Write DIR/report.html, one page that needs no network.

    The answer to each budget, questions that dense and pruned models answer
    differently, the front, findings with their evidence, all trials, and
    whether further search is worth it. A study in MLflow gets it as an artifact.

    Examples:

      raysearch report runs/mine
    """
    from raysearch.report.html_page import write_report
    from raysearch.study.folder import read_space
    from raysearch.tracking.tracker import log_report

    read_space(folder)  # before minutes of work
    print(write_report(folder))
    log_report(folder)


def sync(
    folder: Folder,
    uri: Annotated[str | None, typer.Option(help="Tracking server; left out, the study's own.")] = None,
    verbose: Verbosity = 0,
) -> None:
    """Send to MLflow the events that could not be sent during the search.

    Examples:

      raysearch sync runs/mine
    """
    from raysearch.tracking.tracker import sync_unsent

    num_sent, num_left = sync_unsent(folder, uri)
    print(f"{folder}: {num_sent} events sent, {num_left} left")


def one_of(budget: str | None, key: str | None) -> Budget | None:
    """The budget, if one is given.

    Raises:
        InputError: both are given, or it is not a budget.
    """
    if budget is not None and key is not None:
        raise InputError("--key: names a recipe by itself; leave out --budget")
    return None if budget is None else Budget.parse(budget)


def point_of(front: "Front", folder: Path, budget: Budget | None, key: str | None) -> "FrontPoint":
    """The front's point for a budget or with a key.

    Raises:
        InputError: there is none.
    """
    if budget is not None:
        return front.answer(budget, folder)
    for point in front.points:
        if point.key == key:
            return point
    raise InputError(f"--key {key}: not on the front; raysearch best {shlex.quote(str(folder))} lists its keys")
