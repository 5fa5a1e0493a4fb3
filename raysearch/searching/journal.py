"""The events that the decisions of a search follow from, one line of JSON each.

A row is looked up in the table `EVENTS` and checked field by field; nothing is executed by a name that it holds.
"""

import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raysearch.config.problems import first_problem
from raysearch.errors import InputError
from raysearch.files import append_json, read_json_lines
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.searching.judged_shapes import JudgedShape

if TYPE_CHECKING:
    from raysearch.searching.searcher import Searcher


class TrialArgs(BaseModel):
    """An event of one trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str


class WithinArgs(TrialArgs):
    """A trial that may see so many samples at most, since there is no time for more."""

    longest: float


class LimitArgs(BaseModel):
    """A limit that nothing but the clock tells of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: Literal["time"]


class RenameArgs(TrialArgs):
    """Another name for a trial."""

    name: str


class ReportArgs(TrialArgs):
    """A score of a running trial."""

    samples_seen: float
    retention: float


class RungArgs(ReportArgs):
    """A result that is judged at a rung."""

    size: float
    retention_se: float


class ShapesArgs(BaseModel):
    """Shapes were judged before any was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: list[JudgedShape]


def _suggest(searcher: "Searcher", bracket: AshaBracket, args: Any) -> Any:
    recipe = searcher.suggest(args.trial, getattr(args, "longest", math.inf))
    if recipe is not None and searcher.trains_a_leader_longer(args.trial):
        bracket.spare(args.trial, "trains a recipe of the front for longer")
    return recipe


def _rename(searcher: "Searcher", bracket: AshaBracket, args: Any) -> None:
    searcher.rename(args.trial, args.name)
    bracket.rename(args.trial, args.name)


def _judge(searcher: "Searcher", bracket: AshaBracket, args: Any) -> Any:
    return bracket.decide(args.trial, args.size, args.retention, args.retention_se, args.samples_seen)


def _end(searcher: "Searcher", bracket: AshaBracket, args: Any) -> None:
    bracket.finish(args.trial, args.size, args.retention, args.retention_se, args.samples_seen)


def _reach_limit(searcher: "Searcher", bracket: AshaBracket, args: Any) -> None:
    searcher.ended_by = args.limit


EVENTS: dict[str, tuple[type[BaseModel], Callable[[Any, AshaBracket, Any], Any]]] = {
    "suggested": (TrialArgs, _suggest),
    "suggested_within": (WithinArgs, _suggest),
    "limit_reached": (LimitArgs, _reach_limit),
    "renamed": (RenameArgs, _rename),  # an interrupted trial goes on under another name
    "added": (TrialArgs, lambda searcher, bracket, args: bracket.revive(args.trial)),
    "rung_reached": (RungArgs, _judge),
    "reported": (ReportArgs, lambda searcher, bracket, a: searcher.report(a.trial, a.samples_seen, a.retention)),
    "end_reached": (RungArgs, _end),
    "lost": (TrialArgs, lambda searcher, bracket, args: bracket.fail(args.trial)),  # its process failed
    "finished": (TrialArgs, lambda searcher, bracket, args: searcher.finish(args.trial)),
    "stopped": (TrialArgs, lambda searcher, bracket, args: searcher.stop(args.trial)),
    "shapes_judged": (ShapesArgs, lambda searcher, bracket, args: searcher.learn_shapes(args.shapes)),
    "failed": (TrialArgs, lambda searcher, bracket, args: searcher.fail(args.trial)),
}
"""By event: its fields, and what it does to the searcher and the bracket."""
ENDS = ("finished", "stopped", "failed")
_WAY_OUT = "delete it and search-state.json beside it, to go on from trials.jsonl alone"


def append_event(path: Path, number: int, event: str, args: BaseModel) -> None:
    """Write one event behind the others.

    Raises:
        OSError: it could not be written.
    """
    append_json(path, {"number": number, "event": event, **args.model_dump()}, flush=False)


def apply_event(searcher: "Searcher | None", bracket: AshaBracket, event: str, args: BaseModel) -> Any:
    """What the searcher or the bracket answers to an event of `EVENTS`; those of a bracket alone need no searcher."""
    return EVENTS[event][1](searcher, bracket, args)


def read_events(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Number, event and fields of each row of a journal; none if there is no file.

    Raises:
        InputError: a line is damaged, or no event of this version.
    """
    try:
        rows = read_json_lines(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {_WAY_OUT}") from None
    for line, row in enumerate(rows, 1):
        try:
            number, event = operator.index(row.pop("number")), row.pop("event")
            args = EVENTS[event][0].model_validate(row)
        except ValidationError as error:
            raise InputError(f"{path}: line {line}: {event}.{first_problem(error, row)}; {_WAY_OUT}") from None
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: line {line}: no event of this version; {_WAY_OUT}") from None
        yield number, event, args
