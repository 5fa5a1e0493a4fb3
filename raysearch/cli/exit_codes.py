"""Exit status of a command: 0 when done, 2 with one line on stderr for a user error, 130 after Ctrl-C."""

import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer
from typer.exceptions import TyperException

from raysearch.errors import InputError, printable
from raysearch.files import STORAGE_PROBLEMS

F = TypeVar("F", bound=Callable[..., Any])
_DISK_PROBLEMS = {*STORAGE_PROBLEMS, errno.EACCES, errno.EPERM}


class App(typer.Typer):
    """A Typer application that ends without a traceback after a user error."""

    def __init__(self, add_completion: bool = False, **settings: Any) -> None:
        super().__init__(add_completion=add_completion, pretty_exceptions_enable=False, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """Register a command; its help is its docstring, up to the section on exceptions."""

        def register(function: F) -> F:
            help_text = inspect.cleandoc(function.__doc__ or "").partition("\n\nRaises:")[0]
            return super(App, self).command(name, help=help_text, **settings)(function)

        return register

    def __call__(self, args: Sequence[str] | None = None) -> Any:
        """Run the command that `args` (or the command line) names, and exit.

        Raises:
            SystemExit: always, with the status of the command.
        """
        sys.exit(exit_status(lambda: typer.main.get_command(self).main(args, standalone_mode=False)))


def exit_status(command: Callable[[], Any]) -> int:
    """Run `command` and return its exit status; print one line on stderr after a user error."""
    try:
        status = command()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except InputError as error:
        return _complain(str(error))
    except TyperException as error:  # any error in the command line
        message = " ".join(error.format_message().split())
        return _complain(f"{message} See {_command_of(error)} --help.") if message else 2
    except OSError as error:
        if error.errno not in _DISK_PROBLEMS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror}; make room or choose another folder")
    return status if isinstance(status, int) else 0


def _complain(message: str) -> int:
    print(f"raysearch: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _command_of(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "raysearch"
