"""The events that the decisions of a search follow from, one line of JSON each.

A row is looked up in the table `EVENTS` and checked field by field; nothing is executed by a name that it holds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from raysearch.errors import InputError
from raysearch.files import append_json, read_json_lines
from raysearch.search.early_stopping.asha import AshaBracket
from raysearch.search.searcher import Searcher


class _TrialEvent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> Any:
        raise NotImplementedError


class TrialSuggested(_TrialEvent):
    """A new trial was asked for; the recipe follows from the state."""

    event: Literal["suggested"] = "suggested"

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> Any:
        return searcher.suggest(self.trial)


class TrialRenamed(_TrialEvent):
    """A trial that was interrupted goes on under another name."""

    event: Literal["renamed"] = "renamed"
    name: str

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        searcher.rename(self.trial, self.name)
        bracket.rename(self.trial, self.name)


class RetentionReported(_TrialEvent):
    """A running trial was scored."""

    event: Literal["reported"] = "reported"
    samples_seen: float
    retention: float

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        searcher.report(self.trial, self.samples_seen, self.retention)


class TrialFinished(_TrialEvent):
    """A trial came to its own end."""

    event: Literal["finished"] = "finished"

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        searcher.finish(self.trial)


class TrialStopped(_TrialEvent):
    """A trial was stopped early."""

    event: Literal["stopped"] = "stopped"

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        searcher.stop(self.trial)


class TrialFailed(_TrialEvent):
    """A trial failed."""

    event: Literal["failed"] = "failed"

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        searcher.fail(self.trial)


class RungReached(_TrialEvent):
    """A trial was judged at a rung, or between two."""

    event: Literal["rung_reached"] = "rung_reached"
    size: float
    retention: float
    retention_se: float
    samples_seen: float

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> Any:
        return bracket.decide(self.trial, self.size, self.retention, self.retention_se, self.samples_seen)


class EndReached(RungReached):
    """A trial's last value, which counts at all rungs that it has not reached."""

    event: Literal["end_reached"] = "end_reached"  # type: ignore[assignment]

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        bracket.finish(self.trial, self.size, self.retention, self.retention_se, self.samples_seen)


class TrialLost(_TrialEvent):
    """A trial's process failed: it holds back no other at the rungs."""

    event: Literal["lost"] = "lost"

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        bracket.fail(self.trial)


class TrialAdded(_TrialEvent):
    """A trial starts, or is tried again after its process failed."""

    event: Literal["added"] = "added"

    def apply(self, searcher: Searcher, bracket: AshaBracket) -> None:
        bracket.revive(self.trial)


ENDS = (TrialFinished, TrialStopped, TrialFailed)
Event = (
    TrialSuggested
    | TrialRenamed
    | RetentionReported
    | TrialFinished
    | TrialStopped
    | TrialFailed
    | RungReached
    | EndReached
    | TrialLost
    | TrialAdded
)
EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def append_event(path: Path, number: int, event: Event) -> None:
    """Write one event behind the others.

    Raises:
        OSError: it could not be written.
    """
    append_json(path, {"number": number, **event.model_dump()}, flush=False)


def read_events(path: Path) -> Iterator[tuple[int, Event]]:
    """The events of a journal with their numbers; none if there is no file.

    Raises:
        InputError: a line is damaged, or no event of this version.
    """
    try:
        rows = read_json_lines(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {_WAY_OUT}") from None
    for line, row in enumerate(rows, 1):
        try:
            fields = dict(row)
            number = fields.pop("number")
            event = EVENTS.validate_python(fields)
            if not isinstance(number, int):
                raise TypeError(f"number {number!r}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "event"
            raise InputError(f"{path}: line {line}: {where}: {first['msg']}; {_WAY_OUT}") from None
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: line {line}: no event of this version; {_WAY_OUT}") from None
        yield number, event


_WAY_OUT = "delete it and search-state.json beside it, to go on from trials.jsonl alone"
