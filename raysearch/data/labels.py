"""Labels of answer tokens, and the decoder's states that predict them."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

IGNORED = -100
"""Label of a token that is not part of an answer."""


def last_states(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Last normalised hidden states, (batch, seq, hidden).

    Args:
        model: a model of transformers whose `base_model` is everything but the language head.
        batch: of `Encoder.collate`.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    for key, value in inputs.items():
        if value.is_floating_point():
            inputs[key] = value.to(model.dtype)
    return model.base_model(**inputs, use_cache=False).last_hidden_state


def answer_states(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Last normalised hidden states at the positions whose next token is an answer token.

    Returns:
        (n, hidden), row by row; `answer_labels(batch)` are the tokens that these states predict.
    """
    return last_states(model, batch)[:, :-1][batch["labels"][:, 1:] != IGNORED]


def answer_labels(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The answer tokens of a batch, (n,), row by row, without a row's first token, which no state predicts."""
    labels = batch["labels"][:, 1:]
    return labels[labels != IGNORED]


def num_answer_labels(row: Mapping[str, torch.Tensor]) -> int:
    """How many `answer_labels` one encoded row has."""
    return int((row["labels"][1:] != IGNORED).sum())
