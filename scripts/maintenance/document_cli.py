"""Write docs/reference/cli.md from the Typer app: python scripts/maintenance/document_cli.py"""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "cli.md"
HEAD = """# Command line

Written by `python scripts/maintenance/document_cli.py` from the commands; a test checks that it is up to date.
`raysearch COMMAND --help` prints the same text. The exit status is 0 on success, 2 with one line on stderr for an error
that the user can correct, and 130 after Ctrl-C.

Warnings go to stderr, those of workers too; `-v` adds what is going on, `-vv` debugging output and the output of Ray's
workers. `RAYSEARCH_LOG_LEVEL` (DEBUG, INFO, WARNING or ERROR) sets the level without an option.
"""


def page() -> str:
    """The whole page: a list of commands, then a section for each."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, app = settings["project"]["scripts"]["raysearch"].split(":")
    group: Any = typer.main.get_command(getattr(import_module(module), app))
    listed = [f"- [`{name}`](#raysearch-{name}): {first_line(command)}" for name, command in shown(group)]
    return "\n".join([HEAD, *listed, "", *(section(name, command) for name, command in shown(group))])


def shown(group: Any) -> list[tuple[str, Any]]:
    """The commands that `raysearch --help` lists."""
    return [(name, command) for name, command in group.commands.items() if not command.hidden]


def first_line(command: Any) -> str:
    """What a command does, in one line."""
    return " ".join(command.help.split("\n\n")[0].split())


def section(name: str, command: Any) -> str:
    """A command: its help, its usage, its arguments and options."""
    context = typer.Context(command, info_name=f"raysearch {name}")
    usage = " ".join(["raysearch", name, *command.collect_usage_pieces(context)])
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [f"| `{names}` | {cell(text)} |" for names, text in filter(None, records)]
    help_text = re.sub(r"^ +(?=raysearch )", "    ", command.help, flags=re.MULTILINE)  # examples as code
    table = ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return "\n".join([f"## raysearch {name}", "", f"```\n{usage}\n```", "", help_text, "", *table])


def cell(text: str) -> str:
    """Help text as the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
