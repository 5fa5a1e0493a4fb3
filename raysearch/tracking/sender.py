"""A queue and a thread between a search and MLflow, and a file for what can't be sent."""

import json
import queue
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from raysearch.errors import first_line
from raysearch.study.secrets import mask
from raysearch.tracking.mlflow_runs import Event, MlflowRuns

UNSENT = "mlflow-unsent.jsonl"
SECONDS_TO_GATHER = 0.5
SECONDS_BETWEEN_TRIES = 30.0
MAX_EVENTS_AT_ONCE = 2000


class Sender:
    """A queue, the thread that empties it, and the file where events wait while the server is away."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        self.ids: dict[str, str] = {}
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._runs: MlflowRuns | None = None
        self._in_hand: list[Event] = []
        self._num_put = self._num_done = 0
        self._moved = threading.Condition()
        self._warned = self._closed = False
        self._try_again_at = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def put(self, *events: Event) -> None:
        """Take events in; returns at once."""
        self._num_put += len(events)
        for event in events:
            self._queue.put(event)

    def flush(self, seconds: float) -> bool:
        """Wait until what was put has been sent or set aside; whether nothing is left unsent."""
        wanted = self._num_put
        with self._moved:
            arrived = self._moved.wait_for(lambda: self._num_done >= wanted, seconds)
        return arrived and not (self._folder / UNSENT).exists()

    def close(self, seconds: float) -> None:
        """Send what is there, set aside the rest; the thread has ended or is given up after `seconds`."""
        self._try_again_at = 0.0
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._closed = True
            left = list(self._in_hand)
            while not self._queue.empty():
                left.append(self._queue.get_nowait())  # type: ignore[arg-type]
            self._set_aside([event for event in left if event is not None], "it takes too long")

    def _work(self) -> None:
        last = False
        while not last:
            events = [self._queue.get()]
            if events[0] is not None:
                time.sleep(SECONDS_TO_GATHER)
            while not self._queue.empty() and len(events) < MAX_EVENTS_AT_ONCE:
                events.append(self._queue.get_nowait())
            last = None in events
            self._in_hand = [event for event in events if event is not None]
            self._deliver()
            with self._moved:
                self._num_done += len(self._in_hand)
                self._in_hand = []
                self._moved.notify_all()

    def _deliver(self) -> None:
        """Send the events in hand, after those that wait; or let them wait too."""
        waiting = self._folder / UNSENT
        if waiting.exists() and time.monotonic() < self._try_again_at:
            self._set_aside(self._in_hand)
            return
        try:
            events = [*read_unsent(self._folder), *self._in_hand]
            if events:
                self._runs = self._runs or MlflowRuns(self._folder, self._uri, self._experiment)
                for line in self._runs.send(events):
                    self._warn(f"MLflow refused: {mask(line)}")
                self.ids = self._runs.ids
            if not self._closed:
                waiting.unlink(missing_ok=True)
        except Exception as error:  # tracking never ends a search
            self._try_again_at = time.monotonic() + SECONDS_BETWEEN_TRIES
            if not self._closed:
                self._set_aside(self._in_hand, f"{type(error).__name__}: {first_line(error)}")

    def _set_aside(self, events: Iterable[Event], reason: str | None = None) -> None:
        try:
            with (self._folder / UNSENT).open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(event) + "\n" for event in events)
        except OSError as error:
            reason = f"{reason or ''} and {error}"
        if reason:
            self._warn(
                f"MLflow at {mask(self._uri)} can't be used ({mask(reason)}); the search goes on, "
                f"`raysearch sync {self._folder}` sends what waits"
            )

    def _warn(self, message: str) -> None:
        if not self._warned:
            print(f"raysearch: {message}", file=sys.stderr, flush=True)
        self._warned = True


def read_unsent(folder: Path) -> list[Event]:
    """Events that wait; a line cut short by a crash is left out."""
    path = folder / UNSENT
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
