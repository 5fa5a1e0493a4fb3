"""Follow a search in MLflow without ever holding it up: events go to a thread, and wait in a file if need be.

One parent run per study holds the space, the environment, hypervolume over time and the front; one child run per
recipe holds its fields as parameters and every rung as metrics (step = samples seen).
"""

import os
from collections import Counter
from pathlib import Path

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError, first_line
from raysearch.study.folder import Study, is_study, read_space, read_trials
from raysearch.study.front import Front
from raysearch.study.records import Score, TrialRecord
from raysearch.study.secrets import mask
from raysearch.tracking.events import (
    STATUS,
    end_event,
    event_of,
    front_event,
    parent_event,
    record_events,
    rung_event,
    speed_event,
    start_event,
)
from raysearch.tracking.mlflow_runs import MlflowRuns, own_store, read_state
from raysearch.tracking.sender import UNSENT, Sender, read_unsent

ARTIFACTS = ("front.json", "front.png", "front.html", "report.html", "trials.jsonl", "decisions.jsonl")


def tracking_uri(folder: Path) -> str:
    """Where a study is tracked: MLFLOW_TRACKING_URI, or an SQLite file beside the study's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_store(folder)


class Tracker:
    """An observer of a search that hands everything on to MLflow from a thread of its own.

    It never raises and never waits for the server, except in `close`. What can't be sent is kept in
    DIR/mlflow-unsent.jsonl and tried again every now and then; `raysearch sync DIR` sends what is left.
    """

    def __init__(self, study: Study, uri: str | None = None, dense: Size | None = None) -> None:
        """Begin to track; runs of an earlier start of the study are continued.

        Args:
            study: its space, its folder, and the trials that ended earlier.
            uri: tracking server; see `tracking_uri`.
            dense: size of the dense model, for `size_ratio` from the first trial on.
        """
        self._study, self._uri = study, uri or tracking_uri(study.folder)
        self._dense = dense or (study.front.baseline.size if study.front else None)
        self._keys: dict[str, str] = {}
        self._started: set[str] = set()
        self._ends = Counter[str](record.end for record in study.records)
        self._front = {point.key for point in study.front.points} if study.front else set()
        self._sender = Sender(study.folder, self._uri, study.space.name)
        self._sender.put(parent_event(study))
        done = set(read_state(study.folder, self._uri)["ended"])
        for record in study.records:
            if record.key not in done:
                self._sender.put(*record_events(record, self._dense, record.key in self._front))

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None:
        """A trial runs."""
        self._keys[trial] = recipe.key
        self._started.add(recipe.key)
        self._sender.put(start_event(trial, recipe, size, self._dense, recipe.key in self._front))

    def rung(self, trial: str, score: Score) -> None:
        """A running trial was scored."""
        self._sender.put(rung_event(self._keys[trial], score))

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        self._keys[record.trial] = record.key
        self._started.discard(record.key)
        self._ends[record.end] += 1
        counts = {f"num_{end}": float(self._ends[end]) for end in STATUS}
        self._sender.put(end_event(record), event_of(None, metrics=counts, step=self._ends.total()))

    def front_changed(self, front: Front) -> None:
        """There is a new front."""
        self._dense = self._dense or front.baseline.size
        keys = {point.key for point in front.points}
        moved = [(key, "no") for key in self._front - keys] + [(key, "yes") for key in keys - self._front]
        self._front = keys
        self._sender.put(*(event_of(key, tags={"front": on}) for key, on in sorted(moved)))
        self._sender.put(front_event(front, len(self._study.records)))

    def run_id(self, trial: str) -> str | None:
        """MLflow's id of a trial's run, once the server has given one."""
        return self._sender.ids.get(self._keys.get(trial, ""))

    def flush(self, seconds: float = 60) -> bool:
        """Wait until everything so far has been sent; whether it has."""
        return self._sender.flush(seconds)

    def close(self, seconds: float = 60) -> None:
        """Send the pictures and the ends of the runs, and wait for it, but no longer than `seconds`."""
        for key in sorted(self._started):
            self._sender.put(event_of(key, tags={"end": "interrupted"}, status="KILLED"))
        whole = len(self._study.records) >= self._study.space.search.trials
        status = "FINISHED" if whole else "KILLED"
        if self._sender.flush(seconds):
            fill_run_ids(self._study.folder, self._sender.ids)
        self._sender.put(event_of(None, files=list(ARTIFACTS), status=status))
        self._sender.close(seconds)


def sync_unsent(folder: Path, uri: str | None = None) -> tuple[int, int]:
    """Send what waits, and whatever ended trials MLflow has not seen at all.

    Returns:
        How many events were sent.

    Raises:
        InputError: the folder is no study, or the server can't be reached.
    """
    if not is_study(folder):
        raise InputError(f"{folder}: no study; give the --out folder of a search")
    server = uri or tracking_uri(folder)
    study = Study(folder, read_space(folder))
    dense = study.front.baseline.size if study.front else None
    on_front = {point.key for point in study.front.points} if study.front else set()
    events = read_unsent(folder)
    try:
        runs = MlflowRuns(folder, server, study.space.name)
        known = runs.ended | {event["run"] for event in events if event.get("final")}
        for record in read_trials(folder):
            if record.key not in known:
                events += record_events(record, dense, record.key in on_front)
        if not runs.ids or any(event["run"] is None for event in events):
            events.insert(0, parent_event(study))
        events += [event_of(key, tags={"front": "yes"}) for key in sorted(on_front)]
        refused = runs.send([*events, event_of(None, files=list(ARTIFACTS))])
    except Exception as error:
        raise InputError(
            f"MLflow at {mask(server)}: {mask(first_line(error))}; start the server, or name another with --uri"
        ) from None
    (folder / UNSENT).unlink(missing_ok=True)
    fill_run_ids(folder, runs.ids)
    return len(events), len(refused)


def tell_speeds(folder: Path, front: Front, seconds: float = 60) -> None:
    """Send what was measured of a front's points; what can't be sent waits for `raysearch sync`."""
    sender = Sender(folder, tracking_uri(folder), front.study)
    sender.put(*(speed_event(point.key, point.measured) for point in front.points if point.measured))
    sender.put(event_of(None, files=["front.json"]))
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
