"""Which rows and columns of a decoder layer's weights belong to a KV group, a query head or an FFN channel.

Symbols: G KV groups, H query heads (H / G per group, neighbours), D head size, F FFN channels, d hidden size.
A unit is removed whole: a query head with its rows of the query weights and its columns of the output weights, a KV
group with its key and value rows and all its query heads, a channel with its gate, up and down parts
(arXiv 2604.24380, section 3.2). Hidden size, embeddings and norms stay.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.errors import InputError
from raysearch.models.family import WHERE_TO_ADD, family_for

UnitKind = Literal["heads", "kv_groups", "ffn_channels"]


@dataclass(frozen=True)
class WeightSlice:
    """Rows (axis 0) or columns (axis 1) of a module that belong to units of one kind, from `start` on.

    `size` adjacent rows or columns per unit: the head size for heads and KV groups, 1 for channels.
    """

    module: str
    kind: UnitKind
    axis: int
    start: int
    size: int
    num_units: int


@dataclass(frozen=True)
class Units:
    """What one decoder layer keeps, as increasing indices into the dense layer's units."""

    kv_groups: np.ndarray
    heads: np.ndarray
    ffn_channels: np.ndarray

    def of(self, kind: UnitKind) -> np.ndarray:
        """The indices of one kind."""
        return getattr(self, kind)


@dataclass(frozen=True)
class Layout:
    """The prunable weights of one decoder layer; the same for every layer."""

    slices: tuple[WeightSlice, ...]
    num_kv_groups: int
    num_heads: int
    head_dim: int
    num_ffn_channels: int
    attention_out: str
    """Name of the linear layer whose inputs are the heads' outputs, D per head."""
    ffn_out: str
    """Name of the linear layer whose inputs are the FFN channels."""

    @cached_property
    def by_module(self) -> dict[str, list[WeightSlice]]:
        """Slices by module; a fused weight has several, in the order of their rows."""
        found: dict[str, list[WeightSlice]] = {}
        for part in self.slices:
            found.setdefault(part.module, []).append(part)
        return found

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_heads // self.num_kv_groups

    def slices_of(self, name: str) -> list[WeightSlice]:
        """The slices of a layer's tensor; empty for one that no unit owns, such as a norm or an output bias."""
        module, _, leaf = name.rpartition(".")
        return [part for part in self.by_module.get(module, ()) if part.axis == 0 or leaf == "weight"]

    def all_units(self) -> Units:
        """Every unit of a dense layer."""
        return Units(np.arange(self.num_kv_groups), np.arange(self.num_heads), np.arange(self.num_ffn_channels))

    def source(self, name: str) -> tuple[str, list[WeightSlice]]:
        """Where a tensor of the pruned layer comes from: the dense tensor's name, and its slices to take.

        Names differ only where a class with split weights replaces one with fused weights.
        """
        module, _, leaf = name.rpartition(".")
        if module not in self.by_module:
            parent, _, child = module.rpartition(".")
            fused, i = _SPLITS.get(child, ("", 0))
            if f"{parent}.{fused}" in self.by_module:
                return f"{parent}.{fused}.{leaf}", [self.by_module[f"{parent}.{fused}"][i]]
        return name, self.slices_of(name)

    def keep(self, name: str, tensor: torch.Tensor, units: Units) -> torch.Tensor:
        """The values of a pruned layer's tensor: a copy, never a view.

        Args:
            name: of the tensor inside the pruned layer, e.g. `self_attn.q_proj.weight`.
            tensor: the dense tensor it comes from, see `source`.
            units: what stays.
        """
        _, slices = self.source(name)
        if not slices:
            return tensor.detach().clone()
        axis = slices[0].axis
        index = np.concatenate([_positions(part, units.of(part.kind)) for part in slices])
        if len(index) == tensor.shape[axis]:
            return tensor.detach().clone()
        return tensor.detach().index_select(axis, torch.as_tensor(index, device=tensor.device))

    def kept_shape(self, name: str, shape: torch.Size, num: Mapping[UnitKind, int]) -> tuple[int, ...]:
        """Shape of `keep`'s result for a dense tensor of `shape` when `num` units of each kind stay."""
        _, slices = self.source(name)
        sizes = list(shape)
        if slices:
            sizes[slices[0].axis] = sum(part.size * num[part.kind] for part in slices)
        return tuple(sizes)


_SPLITS = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def _positions(part: WeightSlice, kept: np.ndarray) -> np.ndarray:
    return (part.start + kept[:, None] * part.size + np.arange(part.size)).reshape(-1)


def decoder_layout(model: PreTrainedModel) -> Layout:
    """The layout of a model's decoder layers."""
    family = family_for(model)
    return layout_of(family.decoder(model).layers[0], family.text_config(model.config))


def layout_of(layer: nn.Module, text_config: PretrainedConfig) -> Layout:
    """Find a decoder layer's weights by their names.

    Raises:
        InputError: no attention or FFN of a known layout.
    """
    modules = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    heads = int(text_config.num_attention_heads)
    groups = int(getattr(text_config, "num_key_value_heads", None) or heads)
    attention_out = _one_of(modules, ATTENTION_OUT, "attention output", text_config)
    head_dim = modules[attention_out].in_features // heads
    ffn_out = _one_of(modules, FFN_OUT, "FFN output", text_config)
    channels = modules[ffn_out].in_features
    slices = (
        *_attention_slices(modules, attention_out, groups, heads, head_dim, text_config),
        *_ffn_slices(modules, ffn_out, channels, text_config),
    )
    return Layout(slices, groups, heads, head_dim, channels, attention_out, ffn_out)


ATTENTION_OUT = tuple(f"{a}.{o}" for a in ("self_attn", "attention", "attn") for o in ("o_proj", "dense", "out_proj"))
FFN_OUT = tuple(f"{m}.{o}" for m in ("mlp", "feed_forward") for o in ("down_proj", "fc2", "w2", "c_proj"))


def _attention_slices(
    modules: dict[str, nn.Linear], out: str, groups: int, heads: int, dim: int, text_config: PretrainedConfig
) -> Iterator[WeightSlice]:
    parent = out.rpartition(".")[0]
    yield WeightSlice(out, "heads", 1, 0, dim, heads)
    fused = f"{parent}.qkv_proj"
    if fused in modules:
        yield WeightSlice(fused, "heads", 0, 0, dim, heads)
        yield WeightSlice(fused, "kv_groups", 0, heads * dim, dim, groups)
        yield WeightSlice(fused, "kv_groups", 0, (heads + groups) * dim, dim, groups)
        return
    _one_of(modules, (f"{parent}.q_proj",), "query weights", text_config)
    yield WeightSlice(f"{parent}.q_proj", "heads", 0, 0, dim, heads)
    yield WeightSlice(f"{parent}.k_proj", "kv_groups", 0, 0, dim, groups)
    yield WeightSlice(f"{parent}.v_proj", "kv_groups", 0, 0, dim, groups)


def _ffn_slices(
    modules: dict[str, nn.Linear], out: str, channels: int, text_config: PretrainedConfig
) -> Iterator[WeightSlice]:
    parent = out.rpartition(".")[0]
    yield WeightSlice(out, "ffn_channels", 1, 0, 1, channels)
    fused = f"{parent}.gate_up_proj"
    if fused in modules:
        yield WeightSlice(fused, "ffn_channels", 0, 0, 1, channels)
        yield WeightSlice(fused, "ffn_channels", 0, channels, 1, channels)
        return
    inputs = tuple(f"{parent}.{name}" for name in ("gate_proj", "up_proj", "fc1", "w1", "w3", "c_fc"))
    _one_of(modules, inputs, "FFN input", text_config)
    for name in inputs:
        if name in modules:
            yield WeightSlice(name, "ffn_channels", 0, 0, 1, channels)


def _one_of(modules: dict[str, nn.Linear], names: tuple[str, ...], what: str, text_config: PretrainedConfig) -> str:
    for name in names:
        if name in modules:
            return name
    raise InputError(
        f"decoder layer of {text_config.model_type}: {what} not found, looked for {', '.join(names)}; {WHERE_TO_ADD}"
    )
