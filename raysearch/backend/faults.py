"""Errors that end the whole search."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import RayActorError


class FatalSearchError(BaseException):
    """What the whole search needs is gone. No `Exception`: Tune would blame the trial at hand, and go on."""


class LostFileError(FatalSearchError):
    """A file of the study can't be written."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; see to the storage")


class SlotStartError(FatalSearchError):
    """Slots fail at their start, again and again."""

    def __init__(self, reason: str, folder: Path) -> None:
        super().__init__(f"slots fail at their start, the last one: {reason}; see {folder}/slots and put that right")


class LostCoordinatorError(FatalSearchError):
    """The coordinator's process has died."""

    def __init__(self) -> None:
        super().__init__("the coordinator of the slots has died; see to the head node's memory")


@contextmanager
def fatal_errors() -> Iterator[None]:
    """As a decorator of what Tune calls: a file that can't be written, or a dead coordinator, ends the search.

    Raises:
        LostFileError: an `OSError` came.
        LostCoordinatorError: a `RayActorError` came.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise LostFileError(f"{where}{error.strerror}") from error
    except RayActorError as error:
        raise LostCoordinatorError from error
