"""Width criteria: scores of KV groups, query heads and FFN channels; some score hidden channels, too.

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

from raysearch.errors import InputError
from raysearch.models import Layout, UnitKind, decoder_layout, family_for
from raysearch.models.layout import WeightSlice, outer_layout
from raysearch.pruning.importance.calibration import Batch, token_mask
from raysearch.pruning.importance.layer_criteria import forward_only
from raysearch.pruning.importance.result import Importance


@torch.inference_mode()
def magnitude(model: PreTrainedModel, seed: int) -> Importance:
    """L2 norm of all weights of a unit."""
    sums = _UnitSums(model)
    for i, name, parameter in sums.parameters():
        sums.add(i, name, parameter.detach(), 2)
    hidden = sums.sums["hidden_channels"].sum(0)
    outer, every = outer_layout(model), dict(model.named_parameters())
    for name in outer.by_tensor.keys() & every.keys():
        for part in outer.slices_of(name):
            hidden += _lines(part, every[name].detach(), 2)
    result = sums.result("magnitude", torch.sqrt)
    return replace(result, hidden_channels=hidden.sqrt().numpy().astype(np.float32))


def taylor(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """First-order Taylor: the sum over a unit's weights of `E |w * dL/dw|` (arXiv 2305.11627, equation 3).

    L is the loss on the answers; the expectation is over batches. Each weight's gradient is reduced and freed during
    the backward pass, so at most one exists at a time.
    """
    sums, num_batches = _UnitSums(model), 0
    with ExitStack() as hooks:
        for i, name, parameter in sums.parameters(without_hidden=True):
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
    _check_outputs(model, "taylor2")
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

            with _output_gradients(model, add):
                model(**batch, use_cache=False).loss.float().backward()
    return _of_heads("taylor2", layout, heads / max(num_samples, 1), channels / max(num_samples, 1))


@torch.inference_mode()
def activation(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Size of a unit's output: L2 over samples of the mean over tokens (arXiv 2407.14679, section 3.1).

    Of a head, the size at a token is the L2 norm of its output; of a channel, its absolute value; of a hidden channel,
    the absolute value in the outputs of all norms over hidden channels, the first of which takes in the embeddings. In
    a decoder with experts, whose outputs are not read, hidden channels alone are scored.
    """
    layout, heads, channels = _zero_sums(model)
    hidden = torch.zeros(layout.hidden_size, dtype=torch.float64)
    for batch in batches:
        mask = token_mask(model, batch, tokens)
        weights = (mask / mask.sum(-1, keepdim=True).clamp(min=1)).float()  # (batch, seq)

        def add(i: int, is_ffn: bool, inputs: torch.Tensor, weights: torch.Tensor = weights) -> None:
            values = inputs.float().abs() if is_ffn else _per_head(inputs.float(), layout.head_dim).norm(dim=-1)
            means = torch.einsum("bs,bsu->bu", weights.to(values.device), values)
            (channels if is_ffn else heads)[i] += means.double().square().sum(0).cpu()

        def add_norm(outputs: torch.Tensor, weights: torch.Tensor = weights) -> None:
            means = torch.einsum("bs,bsd->bd", weights.to(outputs.device), outputs.float().abs())
            hidden.add_(means.double().square().sum(0).cpu())

        with _output_inputs(model, add), _norm_outputs(model, add_norm):
            forward_only(model, batch)
    result = _of_heads("activation", layout, heads.sqrt(), channels.sqrt())
    if _first_unread(model) is not None:
        result = Importance("activation")
    return replace(result, hidden_channels=hidden.sqrt().numpy().astype(np.float32))


def wanda(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """Mean over output rows of `|W_ij| * ||X_j||` at the output layers (arXiv 2306.11695, structured as in FLAP)."""
    _check_outputs(model, "wanda")
    layout, heads, channels = _zero_sums(model)
    for i, is_ffn, weight, _, second, _ in _moments(model, batches, tokens):
        scores = weight.abs().mean(0).double().cpu() * second.sqrt()
        (channels if is_ffn else heads)[i] = scores if is_ffn else _per_head(scores, layout.head_dim).sum(-1)
    return _of_heads("wanda", layout, heads, channels)


@torch.inference_mode()
def fluctuation(model: PreTrainedModel, batches: Iterable[Batch], tokens: str) -> Importance:
    """`Var(X_j) * ||W_:j||^2` at the output layers, mean over a head's columns (arXiv 2312.11983, equation 5).

    The mean inputs are returned too: where the architecture has output biases, they compensate for what is removed.
    """
    _check_outputs(model, "fluctuation")
    layout, heads, channels = _zero_sums(model)
    means = torch.zeros(len(heads), layout.num_heads * layout.head_dim), torch.zeros(channels.shape)
    for i, is_ffn, weight, first, second, num_tokens in _moments(model, batches, tokens):
        mean = first / num_tokens
        variance = (second / num_tokens - mean.square()).clamp(min=0)
        scores = variance * weight.square().sum(0).double().cpu()
        (channels if is_ffn else heads)[i] = scores if is_ffn else _per_head(scores, layout.head_dim).mean(-1)
        means[is_ffn][i] = mean.float()
    result = _of_heads("fluctuation", layout, heads, channels)
    return replace(result, attention_means=means[0].numpy(), ffn_means=means[1].numpy())


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
        experts=rng.random((len(layers), layout.num_experts), np.float32),
        hidden_channels=rng.random(layout.hidden_size, np.float32),
    )


def _zero_sums(model: PreTrainedModel) -> tuple[Layout, torch.Tensor, torch.Tensor]:
    """The layout of a layer with heads, and zeros for heads (L, H) and for channels (L, F), fp64."""
    layouts = decoder_layout(model)
    layout = next((layout for layout in layouts if layout.attention_out), layouts[0])
    sizes = layout.num_heads, layout.num_ffn_channels
    heads, channels = (torch.zeros(len(layouts), size, dtype=torch.float64) for size in sizes)
    return layout, heads, channels


def _check_outputs(model: PreTrainedModel, criterion: str) -> None:
    """Experts' outputs are not read.

    Raises:
        InputError: channels that can be pruned are those of experts.
    """
    if (i := _first_unread(model)) is not None:
        raise InputError(
            f"criterion {criterion}: reads the inputs of FFN output layers, and layer {i} of {model.config.model_type} "
            "has experts; choose magnitude, taylor or random"
        )


def _first_unread(model: PreTrainedModel) -> int | None:
    """The first layer whose channels are those of experts."""
    for i, layout in enumerate(decoder_layout(model)):
        if layout.ffn_out is None and any(part.kind == "ffn_channels" for part in layout.slices):
            return i
    return None


class _UnitSums:
    """Sums over the weights of each unit, in fp64 on the CPU."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layout, heads, channels = _zero_sums(model)
        self.layouts = decoder_layout(model)
        self.layers = list(family_for(model).decoder(model).layers)
        groups = torch.zeros(len(heads), self.layout.num_kv_groups, dtype=torch.float64)
        experts = torch.zeros(len(heads), self.layout.num_experts, dtype=torch.float64)
        self.sums: dict[UnitKind, torch.Tensor] = {"heads": heads, "kv_groups": groups, "ffn_channels": channels}
        self.sums["experts"] = experts
        self.sums["hidden_channels"] = torch.zeros(len(heads), self.layout.hidden_size, dtype=torch.float64)

    def parameters(self, without_hidden: bool = False) -> Iterator[tuple[int, str, nn.Parameter]]:
        """Every weight and bias with rows or columns of units: layer, name in the layer, parameter.

        Args:
            without_hidden: not those that have hidden channels alone, such as norms.
        """
        for i, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                if any(
                    part.kind != "hidden_channels" or not without_hidden for part in self.layouts[i].slices_of(name)
                ):
                    yield i, name, parameter

    def add(self, layer: int, name: str, values: torch.Tensor, power: int) -> None:
        """Add `|value| ** power` of each weight."""
        for part in self.layouts[layer].slices_of(name):
            self.sums[part.kind][layer] += _lines(part, values, power)

    def result(self, criterion: str, finish: Callable[[torch.Tensor], torch.Tensor]) -> Importance:
        """Scores of units, `finish` of their sums."""
        heads = self.sums["heads"]
        groups = self.sums["kv_groups"] + heads.reshape(len(heads), self.layout.num_kv_groups, -1).sum(-1)
        scores = _of_units(criterion, finish(groups), finish(heads), finish(self.sums["ffn_channels"]))
        return replace(scores, experts=finish(self.sums["experts"]).numpy().astype(np.float32))


def _lines(part: WeightSlice, values: torch.Tensor, power: int) -> torch.Tensor:
    """Sums of `|value| ** power` over the entries of each unit, (units,) fp64."""
    others = [axis for axis in range(values.ndim) if axis != part.axis]
    lines = values.float().abs()
    if others:
        lines = torch.linalg.vector_norm(values, power, others, dtype=torch.float32)
    lines = lines[part.start : part.start + part.size * part.num_units].double().cpu() ** power
    return lines.reshape(part.num_units, part.size).sum(1)


def _reduce_and_free(sums: _UnitSums, layer: int, name: str) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None, name
        sums.add(layer, name, parameter.detach() * parameter.grad, 1)
        parameter.grad = None

    return hook


def _moments(
    model: PreTrainedModel, batches: Iterable[Batch], tokens: str
) -> Iterator[tuple[int, bool, torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """For each output layer: its decoder layer, whether it is an FFN's, its weight in fp32, the sum and the sum of
    squares of its inputs, both fp64 (features,), and the number of tokens."""
    outputs = list(_output_layers(model))
    sums = {(i, is_ffn): torch.zeros(2, module.in_features, dtype=torch.float64) for i, is_ffn, module in outputs}
    num_tokens = 0
    for batch in batches:
        mask = token_mask(model, batch, tokens)
        num_tokens += int(mask.sum())

        def add(i: int, is_ffn: bool, inputs: torch.Tensor, mask: torch.Tensor = mask) -> None:
            rows = inputs[mask.to(inputs.device)].double()
            sums[i, is_ffn] += torch.stack([rows.sum(0), rows.square().sum(0)]).cpu()

        with torch.inference_mode(), _output_inputs(model, add):
            forward_only(model, batch)
    for i, is_ffn, module in outputs:
        first, second = sums[i, is_ffn]
        yield i, is_ffn, module.weight.detach().float(), first, second, max(num_tokens, 1)


def _output_layers(model: PreTrainedModel) -> Iterator[tuple[int, bool, nn.Linear]]:
    """Each output layer: its decoder layer, whether it is an FFN's, and the module."""
    layers = family_for(model).decoder(model).layers
    for i, (layer, layout) in enumerate(zip(layers, decoder_layout(model), strict=True)):
        for kind, name, _ in layout.outputs:
            yield i, kind == "ffn_channels", layer.get_submodule(name)


@contextmanager
def _output_inputs(model: PreTrainedModel, add: Callable[[int, bool, torch.Tensor], None]) -> Iterator[None]:
    """Call `add(layer, is_ffn, inputs)` with each output layer's inputs: (batch, seq, features)."""
    with ExitStack() as hooks:
        for i, is_ffn, module in _output_layers(model):
            hook = module.register_forward_pre_hook(lambda module, args, i=i, is_ffn=is_ffn: add(i, is_ffn, args[0]))
            hooks.enter_context(hook)
        yield


@contextmanager
def _norm_outputs(model: PreTrainedModel, add: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `add(outputs)` with the outputs of the decoder's norms over hidden channels: (batch, seq, hidden)."""
    family = family_for(model)
    layers = zip(family.decoder(model).layers, decoder_layout(model), strict=True)
    norms = [layer.get_submodule(name) for layer, layout in layers for name in layout.norms]
    with ExitStack() as hooks:
        for norm in [*norms, family.final_norm(model)] if norms else ():
            hooks.enter_context(norm.register_forward_hook(lambda module, args, output: add(output)))
        yield


@contextmanager
def _output_gradients(model: PreTrainedModel, add: Callable[[int, bool, torch.Tensor], None]) -> Iterator[None]:
    """Call `add(layer, is_ffn, values)` with each output layer's inputs times their gradients, summed over tokens:
    (batch, features)."""

    def on_forward(i: int, is_ffn: bool, inputs: torch.Tensor) -> None:
        kept = inputs.detach()
        inputs.register_hook(lambda grad: add(i, is_ffn, (kept.float() * grad.float()).sum(1)))

    with _output_inputs(model, on_forward):
        yield


def _require_grad(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (args[0].detach().requires_grad_(True), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_(True)}


def _per_head(values: torch.Tensor, size: int) -> torch.Tensor:
    """(..., units * size) as (..., units, size)."""
    return values.unflatten(-1, (-1, size))


def _of_heads(criterion: str, layout: Layout, heads: torch.Tensor, channels: torch.Tensor) -> Importance:
    """Scores whose KV groups are the sums of their query heads: heads (L, H), channels (L, F)."""
    return _of_units(criterion, heads.reshape(len(heads), layout.num_kv_groups, -1).sum(-1), heads, channels)


def _of_units(criterion: str, groups: torch.Tensor, heads: torch.Tensor, channels: torch.Tensor) -> Importance:
    fields = {"kv_groups": groups, "heads": heads, "ffn_channels": channels}
    return Importance(criterion, **{name: values.numpy().astype(np.float32) for name, values in fields.items()})
