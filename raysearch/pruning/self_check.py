"""Whether an architecture can be pruned: tried on a tiny copy before anything large is loaded.

A tiny copy with random weights is pruned and compared with itself: with the dropped layers skipped, or the weights of
removed units set to 0. On the real configuration, on the meta device, every tensor of the pruned class is compared with
what is left of the dense one. So an architecture is either right, or refused in one line.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.config.recipe import Mode
from raysearch.errors import InputError, first_line
from raysearch.files import cache_folder, read_json, write_json
from raysearch.logging import quiet
from raysearch.models import decoder_layout, empty_model, family_for, load_config
from raysearch.models.layout import Units, outer_layout
from raysearch.models.param_count import counts_of
from raysearch.models.shape import UNITS, ParamCounts, Shape
from raysearch.models.tiny_copy import Inputs, logits_of, tiny_copy
from raysearch.pruning.importance import Importance
from raysearch.pruning.routing import routing_among
from raysearch.pruning.select_layers import layers_to_keep
from raysearch.pruning.select_units import Scores, units_to_keep
from raysearch.pruning.slicing import full_units, slice_model

Part = Literal["layers", "widths", "experts", "hidden"]
_PARTS: tuple[Part, ...] = ("layers", "widths", "experts", "hidden")
PARTS: dict[Mode, tuple[Part, ...]] = {"layerwise": ("layers",), "widthwise": ("widths",), "both": ("layers", "widths")}


@dataclass(frozen=True)
class Verdict:
    """On one architecture.

    Attributes:
        layers, widths, experts, hidden: why they can't be pruned; empty if they can.
        picture: whether a picture was among the inputs.
    """

    layers: str
    widths: str
    experts: str
    hidden: str
    picture: bool

    def reasons(self, mode: Mode) -> list[str]:
        """Why a mode would not be right; empty if it would."""
        return [reason for part in PARTS[mode] if (reason := getattr(self, part))]


_COMPARED = {
    "layers": "without these layers",
    "widths": "with zeroed units",
    "experts": "routed among the others",
    "hidden": "with zeroed hidden channels",
}
NO_EXPERTS = "it has no experts"
KEEPS_EXPERTS = "its class holds no other number of experts, or routes among groups of them"
TOLERANCE = 1e-3
"""Of the largest logit; rounding alone gives less than 1e-5."""


KEEPS_HIDDEN = "its class derives the head size or another width from the hidden size"


def check_architecture(
    config: PretrainedConfig, mode: Mode, drops_experts: bool = False, drops_hidden: bool = False
) -> None:
    """Check that pruning a model of this configuration in `mode` is right.

    Args:
        drops_experts: whether experts are removed, too.
        drops_hidden: whether hidden channels are removed, too.

    Raises:
        InputError: it isn't, or that can't be told; the message says what differs, and which mode works instead.
    """
    verdict = verdict_of(config)
    if reasons := verdict.reasons(mode):
        works = [other for other in PARTS if not verdict.reasons(other)]
        instead = f"choose mode {' or '.join(works)}" if works else "no mode works"
        raise InputError(f"{config.model_type}: mode {mode} would not be right: {reasons[0]}; {instead}")
    if drops_experts and verdict.experts:
        raise InputError(f"{config.model_type}: dropping experts would not be right: {verdict.experts}; keep them all")
    if drops_hidden and verdict.hidden:
        raise InputError(
            f"{config.model_type}: a smaller hidden size would not be right: {verdict.hidden}; leave hidden_ratio out"
        )


def check_model(model: str, modes: Sequence[Mode], drops_experts: bool = False, drops_hidden: bool = False) -> None:
    """`check_architecture` of a folder or hub id in several modes.

    Raises:
        InputError: as `check_architecture`, or no such model.
    """
    config = load_config(model)
    for mode in modes:
        check_architecture(config, mode, drops_experts, drops_hidden)


def verdict_of(config: PretrainedConfig) -> Verdict:
    """The verdict on a configuration's architecture, cached by configuration and versions."""
    content = [config.to_json_string(use_diff=False), metadata.version("transformers"), _code_hash()]
    key = hashlib.sha256(json.dumps([type(config).__name__, *content]).encode()).hexdigest()[:20]
    path = cache_folder("checks") / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Verdict(**read_json(path))
    print(f"raysearch: trying pruning on a tiny copy of {config.model_type}, once", file=sys.stderr, flush=True)
    verdict = examine(config)
    with contextlib.suppress(OSError):  # without a cache, it is tried again next time
        write_json(path, dataclasses.asdict(verdict))
    return verdict


def _code_hash() -> str:
    """Of the code that prunes, so that a verdict is not older than it."""
    folder = Path(__file__).parents[1]
    files = [*sorted((folder / "models").glob("*.py")), *sorted((folder / "pruning").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def examine(config: PretrainedConfig) -> Verdict:
    """As `verdict_of`, without the cache."""
    try:
        counts = counts_of(config)
        dense = empty_model(copy.deepcopy(config))
        tiny, inputs = tiny_copy(config)
        answers = {name: _Answers.of(tiny, given) for name, given in inputs.items()}
    except Exception as error:
        return Verdict(**dict.fromkeys(_PARTS, _reason(error)), picture=False)
    reasons: dict[str, str] = {}
    for part in _PARTS:
        try:
            for seed in range(2 if part == "layers" and len(counts_of(tiny.config).kinds) > 1 else 1):
                slice_model(dense, *_selection(counts, dense, part, seed))
                _compare(tiny, inputs, answers, part, seed)
            reasons[part] = ""
        except Exception as error:  # whatever the architecture's own code raises
            reasons[part] = _reason(error)
    return Verdict(**reasons, picture="picture" in inputs)


def _reason(error: Exception) -> str:
    return first_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"


def _selection(
    counts: ParamCounts, model: PreTrainedModel, part: Part, seed: int
) -> tuple[list[int], dict[int, Units]]:
    """Layers and units to keep, by chance: two thirds of the layers, fewer heads and channels, fewer experts, or fewer
    hidden channels."""
    random, dense = np.random.default_rng(seed), counts.dense
    if part == "layers":
        num = max(counts.smallest.num_layers, dense.num_layers - max(1, dense.num_layers // 3))
        if num == dense.num_layers:
            raise InputError(f"none of its {num} layers can be dropped")
        scores = random.random(dense.num_layers)
        order = Importance("random", layers=scores, layer_order=np.argsort(scores))
        kept = layers_to_keep(order, num, counts.fixed_layers, counts.kind_of_layer, counts.num_of_kinds(num))
        return kept, full_units(model)
    shape, every = _narrower(counts, part), range(dense.num_layers)
    drawn = {unit.kind: random.random((dense.num_layers, getattr(dense, unit.extent))) for unit in UNITS}
    drawn["hidden_channels"] = drawn["hidden_channels"][0]
    units, layouts = Importance("random", **drawn), decoder_layout(model)
    by_part: Scores = {unit.scored_for: units for unit in UNITS}
    return list(every), {i: units_to_keep(by_part, layouts[i], shape, i) for i in every}


def _narrower(counts: ParamCounts, part: Part) -> Shape:
    dense = counts.dense
    if part == "experts":
        if counts.least_experts == dense.num_experts:
            raise InputError(KEEPS_EXPERTS if dense.num_experts else NO_EXPERTS)
        return replace(dense, num_experts=max(counts.least_experts, dense.num_experts - max(1, dense.num_experts // 3)))
    if part == "hidden":
        step = counts.hidden_step
        if step == dense.hidden_size:
            raise InputError(KEEPS_HIDDEN)
        return replace(dense, hidden_size=max(1, dense.hidden_size * 3 // (4 * step)) * step)
    pairs = [pair for pair in counts.attention_choices if pair != (dense.num_kv_heads, dense.num_heads)]
    pair = pairs[len(pairs) // 3] if pairs else (dense.num_kv_heads, dense.num_heads)
    step = counts.channels_multiple
    channels = max(counts.smallest.num_ffn_channels, dense.num_ffn_channels * 2 // (3 * step) * step)
    shape = replace(dense, num_kv_heads=pair[0], num_heads=pair[1], num_ffn_channels=channels)
    if counts.layers(shape) == counts.layers(dense):
        raise InputError("neither heads nor FFN channels of its layers can be pruned")
    return shape


@dataclass(frozen=True)
class _Answers:
    """Of the dense tiny copy to some inputs: its logits, and the tokens that it generates with the cache; None if it
    generates none, or others without."""

    logits: torch.Tensor
    tokens: torch.Tensor | None

    @classmethod
    def of(cls, model: PreTrainedModel, inputs: Inputs) -> Self:
        try:
            with_cache, without = (_generated(model, inputs, use_cache) for use_cache in (True, False))
        except Exception:  # the architecture itself doesn't generate from these inputs
            return cls(logits_of(model, inputs), None)
        return cls(logits_of(model, inputs), with_cache if torch.equal(with_cache, without) else None)


def _compare(
    dense: PreTrainedModel, inputs: dict[str, Inputs], answers: dict[str, _Answers], part: Part, seed: int
) -> None:
    layers, units = _selection(counts_of(dense.config), dense, part, seed)
    pruned = slice_model(dense, layers, units)
    if part == "layers":
        with _skipping(dense, layers, inputs):
            wanted = {name: logits_of(dense, given) for name, given in inputs.items()}
    else:
        masked = copy.deepcopy(dense)
        decoder = family_for(masked).decoder(masked)
        for i, (layer, layout) in enumerate(zip(decoder.layers, decoder_layout(dense), strict=True)):
            layout.zero(layer, units[i])
        if part == "hidden":
            _zero_hidden(masked, units[0])
            pruned = _as_loaded(pruned)
        with routing_among(masked, units):
            wanted = {name: logits_of(masked, given) for name, given in inputs.items()}
    for name, given in inputs.items():
        found, scale = logits_of(pruned, given), max(1.0, float(wanted[name].abs().max()))
        away = float((found - wanted[name]).abs().max())
        if not away <= TOLERANCE * scale:
            what = f"the dense model {_COMPARED[part]}"
            raise InputError(f"on {name}, a tiny copy's logits are {away:.2g} away from {what}")
        if torch.equal(wanted[name], answers[name].logits):
            raise InputError(f"on {name}, what is removed from a tiny copy changes nothing, so it can't be checked")
        if answers[name].tokens is not None:
            with_cache, without = (_generated(pruned, given, use_cache) for use_cache in (True, False))
            if not torch.equal(with_cache, without):
                raise InputError(f"on {name}, a pruned tiny copy generates other tokens with a cache than without")


def _zero_hidden(model: PreTrainedModel, kept: Units) -> None:
    """Set hidden channels outside of the layers to 0, and let norms add to a mean square over all channels what those
    of a pruned model add to one over the kept."""
    outer = outer_layout(model)
    share = len(kept["hidden_channels"]) / outer.hidden_size
    outer.zero(model, kept)
    prefix = family_for(model).layers_name(model)
    inner = (f"{prefix}.{i}.{name}" for i, layout in enumerate(decoder_layout(model)) for name in layout.norms)
    for name in (*inner, *outer.norms):
        norm = model.get_submodule(name)
        for key, value in list(vars(norm).items()):
            if "eps" in key and isinstance(value, float):
                setattr(norm, key, value * share)


def _as_loaded(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is after saving and loading: what the class computes from its configuration is computed anew."""
    loaded = type(model)._from_config(copy.deepcopy(model.config))
    loaded.load_state_dict(model.state_dict())
    return loaded.eval()


def _generated(model: PreTrainedModel, inputs: Inputs, use_cache: bool) -> torch.Tensor:
    with torch.inference_mode(), quiet():
        return model.generate(**inputs, min_new_tokens=3, max_new_tokens=3, do_sample=False, use_cache=use_cache)


@contextmanager
def _skipping(model: PreTrainedModel, kept: Sequence[int], inputs: dict[str, Inputs]) -> Iterator[None]:
    """Inside, decoder layers that are not kept hand on the hidden state; what else they return is of a dense run."""
    layers = family_for(model).decoder(model).layers
    outputs: dict[int, Any] = {}
    hooks = [
        layer.register_forward_hook(lambda module, args, output, i=i: outputs.__setitem__(i, output))
        for i, layer in enumerate(layers)
    ]
    logits_of(model, next(iter(inputs.values())))
    for hook in hooks:
        hook.remove()
    skipped = [i for i in range(len(layers)) if i not in kept]
    for i in skipped:
        layers[i].forward = _handing_on(outputs.get(i))  # a layer that only reads pictures may not have run
    try:
        yield
    finally:
        for i in skipped:
            del layers[i].forward


def _handing_on(dense_output: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *dense_output[1:]) if isinstance(dense_output, tuple) else states

    return forward
