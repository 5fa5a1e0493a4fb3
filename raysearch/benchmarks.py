"""Benchmarks: questions about images with one right answer each, a split, and the score that guessing gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from raysearch import pocket
from raysearch.data.reading import Sample
from raysearch.errors import InputError


@dataclass(frozen=True)
class Question:
    """One prompt about one image, with the answer that counts as right."""

    id: str
    image: Image.Image
    image_id: str
    """Questions about one image are not independent: standard errors are clustered by it."""
    prompt: str
    answer: str

    @cached_property
    def sample(self) -> Sample:
        """The question and its right answer as a conversation of one turn."""
        asked = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        answered = [{"type": "text", "text": self.answer}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return Sample(id=self.id, source="", images=(self.image,), messages=messages)


@dataclass(frozen=True)
class Benchmark:
    """The questions of one split. The score of a question is 1 for the exact answer, else 0."""

    name: str
    questions: tuple[Question, ...]
    chance: float
    """Mean score of the best guess that reads the question and not the image."""


def load_benchmarks(names: str | Sequence[str], split: str) -> list[Benchmark]:
    """The benchmarks of a study.

    Args:
        names: `pocket` for all of the embedded ones, or names of some of them.
        split: `search` (trials are compared on it) or `heldout` (reported, never searched on).

    Raises:
        InputError: an unknown name.
    """
    return [_embedded(name, split) for name in check_benchmarks(names)]


def check_benchmarks(names: str | Sequence[str]) -> list[str]:
    """The benchmarks that `names` stands for; no question is read.

    Raises:
        InputError: an unknown name.
    """
    wanted = pocket.BENCHMARKS if names == "pocket" else [names] if isinstance(names, str) else names
    for name in wanted:
        if name not in pocket.BENCHMARKS:
            known = ", ".join(("pocket", *pocket.BENCHMARKS))
            raise InputError(f"benchmarks: {name!r} is not known; known are {known}")
    return list(wanted)


def _embedded(name: str, split: str) -> Benchmark:
    rows = pocket.questions(name, split)
    fields = ("id", "image", "image_id", "prompt", "answer")
    questions = tuple(Question(**{field: row[field] for field in fields}) for row in rows)
    return Benchmark(name, questions, pocket.chance(name, split))
