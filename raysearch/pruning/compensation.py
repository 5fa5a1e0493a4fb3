"""Linear compensation: what was removed behind an FFN, as far as it is a linear map of the FFN's channels, is added to
the FFN's output weights. The pruned model stays a stock model of the same shape.

Short-LVLM puts a linear map behind a dropped layer; no stock class has a place for that, but the layer before has.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import family_for, layout_of
from raysearch.pruning.importance.calibration import Batch, prepared, token_mask
from raysearch.pruning.importance.layer_criteria import forward_only

RIDGE = 0.01
"""Weight of the ridge, as a share of the channels' mean square."""


@torch.inference_mode()
def compensate(
    pruned: PreTrainedModel, dense: PreTrainedModel, layers: Sequence[int], batches: Iterable[Batch]
) -> list[float]:
    """Refit FFN output weights of `pruned`, in place, so that its hidden states come near those of `dense`.

    At every place where layers were dropped, `W += argmin_D sum_t |r_t - D a_t|^2 + ridge |D|^2`: a_t are the channels
    of the layer before, r_t is by how much the dense state behind the dropped layers differs from the pruned one, t
    runs over all tokens but padding. Places are taken from the first layer to the last, so that each makes up for what
    those before it left. Layers dropped in front of the first kept one have no place.

    Args:
        pruned: made from `dense` by `prune`.
        layers: the dense layers that it keeps, see `kept_layers`.
        batches: calibration batches; held in memory; each is run once per place by both models.

    Returns:
        Per place, the share of `sum |r_t|^2` that is left.

    Raises:
        InputError: a batch that can't be used, or a decoder that changes the FFN's output before adding it.
    """
    family = family_for(dense)
    ready = list(prepared(dense, batches, "compensation", needs_labels=False))
    ends = [*layers[1:], len(family.decoder(dense).layers)]
    places = [place for place, end in enumerate(ends) if end != layers[place] + 1]
    return [_refit(pruned, dense, place, ends[place], ready) for place in places]


def _refit(
    pruned: PreTrainedModel, dense: PreTrainedModel, place: int, dense_end: int, batches: Sequence[Batch]
) -> float:
    """Refit the layer at `place` of the pruned model to the dense state in front of layer `dense_end`."""
    family = family_for(dense)
    layer = family.decoder(pruned).layers[place]
    ffn_out = layer.get_submodule(layout_of(layer, family.text_config(pruned.config)).ffn_out)
    wanted_at, reached_at = _entrance(dense, dense_end), _entrance(pruned, place + 1)
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
    """The median over tokens, since in half precision the few tokens with huge states drown in rounding."""
    if ((change - expected).norm(dim=-1) / expected.norm(dim=-1)).median() > 0.2:
        raise InputError(
            f"{model.config.model_type}: its decoder norms or scales the FFN's output before adding it, so that no "
            "linear compensation fits into its weights; leave it out"
        )


def _entrance(model: PreTrainedModel, layer: int) -> nn.Module:
    """The module that reads the hidden state in front of `layer`: the layer, or the final norm."""
    layers = family_for(model).decoder(model).layers
    return layers[layer] if layer < len(layers) else family_for(model).final_norm(model)


def _inputs(model: PreTrainedModel, batch: Batch, mask: torch.Tensor, *modules: nn.Module) -> list[torch.Tensor]:
    """What each module reads at the chosen tokens in one pass: (tokens, features) in fp64."""
    found: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        found[module] = states[mask.to(states.device)].double()

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        forward_only(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [found[module] for module in modules]
