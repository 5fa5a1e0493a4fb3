"""Linear compensation: what dropped layers added to the hidden state, as far as it is linear in the channels of the FFN
in front of them, is added to that FFN's output weights. The pruned model stays a stock model of the same shape.

Short-LVLM puts a linear map behind a dropped layer, which no stock class can hold.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import decoder_layout, family_for
from raysearch.pruning.importance.calibration import Batch, checked_batches, token_mask
from raysearch.pruning.importance.layer_criteria import forward_only

RIDGE = 0.01
"""Weight of the ridge, as a share of the channels' mean square."""


@torch.inference_mode()
def compensate(
    pruned: PreTrainedModel, dense: PreTrainedModel, layers: Sequence[int], batches: Iterable[Batch]
) -> list[float]:
    """Refit FFN output weights of `pruned`, in place, so that its hidden states approach those of `dense`.

    For every kept layer in front of dropped ones, `W += argmin_D sum_t |r_t - D a_t|^2 + ridge |D|^2`: a_t are its FFN
    channels, r_t is the dense state behind the dropped layers minus the pruned state, t runs over all tokens but
    padding. Layers are refitted from the first to the last, so that each compensates for the error left by those before
    it. Layers dropped in front of the first kept one are not compensated.

    Args:
        pruned: made from `dense` by `prune`.
        layers: the dense layers that it keeps, see `kept_layers`.
        batches: calibration batches; held in memory; both models run each once per refitted layer.

    Returns:
        Per refitted layer, the share of `sum |r_t|^2` that is left.

    Raises:
        InputError: a batch that can't be used, or a decoder that changes the FFN's output before adding it.
    """
    checked = list(checked_batches(dense, batches, "compensation", needs_labels=False))
    ends = [*layers[1:], len(family_for(dense).decoder(dense).layers)]
    return [_refit(pruned, dense, i, end, checked) for i, end in enumerate(ends) if end != layers[i] + 1]


def _refit(pruned: PreTrainedModel, dense: PreTrainedModel, i: int, dense_end: int, batches: Sequence[Batch]) -> float:
    """Refit layer `i` of the pruned model to the dense state in front of layer `dense_end`."""
    layer = family_for(pruned).decoder(pruned).layers[i]
    name = decoder_layout(pruned)[i].ffn_out
    if name is None:
        raise InputError(f"{dense.config.model_type}: layer {i} has experts, which can't be compensated; leave it out")
    ffn_out = layer.get_submodule(name)
    wanted_at, reached_at = _reader(dense, dense_end), _reader(pruned, i + 1)
    size = ffn_out.in_features
    squares = torch.zeros(size, size, dtype=torch.float64, device=ffn_out.weight.device)
    products = torch.zeros(size, ffn_out.out_features, dtype=torch.float64, device=ffn_out.weight.device)
    before = 0.0
    for batch in batches:
        mask = token_mask(dense, batch, "all")
        (wanted,) = _inputs(dense, batch, mask, wanted_at)
        channels, reached = _inputs(pruned, batch, mask, ffn_out, reached_at)
        missing = wanted - reached
        squares += channels.T @ channels
        products += channels.T @ missing
        before += float(missing.square().sum())
    ridge = RIDGE * squares.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    change = torch.linalg.solve(squares + ridge * torch.eye(size).to(squares), products)
    ffn_out.weight.copy_(ffn_out.weight.double() + change.T)
    after = _inputs(pruned, batch, mask, reached_at)[0]
    _check_linear(pruned, after - reached, channels @ change)
    left = before - 2 * float((change * products).sum()) + float((change * (squares @ change)).sum())
    return left / before if before else 0.0


def _check_linear(model: PreTrainedModel, change: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare by the median over tokens: in half precision, rounding dominates at the few tokens with huge states."""
    if ((change - expected).norm(dim=-1) / expected.norm(dim=-1)).median() > 0.2:
        raise InputError(
            f"{model.config.model_type}: its decoder norms or scales the FFN's output before adding it, so that no "
            "linear compensation fits into its weights; leave it out"
        )


def _reader(model: PreTrainedModel, layer: int) -> nn.Module:
    """The module that reads the hidden state in front of `layer`: the layer, or the final norm."""
    layers = family_for(model).decoder(model).layers
    return layers[layer] if layer < len(layers) else family_for(model).final_norm(model)


def _inputs(model: PreTrainedModel, batch: Batch, mask: torch.Tensor, *modules: nn.Module) -> list[torch.Tensor]:
    """Each module's input at the masked tokens, from one pass: (tokens, features) in fp64."""
    found: dict[nn.Module, torch.Tensor] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        found[module] = states[mask.to(states.device)].double()

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(record, with_kwargs=True))
        forward_only(model, batch)
    return [found[module] for module in modules]
