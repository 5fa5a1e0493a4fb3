"""Greedy answers to fixed questions, as scores per question.

A greedy answer equals the right one, token for token, exactly if every token of the right answer is the most likely
one after those before it: by induction, as long as they agree the model has read the same text. So one forward pass
over the right answers decides what generation would, where that is the metric. Every other metric reads what the model
generates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.data.encoding import Encoded, Encoder
from raysearch.data.samples import BadRow, Sample
from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import Benchmark, Question
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.retention import Results
from raysearch.families import Family
from raysearch.recovery.states import answer_labels, answer_states, num_answer_labels

GENERATION_BATCH = 16
"""Prompts that are answered together; each holds a cache of keys and values of its length."""


def evaluate(
    model: PreTrainedModel,
    family: Family,
    encoder: Encoder,
    benchmarks: Iterable[Benchmark],
    batch_size: int = 64,
) -> Results:
    """Score a model's greedy answer to every question, by its benchmark's metric.

    Args:
        model: in any mode; left in the mode it had.
        batch_size: questions per forward pass; of similar length, so that little is padding.

    Raises:
        InputError: a question that can't be asked, since an image is unreadable or the answer too long.
    """
    benchmarks = list(benchmarks)
    exact = [benchmark for benchmark in benchmarks if benchmark.metric == "exact"]
    with _in_eval_mode(model):
        scores = _exact_scores(model, family, encoder, exact, batch_size)
        for benchmark in benchmarks:
            if benchmark.metric != "exact":
                limit = benchmark.max_new_tokens
                responses = generate_answers(model, encoder, benchmark.questions, limit, name=benchmark.name)
                scorer = benchmark.task or METRICS[benchmark.metric]
                scores[benchmark.name] = scorer.values(responses, benchmark.questions)
    return Results(
        scores={benchmark.name: scores[benchmark.name] for benchmark in benchmarks},
        images={b.name: np.array([question.image_id for question in b.questions]) for b in benchmarks},
        chance={benchmark.name: benchmark.chance for benchmark in benchmarks},
    )


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    encoder: Encoder,
    questions: Sequence[Question],
    max_new_tokens: int = 64,
    batch_size: int = GENERATION_BATCH,
    name: str = "questions",
) -> list[str]:
    """The model's greedy answers as text, by `generate`, padded on the left.

    Args:
        name: of the benchmark, for messages.

    Raises:
        InputError: a question that can't be asked.
    """
    rows = [_encoded(encoder.encode_prompt, question, name) for question in questions]
    answers = [""] * len(rows)
    for chosen in _by_length(rows, batch_size):
        inputs = encoder.collate([rows[index] for index in chosen], padding_side="left")
        inputs = {key: _on(tensor, model) for key, tensor in inputs.items()}
        tokens = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=encoder.pad_id
        )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
    return answers


def _exact_scores(
    model: PreTrainedModel, family: Family, encoder: Encoder, benchmarks: Sequence[Benchmark], batch_size: int
) -> dict[str, np.ndarray]:
    """Per benchmark, (num_questions,) 1.0 where every answer token is the most likely one."""
    rows = [_encoded(encoder.encode, q, b.name) for b in benchmarks for q in b.questions]
    right = np.zeros(len(rows))
    for chosen in _by_length(rows, batch_size):
        batch = encoder.collate([rows[index] for index in chosen])
        batch = {name: _on(tensor, model) for name, tensor in batch.items()}
        with torch.inference_mode():
            likeliest = family.lm_head(model)(answer_states(model, batch)).argmax(-1)
        hits = (likeliest == answer_labels(batch)).cpu()  # (num_answer_tokens,), row by row
        right[chosen] = [bool(row.all()) for row in hits.split([num_answer_labels(rows[i]) for i in chosen])]
    parts = np.split(right, np.cumsum([len(benchmark.questions) for benchmark in benchmarks]))
    return {benchmark.name: part for benchmark, part in zip(benchmarks, parts, strict=False)}


def _encoded(encode: Callable[[Sample], Encoded], question: Question, benchmark: str) -> Encoded:
    try:
        return encode(question.sample)
    except BadRow as error:
        raise InputError(f"benchmarks: {benchmark}: question {question.id}: {error}") from None


def _by_length(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, a batch at a time."""
    order = sorted(range(len(rows)), key=lambda index: rows[index]["input_ids"].shape[-1])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _on(tensor: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
