"""From a recipe, a ratio or a budget to the shape of a pruned decoder, by arithmetic on parameter counts, no torch.

Every function returns the shape whose parameter count is nearest to the target (for a ratio) or the largest one within
it (for a budget), to within one unit: one layer, or one step of FFN channels.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from raysearch.config.budget import Budget, Size
from raysearch.config.quantization import Quantization
from raysearch.config.recipe import Mode, Recipe, check_ratio
from raysearch.errors import InputError
from raysearch.models.shape import ParamCounts, Shape


def shape_for(counts: ParamCounts, recipe: Recipe) -> Shape:
    """The shape that a recipe gives a dense model of `counts`; see `shape_for_ratio`."""
    return shape_for_ratio(
        counts, recipe.mode, recipe.ratio, recipe.depth_share, attention_share=recipe.attention_share
    )


def size_for(counts: ParamCounts, recipe: Recipe) -> Size | None:
    """The exact size of a recipe's model; None if the family has no such shape."""
    try:
        return counts.size(shape_for(counts, recipe), quantization=recipe.quantization)
    except InputError:
        return None


def shape_for_ratio(
    counts: ParamCounts,
    mode: Mode,
    ratio: float,
    depth_share: float | None = None,
    multiple: int | None = None,
    attention_share: float | None = None,
) -> Shape:
    """The shape that removes nearest to `ratio` of the decoder's parameters; the dense shape for 0.

    Args:
        counts: of the dense model.
        mode: what may shrink.
        ratio: share of the language model's parameters to remove: embeddings, layers, norm and head
            (arXiv 2604.24380, Table 5).
        depth_share: for mode `both`, the share of the removal done by dropping layers; 0.5 if None.
        multiple: FFN channels come in multiples of this; None chooses `default_multiple`.
        attention_share: share of the heads' parameters to remove, as a multiple of the FFN's: 0 keeps all heads as long
            as the FFN suffices, 1 (None) removes the same share of both.

    Raises:
        InputError: `ratio` outside [0, 1), or more than can be removed.
    """
    check_ratio(ratio)
    dense = counts.decoder(counts.dense)
    step = _step(counts, multiple)
    target = dense * (1 - ratio) + counts.num_outside
    least = counts.total(smallest_shape(counts, mode, step))
    unit = counts.layer(counts.dense) if mode == "layerwise" else step * counts.channels(counts.dense.num_layers)
    if target < least - unit / 2:
        most = 1 - (least - counts.num_outside) / dense
        raise InputError(
            f"ratio {ratio}: {mode} can remove at most {most:.4f} of this decoder's parameters; lower the ratio"
        )
    return _shape_near(counts, mode, target, depth_share, attention_share, step, within=False)


def shape_for_budget(
    counts: ParamCounts,
    mode: Mode,
    budget: Budget,
    depth_share: float | None = None,
    multiple: int | None = None,
    bytes_per_param: int = 2,
    quantization: Quantization = "none",
    attention_share: float | None = None,
) -> Shape:
    """The largest shape whose whole model, its decoder quantised, is within `budget`; a share is of the bytes of the
    dense, unquantised model. Arguments as in `shape_for_ratio` and `ParamCounts.size`.

    Raises:
        InputError: even the smallest model that `mode` can reach is larger; the message says how large that is.
    """
    dense = counts.size(counts.dense, bytes_per_param)

    def size(shape: Shape) -> Size:
        return counts.size(shape, bytes_per_param, quantization)

    if budget.admits(size(counts.dense), dense):
        return counts.dense
    step = _step(counts, multiple)
    best = smallest_shape(counts, mode, step)
    smallest = size(best)
    if not budget.admits(smallest, dense):
        raise InputError(
            f"budget {budget.text}: below the smallest model that {mode} can reach, {smallest.num_params} "
            f"parameters in {budget.costs_text(smallest, dense)}; raise it"
        )
    low, high = float(smallest.num_params), float(dense.num_params)
    while high - low > 0.5:
        middle = (low + high) / 2
        shape = _shape_near(counts, mode, middle, depth_share, attention_share, step, within=True)
        if budget.admits(size(shape), dense):
            best, low = shape, middle
        else:
            high = middle
    return best


def exact_shape(counts: ParamCounts, kept: Mapping[str, int]) -> Shape:
    """The dense shape but for the extents that are given, by the names of `Shape`.

    Raises:
        InputError: more than the dense model has, less than 1, or heads that the stock class can't hold.
    """
    dense, shape = counts.dense, replace(counts.dense, **kept)
    for name, num in kept.items():
        least = counts.smallest.num_layers if name == "num_layers" else 1
        if not least <= num <= getattr(dense, name):
            raise InputError(f"{name} {num}: outside {least} to {getattr(dense, name)}, what this decoder has")
    if shape.num_ffn_channels % counts.channels_multiple and shape.num_ffn_channels != dense.num_ffn_channels:
        raise InputError(
            f"num_ffn_channels {shape.num_ffn_channels}: the class needs a multiple of {counts.channels_multiple}"
        )
    if (shape.num_kv_heads, shape.num_heads) not in counts.attention_choices:
        pairs = ", ".join(f"{kv} and {heads}" for kv, heads in counts.attention_choices[:12])
        raise InputError(
            f"num_kv_heads {shape.num_kv_heads} and num_heads {shape.num_heads}: the stock class can't hold these; "
            f"choose {pairs}"
        )
    return shape


def smallest_shape(counts: ParamCounts, mode: Mode, multiple: int | None = None) -> Shape:
    """The smallest decoder that `mode` can reach."""
    dense, least, step = counts.dense, counts.smallest, _step(counts, multiple)
    if mode == "layerwise":
        return replace(dense, num_layers=least.num_layers)
    num_layers = dense.num_layers if mode == "widthwise" else least.num_layers
    return Shape(num_layers, least.num_kv_heads, least.num_heads, max(step, least.num_ffn_channels))


def default_multiple(counts: ParamCounts) -> int:
    """Rounding step of FFN channels: 64 from 4096 channels on, for tensor cores; else what the class demands."""
    return 64 if counts.dense.num_ffn_channels >= 4096 else counts.channels_multiple


def _step(counts: ParamCounts, multiple: int | None) -> int:
    step = default_multiple(counts) if multiple is None else math.lcm(multiple, counts.channels_multiple)
    if not 1 <= step <= counts.dense.num_ffn_channels:
        raise InputError(f"multiple {step}: outside 1 to {counts.dense.num_ffn_channels}, this decoder's FFN channels")
    return step


def _shape_near(
    counts: ParamCounts,
    mode: Mode,
    target: float,
    depth_share: float | None,
    attention_share: float | None,
    step: int,
    within: bool,
) -> Shape:
    """The shape whose whole model has nearest to `target` parameters, or at most so many if `within`."""
    if mode == "layerwise":
        return _drop_layers(counts, target, within)
    if mode == "widthwise":
        return _narrow(counts, counts.dense.num_layers, target, attention_share, step, within)
    dense = counts.total(counts.dense)
    share = 0.5 if depth_share is None else depth_share
    num_layers = _drop_layers(counts, dense - share * (dense - target), within=False).num_layers
    narrowest = smallest_shape(counts, "widthwise", step)
    while num_layers > counts.smallest.num_layers and counts.total(replace(narrowest, num_layers=num_layers)) > target:
        num_layers -= 1
    return _narrow(counts, num_layers, target, attention_share, step, within)


def _drop_layers(counts: ParamCounts, target: float, within: bool) -> Shape:
    nums = range(counts.smallest.num_layers, counts.dense.num_layers + 1)
    return _nearest(counts, [replace(counts.dense, num_layers=num) for num in nums], target, within)


def _narrow(
    counts: ParamCounts, num_layers: int, target: float, attention_share: float | None, step: int, within: bool
) -> Shape:
    """As many heads as `attention_share` asks for, as near as whole heads allow; FFN channels take the rest."""
    dense = counts.dense
    fixed = counts.total(Shape(num_layers, 0, 0, 0))
    prunable = counts.total(replace(dense, num_layers=num_layers)) - fixed
    share = min(max((target - fixed) / prunable, 0.0), 1.0) if prunable else 1.0
    wanted = _attention_left(counts, share, 1.0 if attention_share is None else attention_share, step)
    choices = sorted(counts.attention_choices, key=lambda pair: (abs(counts.attention(pair) - wanted), pair))
    unit = step * counts.channels(num_layers)
    best: Shape | None = None
    for kv_heads, heads in choices:
        shape = _fill_with_channels(counts, Shape(num_layers, kv_heads, heads, 0), target, step, within)
        if within and counts.total(shape) > target:
            continue
        if _error(counts, shape, target) <= unit:
            return shape
        if best is None or _error(counts, shape, target) < _error(counts, best, target):
            best = shape
    return best or smallest_shape(counts, "widthwise", step)


def _attention_left(counts: ParamCounts, share: float, attention_share: float, step: int) -> float:
    """Parameters of all heads that stay where `share` of the prunable parameters stays.

    With A and F the dense heads' and channels' parameters and a the attention share, channels lose the share
    r = (1 - share)(A + F) / (aA + F), at most all but one step, and heads what is left to remove.
    """
    heads = counts.attention((counts.dense.num_kv_heads, counts.dense.num_heads))
    if attention_share == 1:
        return share * heads
    one = counts.channels(counts.dense.num_layers)
    channels = counts.dense.num_ffn_channels * one
    removed = (1 - share) * (heads + channels)
    from_channels = min(removed * channels / (attention_share * heads + channels), channels - step * one)
    return heads + from_channels - removed


def _fill_with_channels(counts: ParamCounts, shape: Shape, target: float, step: int, within: bool) -> Shape:
    """`shape` with the number of channels, a multiple of `step` or all of them, nearest to `target`."""
    most, one = counts.dense.num_ffn_channels, counts.channels(shape.num_layers)
    if not one:
        return replace(shape, num_ffn_channels=most)
    wanted = (target - counts.total(shape)) / one
    below = min(max(int(wanted // step) * step, step), most // step * step)
    sizes = {below, min(below + step, most), most if wanted >= most else below}
    return _nearest(counts, [replace(shape, num_ffn_channels=num) for num in sorted(sizes)], target, within)


def _nearest(counts: ParamCounts, shapes: list[Shape], target: float, within: bool) -> Shape:
    fitting = [shape for shape in shapes if not within or counts.total(shape) <= target]
    return min(fitting or shapes[:1], key=lambda shape: _error(counts, shape, target))


def _error(counts: ParamCounts, shape: Shape, target: float) -> float:
    return abs(counts.total(shape) - target)
