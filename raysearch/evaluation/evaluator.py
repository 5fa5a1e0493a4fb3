"""Greedy answers to fixed questions, as scores per question.

A greedy answer equals the right one, token for token, exactly if every token of the right answer is the most likely
one after those before it: by induction, as long as they agree the model has read the same text. So one forward pass
over the right answers decides what generation would, where that is the metric, and questions about one picture share
what they begin with (see `shared_images`). Every other metric reads what the model generates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.data.encoding import Batch, Encoded, Encoder
from raysearch.data.labels import answer_labels, answer_states, num_answer_labels
from raysearch.data.samples import BadRow, Sample
from raysearch.errors import InputError
from raysearch.evaluation import shared_prefix
from raysearch.evaluation.benchmarks import Benchmark, Question
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.retention import Results
from raysearch.models import Family

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
        batch_size: questions per forward pass; in rows of similar length, so that little is padding.

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
    for batch in _by_length(rows, batch_size):
        chosen = list(chain.from_iterable(batch))
        inputs = encoder.collate([rows[index] for index in chosen], padding_side="left")
        inputs = {key: _on(tensor, model) for key, tensor in inputs.items()}
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=encoder.pad_id)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
    return answers


def _exact_scores(
    model: PreTrainedModel, family: Family, encoder: Encoder, benchmarks: Sequence[Benchmark], batch_size: int
) -> dict[str, np.ndarray]:
    """Per benchmark, (num_questions,) 1.0 where every answer token is the most likely one."""
    questions = [question for benchmark in benchmarks for question in benchmark.questions]
    rows = [_encoded(encoder.encode, q, b.name) for b in benchmarks for q in b.questions]
    groups = _groups(model, family, encoder, rows, [question.image_id for question in questions])
    right = np.zeros(len(rows))
    for chosen in _by_length(rows, batch_size, groups):
        parts = [[rows[index] for index in group] for group in chosen]
        flat = list(chain.from_iterable(parts))
        batch = shared_prefix.joined_batch(encoder, parts) if groups else encoder.collate(flat)
        hits = _logits(model, family, batch).argmax(-1).cpu() == answer_labels(batch)  # (num_answer_tokens,)
        hits = hits.split([num_answer_labels(row) for row in flat])
        right[list(chain.from_iterable(chosen))] = [bool(row.all()) for row in hits]
    scores = np.split(right, np.cumsum([len(benchmark.questions) for benchmark in benchmarks]))
    return {benchmark.name: values for benchmark, values in zip(benchmarks, scores, strict=False)}


def _groups(
    model: PreTrainedModel,
    family: Family,
    encoder: Encoder,
    rows: Sequence[Encoded],
    image_ids: Sequence[str],
) -> list[list[int]] | None:
    """Indices of rows that are asked as one, since they are about the same pictures; None if each is asked alone."""
    window = getattr(family.text_config(model.config), "sliding_window", None)
    groups = shared_prefix.grouped(rows, image_ids, family.image_token_id(model.config), window)
    largest = [rows[index] for index in max(groups, key=len, default=[])]
    ask = partial(_logits, model, family)
    return groups if len(largest) > 1 and shared_prefix.honours_mask(ask, encoder, largest) else None


@torch.inference_mode()
def _logits(model: PreTrainedModel, family: Family, batch: Batch) -> torch.Tensor:
    """Before each answer token, (num_answer_tokens, vocabulary), row by row."""
    batch = {name: _on(tensor, model) for name, tensor in batch.items()}
    return family.lm_head(model)(answer_states(model, batch))


def _encoded(encode: Callable[[Sample], Encoded], question: Question, benchmark: str) -> Encoded:
    try:
        return encode(question.sample)
    except BadRow as error:
        raise InputError(f"benchmarks: {benchmark}: question {question.id}: {error}") from None


def _by_length(
    rows: Sequence[Encoded], batch_size: int, groups: Sequence[list[int]] | None = None
) -> Iterator[list[list[int]]]:
    """Groups of rows, by default one row each; those of similar length together, `batch_size` rows or one group."""
    batch: list[list[int]] = []
    groups = [[index] for index in range(len(rows))] if groups is None else groups
    for group in sorted(groups, key=lambda group: sum(rows[index]["input_ids"].shape[-1] for index in group)):
        if batch and sum(map(len, batch)) + len(group) > batch_size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


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
