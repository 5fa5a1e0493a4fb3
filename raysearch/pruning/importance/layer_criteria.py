"""Layer criteria: how much a decoder layer changes the hidden state, or how much the loss rises without it.

With data a criterion is called as `f(model, batches, tokens)`, without as `f(model, seed)`; see `config.criteria`.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.config.criteria import NUM_LAYERS_TRIED
from raysearch.models import family_for
from raysearch.pruning.importance.calibration import Batch, token_mask
from raysearch.pruning.importance.layer_skipping import LayerSkippingLoss
from raysearch.pruning.importance.result import Importance


def deepest(model: PreTrainedModel, seed: int) -> Importance:
    """The deepest layers go first, but the last stays to the end (arXiv 2403.17887, section 4.4)."""
    num_layers = len(family_for(model).decoder(model).layers)
    order = np.array([*range(num_layers - 2, -1, -1), num_layers - 1])
    return _of_order("deepest", order)


@torch.inference_mode()
def block_influence(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """`1 - mean cos(H_i, H_{i+1})` of a layer's input and output rows (arXiv 2403.03853, equation 1).

    Cosines are per token in fp32; the last layer's output is taken before the final norm.
    """
    num_layers = len(family_for(model).decoder(model).layers)
    sums, num_tokens = torch.zeros(num_layers, dtype=torch.float64), 0
    for batch in batches:
        mask = token_mask(model, batch, tokens)
        num_tokens += int(mask.sum())
        for i, (before, after) in enumerate(_layer_states(model, batch, mask)):
            sums[i] += torch.cosine_similarity(before, after, dim=-1).double().sum().cpu()
    scores = (1 - sums / max(num_tokens, 1)).numpy().astype(np.float32)
    return Importance("block_influence", layers=scores, layer_order=np.argsort(scores, kind="stable"))


@torch.inference_mode()
def angular(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Mean angle, as a share of pi, between the inputs of layers l and l + n (arXiv 2403.17887, equation 7)."""
    num_layers = len(family_for(model).decoder(model).layers)
    sums, num_tokens = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64), 0
    for batch in batches:
        mask = token_mask(model, batch, tokens)
        num_tokens += int(mask.sum())
        pairs = _layer_states(model, batch, mask)
        states = torch.stack([before for before, _ in pairs] + [pairs[-1][1]])  # (L + 1, tokens, hidden)
        states = torch.nn.functional.normalize(states, dim=-1)
        for row in range(num_layers):
            cosines = (states[row] * states[row + 1 :]).sum(-1).clamp(-1, 1)
            sums[row, row + 1 :] += torch.arccos(cosines).double().sum(-1).cpu() / np.pi
    distance = (sums / max(num_tokens, 1)).numpy().astype(np.float32)
    blocks = np.full((num_layers, num_layers), np.inf, np.float32)
    for start in range(num_layers):
        blocks[start, : num_layers - start] = distance[start, start + 1 :]
    return Importance("angular", layers=blocks[:, 0].copy(), block_distance=blocks)


@torch.inference_mode()
def one_shot_loss(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Rise of the loss on the answers when one layer alone is skipped."""
    skipping = LayerSkippingLoss(model, batches)
    layers = list(range(skipping.num_layers))
    losses = skipping.losses_without_each(layers)
    scores = np.array([losses.get(i, np.inf) for i in layers]) - skipping.loss(layers)
    scores = scores.astype(np.float32)
    return Importance("one_shot_loss", layers=scores, layer_order=np.argsort(scores, kind="stable"))


@torch.inference_mode()
def greedy_loss(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Repeatedly drop the layer without which the loss on the answers is lowest (arXiv 2402.09025).

    Every step measures the already shortened model, with images. The first tries all layers, a later one
    `NUM_LAYERS_TRIED`: those without which the loss was lowest when last measured. Layers before the skipped one are
    not run again.
    """
    return _greedy("greedy_loss", LayerSkippingLoss(model, batches), ())


@torch.inference_mode()
def greedy_kl(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """As `greedy_loss`, by the divergence KL(dense || shortened) of the predictions of answer tokens, which need not be
    right. Memory: a row of the vocabulary per answer token."""
    skipping = LayerSkippingLoss(model, batches)
    return _greedy("greedy_kl", skipping, list(skipping.log_probs(range(skipping.num_layers))))


def _greedy(criterion: str, skipping: LayerSkippingLoss, dense: Sequence[torch.Tensor]) -> Importance:
    left, order = list(range(skipping.num_layers)), []
    losses: dict[int, float] = {}
    while len(left) > max(1, len(skipping.fixed)):
        tried = sorted(losses, key=lambda i: losses[i])[:NUM_LAYERS_TRIED] if losses else None
        found = skipping.losses_without_each(left, dense, tried)
        losses |= found
        order.append(min(found, key=lambda i: found[i]))
        left.remove(order[-1])
        del losses[order[-1]]
    return _of_order(criterion, np.array([*order, *reversed(left)]))


def _of_order(criterion: str, order: np.ndarray) -> Importance:
    """Scores are positions in the order, 0 for the first layer to go."""
    scores = np.empty(len(order), np.float32)
    scores[order] = np.arange(len(order))
    return Importance(criterion, layers=scores, layer_order=order)


def _layer_states(model: PreTrainedModel, batch: Batch, mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's input and output at the masked tokens: pairs of (tokens, hidden) fp32."""
    states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        chosen = mask.to(before.device)
        states.append((before[chosen].float(), after[chosen].float()))

    with ExitStack() as hooks:
        for layer in family_for(model).decoder(model).layers:
            hooks.enter_context(layer.register_forward_hook(record, with_kwargs=True))
        forward_only(model, batch)
    return states


def forward_only(model: PreTrainedModel, batch: Batch) -> None:
    """Forward pass to the last hidden state, without logits, loss and cache."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    model.base_model(**inputs, use_cache=False)
