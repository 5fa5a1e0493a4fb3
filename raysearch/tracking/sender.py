"""Send events to MLflow from a thread; those that can't be sent wait in a file."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path

from raysearch.errors import first_line, printable
from raysearch.files import append_json
from raysearch.study.records import read_rows
from raysearch.study.secrets import mask
from raysearch.tracking.mlflow_runs import MAX_EVENTS_AT_ONCE, Event, MlflowRuns

UNSENT = "mlflow-unsent.jsonl"
SECONDS_TO_GATHER = 0.5
SECONDS_BETWEEN_TRIES = 30.0


class Sender:
    """A queue, the thread that sends its events, and the file where they wait while the server is unreachable.

    `ids` has the run ids by recipe key, as far as the server has given them.

    Args:
        backlog: what the server lacks from before, given the keys of the recipes whose end it has; sent behind the
            file's events and before the queue's. It is never saved: a study's files bring it back.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        experiment: str,
        backlog: Callable[[Container[str]], Iterable[Event]] = lambda sent: (),
    ) -> None:
        self.ids: dict[str, str] = {}
        self._backlog = backlog
        self.uri = uri
        self._folder, self._experiment = folder, experiment
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._runs: MlflowRuns | None = None
        self._batch: list[Event] = []
        self._num_put = self._num_done = 0
        self._progress = threading.Condition()
        self._warned = self._closed = False
        self._try_again_at = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def put(self, *events: Event) -> None:
        """Queue events; returns at once."""
        with self._progress:
            self._num_put += len(events)
        for event in events:
            self._queue.put(event)

    def flush(self, seconds: float) -> bool:
        """Wait up to `seconds` until all queued events are sent or saved; whether none is left unsent."""
        wanted = self._num_put
        with self._progress:
            arrived = self._progress.wait_for(lambda: self._num_done >= wanted, seconds)
        return arrived and not (self._folder / UNSENT).exists()

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None before the server was reached."""
        return self._runs.experiment_id if self._runs else None

    def close(self, seconds: float) -> None:
        """Send what is queued; after `seconds`, save the rest to the file and abandon the thread."""
        self._try_again_at = 0.0
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._closed = True
            left: list[Event | None] = list(self._batch)
            while not self._queue.empty():
                left.append(self._queue.get_nowait())
            self._save_unsent([event for event in left if event is not None], "it takes too long")

    def _work(self) -> None:
        last = False
        while not last:
            events = [self._queue.get()]
            if events[0] is not None:
                time.sleep(SECONDS_TO_GATHER)
            while not self._queue.empty() and len(events) < MAX_EVENTS_AT_ONCE:
                events.append(self._queue.get_nowait())
            last = None in events
            self._batch = [event for event in events if event is not None]
            self._send_batch()
            with self._progress:
                self._num_done += len(self._batch)
                self._batch = []
                self._progress.notify_all()

    def _send_batch(self) -> None:
        """Send the batch after the events in the file, or append it to them."""
        unsent = self._folder / UNSENT
        if unsent.exists() and time.monotonic() < self._try_again_at:
            self._save_unsent(self._batch)
            return
        try:
            if self._batch or unsent.exists():
                self._runs = self._runs or MlflowRuns(self._folder, self.uri, self._experiment)
                for events in (read_unsent(self._folder), self._backlog(self._runs.ended), self._batch):
                    for line in self._runs.send(events):
                        self._warn(f"MLflow refused: {mask(line)}")
                self.ids = self._runs.ids
                self._backlog = lambda sent: ()
            if not self._closed:
                unsent.unlink(missing_ok=True)
        except Exception as error:  # tracking must not end a search
            self._try_again_at = time.monotonic() + SECONDS_BETWEEN_TRIES
            if not self._closed:
                self._save_unsent(self._batch, f"{type(error).__name__}: {first_line(error)}")

    def _save_unsent(self, events: Sequence[Event], reason: str | None = None) -> None:
        rows = (event.model_dump(mode="json", exclude_defaults=True) for event in events)
        try:
            append_json(self._folder / UNSENT, *rows)
        except OSError as error:
            reason = f"{reason or ''} and {error}"
        if reason:
            self._warn(
                f"MLflow at {mask(self.uri)} can't be used ({mask(reason)}); the search goes on, "
                f"`raysearch sync {self._folder}` sends the rest"
            )

    def _warn(self, message: str) -> None:
        if not self._warned:
            print(f"raysearch: {printable(message)}", file=sys.stderr, flush=True)
        self._warned = True


def read_unsent(folder: Path) -> Iterator[Event]:
    """The events in the file, read as they are asked for, without a last line that a crash cut short.

    Raises:
        InputError: a line is no event.
    """
    return read_rows(folder / UNSENT, Event)
