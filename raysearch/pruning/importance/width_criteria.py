"""Width criteria: scores of KV groups, query heads and FFN channels.

A unit's score is a reduction over its weights, or over its output: its part of the inputs of `o_proj` or `down_proj`
(of the "output layers"). A KV group's score is that of its query heads plus, where weights are scored, that of its own
key and value rows. With data a criterion is called as `f(model, batches, tokens)`, without as `f(model, seed)`; see
`config.criteria`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.models import Layout, UnitKind, decoder_layout, family_for
from raysearch.pruning.importance.calibration import Batch, token_mask
from raysearch.pruning.importance.layer_criteria import forward_only
from raysearch.pruning.importance.result import Importance


@torch.inference_mode()
def magnitude(model: PreTrainedModel, seed: int) -> Importance:
    """L2 norm of all weights of a unit."""
    sums = _UnitSums(model)
    for i, name, parameter in sums.parameters():
        sums.add(i, name, parameter.detach(), 2)
    return sums.result("magnitude", torch.sqrt)


def taylor(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """First-order Taylor: the sum over a unit's weights of `E |w * dL/dw|` (arXiv 2305.11627, equation 3).

    L is the loss on the answers; the expectation is over batches. Each weight's gradient is reduced and freed during
    the backward pass, so at most one exists at a time.
    """
    sums, num_batches = _UnitSums(model), 0
    with ExitStack() as hooks:
        for i, name, parameter in sums.parameters():
            parameter.requires_grad_(True)
            hooks.enter_context(parameter.register_post_accumulate_grad_hook(_reduce_and_free(sums, i, name)))
        for batch in batches:
            num_batches += 1
            model(**batch, use_cache=False).loss.float().backward()
    return sums.result("taylor", lambda values: values / max(num_batches, 1))


def taylor2(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Second order: half the diagonal Fisher information of a gate on each unit's output (arXiv 2204.09656).

    Per sample, the gradient of the sample's loss with respect to the gate is `sum over tokens of a * dL/da`, a the
    unit's output; the score is half its mean square, the expected rise of the loss when the gate closes. No weight
    gets a gradient.
    """
    layout, heads, channels = _zero_sums(model)
    num_samples = 0
    first = family_for(model).decoder(model).layers[0]
    with first.register_forward_pre_hook(_require_grad, with_kwargs=True):
        for batch in batches:
            counts = (batch["labels"][:, 1:] != -100).sum(-1).clamp(min=1).double()
            num_samples += len(counts)

            def add(i: int, is_ffn: bool, values: torch.Tensor, counts: torch.Tensor = counts) -> None:
                target, size = (channels, 1) if is_ffn else (heads, layout.head_dim)
                gate = _per_head(values.double(), size).sum(-1) * (counts.sum() / counts)[:, None]
                target[i] += gate.square().sum(0).cpu() / 2

            with _output_gradients(model, layout, add):
                model(**batch, use_cache=False).loss.float().backward()
    return _of_heads("taylor2", layout, heads / max(num_samples, 1), channels / max(num_samples, 1))


@torch.inference_mode()
def activation(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Size of a unit's output: L2 over samples of the mean over tokens (arXiv 2407.14679, section 3.1).

    Of a head, the size at a token is the L2 norm of its output; of a channel, its absolute value.
    """
    layout, heads, channels = _zero_sums(model)
    for batch in batches:
        mask = token_mask(model, batch, tokens)
        weights = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).float()  # (batch, seq)

        def add(i: int, is_ffn: bool, inputs: torch.Tensor, weights: torch.Tensor = weights) -> None:
            values = inputs.float().abs() if is_ffn else _per_head(inputs.float(), layout.head_dim).norm(dim=-1)
            means = torch.einsum("bs,bsu->bu", weights.to(values.device), values)
            (channels if is_ffn else heads)[i] += means.double().square().sum(0).cpu()

        with _output_inputs(model, layout, add):
            forward_only(model, batch)
    return _of_heads("activation", layout, heads.sqrt(), channels.sqrt())


def wanda(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Mean over output rows of `|W_ij| * ||X_j||` at the output layers (arXiv 2306.11695, structured as in FLAP)."""
    layout, moments = _moments(model, batches, tokens)
    scores = [weight.abs().mean(0).double().cpu() * second.sqrt() for weight, _, second, _ in moments]
    heads, channels = _split(scores, layout)
    return _of_heads("wanda", layout, heads.sum(-1), channels)


def fluctuation(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """`Var(X_j) * ||W_:j||^2` at the output layers, mean over a head's columns (arXiv 2312.11983, equation 5).

    The mean inputs are returned too: where the architecture has output biases, they compensate for what is removed.
    """
    layout, moments = _moments(model, batches, tokens)
    scores, means = [], []
    for weight, first, second, num_tokens in moments:
        mean = first / num_tokens
        variance = (second / num_tokens - mean.square()).clamp(min=0)
        scores.append(variance * weight.square().sum(0).double().cpu())
        means.append(mean.numpy().astype(np.float32))
    heads, channels = _split(scores, layout)
    result = _of_heads("fluctuation", layout, heads.mean(-1), channels)
    return replace(result, attention_means=np.stack(means[0::2]), ffn_means=np.stack(means[1::2]))


def random(model: PreTrainedModel, seed: int) -> Importance:
    """Uniform scores of layers and widths: the baseline for every other criterion."""
    rng, (layout, heads, channels) = np.random.default_rng(seed), _zero_sums(model)
    layers, of_heads = rng.random(len(heads), np.float32), rng.random(tuple(heads.shape), np.float32)
    return Importance(
        "random",
        layers=layers,
        layer_order=np.argsort(layers, kind="stable"),
        heads=of_heads,
        kv_groups=of_heads.reshape(len(layers), layout.num_kv_groups, -1).sum(-1),
        ffn_channels=rng.random(tuple(channels.shape), np.float32),
    )


def _zero_sums(model: PreTrainedModel) -> tuple[Layout, torch.Tensor, torch.Tensor]:
    """The decoder's layout, and zeros for heads (L, H) and for channels (L, F), fp64."""
    layout, num_layers = decoder_layout(model), len(family_for(model).decoder(model).layers)
    sizes = layout.num_heads, layout.num_ffn_channels
    heads, channels = (torch.zeros(num_layers, size, dtype=torch.float64) for size in sizes)
    return layout, heads, channels


class _UnitSums:
    """Sums over the weights of each unit, in fp64 on the CPU."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layout, heads, channels = _zero_sums(model)
        self.layers = list(family_for(model).decoder(model).layers)
        groups = torch.zeros(len(heads), self.layout.num_kv_groups, dtype=torch.float64)
        self.sums: dict[UnitKind, torch.Tensor] = {"heads": heads, "kv_groups": groups, "ffn_channels": channels}

    def parameters(self) -> Iterator[tuple[int, str, nn.Parameter]]:
        """Every weight and bias with rows or columns of units: layer, name in the layer, parameter."""
        for i, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                if self.layout.slices_of(name):
                    yield i, name, parameter

    def add(self, layer: int, name: str, values: torch.Tensor, power: int) -> None:
        """Add `|value| ** power` of each weight."""
        for part in self.layout.slices_of(name):
            if values.ndim == 2:
                lines = torch.linalg.vector_norm(values, power, 1 - part.axis, dtype=torch.float32)
            else:
                lines = values.float().abs()
            lines = lines[part.start : part.start + part.size * part.num_units].double().cpu() ** power
            self.sums[part.kind][layer] += lines.reshape(part.num_units, part.size).sum(1)

    def result(self, criterion: str, finish: Callable[[torch.Tensor], torch.Tensor]) -> Importance:
        """Scores of units, `finish` of their sums."""
        heads = self.sums["heads"]
        groups = self.sums["kv_groups"] + heads.reshape(len(heads), self.layout.num_kv_groups, -1).sum(-1)
        return _of_units(criterion, finish(groups), finish(heads), finish(self.sums["ffn_channels"]))


def _reduce_and_free(sums: _UnitSums, layer: int, name: str) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, name
        sums.add(layer, name, parameter.detach() * parameter.grad, 1)
        parameter.grad = None

    return hook


def _moments(
    model: PreTrainedModel, batches: Iterable[Batch], tokens: str
) -> tuple[Layout, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]]:
    """For each output layer (attention and FFN of layer 0, then 1, ...): its weight in fp32, the sum and the sum of
    squares of its inputs, both fp64 (features,), and the number of tokens."""
    layout = decoder_layout(model)
    outputs = list(_output_layers(model, layout))
    sums = [torch.zeros(2, module.in_features, dtype=torch.float64) for module in outputs]
    num_tokens = 0
    for batch in batches:
        mask = token_mask(model, batch, tokens)
        num_tokens += int(mask.sum())

        def add(i: int, is_ffn: bool, inputs: torch.Tensor, mask: torch.Tensor = mask) -> None:
            rows = inputs[mask.to(inputs.device)].double()
            sums[2 * i + is_ffn] += torch.stack([rows.sum(0), rows.square().sum(0)]).cpu()

        with torch.inference_mode(), _output_inputs(model, layout, add):
            forward_only(model, batch)
    return layout, [
        (module.weight.detach().float(), first, second, max(num_tokens, 1))
        for module, (first, second) in zip(outputs, sums, strict=True)
    ]


def _output_layers(model: PreTrainedModel, layout: Layout) -> Iterator[nn.Linear]:
    for layer in family_for(model).decoder(model).layers:
        yield layer.get_submodule(layout.attention_out)
        yield layer.get_submodule(layout.ffn_out)


@contextmanager
def _output_inputs(
    model: PreTrainedModel, layout: Layout, add: Callable[[int, bool, torch.Tensor], None]
) -> Iterator[None]:
    """Call `add(layer, is_ffn, inputs)` with each output layer's inputs: (batch, seq, features)."""
    with ExitStack() as hooks:
        for i, module in enumerate(_output_layers(model, layout)):
            hook = module.register_forward_pre_hook(lambda module, args, i=i: add(i // 2, bool(i % 2), args[0]))
            hooks.enter_context(hook)
        yield


@contextmanager
def _output_gradients(
    model: PreTrainedModel, layout: Layout, add: Callable[[int, bool, torch.Tensor], None]
) -> Iterator[None]:
    """Call `add(layer, is_ffn, values)` with each output layer's inputs times their gradients, summed over tokens:
    (batch, features)."""

    def on_forward(i: int, is_ffn: bool, inputs: torch.Tensor) -> None:
        kept = inputs.detach()
        inputs.register_hook(lambda grad: add(i, is_ffn, (kept.float() * grad.float()).sum(1)))

    with _output_inputs(model, layout, on_forward):
        yield


def _require_grad(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (args[0].detach().requires_grad_(True), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_(True)}


def _per_head(values: torch.Tensor, size: int) -> torch.Tensor:
    """(..., units * size) as (..., units, size)."""
    return values.unflatten(-1, (-1, size))


def _split(scores: list[torch.Tensor], layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of output layers' columns as (L, H, head size) and (L, F)."""
    return _per_head(torch.stack(scores[0::2]), layout.head_dim), torch.stack(scores[1::2])


def _of_heads(criterion: str, layout: Layout, heads: torch.Tensor, channels: torch.Tensor) -> Importance:
    """Scores whose KV groups are the sums of their query heads: heads (L, H), channels (L, F)."""
    return _of_units(criterion, heads.reshape(len(heads), layout.num_kv_groups, -1).sum(-1), heads, channels)


def _of_units(criterion: str, groups: torch.Tensor, heads: torch.Tensor, channels: torch.Tensor) -> Importance:
    fields = {"kv_groups": groups, "heads": heads, "ffn_channels": channels}
    return Importance(criterion, **{name: values.numpy().astype(np.float32) for name, values in fields.items()})
