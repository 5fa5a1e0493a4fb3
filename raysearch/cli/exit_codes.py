"""How a command ends: 0 when done, 2 with one plain line for a person's mistake, 130 after Ctrl-C."""

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.exceptions import TyperException

from raysearch.errors import InputError
from raysearch.files import STORAGE_PROBLEMS

_DISK_PROBLEMS = {*STORAGE_PROBLEMS, errno.EACCES, errno.EPERM}


class App(typer.Typer):
    """A Typer application that ends without a traceback for what a person can put right."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(add_completion=False, pretty_exceptions_enable=False, **settings)

    def __call__(self, args: Sequence[str] | None = None) -> Any:
        """Run the command that `args` (or the command line) names, and exit.

        Raises:
            SystemExit: always, with the status of the command.
        """
        sys.exit(exit_status(lambda: typer.main.get_command(self).main(args, standalone_mode=False)))


def exit_status(command: Callable[[], Any]) -> int:
    """Run `command`; the exit status it comes to, after one line on stderr if it went wrong by a mistake."""
    try:
        status = command()
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return 130
    except InputError as error:
        return _complain(str(error))
    except TyperException as error:  # any mistake in a command line
        message = " ".join(error.format_message().split())
        return _complain(f"{message} See {_command_of(error)} --help.") if message else 2
    except OSError as error:
        if error.errno not in _DISK_PROBLEMS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror}; make room or choose another folder")
    return status if isinstance(status, int) else 0


def _complain(message: str) -> int:
    print(f"raysearch: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _command_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "raysearch"
