"""The runs of a study in MLflow: one parent run and one child run per recipe, through MlflowClient."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from raysearch.errors import first_line
from raysearch.files import write_json
from raysearch.study.secrets import mask

STATE = "mlflow.json"
LOCAL_STORE = "mlflow.db beside the study"
_PARENT = ""
# MLflow's own limits.
_MAX_PER_REQUEST = {"metrics": 800, "params": 100, "tags": 100}
_MAX_VALUE_CHARS = 6000  # of a parameter; of a tag, 8000
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per trial
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # `Sender` tries again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}

MAX_EVENTS_AT_ONCE = 2000

T = TypeVar("T")
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Event(BaseModel):
    """What is sent at once to one run. It can wait in a file while the server is unreachable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None
    """A recipe's key; None for the parent run."""
    time: int
    """Milliseconds since 1970."""
    name: str | None = None
    params: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    metrics: dict[str, FiniteFloat] = {}
    step: int = 0
    """Of `metrics`."""
    status: Literal["RUNNING", "FINISHED", "KILLED", "FAILED"] | None = None
    final: bool = False
    """Whether the trial has ended."""
    files: tuple[FileName, ...] = ()
    """Names in the study's folder."""
    documents: dict[FileName, Any] = {}
    """JSON content by the name of its file."""


class SentState(BaseModel):
    """`mlflow.json`: what a server has of a study."""

    uri: str
    runs: dict[str, str] = {}
    """Run ids by recipe key; the parent run's under an empty key."""
    ended: list[str] = []
    """Keys of the recipes whose end has been sent, in that order."""


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
        self.ended = dict.fromkeys(self._state.ended)
        """Keys of the recipes whose end has been sent, in that order."""
        self.experiment_id = self._find_experiment(experiment, uri)

    @property
    def ids(self) -> dict[str, str]:
        """Run ids by recipe key."""
        return {key: run_id for key, run_id in self._state.runs.items() if key != _PARENT}

    def send(self, events: Iterable[Event]) -> list[str]:
        """Send events in order, MAX_EVENTS_AT_ONCE at a time, in as few requests as possible.

        Returns:
            One line for each request that the server refused for good; everything else was stored.

        Raises:
            Exception: whatever MLflow raises when its server can't be reached; the events may be sent again.
        """
        return [line for part in _parts(events, MAX_EVENTS_AT_ONCE) for line in self._send_part(part)]

    def _send_part(self, events: Sequence[Event]) -> list[str]:
        refused, by_run = [], dict[str, list[Event]]()
        for event in events:
            by_run.setdefault(event.run or _PARENT, []).append(event)
        try:
            for key, group in by_run.items():
                refused += self._send_to(key, group)
        finally:
            self._state.ended = list(self.ended)
            write_json(self._folder / STATE, self._state.model_dump())
        return refused

    def _send_to(self, key: str, events: Sequence[Event]) -> list[str]:
        from mlflow.exceptions import MlflowException

        try:
            return self._apply(self._run_id(key, events[0]), key, events)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._state.runs.pop(key, None)  # the run was deleted on the server
            return self._apply(self._run_id(key, events[0]), key, events)

    def _apply(self, run_id: str, key: str, events: Sequence[Event]) -> list[str]:
        from mlflow.entities import Metric, Param, RunTag

        values = {
            "metrics": [
                Metric(name, value, event.time, event.step) for event in events for name, value in event.metrics.items()
            ],
            "params": [Param(*item) for item in _merged(event.params for event in events).items()],
            "tags": [RunTag(*item) for item in _merged(event.tags for event in events).items()],
        }
        refused = []
        for parts in zip_longest(*(_parts(values[kind], num) for kind, num in _MAX_PER_REQUEST.items()), fillvalue=[]):
            refused += self._log(run_id, dict(zip(_MAX_PER_REQUEST, parts, strict=True)))
        for event in events:
            for name, content in event.documents.items():
                self._client.log_dict(run_id, content, name)
            for name in event.files:
                if (self._folder / name).is_file():
                    self._client.log_artifact(run_id, str(self._folder / name))
        self._set_status(run_id, key, events)
        return refused

    def _log(self, run_id: str, batch: Mapping[str, Sequence[Any]]) -> list[str]:
        """Send a batch, each kind of values apart if the whole is refused; a line for each permanent refusal."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(run_id, **batch)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            filled = {kind: values for kind, values in batch.items() if values}
            if len(filled) == 1:
                return [first_line(error)]
            return [line for kind, values in filled.items() for line in self._log(run_id, {kind: values})]
        return []

    def _set_status(self, run_id: str, key: str, events: Sequence[Event]) -> None:
        last = next((event for event in reversed(events) if event.status), None)
        if last is None:
            return
        if last.status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, status=last.status, end_time=last.time)
            if last.final:
                self.ended[key] = None

    def _run_id(self, key: str, first: Event) -> str:
        runs = self._state.runs
        if key not in runs:
            tags = {"mlflow.source.name": "raysearch"}
            if key != _PARENT:
                parent = self._run_id(_PARENT, Event(run=None, time=first.time))
                tags |= {"mlflow.parentRunId": parent, "raysearch.key": key}
            name = first.name or key or self._folder.name
            run = self._client.create_run(self.experiment_id, start_time=first.time, tags=tags, run_name=name)
            runs[key] = str(run.info.run_id)
        return runs[key]

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
    return [(dict(run.data.params), dict(run.data.metrics)) for run in runs]


def local_store(folder: Path) -> str:
    """The SQLite store beside a study's folder."""
    return f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"


def read_state(folder: Path, uri: str) -> SentState:
    """What the server at `uri` has of a study.

    The local store is recorded as LOCAL_STORE, so that it may be moved together with the study.
    """
    path, server = folder / STATE, LOCAL_STORE if uri == local_store(folder) else mask(uri)
    if path.is_file():
        try:
            state = SentState.model_validate_json(path.read_bytes())
            if state.uri == server:
                return state
        except ValidationError:  # an unreadable file leads to new runs, and stops no search
            pass
    return SentState(uri=server)


def _merged(values: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {name: str(value)[:_MAX_VALUE_CHARS] for mapping in values for name, value in mapping.items()}


def _parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The values in lists of at most `size`."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part
