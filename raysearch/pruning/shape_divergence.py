"""How far a pruned model's predictions are from the dense model's, without building it: removed units are masked.

A head whose output is 0, a channel whose activation is 0 and an expert that no token goes to contribute nothing, so the
masked dense decoder computes what the smaller one would. One judgement takes a forward pass of the calibration samples
through the kept layers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.models import Layout, decoder_layout, family_for
from raysearch.models.layout import Units
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.pruning.importance.calibration import Batch
from raysearch.pruning.importance.layer_skipping import LayerSkippingLoss
from raysearch.pruning.importance.result import Importance
from raysearch.pruning.prune import kept_layers
from raysearch.pruning.routing import routing_among
from raysearch.pruning.select_units import Scores, units_to_keep


class ShapeDivergence:
    """Divergences of pruned models from one dense model, on the answer tokens of calibration batches.

    Vision tower, projector and the dense model's predictions are computed once. Memory: one hidden state per batch, and
    a row of the vocabulary per answer token.

    Attributes:
        num_answer_tokens: that the mean is over.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:
        """Run the dense model on the batches.

        Args:
            batches: from the collator, on the model's device, with `labels` (-100 except at answer tokens).

        Raises:
            InputError: the logits are not the head applied to the final norm.
        """
        self._model, self._layouts = model, decoder_layout(model)
        self._layers = list(family_for(model).decoder(model).layers)
        self._skipping = LayerSkippingLoss(model, batches)
        self._dense = list(self._skipping.log_probs(range(len(self._layers))))
        self.num_answer_tokens = self._skipping.num_answer_tokens

    @torch.inference_mode()
    def __call__(self, shape: Shape, importance: Scores) -> float:
        """Mean KL(dense || pruned) per answer token, in nats; infinite where a prediction is not finite.

        Args:
            shape: of the pruned decoder.
            importance: what decides which layers and units stay, as for `prune`.

        Raises:
            InputError: as `prune`.
        """
        layers = kept_layers(self._model.config, shape, importance)
        dense = shape_of(self._model.config)
        shape = shape.filled(dense)
        units: dict[int, Units] = {}
        if shape.widths != dense.widths:
            units = {i: units_to_keep(importance, self._layouts[i], shape, i) for i in layers}
        divergence = 0.0
        with self._masked(units, importance.get("width")), routing_among(self._model, units):
            for wanted, pruned in zip(self._dense, self._skipping.log_probs(layers), strict=True):
                divergence += float(nn.functional.kl_div(pruned, wanted, reduction="sum", log_target=True))
        return divergence / self.num_answer_tokens if math.isfinite(divergence) else math.inf

    @contextmanager
    def _masked(self, units: Mapping[int, Units], importance: Importance | None) -> Iterator[None]:
        """Inside, what the removed units hand to the output layers is 0, or its mean where a bias compensates."""
        means: dict[str, Any] = {}
        if importance is not None:
            means = {"heads": importance.attention_means, "ffn_channels": importance.ffn_means}
        with ExitStack() as hooks:
            for kept in list(units.values())[:1]:  # the same in every layer
                if len(kept["hidden_channels"]) != self._layouts[0].hidden_size:
                    hooks.enter_context(_without_hidden(self._model, self._layouts, kept["hidden_channels"]))
            for i, kept in units.items():
                if self._layouts[i].ffn_out is None:
                    hooks.enter_context(_without_channels(self._layers[i], self._layouts[i], kept["ffn_channels"]))
                for kind, name, size in self._layouts[i].outputs:
                    module, of_kind = self._layers[i].get_submodule(name), means.get(kind)
                    mask = torch.zeros(module.in_features // size)
                    mask[torch.as_tensor(kept[kind])] = 1
                    mask = mask.repeat_interleave(size).to(module.weight)
                    filled = None
                    if of_kind is not None and module.bias is not None:
                        filled = (1 - mask) * torch.as_tensor(of_kind[i]).to(mask)
                    hooks.enter_context(module.register_forward_pre_hook(_masking(mask, filled)))
            yield


@contextmanager
def _without_channels(layer: nn.Module, layout: Layout, kept: np.ndarray) -> Iterator[None]:
    """Inside, the weights of experts' outputs are 0 for removed channels: nothing else reads what a channel gives."""
    gone = torch.as_tensor(np.setdiff1d(np.arange(layout.num_ffn_channels), kept))
    of_channels = [
        [part for part in parts if part.kind == "ffn_channels"] for parts in layout.by_tensor.values()
    ]  # gate and up parts that lie in one tensor need not be set, too
    outputs = [parts[0] for parts in of_channels if len(parts) == 1]
    saved = []
    for part in outputs if len(gone) else ():
        tensor, index = layer.get_parameter(part.tensor).detach(), gone.to(layer.get_parameter(part.tensor).device)
        saved.append((tensor, part.axis, index, tensor.index_select(part.axis, index)))
        tensor.index_fill_(part.axis, index, 0)
    try:
        yield
    finally:
        for tensor, axis, index, values in saved:
            tensor.index_copy_(axis, index, values)


@contextmanager
def _without_hidden(model: PreTrainedModel, layouts: Sequence[Layout], kept: np.ndarray) -> Iterator[None]:
    """Inside, whatever reads the residual stream reads 0 in removed hidden channels. Layers of that width inside of the
    projector stay whole, since the picture's features were recorded before."""
    family = family_for(model)
    readers = [family.final_norm(model)]
    for layer, layout in zip(family.decoder(model).layers, layouts, strict=True):
        inputs = [part.tensor for part in layout.slices if part.kind == "hidden_channels" and part.axis == 1]
        linears = [layer.get_submodule(name.removesuffix(".weight")) for name in inputs if name.endswith(".weight")]
        readers += [module for module in linears if isinstance(module, nn.Linear)]
        readers += map(layer.get_submodule, layout.norms)
    with ExitStack() as hooks:
        for module in readers:
            mask = torch.zeros(layouts[0].hidden_size)
            mask[torch.as_tensor(kept)] = 1
            mask = mask.to(next(module.parameters()))
            hooks.enter_context(module.register_forward_pre_hook(_masking(mask, None)))
        yield


def _masking(mask: torch.Tensor, filled: torch.Tensor | None) -> Any:
    def hook(module: nn.Module, args: tuple) -> tuple:
        inputs = args[0] * mask
        return (inputs if filled is None else inputs + filled, *args[1:])

    return hook
