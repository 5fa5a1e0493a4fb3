"""Choose the layers and units to keep by their scores, then build the smaller model."""

from transformers import PretrainedConfig, PreTrainedModel

from raysearch.models import decoder_layout
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import UNITS, Part, Shape
from raysearch.pruning.select_layers import layers_to_keep
from raysearch.pruning.select_units import Scores, bias_shifts, needed, units_to_keep
from raysearch.pruning.slicing import slice_model


def prune(model: PreTrainedModel, shape: Shape, importance: Scores, share: bool = False) -> PreTrainedModel:
    """A new, smaller model of a stock class.

    Args:
        model: the dense model; not changed.
        shape: of the pruned decoder; see `models.shape_solver`.
        importance: scores by what they are for (`models.shape.Part`), as far as `shape` needs them. Where the
            architecture has output biases and the scores have mean inputs (`fluctuation`), the biases compensate for
            what is removed.
        share: whether tensors of which nothing is removed are the dense model's own, not copies; see `slice_model`.

    Returns:
        The pruned model, on the same device, with the same dtype, in eval mode.

    Raises:
        InputError: scores are missing, or no stock class holds the shape.
    """
    dense = shape_of(model.config)
    layers, layouts, shape = kept_layers(model.config, shape, importance), decoder_layout(model), shape.filled(dense)
    units = {i: units_to_keep(importance, layouts[i], shape, i) for i in layers}
    narrowed = "width" in removed_parts(shape, dense)
    shifts = bias_shifts(model, layouts, needed(importance, "width"), units) if narrowed else {}
    return slice_model(model, layers, units, shifts, share)


def removed_parts(shape: Shape, dense: Shape) -> set[Part]:
    """What a shape removes, by the names that scores go by."""
    shape = shape.filled(dense)
    depth: set[Part] = {"depth"} if shape.num_layers != dense.num_layers else set()
    return depth | {unit.scored_for for unit in UNITS if getattr(shape, unit.extent) != getattr(dense, unit.extent)}


def kept_layers(config: PretrainedConfig, shape: Shape, importance: Scores) -> list[int]:
    """The dense layers that `prune` keeps, increasing."""
    dense = shape_of(config)
    if shape.num_layers == dense.num_layers:
        return list(range(dense.num_layers))
    counts = counts_of(config)
    nums = counts.num_of_kinds(shape.num_layers)
    scores = needed(importance, "depth")
    return layers_to_keep(scores, shape.num_layers, counts.fixed_layers, counts.kind_of_layer, nums)
