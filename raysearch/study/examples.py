"""Held-out questions that a pruned model answers otherwise than the dense one, as `examples/KEY.json` of a study."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from raysearch.files import write_json
from raysearch.study.records import Printable, read_document

EXAMPLES = "examples"
MAX_EXAMPLES = 10
MAX_PICTURE_CHARS = 40_000
"""Of a picture as a data URI."""
Picture = Annotated[str, Field(max_length=MAX_PICTURE_CHARS, pattern=r"^data:image/(jpeg|png);base64,[A-Za-z0-9+/=]*$")]


class Example(BaseModel):
    """One question with both answers and their scores, 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: Printable
    question: Printable
    expected: list[Printable]
    dense: Printable
    pruned: Printable
    dense_score: float
    pruned_score: float
    picture: Picture | None = None
    """The question's first, made smaller; None if it has none."""


class Examples(BaseModel):
    """Some of the held-out questions on which the two models' scores differ.

    Attributes:
        num_questions: held-out questions that both were asked.
        num_better, num_worse: of them, those on which the pruned model scores higher, and lower.
        examples: at most MAX_EXAMPLES, drawn evenly from those that differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_questions: int
    num_better: int
    num_worse: int
    examples: list[Example] = Field(max_length=MAX_EXAMPLES)

    def save(self, study: Path, key: str) -> None:
        """Replace `examples/KEY.json` of a study's folder."""
        write_json(study / EXAMPLES / f"{key}.json", self.model_dump())


def read_examples(study: Path, key: str) -> Examples | None:
    """The examples of a recipe's model; None if none were kept.

    Raises:
        InputError: the file holds something else.
    """
    return read_document(study / EXAMPLES / f"{key}.json", Examples, "examples")
