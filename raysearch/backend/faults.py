"""Errors that end the whole search."""

import functools
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError


class FatalSearchError(BaseException):
    """What the whole search needs is gone. No `Exception`: Tune would blame the trial at hand, and go on."""


class LostFileError(FatalSearchError):
    """A file of the study can't be written."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; see to the storage")


class LostCoordinatorError(FatalSearchError):
    """The process that the slots take their commands from has died."""

    def __init__(self) -> None:
        super().__init__("the process that commands the slots has died; see to the head node's memory")


def _let_losses_end_search(called: Any) -> None:
    """Turn an `OSError` in what Tune calls into a `LostFileError`, and a board that doesn't answer into a `LostCoordinatorError`."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                raise LostFileError(f"{where}{error.strerror}") from error
            except RayActorError as error:
                raise LostCoordinatorError from error

        return call

    for name in (
        "suggest",
        *(f"on_trial_{event}" for event in ("add", "start", "result", "complete", "error")),
    ):
        if hasattr(called, name):
            setattr(called, name, guarded(getattr(called, name)))
