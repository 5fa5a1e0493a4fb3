"""What a search is doing now, as `status.json` in its study's folder: other processes read it while the search runs."""

import os
import socket
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from raysearch.files import write_json
from raysearch.study.records import Printable, read_document, seconds_text

STATUS = "status.json"
SECONDS_BETWEEN_WRITES = 10.0
SECONDS_TO_MISS = 45.0
"""Without a word, after which a search counts as gone."""
ENDED = "ended"

Time = Annotated[FiniteFloat, Field(ge=0)]
"""Seconds since 1970."""


class Stage(BaseModel):
    """What a search or one of its slots is doing, and why.

    Attributes:
        since: when that began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Printable
    reason: Printable = ""
    since: Time = Field(default_factory=time.time)

    def text(self, now: float | None = None) -> str:
        """In words, with the time that it has taken."""
        passed = seconds_text(max(0.0, (time.time() if now is None else now) - self.since))
        return f"{self.state}{f' ({self.reason})' if self.reason else ''}, {passed}"


class Status(BaseModel):
    """A search as its process last described it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Printable = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    started: Time
    updated: Time = Field(default_factory=time.time)
    stage: Stage
    slots: list[Stage] = []

    @property
    def is_running(self) -> bool:
        """Whether its process still writes."""
        return self.stage.state != ENDED and time.time() - self.updated < SECONDS_TO_MISS

    def lines(self) -> list[str]:
        """The search and its slots, a line each; slots that do the same share one."""
        alike: dict[tuple[str, str], list[int]] = {}
        for number, slot in enumerate(self.slots, 1):
            alike.setdefault((slot.state, slot.reason), []).append(number)
        lines = [] if self.slots else [self.stage.text()]
        for numbers in alike.values():
            first = min((self.slots[number - 1] for number in numbers), key=lambda slot: slot.since)
            names = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
            lines.append(f"slot{'s' * (len(numbers) > 1)} {names}: {first.text()}")
        return lines

    def write(self, folder: Path) -> None:
        """Replace `status.json`."""
        write_json(folder / STATUS, self.model_dump())


def read_status(folder: Path) -> Status | None:
    """The status of the study's newest search; None if there was none.

    Raises:
        InputError: the file holds something else.
    """
    return read_document(folder / STATUS, Status, "status")
