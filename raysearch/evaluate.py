"""Greedy answers to fixed questions, as scores per question.

A greedy answer equals the right one, token for token, exactly if every token of the right answer is the most likely
one after those before it: by induction, as long as they agree the model has read the same text. So one forward pass
over the right answers decides what generation would; `generate_answers` generates, to check just that.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.benchmarks import Benchmark, Question
from raysearch.data.encoding import Encoder
from raysearch.families import Family
from raysearch.recovery.teacher import answer_labels, answer_states, num_answer_labels
from raysearch.retention import Results


def evaluate(
    model: PreTrainedModel,
    family: Family,
    encoder: Encoder,
    benchmarks: Iterable[Benchmark],
    batch_size: int = 64,
) -> Results:
    """Score a model on every question: 1 if its greedy answer is the right one, else 0.

    Args:
        model: in any mode; left in the mode it had.
        batch_size: questions per forward pass; of similar length, so that little is padding.
    """
    benchmarks = list(benchmarks)
    questions = [question for benchmark in benchmarks for question in benchmark.questions]
    scores = np.split(
        _exact_matches(model, family, encoder, questions, batch_size),
        np.cumsum([len(benchmark.questions) for benchmark in benchmarks])[:-1],
    )
    return Results(
        scores={benchmark.name: part for benchmark, part in zip(benchmarks, scores, strict=True)},
        images={b.name: np.array([question.image_id for question in b.questions]) for b in benchmarks},
        chance={benchmark.name: benchmark.chance for benchmark in benchmarks},
    )


def generate_answers(
    model: PreTrainedModel, encoder: Encoder, questions: Sequence[Question], max_new_tokens: int = 64
) -> list[str]:
    """The model's greedy answers as text, by `generate`, one question at a time."""
    answers = []
    for question in questions:
        inputs = encoder.collate([encoder.encode_prompt(question.sample)])
        inputs = {name: _on(tensor, model) for name, tensor in inputs.items()}
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        answers.append(encoder.tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


@torch.inference_mode()
def _exact_matches(
    model: PreTrainedModel, family: Family, encoder: Encoder, questions: Sequence[Question], batch_size: int
) -> np.ndarray:
    """(num_questions,) 1.0 where every answer token is the most likely one."""
    rows = [encoder.encode(question.sample) for question in questions]
    order = sorted(range(len(rows)), key=lambda index: rows[index]["input_ids"].shape[-1])
    right = np.zeros(len(rows))
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = encoder.collate([rows[index] for index in chosen])
        batch = {name: _on(tensor, model) for name, tensor in batch.items()}
        likeliest = family.lm_head(model)(answer_states(model, batch)).argmax(-1)
        hits = (likeliest == answer_labels(batch)).cpu()  # (num_answer_tokens,), row by row
        right[chosen] = [bool(row.all()) for row in hits.split([num_answer_labels(rows[i]) for i in chosen])]
    model.train(was_training)
    return right


def _on(tensor: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
