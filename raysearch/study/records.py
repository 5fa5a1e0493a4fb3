"""Results of a trial: one `Score` per rung, and one `TrialRecord` at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from raysearch.config.budget import Size
from raysearch.config.problems import first_problem
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError, first_line, printable
from raysearch.files import json_lines

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Printable = Annotated[str, AfterValidator(printable)]
"""Text that may be printed, wherever its file comes from."""
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
"""`Recipe.key`; it names folders."""


class Score(BaseModel):
    """Quality of a pruned model after `samples_seen` recovery samples, relative to the dense model.

    Retention 1 means as good as the dense model; see `evaluation.retention` for its forms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples_seen: int = Field(ge=0)
    retention: float
    retention_se: float = Field(ge=0)
    """Paired standard error of `retention`, over the questions (clustered by image)."""
    num_questions: int | None = Field(None, ge=1)
    """Questions that were scored: fewer below a trial's end (`search.early_questions`)."""
    scores: dict[Printable, float]
    """Mean score per benchmark, 0 to 1."""
    losses: dict[Printable, float] = {}
    """Mean of each loss term since the previous rung, unweighted."""
    best_at: int | None = Field(None, ge=0)
    """At a trial's end: samples seen by the earlier state that scored higher than the final one and is handed over, 0
    for the model before recovery; the other fields are then of that state. None for the final state."""


class Sized(BaseModel):
    """The size of a model, as fields."""

    num_params: int
    size_bytes: int
    kv_bytes_per_token: int | None = None
    activation_bytes_per_token: int | None = None

    @property
    def size(self) -> Size:
        """Size of the whole model."""
        return Size(self.num_params, self.size_bytes, self.kv_bytes_per_token, self.activation_bytes_per_token)


class TrialRecord(Sized):
    """One line of `trials.jsonl`: an ended trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: Printable
    key: Key
    recipe: Recipe
    rungs: list[Score]
    end: Literal["finished", "stopped", "failed"]
    reason: Printable = ""
    started: float | None = None
    """Seconds since 1970."""
    seconds: float
    seconds_training: float = 0.0
    """Of `seconds`, in training steps."""
    seconds_evaluating: float = 0.0
    """Of `seconds`, in answering questions, held-out ones too."""


def read_document(path: Path, kind: type[T], what: str) -> T | None:
    """The value of a JSON file of a study; None if there is no file.

    Args:
        what: it holds, for the message.

    Raises:
        InputError: it holds something else.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: no {what} of this version ({problem_text(error)}); delete it") from None


def read_rows(path: Path, kind: type[M]) -> Iterator[M]:
    """The rows of a JSON lines file, checked as they are asked for; none if there is no file.

    Raises:
        InputError: a line is damaged, or none of this version; the message has its number.
    """
    try:
        for number, row in json_lines(path):
            with _line_named(number):
                value = kind.model_validate(row)
            yield value
    except ValueError as error:
        raise InputError(f"{path}, {error}; correct or remove the line") from None


@contextmanager
def _line_named(number: int) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise ValueError(f"line {number}: not of this version ({problem_text(error)})") from None


def seconds_text(seconds: float) -> str:
    """A duration as people read it, e.g. `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def problem_text(error: Exception) -> str:
    """Why a file's content was refused, in one line: of a model's fields, the first that doesn't fit."""
    return first_problem(error) if isinstance(error, ValidationError) else first_line(error)
