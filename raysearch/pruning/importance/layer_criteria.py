"""Layer criteria: how much a decoder layer changes the hidden state, or the loss without it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.models import family_for
from raysearch.pruning.importance.calibration import Batch, token_mask
from raysearch.pruning.importance.layer_skipping import Replay
from raysearch.pruning.importance.result import Importance


def deepest(model: PreTrainedModel) -> Importance:
    """The deepest layers go first, but the last stays to the end (arXiv 2403.17887, section 4.4)."""
    num_layers = len(family_for(model).decoder(model).layers)
    order = np.array([*range(num_layers - 2, -1, -1), num_layers - 1])
    return _of_order("deepest", order)


@torch.inference_mode()
def block_influence(model: PreTrainedModel, batches: Iterable[Batch], tokens: str | None = None) -> Importance:
    """`1 - mean cos(H_i, H_{i+1})` of a layer's input and output rows (arXiv 2403.03853, equation 1).

    Cosines are per token in fp32; padding is left out, and the last layer's output is taken before the final norm.
    """
    num_layers = len(family_for(model).decoder(model).layers)
    sums, num_tokens = torch.zeros(num_layers, dtype=torch.float64), 0
    for batch in batches:
        mask = token_mask(model, batch, tokens or "all")
        num_tokens += int(mask.sum())
        for i, (before, after) in enumerate(_layer_states(model, batch, mask)):
            sums[i] += torch.cosine_similarity(before, after, dim=-1).double().sum().cpu()
    scores = (1 - sums / max(num_tokens, 1)).numpy().astype(np.float32)
    return Importance("block_influence", layers=scores, layer_order=np.argsort(scores, kind="stable"))


@torch.inference_mode()
def angular(model: PreTrainedModel, batches: Iterable[Batch], tokens: str | None = None) -> Importance:
    """Mean angle, as a share of pi, between the inputs of layers l and l + n (arXiv 2403.17887, equation 7)."""
    num_layers = len(family_for(model).decoder(model).layers)
    sums, num_tokens = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64), 0
    for batch in batches:
        mask = token_mask(model, batch, tokens or "last")
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
def one_shot_loss(model: PreTrainedModel, batches: Iterable[Batch], tokens: str | None = None) -> Importance:
    """How much the loss on the answers rises when one layer alone is skipped."""
    replay = Replay(model, batches)
    layers = list(range(replay.num_layers))
    losses = replay.losses_without_each(layers)
    scores = np.array([losses.get(i, np.inf) for i in layers]) - replay.loss(layers)
    scores = scores.astype(np.float32)
    return Importance("one_shot_loss", layers=scores, layer_order=np.argsort(scores, kind="stable"))


@torch.inference_mode()
def greedy_loss(model: PreTrainedModel, batches: Iterable[Batch], tokens: str | None = None) -> Importance:
    """Again and again drop the layer whose absence costs the least loss on the answers (arXiv 2402.09025).

    Every step measures the already shortened model, on the LVLM's own task, with images. Layers before the one left
    out are not computed again.
    """
    replay = Replay(model, batches)
    left, order = list(range(replay.num_layers)), []
    while len(left) > max(1, replay.num_fixed):
        losses = replay.losses_without_each(left)
        order.append(min(losses, key=lambda i: losses[i]))
        left.remove(order[-1])
    return _of_order("greedy_loss", np.array([*order, *reversed(left)]))


def _of_order(criterion: str, order: np.ndarray) -> Importance:
    """Scores are the places in the order, from 0 for the first to go."""
    scores = np.empty(len(order), np.float32)
    scores[order] = np.arange(len(order))
    return Importance(criterion, layers=scores, layer_order=order)


def _layer_states(model: PreTrainedModel, batch: Batch, mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's input and output rows at the chosen tokens, in fp32: pairs of (tokens, hidden)."""
    states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        chosen = mask.to(before.device)
        states.append((before[chosen].float(), after[chosen].float()))

    layers = family_for(model).decoder(model).layers
    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        forward_only(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return states


def forward_only(model: PreTrainedModel, batch: Batch) -> None:
    """One pass up to the last hidden state: no logits, no loss, no cache."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    model.base_model(**inputs, use_cache=False)
