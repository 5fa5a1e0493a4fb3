"""Track a search in MLflow without ever delaying it.

One parent run per study has the space, the environment, the hypervolume over time and the front; one child run per
recipe has its fields as parameters and every rung as metrics (step = samples seen).
"""

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError, first_line
from raysearch.study.folder import StudyFolder, is_study, read_space
from raysearch.study.front import Front
from raysearch.study.records import Score, TrialRecord
from raysearch.study.secrets import mask
from raysearch.study.status import ENDED, Status
from raysearch.tracking import events
from raysearch.tracking.mlflow_runs import STATE, MlflowRuns, local_store
from raysearch.tracking.sender import UNSENT, Sender, read_unsent

ARTIFACTS = ("front.json", "front.png", "front.html", "report.html", "trials.jsonl", "decisions.jsonl")

SECONDS_BETWEEN_STATES = 30.0


def tracking_uri(folder: Path) -> str:
    """The tracking server of a study: MLFLOW_TRACKING_URI, or an SQLite file beside the study's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store(folder)


class Tracker:
    """A search callback that sends every event to MLflow from a thread.

    It never raises, and waits for the server only in `flush` and `close`. Events that can't be sent are saved in
    DIR/mlflow-unsent.jsonl and tried again every half minute; `raysearch sync DIR` sends what is left.

    Attributes:
        sender: the queue and thread that send.
        is_complete: whether the search has come to its end.
    """

    is_complete = False

    def __init__(self, study: StudyFolder, uri: str | None = None, dense: Size | None = None) -> None:
        """Send the parent run, and the ended trials that MLflow has not received; existing runs are continued.

        Args:
            study: a new study, or one that is resumed.
            uri: tracking server; default `tracking_uri`.
            dense: size of the dense model, for `size_ratio` from the first trial on.
        """
        self._study, self._uri = study, uri or tracking_uri(study.folder)
        self._dense = dense or (study.front.baseline.size if study.front else None)
        self._keys: dict[str, str] = {}
        self._status_sent_at = -math.inf
        self._started: set[str] = set()
        self._ends = Counter[str](record.end for record in study.records)
        self._front = {point.key for point in study.front.points} if study.front else set()
        self._scored = {point.key for point in study.front.points if point.heldout} if study.front else set()
        missing = partial(events.missing_events, list(study.records), dense=self._dense, on_front=set(self._front))
        self.sender = Sender(study.folder, self._uri, study.space.name, missing)
        self.sender.put(events.parent_event(study))

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None:
        """Send the start of a trial."""
        self._keys[trial] = recipe.key
        self._started.add(recipe.key)
        self.sender.put(events.start_event(trial, recipe, size, self._dense, recipe.key in self._front))

    def rung(self, trial: str, score: Score) -> None:
        """Send a running trial's score."""
        self.sender.put(events.rung_event(self._keys[trial], score))

    def trial_ended(self, record: TrialRecord) -> None:
        """Send the end of a trial, and the counts of ended trials."""
        self._keys[record.trial] = record.key
        self._started.discard(record.key)
        self._ends[record.end] += 1
        counts = {f"num_{end}": float(self._ends[end]) for end in events.STATUS}
        self.sender.put(events.end_event(record), events.event_of(None, metrics=counts, step=self._ends.total()))

    def front_changed(self, front: Front) -> None:
        """Send the new front, and tag the runs that joined or left it."""
        self._dense = self._dense or front.baseline.size
        keys = {point.key for point in front.points}
        changed = sorted(self._front ^ keys)
        scored = {point.key for point in front.points if point.heldout}
        new, self._scored = scored - self._scored, scored
        self._front = keys
        self.sender.put(*(events.point_event(point) for point in front.points if point.key in new))
        self.sender.put(*(events.event_of(key, tags={"front": "yes" if key in keys else "no"}) for key in changed))
        self.sender.put(events.front_event(front, len(self._study.records)))

    def forecast(self, text: str, metrics: Mapping[str, float]) -> None:
        """Send what further trials are expected to add, as a tag in words and as metrics in points."""
        self.sender.put(events.forecast_event(text, metrics, len(self._study.records)))

    def status(self, status: Status) -> None:
        """Send what the search and its slots do, as a tag, every half minute at most."""
        text = "; ".join(status.lines())
        if time.monotonic() - self._status_sent_at > SECONDS_BETWEEN_STATES:
            self._status_sent_at = time.monotonic()
            self.sender.put(events.event_of(None, tags={"state": text}))

    def run_id(self, trial: str) -> str | None:
        """MLflow's id of a trial's run; None before the server has given one."""
        return self.sender.ids.get(self._keys.get(trial, ""))

    def flush(self, seconds: float = 60) -> bool:
        """Wait up to `seconds` until every event so far is sent; whether all are."""
        return self.sender.flush(seconds)

    def close(self, seconds: float = 60) -> None:
        """Send the artifacts and end all open runs; each of two waits is at most `seconds` long."""
        for key in sorted(self._started):
            self.sender.put(events.event_of(key, tags={"end": "interrupted"}, status="KILLED"))
        wanted = self._study.space.search.num_trials
        is_complete = self.is_complete or (wanted is not None and len(self._study.records) >= wanted)
        status = "FINISHED" if is_complete else "KILLED"
        if self.sender.flush(seconds):
            fill_run_ids(self._study.folder, self.sender.ids)
        if self._study.front:
            sender = self.sender
            sender.put(events.description_event(self._study.front, sender.ids, sender.experiment_id))
        self.sender.put(events.event_of(None, files=ARTIFACTS, tags={"state": ENDED}, status=status))
        self.sender.close(seconds)


def sync_unsent(folder: Path, uri: str | None = None) -> tuple[int, int]:
    """Send the events that wait in the file, and the ended trials that MLflow has not received.

    Returns:
        The number of events, and of requests that the server refused for good.

    Raises:
        InputError: the folder is no study, or the server can't be reached.
    """
    if not is_study(folder):
        raise InputError(f"{folder}: no study; give the --out folder of a search")
    server = uri or tracking_uri(folder)
    study = StudyFolder(folder, read_space(folder))
    dense = study.front.baseline.size if study.front else None
    on_front = {point.key for point in study.front.points} if study.front else set()
    joined = [events.event_of(key, tags={"front": "yes"}) for key in sorted(on_front)]
    joined += [events.point_event(point) for point in study.front.points] if study.front else []
    num_sent, refused = count(), list[str]()
    try:
        runs = MlflowRuns(folder, server, study.space.name)
        for part in (
            [events.parent_event(study)],
            read_unsent(folder),
            events.missing_events(study.records, runs.ended, dense, on_front),
            [*joined, events.event_of(None, files=ARTIFACTS)],
        ):
            refused += runs.send(event for event, _ in zip(part, num_sent, strict=False))
        if study.front:
            refused += runs.send([events.description_event(study.front, runs.ids, runs.experiment_id)])
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"MLflow at {mask(server)}: {mask(first_line(error))}; start the server, or name another with --uri"
        ) from None
    (folder / UNSENT).unlink(missing_ok=True)
    fill_run_ids(folder, runs.ids)
    return next(num_sent), len(refused)


def log_speeds(folder: Path, front: Front, seconds: float = 60) -> None:
    """Send speed and memory of a front's points; events that can't be sent wait for `raysearch sync`."""
    sender = Sender(folder, tracking_uri(folder), front.study)
    sender.put(*(events.point_event(point) for point in front.points if point.measured))
    sender.put(events.event_of(None, files=["front.json"]))
    sender.close(seconds)


def log_report(folder: Path, seconds: float = 60) -> None:
    """Send a study's newly written report, if its runs are in MLflow; what can't be sent waits for `raysearch sync`."""
    if (folder / STATE).exists():
        sender = Sender(folder, tracking_uri(folder), read_space(folder).name)
        sender.put(events.event_of(None, files=["report.html"]))
        sender.close(seconds)


def fill_run_ids(folder: Path, ids: dict[str, str]) -> None:
    """Write MLflow's run ids into `front.json` where they are missing."""
    if not (folder / "front.json").exists():
        return
    front = Front.load(folder)
    points = [
        point if point.mlflow_run_id else point.model_copy(update={"mlflow_run_id": ids.get(point.key)})
        for point in front.points
    ]
    if points != front.points:
        front.model_copy(update={"points": points}).save(folder)
