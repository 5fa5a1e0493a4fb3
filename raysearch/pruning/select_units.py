"""Which KV groups, query heads, FFN channels, experts and hidden channels each layer keeps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import Layout, UnitKind, family_for
from raysearch.models.layout import Units
from raysearch.models.shape import UNITS, Part, Shape
from raysearch.pruning.importance import Importance

Scores = Mapping[Part, Importance]


def units_to_keep(scores: Scores, layout: Layout, shape: Shape, layer: int) -> Units:
    """The best units of one layer: whole KV groups first, then equally many query heads in each.

    Args:
        scores: for the kinds of which fewer stay, see `Unit.scored_for`.
        layout: of the dense layer.
        shape: how many units stay.
        layer: index of the dense layer.

    Raises:
        InputError: scores that the shape needs are missing.
    """
    kept = dict(layout.all_units())
    if shape.hidden_size not in (0, layout.hidden_size):
        kept["hidden_channels"] = top(_needed(scores, "hidden_channels"), shape.hidden_size)
    if shape.num_experts not in (0, layout.num_experts):
        kept["experts"] = top(_needed(scores, "experts")[layer], shape.num_experts)
    if shape.num_ffn_channels != layout.num_ffn_channels:
        kept["ffn_channels"] = top(_needed(scores, "ffn_channels")[layer], shape.num_ffn_channels)
    if (shape.num_kv_heads, shape.num_heads) != (layout.num_kv_groups, layout.num_heads):
        groups = top(_needed(scores, "kv_groups")[layer], shape.num_kv_heads)
        per_group = shape.num_heads // shape.num_kv_heads
        heads = _needed(scores, "heads")[layer].reshape(layout.num_kv_groups, layout.heads_per_group)
        best = [group * layout.heads_per_group + top(heads[group], per_group) for group in groups]
        kept |= {"kv_groups": groups, "heads": np.concatenate(best)}
    return kept


def _needed(scores: Scores, kind: UnitKind) -> np.ndarray:
    unit = next(unit for unit in UNITS if unit.kind == kind)
    importance = needed(scores, unit.scored_for)
    of_kind: np.ndarray | None = getattr(importance, kind)
    if of_kind is None:
        raise InputError(f"criterion {importance.criterion}: scores no {unit.noun} here; choose one that does")
    return of_kind


def needed(scores: Scores, part: Part) -> Importance:
    """The scores for a part of the model.

    Raises:
        InputError: they are missing.
    """
    if scores.get(part) is None:
        raise InputError(f"importance: the shape needs {part} scores and none are given; compute them first")
    return scores[part]


@torch.inference_mode()
def bias_shifts(
    model: PreTrainedModel, layouts: Sequence[Layout], importance: Importance, units: Mapping[int, Units]
) -> dict[str, torch.Tensor]:
    """Additions to output biases: the removed columns times their mean inputs (arXiv 2312.11983, equation 6).

    Empty for scores without mean inputs, and for layers without an output bias.
    """
    means: dict[UnitKind, np.ndarray | None]
    means = {"heads": importance.attention_means, "ffn_channels": importance.ffn_means}
    layers, shifts = family_for(model).decoder(model).layers, {}
    for i, kept in units.items():
        for kind, name, size in layouts[i].outputs:
            module, of_kind = layers[i].get_submodule(name), means[kind]
            if of_kind is None or module.bias is None:
                continue
            missing = torch.tensor(of_kind[i], device=module.weight.device)
            missing.view(-1, size)[torch.as_tensor(kept[kind])] = 0
            shifts[f"{i}.{name}.bias"] = module.weight.float() @ missing
    return shifts


def top(scores: np.ndarray, num: int) -> np.ndarray:
    """Increasing indices of the `num` highest scores; of equal ones the first stay.

    Raises:
        InputError: a score is NaN.
    """
    scores = np.asarray(scores, float)
    if np.isnan(scores).any():
        raise InputError("importance: holds NaN; calibrate in fp32 or bf16, or on other samples")
    return np.sort(np.argsort(-scores, kind="stable")[:num])
