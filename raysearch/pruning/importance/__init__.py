"""One number per removable unit (layer, KV group, query head, FFN channel), streamed over calibration batches.

Symbols: L layers, G KV groups, H query heads, F FFN channels. Higher is more important. Reductions are in fp32 or
fp64 whatever the model's dtype; what comes back is a few kilobytes of numpy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.config.recipe import LAYER_CRITERIA, WIDTH_CRITERIA
from raysearch.errors import InputError
from raysearch.pruning.importance import layer_criteria, width_criteria
from raysearch.pruning.importance.calibration import TOKENS, prepared
from raysearch.pruning.importance.result import Importance

__all__ = ["TOKENS", "Importance", "importance", "needs_data"]

_DEPTH: dict[str, Callable[..., Importance]] = {
    "block_influence": layer_criteria.block_influence,
    "angular": layer_criteria.angular,
    "one_shot_loss": layer_criteria.one_shot_loss,
    "greedy_loss": layer_criteria.greedy_loss,
}
_WIDTH: dict[str, Callable[..., Importance]] = {
    "taylor": width_criteria.taylor,
    "taylor2": width_criteria.taylor2,
    "activation": width_criteria.activation,
    "wanda": width_criteria.wanda,
    "fluctuation": width_criteria.fluctuation,
}
_NEEDS_LABELS = ("one_shot_loss", "greedy_loss", "taylor", "taylor2")


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
        batches: calibration batches as the collator makes them, with `labels` (-100 but for answer tokens); read once.
            None for criteria that need no data.
        criterion: a layer or a width criterion; `random` gives both kinds.
        seed: of `random`.
        tokens: which tokens count: all, image, text, answer or last. None is the criterion's own choice, all but for
            angular (last). Criteria of the loss always look at the answers.

    Raises:
        InputError: an unknown criterion, or data that it needs and doesn't get.
    """
    if criterion not in (*LAYER_CRITERIA, *WIDTH_CRITERIA):
        known = ", ".join(dict.fromkeys(LAYER_CRITERIA + WIDTH_CRITERIA))
        raise InputError(f"criterion {criterion!r}: unknown; choose of {known}")
    if tokens is not None and tokens not in TOKENS:
        raise InputError(f"tokens {tokens!r}: unknown; choose of {', '.join(TOKENS)}")
    if criterion == "magnitude":
        return width_criteria.magnitude(model)
    if criterion == "deepest":
        return layer_criteria.deepest(model)
    if criterion == "random":
        return _random(model, seed)
    if batches is None:
        raise InputError(
            f"criterion {criterion}: needs calibration data; give --calibration, or choose magnitude or deepest"
        )
    ready = prepared(model, batches, criterion, needs_labels=criterion in _NEEDS_LABELS or tokens == "answer")
    with _left_as_it_was(model):
        if criterion in _DEPTH:
            return _DEPTH[criterion](model, ready, tokens=tokens)
        return _WIDTH[criterion](model, ready, tokens=tokens)


def needs_data(criterion: str) -> bool:
    """Whether a criterion (LAYER+WIDTH in mode `both`) needs calibration batches."""
    return bool(set(criterion.split("+")) & {*_DEPTH, *_WIDTH})


def _random(model: PreTrainedModel, seed: int) -> Importance:
    rng = np.random.default_rng(seed)
    layout, num_layers = width_criteria.layout_and_depth(model)
    layers = rng.random(num_layers, np.float32)
    heads = rng.random((num_layers, layout.num_heads), np.float32)
    return Importance(
        "random",
        layers=layers,
        layer_order=np.argsort(layers, kind="stable"),
        heads=heads,
        kv_groups=heads.reshape(num_layers, layout.num_kv_groups, -1).sum(-1),
        ffn_channels=rng.random((num_layers, layout.num_ffn_channels), np.float32),
    )


@contextmanager
def _left_as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode without gradients inside; every module's mode and every `requires_grad` as before outside."""
    training = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, wanted in grads:
            parameter.requires_grad_(wanted)
