"""Scores per question of a model's greedy answers.

The greedy answer equals the right one, token for token, if and only if every token of the right answer is the most
likely one after those before it (by induction: up to there both texts are the same). So for teacher-forced metrics one
forward pass over the right answers replaces generation, and questions about one image share their prefix (see
`shared_prefix`). All other metrics score generated answers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, compress

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.data.bad_rows import BadRow, BadRows
from raysearch.data.encoding import Batch, Encoded, Encoder, to_model
from raysearch.data.labels import answer_labels, answer_states, num_answer_labels
from raysearch.data.samples import Sample
from raysearch.evaluation import shared_prefix
from raysearch.evaluation.batching import DeviceMemory, compute_in_batches
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.questions import Question
from raysearch.evaluation.retention import Results
from raysearch.models import Family

GENERATION_BATCH = 16
"""Prompts in the first batch of generation; each needs a KV cache of its length."""


Answers = Mapping[str, np.ndarray]
"""Per benchmark, (num_questions,): 1.0 or 0.0 for right and wrong where the metric is teacher-forced, else the text of
each response; NaN or None for a question that can't be asked."""


def evaluate(
    model: PreTrainedModel, family: Family, encoder: Encoder, benchmarks: Iterable[Benchmark], batch_size: int = 64
) -> Results:
    """Score a model's greedy answer to every question, by its benchmark's metric; arguments as of `answer`."""
    benchmarks = list(benchmarks)
    return score_answers(answer(model, family, encoder, benchmarks, batch_size), benchmarks)


def answer(
    model: PreTrainedModel, family: Family, encoder: Encoder, benchmarks: Sequence[Benchmark], batch_size: int = 64
) -> Answers:
    """A model's greedy answers to every question.

    Args:
        model: in training or evaluation mode, which is restored afterwards.
        batch_size: questions of the first forward pass, see `compute_in_batches`.

    Raises:
        InputError: too many questions can't be encoded, since images are unreadable or answers too long.
    """
    teacher_forced = [benchmark for benchmark in benchmarks if benchmark.scorer.teacher_forced]
    with _in_eval_mode(model):
        answers = _teacher_forced_scores(model, family, encoder, teacher_forced, batch_size)
        for benchmark in benchmarks:
            if not benchmark.scorer.teacher_forced:
                limit = benchmark.max_new_tokens
                responses = generate_answers(model, encoder, benchmark.questions, limit, name=benchmark.name)
                answers[benchmark.name] = np.array(responses, dtype=object)
    return answers


def score_answers(answers: Answers, benchmarks: Iterable[Benchmark]) -> Results:
    """Scores of the answers to the questions of `benchmarks`.

    Args:
        answers: of `answer`, or a part of them.
        benchmarks: with the questions that were answered, in the same order.
    """
    benchmarks = [answered(benchmark, answers[benchmark.name]) for benchmark in benchmarks]
    return Results(
        scores={b.name: _scores(b, answers[b.name][_is_asked(answers[b.name])]) for b in benchmarks},
        images={b.name: np.array([question.image_id for question in b.questions]) for b in benchmarks},
        chance={b.name: b.chance for b in benchmarks},
    )


def answered(benchmark: Benchmark, answers: np.ndarray) -> Benchmark:
    """The benchmark without the questions that couldn't be asked: the same ones for every model."""
    return replace(benchmark, questions=tuple(compress(benchmark.questions, _is_asked(answers))))


def _is_asked(answers: np.ndarray) -> np.ndarray:
    return np.array([given is not None and given == given for given in answers], dtype=bool)  # NaN is not itself


def _scores(benchmark: Benchmark, answers: np.ndarray) -> np.ndarray:
    scorer = benchmark.scorer
    return answers if scorer.teacher_forced else scorer.values(answers.tolist(), benchmark.questions)


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    encoder: Encoder,
    questions: Sequence[Question],
    max_new_tokens: int = 64,
    batch_size: int = GENERATION_BATCH,
    name: str = "questions",
) -> list[str | None]:
    """The model's greedy answers as text, in the order of `questions`; batches are padded on the left.

    Args:
        batch_size: questions of the first batch, see `compute_in_batches`.
        name: name of the benchmark, for error messages.

    Returns:
        (num_questions,); None for a question that can't be encoded, which is reported.

    Raises:
        InputError: too many questions can't be encoded.
    """
    asked, rows = _encoded(encoder.encode_prompt, questions, name)
    answers: list[str | None] = [None] * len(questions)
    groups = _prompt_groups(model, encoder, rows, [questions[place].image_id for place in asked], max_new_tokens)

    def generate(batch: list[list[int]]) -> None:
        chosen = list(chain.from_iterable(batch))
        if groups:
            inputs = shared_prefix.kept_prompts(model, encoder, [[rows[index] for index in group] for group in batch])
        else:
            inputs = to_model(encoder.collate([rows[index] for index in chosen], padding_side="left"), model)
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=encoder.pad_id)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[asked[index]] = text.strip()

    _in_batches(generate, rows, batch_size, groups, model)
    return answers


def _teacher_forced_scores(
    model: PreTrainedModel, family: Family, encoder: Encoder, benchmarks: Sequence[Benchmark], batch_size: int
) -> dict[str, np.ndarray]:
    """Per benchmark, (num_questions,) 1.0 where every answer token is the most likely one, else 0.0; NaN for a question
    that can't be encoded, which is reported."""
    rows: list[Encoded] = []
    image_ids: list[str] = []
    places: dict[str, list[int]] = {}
    for benchmark in benchmarks:
        places[benchmark.name], own = _encoded(encoder.encode, benchmark.questions, benchmark.name)
        rows += own
        image_ids += [benchmark.questions[place].image_id for place in places[benchmark.name]]
    groups = _groups(model, family, encoder, rows, image_ids)
    right = np.zeros(len(rows))

    def compare(chosen: list[list[int]]) -> None:
        parts = [[rows[index] for index in group] for group in chosen]
        flat = list(chain.from_iterable(parts))
        batch = shared_prefix.joined_batch(encoder, parts) if groups else encoder.collate(flat)
        hits = answer_logits(model, family, batch).argmax(-1).cpu() == answer_labels(batch)  # (num_answer_tokens,)
        hits = hits.split([num_answer_labels(row) for row in flat])
        right[list(chain.from_iterable(chosen))] = [bool(row.all()) for row in hits]

    _in_batches(compare, rows, batch_size, groups, model)
    scores = {benchmark.name: np.full(len(benchmark.questions), np.nan) for benchmark in benchmarks}
    for name, asked in places.items():
        scores[name][asked], right = right[: len(asked)], right[len(asked) :]
    return scores


def _groups(
    model: PreTrainedModel, family: Family, encoder: Encoder, rows: Sequence[Encoded], image_ids: Sequence[str]
) -> list[list[int]] | None:
    """Indices of rows that share a prefix and are joined; None if the model can't compute joined rows."""
    window = getattr(family.text_config(model.config), "sliding_window", None)
    groups = shared_prefix.group_by_prefix(rows, image_ids, family.image_token_id(model.config), window)
    largest = [rows[index] for index in max(groups, key=len, default=[])]
    logits = partial(answer_logits, model, family)
    return groups if len(largest) > 1 and shared_prefix.honours_mask(logits, encoder, largest) else None


def _prompt_groups(
    model: PreTrainedModel, encoder: Encoder, rows: Sequence[Encoded], image_ids: Sequence[str], max_new_tokens: int
) -> list[list[int]] | None:
    """Indices of prompts that share a prefix whose KV cache is kept; None if the model can't go on from one."""
    window = getattr(encoder.family.text_config(model.config), "sliding_window", None)
    most = 2 * max((len(row["input_ids"]) for row in rows), default=0) + max_new_tokens  # padding counts in a window
    if window is not None and most > window:
        return None
    groups = shared_prefix.group_by_prefix(rows, image_ids, encoder.family.image_token_id(model.config))
    largest = [rows[index] for index in max(groups, key=len, default=[])]
    return groups if len(largest) > 1 and shared_prefix.keeps_prompts(model, encoder, largest) else None


@torch.inference_mode()
def answer_logits(model: PreTrainedModel, family: Family, batch: Batch) -> torch.Tensor:
    """Logits that predict the answer tokens, (num_answer_tokens, vocabulary), row by row."""
    return family.lm_head(model)(answer_states(model, to_model(batch, model)))


def _encoded(
    encode: Callable[[Sample], Encoded], questions: Sequence[Question], benchmark: str
) -> tuple[list[int], list[Encoded]]:
    """Indices and rows of the questions that can be encoded; the others are reported.

    Raises:
        InputError: too many can't.
    """
    bad = BadRows(f"benchmarks: {benchmark}", len(questions))
    asked, rows = [], []
    for index, question in enumerate(questions):
        try:
            rows.append(encode(question.sample))
            asked.append(index)
        except BadRow as error:
            bad.add(f"question {question.id}", str(error))
    bad.report()
    return asked, rows


def _in_batches(
    compute: Callable[[list[list[int]]], None],
    rows: Sequence[Encoded],
    batch_size: int,
    groups: Sequence[list[int]] | None,
    model: PreTrainedModel,
) -> None:
    lengths = [row["input_ids"].shape[-1] for row in rows]
    groups = [[index] for index in range(len(rows))] if groups is None else groups
    memory = DeviceMemory() if model.device.type == "cuda" else None
    compute_in_batches(compute, groups, lengths, batch_size, memory)


@contextmanager
def _in_eval_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
