"""Benchmarks: the questions of a split, how they are scored, and the score that guessing gets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raysearch import pocket
from raysearch.config.benchmarks import BenchmarkConfig, LmmsEvalConfig, MetricName
from raysearch.data.samples import sample_from_row
from raysearch.errors import InputError
from raysearch.evaluation import metrics
from raysearch.evaluation.questions import Question, early_part, limited, read_questions

if TYPE_CHECKING:
    from raysearch.evaluation.lmms_eval import LmmsEvalTask

__all__ = ["Benchmark", "Question", "check_benchmarks", "load_benchmarks"]


Entry = str | BenchmarkConfig | LmmsEvalConfig


@dataclass(frozen=True)
class Benchmark:
    """The questions of one split."""

    name: str
    questions: tuple[Question, ...]
    chance: float
    """Mean score of the best guess that reads the question and not the image."""
    metric: MetricName = "exact"
    max_new_tokens: int = 32
    """Longest answer that is generated; `exact` needs none."""
    task: "LmmsEvalTask | None" = None
    """Scores the answers in the place of `metric`."""

    def early(self, share: float) -> "Benchmark":
        """The same with the questions of `early_part`."""
        return replace(self, questions=early_part(self.questions, share))


def load_benchmarks(wanted: str | Sequence[Entry], split: str) -> list[Benchmark]:
    """The benchmarks of a study.

    Args:
        wanted: `pocket` for all of the embedded ones, names of some of them, and a person's own.
        split: `search` (trials are compared on it) or `heldout` (reported, never searched on).

    Raises:
        InputError: an unknown or repeated name, or questions that can't be used.
    """
    return [_load(entry, split) for entry in _entries(wanted)]


def check_benchmarks(wanted: str | Sequence[Entry]) -> None:
    """Read both splits of a person's own benchmarks, and see that no question is in both.

    Raises:
        InputError: as `load_benchmarks`; or a question to search on is among the held-out ones.
    """
    for entry in _entries(wanted):
        if isinstance(entry, LmmsEvalConfig):
            _official(entry, "search")
        elif isinstance(entry, BenchmarkConfig):
            search, heldout = (_own(entry, split).questions for split in ("search", "heldout"))
            known = {(question.image_id, question.prompt) for question in search}
            shared = next((q for q in heldout if (q.image_id, q.prompt) in known), None)
            if shared:
                raise InputError(
                    f"benchmarks: {entry.name}: question {shared.id} is in both splits; "
                    "remove it from one, or leave heldout_data and heldout_split out to divide the rows"
                )


def _entries(wanted: str | Sequence[Entry]) -> list[Entry]:
    """The embedded ones by name, a person's own, and published tasks.

    Raises:
        InputError: an unknown or repeated name.
    """
    listed = [wanted] if isinstance(wanted, str) else wanted
    entries = [name for entry in listed for name in (pocket.BENCHMARKS if entry == "pocket" else [entry])]
    names = [entry if isinstance(entry, str) else entry.name for entry in entries]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise InputError(f"benchmarks: {repeated!r} is named twice; give each a name of its own")
    for entry in entries:
        if isinstance(entry, str) and entry not in pocket.BENCHMARKS:
            known = ", ".join(("pocket", *pocket.BENCHMARKS))
            raise InputError(
                f"benchmarks: {entry!r} is not known; known are {known}, and entries with name, data and metric"
            )
    return entries


def _load(entry: Entry, split: str) -> Benchmark:
    if isinstance(entry, LmmsEvalConfig):
        return _official(entry, split)
    return _embedded(entry, split) if isinstance(entry, str) else _own(entry, split)


def _embedded(name: str, split: str, limit: int | None = None) -> Benchmark:
    rows = pocket.questions(name, split)
    questions = []
    for row in (rows[index] for index in limited([row["image_id"] for row in rows], limit)):
        asked = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["answer"]}]
        sample = sample_from_row({"id": row["id"], "messages": turns, "image": row["image"]}, 0)
        questions.append(Question(row["id"], row["image_id"], sample, (row["answer"],)))
    return Benchmark(name, tuple(questions), pocket.chance(name, split))


def _own(entry: BenchmarkConfig, split: str) -> Benchmark:
    if entry.data == "pocket":
        return _embedded(entry.name, split, entry.num_search if split == "search" else entry.num_heldout)
    questions = read_questions(entry, split)
    guess = metrics.chance(entry.metric, questions) if entry.chance is None else entry.chance
    return Benchmark(entry.name, questions, guess, entry.metric, entry.max_new_tokens)


def _official(entry: LmmsEvalConfig, split: str) -> Benchmark:
    from raysearch.evaluation.lmms_eval import LmmsEvalTask

    task = LmmsEvalTask(entry)
    questions = task.questions(split)
    if not questions:
        raise InputError(f"{task.where}: no question is left for split {split}")
    guess = task.chance(questions) if entry.chance is None else entry.chance
    return Benchmark(entry.name, questions, guess, "normalised", task.max_new_tokens, task)
