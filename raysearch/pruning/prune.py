"""Choose the layers and units to keep by their scores, then build the smaller model."""

from collections.abc import Mapping
from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import decoder_layout
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.pruning.importance import Importance
from raysearch.pruning.select_layers import layers_to_keep
from raysearch.pruning.select_units import bias_shifts, units_to_keep
from raysearch.pruning.slicing import full_units, slice_model

Scores = Mapping[Literal["depth", "width"], Importance]


def prune(model: PreTrainedModel, shape: Shape, importance: Scores) -> PreTrainedModel:
    """A new, smaller model of a stock class.

    Args:
        model: the dense model; not changed, and no memory is shared with it.
        shape: of the pruned decoder; see `models.shape_solver`.
        importance: scores of layers under `depth` and of heads and channels under `width`, as far as `shape` needs
            them. Where the architecture has output biases and the scores have mean inputs (`fluctuation`), the biases
            compensate for what is removed.

    Returns:
        The pruned model, on the same device, with the same dtype, in eval mode.

    Raises:
        InputError: scores are missing, or no stock class holds the shape.
    """
    layers = kept_layers(model.config, shape, importance)
    if shape.widths == shape_of(model.config).widths:
        return slice_model(model, layers, full_units(model))
    scores, layouts = _needed(importance, "width"), decoder_layout(model)
    units = {i: units_to_keep(scores, layouts[i], shape, i) for i in layers}
    return slice_model(model, layers, units, bias_shifts(model, layouts, scores, units))


def kept_layers(config: PretrainedConfig, shape: Shape, importance: Scores) -> list[int]:
    """The dense layers that `prune` keeps, increasing."""
    dense = shape_of(config)
    if shape.num_layers == dense.num_layers:
        return list(range(dense.num_layers))
    counts = counts_of(config)
    nums = counts.num_of_kinds(shape.num_layers)
    scores = _needed(importance, "depth")
    return layers_to_keep(scores, shape.num_layers, counts.fixed_layers, counts.kind_of_layer, nums)


def _needed(importance: Scores, part: Literal["depth", "width"]) -> Importance:
    if importance.get(part) is None:
        raise InputError(f"importance: the shape needs {part} scores and none are given; compute them first")
    return importance[part]
