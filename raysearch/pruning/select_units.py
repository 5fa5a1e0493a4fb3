"""Which KV groups, query heads and FFN channels each layer keeps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import Layout, UnitKind, family_for
from raysearch.models.layout import Units
from raysearch.models.shape import Shape
from raysearch.pruning.importance import Importance


def units_to_keep(importance: Importance, layout: Layout, shape: Shape, layer: int) -> Units:
    """The best units of one layer: whole KV groups first, then equally many query heads in each.

    Args:
        importance: of a width criterion.
        layout: of the dense layer.
        shape: how many units stay.
        layer: index of the dense layer.

    Raises:
        InputError: `importance` is not of a width criterion.
    """
    if importance.heads is None or importance.kv_groups is None or importance.ffn_channels is None:
        raise InputError(f"criterion {importance.criterion}: scores no heads and channels; choose a width criterion")
    groups = top(importance.kv_groups[layer], shape.num_kv_heads)
    per_group = shape.num_heads // shape.num_kv_heads
    heads = importance.heads[layer].reshape(layout.num_kv_groups, layout.heads_per_group)
    kept = [group * layout.heads_per_group + top(heads[group], per_group) for group in groups]
    return Units(groups, np.concatenate(kept), top(importance.ffn_channels[layer], shape.num_ffn_channels))


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
            missing.view(-1, size)[torch.as_tensor(kept.of(kind))] = 0
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
