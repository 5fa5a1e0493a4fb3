"""Criteria for experts, from what their router chooses on calibration batches; called as `f(model, batches, tokens)`.

A router hands each token to a few of E experts, each with a weight. They are read at the experts' module, which takes
`(hidden_states, top_k_index, top_k_weights)` in every class of transformers that holds its experts in one tensor.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import decoder_layout, family_for
from raysearch.pruning.importance.calibration import Batch, token_mask
from raysearch.pruning.importance.layer_criteria import forward_only
from raysearch.pruning.importance.result import Importance

Add = Callable[[int, nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], None]


@torch.inference_mode()
def frequency(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Share of the tokens that the router hands to an expert."""
    num_chosen, num_tokens = _zeros(model), _zeros(model)

    def add(i: int, experts: nn.Module, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        num_chosen[i] += torch.bincount(chosen.flatten(), minlength=num_chosen.shape[1])[: num_chosen.shape[1]].cpu()
        num_tokens[i] += len(chosen)

    _read_routing(model, batches, tokens, "frequency", add)
    return _of_experts("frequency", num_chosen / num_tokens.clamp(min=1))


@torch.inference_mode()
def reap(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Mean over an expert's tokens of its weight times the L2 norm of its output (arXiv 2510.13999, equation 9); 0 for
    one that gets no token."""
    sums, num_tokens = _zeros(model), _zeros(model)

    def add(i: int, experts: nn.Module, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        for expert in chosen.unique().tolist():
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            alone = torch.full((len(rows), 1), expert, device=chosen.device)
            outputs = experts.forward(states[rows], alone, torch.ones_like(alone, dtype=weights.dtype))
            norms = outputs.float().norm(dim=-1) * weights[rows, places].float()
            sums[i, expert] += norms.double().sum().cpu()
            num_tokens[i, expert] += len(rows)

    _read_routing(model, batches, tokens, "reap", add)
    return _of_experts("reap", sums / num_tokens.clamp(min=1))


def _zeros(model: PreTrainedModel) -> torch.Tensor:
    layouts = decoder_layout(model)
    return torch.zeros(len(layouts), layouts[0].num_experts, dtype=torch.float64)


def _of_experts(criterion: str, scores: torch.Tensor) -> Importance:
    return Importance(criterion, experts=scores.numpy().astype(np.float32))


def _read_routing(model: PreTrainedModel, batches: Iterable[Batch], tokens: str, criterion: str, add: Add) -> None:
    """Call `add(layer, experts, states, chosen, weights)` with each batch's tokens that count: the experts' module,
    (tokens, hidden), and (tokens, experts per token) of the experts' numbers and their weights.

    Raises:
        InputError: the model has no experts, or ones that are called in another way.
    """
    layers = family_for(model).decoder(model).layers
    found = {
        i: layer.get_submodule(layout.experts)
        for i, (layer, layout) in enumerate(zip(layers, decoder_layout(model), strict=True))
        if layout.experts is not None
    }
    if not found:
        raise InputError(f"criterion {criterion}: {model.config.model_type} has no experts whose routing can be read")
    for batch in batches:
        mask = token_mask(model, batch, tokens).flatten()

        def hook(i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], mask: torch.Tensor = mask) -> None:
            names = ("hidden_states", "top_k_index", "top_k_weights")
            given = dict(zip(names, args, strict=False)) | kwargs
            if set(given) != set(names) or len(given["top_k_index"]) != len(mask):
                raise InputError(
                    f"criterion {criterion}: {model.config.model_type} routes in a way that is not read; choose "
                    "magnitude, taylor or random"
                )
            rows = mask.to(given["top_k_index"].device)
            add(i, module, *(given[name].flatten(0, -2)[rows] for name in names))

        with ExitStack() as hooks:
            for i, module in found.items():
                hooks.enter_context(
                    module.register_forward_pre_hook(lambda *given, i=i: hook(i, *given), with_kwargs=True)
                )
            forward_only(model, batch)
