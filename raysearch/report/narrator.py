"""Says what a search is doing, so that nobody waits in silence."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from raysearch.errors import first_line, printable
from raysearch.study.status import ENDED, SECONDS_BETWEEN_WRITES, Stage, Status

SECONDS_TO_FIRST_LINE, SECONDS_OF_SILENCE = 1.0, 15.0
_SECONDS_BETWEEN_LOOKS = 0.25


class Narrator:
    """Prints a line when a stage takes longer than a second, and again whenever nothing was printed for a while.

    Args:
        state: the first stage.
        began: when the person's waiting began, by `time.monotonic`; left out, now.

    Attributes:
        is_silent: whether something else shows the stages, a live view.
        listeners: are told of every change, and every ten seconds.
    """

    def __init__(self, state: str, began: float | None = None) -> None:
        self.is_silent = False
        self.listeners: list[Callable[[Status], None]] = []
        self._started = time.time()
        self._stage, self._slots = Stage(state=state), list[Stage]()
        self._lock = threading.RLock()
        self._is_over = threading.Event()
        self._due = (time.monotonic() if began is None else began) + SECONDS_TO_FIRST_LINE
        self._told_at, self._told = 0.0, (Stage(state=""), list[Stage]())
        self._thread = threading.Thread(target=self._follow, daemon=True, name="narrator")

    def __enter__(self) -> "Narrator":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(5)
        reason = "" if error is None else "interrupted" if kind is KeyboardInterrupt else first_line(error)
        self._stage, self._slots = Stage(state=ENDED, reason=reason), []
        self._tell()

    def enter(self, state: str, reason: str = "") -> None:
        """Begin another stage of the search."""
        with self._lock:
            self._stage = Stage(state=state, reason=reason)
            self._due = min(self._due, time.monotonic() + SECONDS_TO_FIRST_LINE)

    def follow_slots(self, slots: Sequence[Stage]) -> None:
        """The slots' stages, in the order of their names."""
        with self._lock:
            if [(s.state, s.reason) for s in slots] != [(s.state, s.reason) for s in self._slots]:
                self._due = min(self._due, time.monotonic() + SECONDS_TO_FIRST_LINE)
            self._slots = list(slots)

    def say(self, line: str) -> None:
        """Print a line."""
        with self._lock:
            print(printable(line), flush=True)
            self._due = time.monotonic() + SECONDS_OF_SILENCE

    def status(self) -> Status:
        """As of now."""
        with self._lock:
            return Status(started=self._started, stage=self._stage, slots=self._slots)

    def _follow(self) -> None:
        while not self._is_over.wait(_SECONDS_BETWEEN_LOOKS):
            if not self.is_silent and time.monotonic() >= self._due:
                self.say("\n".join(f"  {line}" for line in self.status().lines()))
            now = (self._stage, self._slots)
            if now != self._told or time.monotonic() - self._told_at > SECONDS_BETWEEN_WRITES:
                self._told, self._told_at = now, time.monotonic()
                self._tell()

    def _tell(self) -> None:
        for listener in list(self.listeners):
            with suppress(Exception):  # no search ends because its status can't be told
                listener(self.status())
