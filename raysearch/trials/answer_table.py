"""Every answer of a model to benchmarks, next to what was expected."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysearch import models
from raysearch.data.encoding import Encoder
from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.evaluator import answer, answered, generate_answers, score_answers
from raysearch.evaluation.retention import Results
from raysearch.files import write_text
from raysearch.logging import logger
from raysearch.models.precision import in_fast_precision
from raysearch.models.vision_cache import VisionCache
from raysearch.recovery.deepspeed_engine import current_device, on_device
from raysearch.recovery.teacher_cache import GB

_VISION_CACHE_BYTES = 2 * GB


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question, what was expected, and what a model said."""

    benchmark: str
    id: str
    image_id: str
    prompt: str
    expected: tuple[str, ...]
    response: str
    score: float


def answer_all(model: str, benchmarks: Sequence[Benchmark], max_length: int) -> tuple[Results, list[AnsweredQuestion]]:
    """Load a model, and ask it all questions, as a search does.

    A right answer to a benchmark that is scored by one forward pass is the expected one; wrong ones are generated.

    Args:
        max_length: most tokens of a question with its answer.

    Raises:
        InputError: the model can't be loaded, or a question not be asked.
    """
    loaded, processor = models.load(model)
    family = models.family_for(loaded)
    encoder = Encoder(processor, family, max_length)
    vision = VisionCache(family, _VISION_CACHE_BYTES)
    rows = []
    answers: dict[str, np.ndarray] = {}
    with on_device(loaded, current_device()), in_fast_precision(loaded), vision.serving(loaded):
        for benchmark in benchmarks:
            logger.info("%s: %d questions of %s", model, len(benchmark.questions), benchmark.name)
            answers |= answer(loaded, family, encoder, [benchmark])
            (scores,) = score_answers(answers, [benchmark]).scores.values()
            asked = answered(benchmark, answers[benchmark.name]).questions
            if benchmark.scorer.teacher_forced:
                wrong = [question for question, score in zip(asked, scores, strict=True) if not score]
                said = generate_answers(loaded, encoder, wrong, benchmark.max_new_tokens, name=benchmark.name)
                by_id = {question.id: text for question, text in zip(wrong, said, strict=True)}
                given = [by_id.get(question.id, question.answer) for question in asked]
            else:
                given = [text for text in answers[benchmark.name] if text is not None]
            rows += [
                AnsweredQuestion(benchmark.name, q.id, q.image_id, q.prompt, q.answers, str(text), float(score))
                for q, text, score in zip(asked, given, scores, strict=True)
            ]
    return score_answers(answers, benchmarks), rows


def shown(rows: Sequence[AnsweredQuestion], num: int) -> list[int]:
    """Indices of `num` rows, evenly spread."""
    return np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int)).tolist() if num else []


def check_answers_file(path: Path) -> None:
    """Check that `write_answers` may write to a path.

    Raises:
        InputError: it exists, or ends in neither .json nor .parquet.
    """
    if path.suffix not in (".json", ".parquet"):
        raise InputError(f"--to {path}: answers are written as .json or .parquet; choose one of them")
    if path.exists():
        raise InputError(f"--to {path}: exists; choose another name")


def write_answers(path: Path, answers: dict[str, list[AnsweredQuestion]]) -> None:
    """Write the answers of models, by name, one row per model and question."""
    rows = [
        {"model": model, **vars(row), "expected": list(row.expected)} for model, of in answers.items() for row in of
    ]
    if path.suffix == ".json":
        write_text(path, json.dumps(rows, indent=1) + "\n")
        return
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        parquet.write_table(pyarrow.Table.from_pylist(rows), made)
        os.replace(made, path)
