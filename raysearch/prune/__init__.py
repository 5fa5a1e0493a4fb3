"""Structural pruning: from scores and a shape to a smaller stock model."""

from collections.abc import Mapping
from typing import Literal

from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.families import family_for, layout_of
from raysearch.importance import Importance
from raysearch.prune.build import build, full_units
from raysearch.prune.depth import layers_to_keep
from raysearch.prune.shape import Shape, shape_of, size_of, smallest_shape, solve, solve_budget
from raysearch.prune.width import units_to_keep

__all__ = ["Shape", "prune", "shape_of", "size_of", "smallest_shape", "solve", "solve_budget"]


def prune(
    model: PreTrainedModel, shape: Shape, importance: Mapping[Literal["depth", "width"], Importance]
) -> PreTrainedModel:
    """A new, smaller model of a stock class.

    Args:
        model: the dense model; it stays as it is, and no memory is shared with it.
        shape: of the pruned decoder; see `solve`.
        importance: scores of layers under `depth` and of heads and channels under `width`, as far as `shape` needs
            them.

    Returns:
        The pruned model, on the same device, with the same dtype, in eval mode.

    Raises:
        InputError: scores are missing, or no stock class holds the shape.
    """
    family, dense = family_for(model), shape_of(model.config)
    layers = list(range(dense.num_layers))
    if shape.num_layers != dense.num_layers:
        fixed = family.num_leading_layers_kept(model.config)
        layers = layers_to_keep(_needed(importance, "depth"), shape.num_layers, fixed)
    units = full_units(model)
    if (shape.num_kv_heads, shape.num_heads, shape.num_ffn_channels) != (
        dense.num_kv_heads,
        dense.num_heads,
        dense.num_ffn_channels,
    ):
        scores = _needed(importance, "width")
        layout = layout_of(family.decoder(model).layers[0], family.text_config(model.config))
        units = {i: units_to_keep(scores, layout, shape, i) for i in layers}
    return build(model, layers, units)


def _needed(importance: Mapping, part: str) -> Importance:
    if importance.get(part) is None:
        raise InputError(f"importance: the shape needs {part} scores and none are given; compute them first")
    return importance[part]
