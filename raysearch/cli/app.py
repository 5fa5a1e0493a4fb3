"""The commands of `raysearch`.

Every command imports what it needs when it runs: `--help`, `best` and mistakes load neither torch nor ray nor MLflow.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from raysearch.cli import evaluate, export, prune, search, study
from raysearch.cli.exit_codes import App
from raysearch.logging import logger


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"raysearch {version('raysearch')}")
        raise typer.Exit


app = App(no_args_is_help=True, add_completion=True)


@app.callback(help="Search for the pruning and recovery recipe that fits a size budget.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for command in (
    search.search,
    evaluate.inspect,
    evaluate.evaluate,
    study.best,
    export.export,
    export.runtime,
    search.retry,
    study.benchmark,
    prune.prune,
    study.status,
    study.report,
    search.estimate,
    search.replicate,
    study.sync,
):
    app.command()(command)


def _add_old_name(old: str, command: Callable[..., None]) -> None:
    """Keep a renamed command under its old name for one version, out of `--help`."""

    @app.command(old, hidden=True)
    @functools.wraps(command)
    def renamed(**arguments: Any) -> None:
        logger.warning("raysearch %s is now raysearch %s; the next version drops the old name", old, command.__name__)
        command(**arguments)


_add_old_name("measure", study.benchmark)
_add_old_name("study", search.replicate)
