"""The runs of a study in MLflow: one parent run and one child run per recipe, through MlflowClient.

Events are plain dictionaries, so that they can wait in a file while the server is unreachable. Keys: `run` (a recipe's
key, or None for the parent), `time` (ms), and any of `name`, `params`, `tags`, `metrics` with `step`, `status`,
`final` (the trial has ended), `files` (names in the study's folder), `documents` (name and JSON content).
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raysearch.files import write_json
from raysearch.study.secrets import mask

STATE = "mlflow.json"
LOCAL_STORE = "mlflow.db beside the study"
_PARENT = ""
# MLflow's own limits.
_MAX_PER_REQUEST = {"metrics": 900, "params": 100, "tags": 100}
_MAX_PARAM_CHARS = 6000
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per trial
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # `Sender` tries again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}

Event = dict[str, Any]


class MlflowRuns:
    """The runs of one study on one tracking server; their ids are kept in the study's mlflow.json."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        """Connect, and create the experiment if it is missing.

        Raises:
            Exception: whatever MLflow raises when its server can't be reached.
        """
        self._client = connect(uri)
        self._folder = folder
        self._state = read_state(folder, uri)
        self.ended = dict.fromkeys(self._state.pop("ended"))
        """Keys of the recipes whose end has been sent, in that order."""
        self._experiment_id = self._find_experiment(experiment, uri)

    @property
    def ids(self) -> dict[str, str]:
        """Run ids by recipe key."""
        return {key: run_id for key, run_id in self._state["runs"].items() if key != _PARENT}

    def send(self, events: Sequence[Event]) -> list[str]:
        """Send events in order, in as few requests as possible.

        Returns:
            One line for each request that the server refused for good; everything else was stored.

        Raises:
            Exception: whatever MLflow raises when its server can't be reached; the events may be sent again.
        """
        refused, by_run = [], dict[str, list[Event]]()
        for event in events:
            by_run.setdefault(event["run"] or _PARENT, []).append(event)
        try:
            for key, group in by_run.items():
                refused += self._send_to(key, group)
        finally:
            write_json(self._folder / STATE, {**self._state, "ended": list(self.ended)})
        return refused

    def _send_to(self, key: str, events: Sequence[Event]) -> list[str]:
        from mlflow.exceptions import MlflowException

        try:
            return self._apply(self._run_id(key, events[0]), key, events)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._state["runs"].pop(key, None)  # the run was deleted on the server
            return self._apply(self._run_id(key, events[0]), key, events)

    def _apply(self, run_id: str, key: str, events: Sequence[Event]) -> list[str]:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(name, value, event["time"], event.get("step", 0))
            for event in events
            for name, value in event.get("metrics", {}).items()
        ]
        params = [Param(name, str(value)[:_MAX_PARAM_CHARS]) for name, value in _merged(events, "params").items()]
        tags = [RunTag(name, str(value)) for name, value in _merged(events, "tags").items()]
        refused = []
        for kind, values in (("metrics", metrics), ("params", params), ("tags", tags)):
            for start in range(0, len(values), _MAX_PER_REQUEST[kind]):
                part = values[start : start + _MAX_PER_REQUEST[kind]]
                refused += _unless_refused(partial(self._client.log_batch, run_id, **{kind: part}))
        for event in events:
            for name, content in event.get("documents", {}).items():
                self._client.log_dict(run_id, content, name)
            for name in event.get("files", ()):
                if (self._folder / name).is_file():
                    self._client.log_artifact(run_id, str(self._folder / name))
        self._set_status(run_id, key, events)
        return refused

    def _set_status(self, run_id: str, key: str, events: Sequence[Event]) -> None:
        last = next((event for event in reversed(events) if event.get("status")), None)
        if last is None:
            return
        if last["status"] == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, status=last["status"], end_time=last["time"])
            if last.get("final"):
                self.ended[key] = None

    def _run_id(self, key: str, first: Event) -> str:
        if key not in self._state["runs"]:
            tags = {"mlflow.source.name": "raysearch"}
            if key != _PARENT:
                parent = self._run_id(_PARENT, {"time": first["time"]})
                tags |= {"mlflow.parentRunId": parent, "raysearch.key": key}
            run = self._client.create_run(
                self._experiment_id,
                start_time=first["time"],
                tags=tags,
                run_name=first.get("name") or key or self._folder.name,
            )
            self._state["runs"][key] = run.info.run_id
        return self._state["runs"][key]

    def _find_experiment(self, name: str, uri: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return found.experiment_id
        artifacts = None
        if uri.startswith("sqlite:///"):  # MLflow's default is the working folder
            artifacts = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name).as_uri()
        # Selects the pages for training runs; the default is those for traces of language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return self._client.create_experiment(name, artifact_location=artifacts, tags=kind)


def connect(uri: str) -> Any:
    """MLflow's client, without its log lines, with a short time-out."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def find_trials(uri: str, experiment: str) -> list[tuple[dict[str, str], dict[str, float]]] | None:
    """Parameters and last metrics of an experiment's finished trials; None if there is no such experiment.

    Raises:
        Exception: whatever MLflow raises when its server can't be reached.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None  # MLflow would create the file
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    ids, finished = [found.experiment_id], "tags.end = 'finished'"
    page = client.search_runs(ids, finished)
    runs = list(page)
    while page.token:
        page = client.search_runs(ids, finished, page_token=page.token)
        runs += page
    return [(run.data.params, run.data.metrics) for run in runs]


def local_store(folder: Path) -> str:
    """The SQLite store beside a study's folder."""
    return f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"


def read_state(folder: Path, uri: str) -> dict[str, Any]:
    """Run ids and ended runs of a study on the server at `uri`; empty if it has none there.

    The local store is recorded as LOCAL_STORE, so that it may be moved together with the study.
    """
    path, server = folder / STATE, LOCAL_STORE if uri == local_store(folder) else mask(uri)
    if path.is_file():
        try:
            state = json.loads(path.read_text())
            if state["uri"] == server:
                return state
        except (ValueError, KeyError, TypeError):  # an unreadable file leads to new runs, and stops no search
            pass
    return {"uri": server, "runs": {}, "ended": []}


def _merged(events: Iterable[Event], kind: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for event in events:
        merged |= event.get(kind, {})
    return merged


def _unless_refused(send: Callable[[], Any]) -> list[str]:
    """Send; return the line of a permanent refusal, and let every other exception through."""
    from mlflow.exceptions import MlflowException

    try:
        send()
    except MlflowException as error:
        if error.error_code not in _REFUSED:
            raise
        return [str(error).splitlines()[0]]
    return []
