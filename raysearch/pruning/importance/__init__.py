"""Importance of every removable unit (layer, KV group, query head, FFN channel, expert), over calibration batches.

Symbols: L layers, G KV groups, H query heads, F FFN channels, E experts. Higher is more important. Sums are in fp32 or
fp64 whatever the model's dtype; the result is a few kilobytes of numpy.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

import torch
from transformers import PreTrainedModel

from raysearch.config.criteria import CRITERIA, WITHOUT_DATA
from raysearch.errors import InputError
from raysearch.pruning.importance.calibration import TOKENS, checked_batches
from raysearch.pruning.importance.result import Importance

__all__ = ["TOKENS", "Importance", "importance"]


def importance(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]] | None,
    criterion: str,
    seed: int = 0,
    tokens: str | None = None,
) -> Importance:
    """Score a model's units by one criterion; docs/explanation/pruning.md has the formulas.

    Args:
        model: the dense model; its weights, gradients and mode are left as they were.
        batches: calibration batches from the collator, with `labels` (-100 except at answer tokens); read once.
            None for criteria that need no data.
        criterion: a row of `CRITERIA`.
        seed: of `random`.
        tokens: which tokens count, one of `TOKENS`; None is the criterion's default. Criteria of the loss always use
            the answer tokens.

    Raises:
        InputError: an unknown criterion or kind of token, or data that the criterion needs and doesn't get.
    """
    if criterion not in CRITERIA:
        raise InputError(f"criterion {criterion!r}: unknown; choose of {', '.join(CRITERIA)}")
    if tokens is not None and tokens not in TOKENS:
        raise InputError(f"tokens {tokens!r}: unknown; choose of {', '.join(TOKENS)}")
    row = CRITERIA[criterion]
    score = getattr(import_module(f"{__name__}.{row.module}"), criterion)
    with _unchanged(model):
        if not row.needs_data:
            return score(model, seed)
        if batches is None:
            raise InputError(
                f"criterion {criterion}: needs calibration data; give --calibration, or choose one of {WITHOUT_DATA}"
            )
        needs_labels = row.needs_labels or tokens == "answer"
        return score(model, checked_batches(model, batches, criterion, needs_labels), tokens or row.tokens)


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode without gradients inside; every module's mode and every `requires_grad` restored afterwards."""
    training = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
