"""Questions of a model shared out among the workers of its slot."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.evaluator import Answers
from raysearch.evaluation.questions import Question


def answer_together(answer: Callable[[Sequence[Benchmark]], Answers], benchmarks: Sequence[Benchmark]) -> Answers:
    """The answers to all questions, of which every worker gives a part. Every worker must call it.

    Args:
        answer: of this worker, to the questions of benchmarks.

    Raises:
        InputError: on all workers, if one of them can't ask a question.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return answer(benchmarks)
    rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts = {b.name: parts_by_image(b.questions, num_workers) for b in benchmarks}
    own = [replace(b, questions=tuple(b.questions[row] for row in parts[b.name][rank])) for b in benchmarks]
    given: Answers | InputError
    try:
        given = answer([benchmark for benchmark in own if benchmark.questions])
    except InputError as error:  # the others wait for this worker's part
        given = error
    gathered: list[Answers | InputError] = [{}] * num_workers
    torch.distributed.all_gather_object(gathered, given)
    refused = next((found for found in gathered if isinstance(found, InputError)), None)
    if refused is not None:
        raise refused
    return {b.name: _joined(parts[b.name], [found.get(b.name) for found in gathered]) for b in benchmarks}  # type: ignore[union-attr]


def parts_by_image(questions: Sequence[Question], num_parts: int) -> list[list[int]]:
    """Indices of the questions of each part, which has whole images; the images are dealt out in turn."""
    place_of = {name: place for place, name in enumerate(dict.fromkeys(q.image_id for q in questions))}
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for row, question in enumerate(questions):
        parts[place_of[question.image_id] % num_parts].append(row)
    return parts


def _joined(parts: Sequence[Sequence[int]], answers: Sequence[np.ndarray | None]) -> np.ndarray:
    """Answers in the order of the questions."""
    rows = [row for part in parts for row in part]
    given = np.concatenate([found for found in answers if found is not None])
    joined = np.empty_like(given)
    joined[rows] = given
    return joined
