"""The removable units of a decoder layer: which rows and columns of its weights belong to each.

Symbols: G KV groups, H query heads (H / G per group, neighbours), D head size, F FFN channels, E experts, d hidden
size. A unit is removed whole: a query head with its rows of the query weights and its columns of the output weights, a
KV group with its key and value rows and all its query heads, a channel with its gate, up and down parts
(arXiv 2604.24380, section 3.2), in experts too; an expert with all its weights and the router's rows for it. A hidden
channel is one of the residual stream's, the same in all layers, with its part of every tensor that writes into the
stream or reads it, embeddings, head, norms and projector included (`outer_layout`).

What heads own is found by the names in `ATTENTION`; what the other units own is what follows their number in the
configuration. All is checked against the stock class (`param_count`, `pruning.self_check`).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from raysearch.errors import InputError
from raysearch.models.family import family_for
from raysearch.models.pruned_config import pruned_config, pruned_text_config, shape_of
from raysearch.models.shape import UNIT_KINDS, UNITS, Shape, UnitKind
from raysearch.models.transformers_classes import empty_model, model_class


@dataclass(frozen=True)
class WeightSlice:
    """Entries of a tensor along `axis`, from `start` on, that belong to units of one kind.

    `size` adjacent entries per unit: the head size for heads and KV groups, else 1.
    """

    tensor: str
    kind: UnitKind
    axis: int
    start: int
    size: int
    num_units: int


Units = Mapping[UnitKind, np.ndarray]
"""What one decoder layer keeps, as increasing indices into the dense layer's units, by kind."""


@dataclass(frozen=True)
class Layout:
    """The prunable weights of one decoder layer, or of all that is not in one. A layer
    without attention, or with one of another kind, owns no heads."""

    slices: tuple[WeightSlice, ...]
    num_kv_groups: int
    num_heads: int
    head_dim: int
    num_ffn_channels: int
    num_experts: int
    hidden_size: int
    attention_out: str | None
    """Name of the linear layer whose inputs are the heads' outputs, D per head."""
    ffn_out: str | None
    """Name of the linear layer whose inputs are the FFN channels; None in a layer of experts."""
    experts: str | None
    """Name of the module that holds all experts' weights; None in a layer without, or with another router's."""
    norms: tuple[str, ...]
    """Names of the norms over hidden channels that have a weight and no bias."""

    @cached_property
    def by_tensor(self) -> dict[str, list[WeightSlice]]:
        """Slices by tensor; a fused weight has several, in the order of their rows."""
        found: dict[str, list[WeightSlice]] = {}
        for part in self.slices:
            found.setdefault(part.tensor, []).append(part)
        return found

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_heads // self.num_kv_groups

    @property
    def outputs(self) -> tuple[tuple[UnitKind, str, int], ...]:
        """The linear layers whose inputs are units' outputs: the kind, the name and the features per unit."""
        rows = ("heads", self.attention_out, self.head_dim), ("ffn_channels", self.ffn_out, 1)
        return tuple((kind, name, size) for kind, name, size in rows if name)  # type: ignore[misc]

    def slices_of(self, name: str) -> list[WeightSlice]:
        """The slices of a layer's tensor; empty for one that no unit owns, such as a norm or an output bias."""
        return self.by_tensor.get(name, [])

    def all_units(self) -> Units:
        """Every unit of a dense layer."""
        nums = self.num_kv_groups, self.num_heads, self.num_ffn_channels, self.num_experts, self.hidden_size
        return {kind: np.arange(num) for kind, num in zip(UNIT_KINDS, nums, strict=True)}

    def source(self, name: str) -> tuple[str, list[WeightSlice]]:
        """Where a tensor of the pruned layer comes from: the dense tensor's name, and its slices to take.

        Names differ only where a class with split weights replaces one with fused weights.
        """
        parent, _, rest = name.rpartition(".")[0].rpartition(".")
        fused, i = _SPLITS.get(rest, ("", 0))
        dense = f"{parent}.{fused}.{name.rpartition('.')[2]}"
        if name not in self.by_tensor and dense in self.by_tensor:
            rows = [part for part in self.by_tensor[dense] if part.axis == 0]
            return dense, [rows[i], *(part for part in self.by_tensor[dense] if part.axis != 0)]
        return name, self.slices_of(name)

    def keep(self, name: str, tensor: torch.Tensor, units: Units) -> torch.Tensor:
        """The values of a pruned layer's tensor: the dense tensor's own memory where nothing is removed, else a copy.

        Args:
            name: of the tensor inside the pruned layer, e.g. `self_attn.q_proj.weight`.
            tensor: the dense tensor it comes from, see `source`.
            units: what stays.
        """
        _, slices = self.source(name)
        tensor = tensor.detach()
        for axis in sorted({part.axis for part in slices}):
            index = np.concatenate([_positions(part, units[part.kind]) for part in slices if part.axis == axis])
            if len(index) != tensor.shape[axis]:
                tensor = tensor.index_select(axis, torch.as_tensor(index, device=tensor.device))
        return tensor

    def kept_shape(self, name: str, shape: torch.Size, num: Mapping[UnitKind, int]) -> tuple[int, ...]:
        """Shape of `keep`'s result for a dense tensor of `shape` when `num` units of each kind stay."""
        _, slices = self.source(name)
        sizes = list(shape)
        for axis in {part.axis for part in slices}:
            sizes[axis] = sum(part.size * num[part.kind] for part in slices if part.axis == axis)
        return tuple(sizes)

    def zero(self, layer: nn.Module, kept: Units) -> None:
        """Set the weights of all heads and channels but `kept` to 0, in place; the layer then computes what it would
        without, but that norms take the mean over all hidden channels. A router must be told apart that experts are
        gone."""
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                for part in self.slices_of(name):
                    if part.kind == "experts":
                        continue
                    gone = np.setdiff1d(np.arange(part.num_units), kept[part.kind])
                    parameter.index_fill_(part.axis, torch.as_tensor(_positions(part, gone)), 0)


_SPLITS = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def _positions(part: WeightSlice, kept: np.ndarray) -> np.ndarray:
    return (part.start + kept[:, None] * part.size + np.arange(part.size)).reshape(-1)


def decoder_layout(model: PreTrainedModel) -> tuple[Layout, ...]:
    """The layouts of a model's decoder layers, one each."""
    family = family_for(model)
    decoder = family.decoder(model)
    return layouts_of(list(decoder.layers), family.text_config(model.config), type(decoder))


_LAYOUTS: dict[str, dict[frozenset, Layout]] = {}
_MAX_CACHED = 64


def layouts_of(
    layers: Sequence[nn.Module], text_config: PretrainedConfig, decoder_class: type[PreTrainedModel]
) -> tuple[Layout, ...]:
    """The layouts of decoder layers; those of equal shape share one."""
    key = type(text_config).__name__ + text_config.to_json_string(use_diff=False)
    if len(_LAYOUTS) > _MAX_CACHED:
        _LAYOUTS.clear()
    known = _LAYOUTS.setdefault(key, {})
    signatures = [signature_of(layer) for layer in layers]
    # The last layer of each kind, since some classes give the very last one a kind of its own.
    new = {signature: i for i, signature in enumerate(signatures) if signature not in known}
    if new:
        places = sorted(new.values())
        probes = {kind: _probed(kind, text_config, decoder_class, layers, places) for kind in PROBED}
        for at, i in enumerate(places):
            narrower = {kind: (probed[0][at], probed[1]) for kind, probed in probes.items()}
            known[signatures[i]] = _layout_of(layers[i], narrower, text_config)
    return tuple(known[signature] for signature in signatures)


def signature_of(layer: nn.Module) -> frozenset[tuple[str, torch.Size]]:
    """The names and shapes of a layer's parameters and buffers; layers of one kind have the same."""
    return frozenset(_shapes(layer).items())


def _shapes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]}


PROBED: tuple[UnitKind, ...] = ("ffn_channels", "experts", "hidden_channels")
"""The kinds whose tensors are found by a decoder with fewer of them."""


def _probed(
    kind: UnitKind, text_config: PretrainedConfig, decoder_class: type, layers: Sequence[nn.Module], places: list[int]
) -> tuple[Sequence[nn.Module], int]:
    """Some layers with half of the units of a kind, and how many they lack; 0 where there are none to spare."""
    dense = shape_of(text_config)
    narrowed, fewer = _halved(replace(dense, num_layers=len(places)), kind)
    if fewer:
        try:
            narrow = pruned_text_config(text_config, narrowed, places)
            same = type(narrow) is type(text_config)
            return empty_model(narrow, decoder_class if same else MODEL_MAPPING[type(narrow)]).layers, fewer
        except InputError:
            if kind == "ffn_channels":
                raise
    return [layers[i] for i in places], 0


def _halved(shape: Shape, kind: UnitKind) -> tuple[Shape, int]:
    extent = next(unit.extent for unit in UNITS if unit.kind == kind)
    num = getattr(shape, extent)
    return replace(shape, **{extent: num - num // 2}), num // 2


def _layout_of(
    layer: nn.Module, narrower: Mapping[UnitKind, tuple[nn.Module, int]], text_config: PretrainedConfig
) -> Layout:
    dense, shapes = shape_of(text_config), _shapes(layer)
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    attention_out, head_dim, heads = _attention(shapes, linears, dense.num_heads, dense.num_kv_heads)
    nums = dict(zip(UNIT_KINDS, dense.widths, strict=True))
    channels, experts, hidden = (
        _following(kind, shapes, _shapes(narrow), nums[kind], fewer) for kind, (narrow, fewer) in narrower.items()
    )
    own = {(part.tensor, part.axis) for part in (*heads, *channels, *experts)}
    if any((part.tensor, part.axis) in own for part in hidden):  # the head size follows the hidden size
        hidden = []
    outs = [
        part.tensor.removesuffix(".weight")
        for part in channels
        if part.axis == 1 and part.tensor.removesuffix(".weight") in linears
    ]
    widths = dense.num_kv_heads, dense.num_heads, head_dim, dense.num_ffn_channels, dense.num_experts
    owners = {part.tensor.rpartition(".")[0] for part in experts if len(shapes[part.tensor]) == 3}
    ffn_out, experts_module = (found[0] if len(found) == 1 else None for found in (outs, list(owners)))
    slices, norms = (*heads, *channels, *experts, *hidden), _norms(layer, hidden)
    return Layout(slices, *widths, dense.hidden_size, attention_out, ffn_out, experts_module, norms)


def _norms(module: nn.Module, hidden: Sequence[WeightSlice]) -> tuple[str, ...]:
    own = {part.tensor for part in hidden}
    found = ((name, dict(part.named_parameters(recurse=False))) for name, part in module.named_modules())
    return tuple(
        name
        for name, tensors in found
        if list(tensors) == ["weight"] and tensors["weight"].ndim == 1 and f"{name}.weight" in own
    )


_OUTER: dict[str, Layout] = {}


def outer_layout(model: PreTrainedModel) -> Layout:
    """The hidden channels of all tensors outside of the decoder's layers, by their names in the model.

    No slices where the stock class can't hold fewer hidden channels.
    """
    key = type(model.config).__name__ + model.config.to_json_string(use_diff=False)
    if key not in _OUTER:
        if len(_OUTER) > _MAX_CACHED:
            _OUTER.clear()
        dense = shape_of(model.config)
        narrowed, fewer = _halved(dense, "hidden_channels")
        hidden: list[WeightSlice] = []
        with contextlib.suppress(InputError):
            config = pruned_config(model.config, narrowed)
            same = type(config) is type(model.config)
            narrow = empty_model(config, type(model) if same else model_class(config))
            hidden = _following(
                "hidden_channels", _outer_shapes(model), _outer_shapes(narrow), dense.hidden_size, fewer
            )
        _OUTER[key] = Layout(tuple(hidden), 0, 0, 0, 0, 0, dense.hidden_size, None, None, None, _norms(model, hidden))
    return _OUTER[key]


def _outer_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    prefix = family_for(model).layers_name(model) + "."
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in named if not name.startswith(prefix)}


ATTENTION = tuple(
    (f"{parent}.{out}", f"{parent}.qkv_proj", tuple(f"{parent}.{name}_proj" for name in "qkv"))
    for parent in ("self_attn", "attention", "attn")
    for out in ("o_proj", "dense", "out_proj")
)
"""Names of an attention's linear layers: output; query, key and value rows in one; or each of them."""


def _attention(
    tensors: Mapping[str, torch.Size], linears: Mapping[str, nn.Linear], num_heads: int, num_groups: int
) -> tuple[str | None, int, list[WeightSlice]]:
    """The output layer, the head size and the slices of heads and KV groups; none for another attention."""
    for out, fused, split in ATTENTION:
        if out not in linears or linears[out].in_features % num_heads:
            continue
        dim = linears[out].in_features // num_heads
        rows = {"heads": num_heads * dim, "kv_groups": num_groups * dim}
        roles: list[UnitKind] = ["heads", "kv_groups", "kv_groups"]
        found = [WeightSlice(f"{out}.weight", "heads", 1, 0, dim, num_heads)]
        if fused in linears and linears[fused].out_features == sum(rows[kind] for kind in roles):
            parts, starts = [fused] * 3, [0, rows["heads"], rows["heads"] + rows["kv_groups"]]
        elif all(
            name in linears and linears[name].out_features % rows[kind] == 0
            for name, kind in zip(split, roles, strict=True)
        ):
            parts, starts = list(split), [0, 0, 0]
        else:
            continue
        for name, kind, start in zip(parts, roles, starts, strict=True):
            num = num_heads if kind == "heads" else num_groups
            size = dim if name == fused else linears[name].out_features // num  # a gated query has 2 D rows per head
            leaves = [f"{name}.{leaf}" for leaf in ("weight", "bias") if f"{name}.{leaf}" in tensors]
            found += [WeightSlice(leaf, kind, 0, start, size, num) for leaf in leaves]
        return out, dim, found
    return None, 0, []


def _following(
    kind: UnitKind, dense: Mapping[str, torch.Size], narrow: Mapping[str, torch.Size], num: int, fewer: int
) -> list[WeightSlice]:
    """What follows the number of units: a tensor with c times as many entries along an axis holds c blocks of them, of
    experts a single one. None where the class builds another number than the configuration has, or other tensors."""
    found = []
    if dense.keys() != narrow.keys():
        return []
    for name, shape in dense.items():
        for axis, (size, smaller) in enumerate(zip(shape, narrow[name], strict=True)):
            if size == smaller:
                continue
            blocks, rest = divmod(size, num)
            if rest or size - smaller != blocks * fewer or (kind == "experts" and blocks != 1):
                return []
            found += [WeightSlice(name, kind, axis, start, 1, num) for start in range(0, size, num)]
    return found
