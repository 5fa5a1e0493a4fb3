"""Rows that can't be used: each is named with its reason, and too many of them are an error."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from raysearch.errors import InputError, first_line
from raysearch.files import is_storage_problem

BAD_ROWS_ALLOWED = 0.01
"""Share of a data set's rows that may be unusable."""
NUM_BAD_ROWS_NAMED = 3
_NUM_CHARACTERS = 300
logger = logging.getLogger(__name__)


class BadRow(InputError):
    """A row that can't be used, and why, on one line of printable characters."""

    def __init__(self, reason: str) -> None:
        text = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
        super().__init__("".join(letter if letter.isprintable() else "\ufffd" for letter in text)[:_NUM_CHARACTERS])


@contextmanager
def only_bad_rows(doing: str) -> Iterator[None]:
    """Make a bad row of whatever is raised inside, by data and by code that reads them, but not of lost storage.

    Raises:
        BadRow: something was raised.
    """
    try:
        yield
    except BadRow:
        raise
    except Exception as error:
        if is_storage_problem(error):
            raise
        raise BadRow(f"{doing}: {type(error).__name__}: {first_line(error)}") from None


class BadData(InputError):
    """Too many rows of a data set can't be used, so no trial can run on it."""


@dataclass
class BadRows:
    """The unusable rows of one data set, `found` by name with their reasons; too many of them are an error."""

    data: str
    num_rows: int
    limit: float = BAD_ROWS_ALLOWED
    found: dict[str, str] = field(default_factory=dict)
    _num_reported: int = field(default=0, init=False)

    @property
    def max_found(self) -> float:
        """How many rows may be unusable."""
        return self.limit * self.num_rows

    def add(self, row: str, reason: str) -> None:
        """Record a row, and `check`."""
        self.found.setdefault(row, reason)
        self.check()

    def check(self) -> None:
        """Raise an error if there are too many.

        Raises:
            BadData: more than `limit` of the rows are unusable.
        """
        if len(self.found) > self.max_found:
            raise BadData(
                f"{self.data}: more than {self.limit:.1%} of {self.num_rows} rows can't be used ({self.named()}); "
                "mend or remove them"
            )

    def named(self) -> str:
        """The first unusable rows with their reasons, on one line."""
        first = itertools.islice(self.found.items(), NUM_BAD_ROWS_NAMED)
        more = len(self.found) - NUM_BAD_ROWS_NAMED
        return "; ".join(f"{row}: {reason}" for row, reason in first) + (f"; {more} more" if more > 0 else "")

    def report(self) -> None:
        """Log a warning that names what was left out, if there is more than at the last one."""
        if len(self.found) > self._num_reported:
            self._num_reported = len(self.found)
            logger.warning("%s: left out %d of %d rows (%s)", self.data, len(self.found), self.num_rows, self.named())
