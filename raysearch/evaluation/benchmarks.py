"""Benchmarks: the questions of a split, their metric, and the score of guessing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raysearch import pocket
from raysearch.config.benchmarks import BenchmarkConfig, BenchmarkEntry, LmmsEvalConfig, MetricName
from raysearch.config.problems import known_names
from raysearch.config.settings import EMBEDDED_BENCHMARKS
from raysearch.data.samples import sample_from_row
from raysearch.errors import InputError
from raysearch.evaluation import metrics
from raysearch.evaluation.questions import Question, early_subset, limit_by_image, read_questions

if TYPE_CHECKING:
    from raysearch.evaluation.lmms_eval import LmmsEvalTask


@dataclass(frozen=True)
class Benchmark:
    """The questions of one split."""

    name: str
    questions: tuple[Question, ...]
    chance: float
    """Mean score of the best guess without the image."""
    metric: MetricName = "exact"
    max_new_tokens: int = 32
    """Most tokens of a generated answer; unused by teacher-forced metrics."""
    task: "LmmsEvalTask | None" = None
    """Scores the responses instead of `metric`."""

    @property
    def scorer(self) -> "metrics.Metric | LmmsEvalTask":
        """What scores the responses."""
        return self.task or metrics.METRICS[self.metric]

    def early(self, share: float) -> "Benchmark":
        """The same with the questions of `early_subset`."""
        return replace(self, questions=early_subset(self.questions, share))


def load_benchmarks(entries: str | Sequence[BenchmarkEntry], split: str) -> list[Benchmark]:
    """The benchmarks of a study.

    Args:
        entries: `pocket` for all embedded benchmarks, names of some of them, custom ones, and tasks of lmms-eval.
        split: `search` (trials are compared on it) or `heldout` (reported, never searched on).

    Raises:
        InputError: an unknown or repeated name, or questions that can't be used.
    """
    return [_load(entry, split) for entry in _expanded(entries)]


def check_benchmarks(entries: str | Sequence[BenchmarkEntry]) -> None:
    """Read custom benchmarks, and check that no question is in both splits.

    Raises:
        InputError: as `load_benchmarks`; or a question is in both splits.
    """
    for entry in _expanded(entries):
        if isinstance(entry, LmmsEvalConfig):
            _lmms_eval(entry, "search")
        elif isinstance(entry, BenchmarkConfig):
            search, heldout = (_custom(entry, split).questions for split in ("search", "heldout"))
            known = {(question.image_id, question.prompt) for question in search}
            shared = next((q for q in heldout if (q.image_id, q.prompt) in known), None)
            if shared:
                raise InputError(
                    f"benchmarks: {entry.name}: question {shared.id} is in both splits; "
                    "remove it from one, or leave heldout_data and heldout_split out to divide the rows"
                )


def _expanded(entries: str | Sequence[BenchmarkEntry]) -> list[BenchmarkEntry]:
    """The entries, with `pocket` replaced by the names of all embedded benchmarks.

    Raises:
        InputError: an unknown or repeated name.
    """
    listed = [entries] if isinstance(entries, str) else entries
    found = [name for entry in listed for name in (EMBEDDED_BENCHMARKS if entry == "pocket" else [entry])]
    names = [entry if isinstance(entry, str) else entry.name for entry in found]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise InputError(f"benchmarks: {repeated!r} is named twice; use each name once")
    unknown = next((entry for entry in found if isinstance(entry, str) and entry not in EMBEDDED_BENCHMARKS), None)
    if unknown:
        known = known_names(unknown, ("pocket", *EMBEDDED_BENCHMARKS, "entries with name, data and metric"))
        raise InputError(f"benchmarks: {unknown!r} is not known; {known}")
    return found


def _load(entry: BenchmarkEntry, split: str) -> Benchmark:
    if isinstance(entry, LmmsEvalConfig):
        return _lmms_eval(entry, split)
    return _embedded(entry, split) if isinstance(entry, str) else _custom(entry, split)


def _embedded(name: str, split: str, limit: int | None = None) -> Benchmark:
    rows = pocket.questions(name, split)
    questions = []
    for row in (rows[index] for index in limit_by_image([row["image_id"] for row in rows], limit)):
        prompt = [{"type": "image"}, {"type": "text", "text": row["prompt"]}]
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["answer"]}]
        sample = sample_from_row({"messages": turns, "image": row["image"]}, row["id"])
        questions.append(Question(row["id"], row["image_id"], sample, (row["answer"],)))
    return Benchmark(name, tuple(questions), pocket.chance(name, split))


def _custom(entry: BenchmarkConfig, split: str) -> Benchmark:
    if entry.data == "pocket":
        return _embedded(entry.name, split, entry.num_search if split == "search" else entry.num_heldout)
    questions = read_questions(entry, split)
    chance = metrics.chance(entry.metric, questions) if entry.chance is None else entry.chance
    return Benchmark(entry.name, questions, chance, entry.metric, entry.max_new_tokens)


def _lmms_eval(entry: LmmsEvalConfig, split: str) -> Benchmark:
    from raysearch.evaluation.lmms_eval import LmmsEvalTask

    task = LmmsEvalTask(entry)
    questions = task.questions(split)
    if not questions:
        raise InputError(f"{task.where}: no question is left for split {split}")
    chance = task.chance(questions) if entry.chance is None else entry.chance
    return Benchmark(entry.name, questions, chance, max_new_tokens=task.max_new_tokens, task=task)
