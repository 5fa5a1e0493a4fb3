"""Keep some of the held-out questions on which a pruned model scores otherwise than the dense one."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from raysearch.data.bad_rows import BadRow
from raysearch.data.pictures import open_image
from raysearch.errors import first_line
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.questions import Question
from raysearch.evaluation.retention import Results
from raysearch.logging import logger
from raysearch.recovery.deepspeed_engine import is_rank_zero
from raysearch.study.examples import MAX_EXAMPLES, MAX_PICTURE_CHARS, Example, Examples
from raysearch.study.front import CHECKPOINTS
from raysearch.trials.context import TrialContext

MAX_SIDES = (320, 224, 128)
"""Pixels of a picture's longer side: the first at which it is small enough."""
MAX_CHARS = 600
NUM_SPARE = 5
"""Questions beyond those that are kept: a near tie that one forward pass decides may be generated the other way."""
T = TypeVar("T")


def keep_examples(folder: Path, context: TrialContext, model: PreTrainedModel, results: Results) -> None:
    """Write `examples/KEY.json` beside `checkpoints/KEY`; what goes wrong is logged. Rank 0 alone has work to do.

    Args:
        folder: of the checkpoint; one that lies elsewhere has no study to keep them in.
        results: the model's on the held-out questions.
    """
    if folder.parent.name != CHECKPOINTS or not is_rank_zero():
        return
    try:
        find_examples(context, model, results).save(folder.parents[1], folder.name)
    except Exception as error:  # they only illustrate the scores
        logger.warning("%s: no examples of its answers: %s", folder, first_line(error))


def find_examples(context: TrialContext, model: PreTrainedModel, results: Results) -> Examples:
    """Questions on which the two models' scores differ, evenly spread over all of them, and what both say."""
    dense = context.heldout_baseline
    differing = [
        (benchmark, int(index))
        for benchmark in context.heldout
        for index in np.flatnonzero(results.scores[benchmark.name] != dense.scores[benchmark.name])
        if len(results.scores[benchmark.name]) == len(benchmark.questions)  # all of them could be asked
    ]
    ahead = np.concatenate([results.scores[name] - dense.scores[name] for name in results.scores])
    chosen = _spread(differing, MAX_EXAMPLES + NUM_SPARE)
    answers = [_answers(context, *pair, chosen) for pair in ((context.model, dense), (model, results))]
    examples = [
        Example(
            benchmark=benchmark.name,
            question=benchmark.questions[index].prompt[:MAX_CHARS],
            expected=[text[:MAX_CHARS] for text in benchmark.questions[index].answers[:5]],
            dense=by_dense[:MAX_CHARS],
            pruned=by_pruned[:MAX_CHARS],
            dense_score=float(dense.scores[benchmark.name][index]),
            pruned_score=float(results.scores[benchmark.name][index]),
            picture=_picture(benchmark.questions[index]),
        )
        for (benchmark, index), by_dense, by_pruned in zip(chosen, *answers, strict=True)
        if by_dense != by_pruned
    ]
    return Examples(
        num_questions=len(ahead),
        num_better=int((ahead > 0).sum()),
        num_worse=int((ahead < 0).sum()),
        examples=_spread(examples, MAX_EXAMPLES),
    )


def _spread(rows: Sequence[T], num: int) -> list[T]:
    """At most `num` of them, evenly spread."""
    chosen = np.linspace(0, len(rows) - 1, num).round().astype(int) if len(rows) > num else range(len(rows))
    return [rows[index] for index in chosen]


def _answers(
    context: TrialContext, model: PreTrainedModel, results: Results, chosen: Sequence[tuple[Benchmark, int]]
) -> list[str]:
    """What a model says; a right answer to a benchmark that is scored by one forward pass is the expected one."""
    known = [b.scorer.teacher_forced and results.scores[b.name][index] == 1 for b, index in chosen]
    asked = [(b, b.questions[index]) for (b, index), is_known in zip(chosen, known, strict=True) if not is_known]
    said = iter(context.responses(model, asked))
    return [
        b.questions[index].answer if is_known else next(said)
        for (b, index), is_known in zip(chosen, known, strict=True)
    ]


def _picture(question: Question) -> str | None:
    """The question's first picture as a data URI, made smaller; None if it has none that can be read."""
    try:
        image = open_image(question.sample.images[0]) if question.sample.images else None
    except BadRow:
        image = None
    if image is None:
        return None
    for side in MAX_SIDES:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=80)
        text = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        if len(text) <= MAX_PICTURE_CHARS:
            return text
    return None
