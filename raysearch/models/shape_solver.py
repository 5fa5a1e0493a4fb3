"""Shapes of a decoder and the exact sizes that they have; from a ratio or a budget to a shape.

A model's parameters are counted once (`prune.count`); what is here is arithmetic on those counts and needs no torch.
Symbols: T target number of parameters, L layers. Every solver returns the shape whose count is nearest to T (for a
ratio) or the largest one within T (for a budget), to within one unit: one layer, or one step of FFN channels.
"""

from collections.abc import Iterable
from dataclasses import replace

from raysearch.config.budget import Budget, Size
from raysearch.config.quantization import Quantization
from raysearch.config.recipe import Mode, Recipe, check_ratio
from raysearch.errors import InputError
from raysearch.models.shape import ParamCounts, Shape


def shape_for(counts: ParamCounts, recipe: Recipe) -> Shape:
    """The shape that a recipe gives a dense model of `counts`.

    Raises:
        InputError: no model of this family can be that small.
    """
    if recipe.ratio == 0:
        return counts.dense
    return solve(counts, recipe.mode, recipe.ratio, depth_share=recipe.depth_share)


def size_for(counts: ParamCounts, recipe: Recipe) -> Size:
    """The exact size of the whole model that a recipe makes, by counting alone.

    Raises:
        InputError: no model of this family can be that small.
    """
    return counts.size(shape_for(counts, recipe), quantization=recipe.quantization)


def default_multiple(counts: ParamCounts) -> int:
    """Rounding step of FFN channels: 64 from 4096 channels on, which tensor cores want; else 1."""
    return 64 if counts.dense.num_ffn_channels >= 4096 else 1


def smallest_shape(counts: ParamCounts, mode: Mode, multiple: int | None = None) -> Shape:
    """The smallest decoder that `mode` can reach."""
    return _smallest(counts, mode, _step(counts, multiple))


def solve(
    counts: ParamCounts,
    mode: Mode,
    ratio: float,
    depth_share: float | None = None,
    multiple: int | None = None,
) -> Shape:
    """The shape that removes nearest to `ratio` of the decoder's parameters.

    Args:
        counts: of the dense model.
        mode: what may shrink.
        ratio: share of the language model's parameters to remove: embeddings, layers, norm and head
            (arXiv 2604.24380, Table 5).
        depth_share: for mode `both`, the share of the removal done by dropping layers; 0.5 if None.
        multiple: FFN channels come in multiples of this; None chooses `default_multiple`.

    Raises:
        InputError: `ratio` outside [0, 1), or more than can be removed.
    """
    check_ratio(ratio)
    dense = counts.decoder(counts.dense)
    step = _step(counts, multiple)
    target = dense * (1 - ratio) + counts.num_outside
    least = counts.total(_smallest(counts, mode, step))
    unit = counts.layer(counts.dense) if mode == "layerwise" else counts.dense.num_layers * step * counts.per_channel
    if target < least - unit / 2:
        most = 1 - (least - counts.num_outside) / dense
        raise InputError(
            f"ratio {ratio}: {mode} can remove at most {most:.4f} of this decoder's parameters; lower the ratio"
        )
    return _solve(counts, mode, target, depth_share, step, within=False)


def solve_budget(
    counts: ParamCounts,
    mode: Mode,
    budget: Budget,
    depth_share: float | None = None,
    multiple: int | None = None,
    bytes_per_param: int = 2,
    quantization: Quantization = "none",
) -> Shape:
    """The largest shape whose whole model, its decoder quantised, is within `budget`; a share is of the dense model's
    bytes as it is.

    Raises:
        InputError: even the smallest model that `mode` can reach is larger; the message says how large that is.
    """
    dense = counts.size(counts.dense, bytes_per_param)

    def size(shape: Shape) -> Size:
        return counts.size(shape, bytes_per_param, quantization)

    if budget.admits(size(counts.dense), dense):
        return counts.dense
    step = _step(counts, multiple)
    best = _smallest(counts, mode, step)
    smallest = size(best)
    if not budget.admits(smallest, dense):
        raise InputError(
            f"budget {budget.text}: below the smallest model that {mode} can reach, {smallest.num_params} "
            f"parameters in {smallest.size_bytes} bytes ({smallest.size_bytes / dense.size_bytes:.1%}); raise it"
        )
    low, high = float(smallest.num_params), float(dense.num_params)
    while high - low > 0.5:
        middle = (low + high) / 2
        shape = _solve(counts, mode, middle, depth_share, step, within=True)
        if budget.admits(size(shape), dense):
            best, low = shape, middle
        else:
            high = middle
    return best


def _step(counts: ParamCounts, multiple: int | None) -> int:
    step = default_multiple(counts) if multiple is None else multiple
    if not 1 <= step <= counts.dense.num_ffn_channels:
        raise InputError(f"multiple {step}: outside 1 to {counts.dense.num_ffn_channels}, this decoder's FFN channels")
    return step


def _smallest(counts: ParamCounts, mode: Mode, step: int) -> Shape:
    dense, least = counts.dense, counts.smallest
    if mode == "layerwise":
        return Shape(least.num_layers, dense.num_kv_heads, dense.num_heads, dense.num_ffn_channels)
    num_layers = dense.num_layers if mode == "widthwise" else least.num_layers
    return Shape(num_layers, least.num_kv_heads, least.num_heads, step)


def _solve(counts: ParamCounts, mode: Mode, target: float, depth_share: float | None, step: int, within: bool) -> Shape:
    if mode == "layerwise":
        return _drop_layers(counts, target, within)
    if mode == "widthwise":
        return _narrow(counts, counts.dense.num_layers, target, step, within)
    dense = counts.total(counts.dense)
    share = 0.5 if depth_share is None else depth_share
    num_layers = _drop_layers(counts, dense - share * (dense - target), within=False).num_layers
    narrowest = _smallest(counts, "widthwise", step)
    while num_layers > counts.smallest.num_layers:
        least = Shape(num_layers, narrowest.num_kv_heads, narrowest.num_heads, narrowest.num_ffn_channels)
        if counts.total(least) <= target:
            break
        num_layers -= 1
    return _narrow(counts, num_layers, target, step, within)


def _drop_layers(counts: ParamCounts, target: float, within: bool) -> Shape:
    dense = counts.dense
    candidates = (
        Shape(n, dense.num_kv_heads, dense.num_heads, dense.num_ffn_channels)
        for n in range(counts.smallest.num_layers, dense.num_layers + 1)
    )
    return _nearest(counts, candidates, target, within)


def _narrow(counts: ParamCounts, num_layers: int, target: float, step: int, within: bool) -> Shape:
    """Heads shrink by the same share as FFN channels, as near as whole heads allow; channels take the rest."""
    dense = counts.dense
    fixed = counts.total(Shape(num_layers, 0, 0, 0))
    prunable = num_layers * (counts.layer(dense) - counts.per_layer)
    share = min(max((target - fixed) / prunable, 0.0), 1.0)
    wanted = share * counts.attention((dense.num_kv_heads, dense.num_heads))
    choices = sorted(counts.attention_choices, key=lambda pair: (abs(counts.attention(pair) - wanted), pair))
    unit = num_layers * step * counts.per_channel
    best: Shape | None = None
    for kv_heads, heads in choices:
        shape = _fill_with_channels(counts, Shape(num_layers, kv_heads, heads, 0), target, step, within)
        if within and counts.total(shape) > target:
            continue
        if _error(counts, shape, target) <= unit:
            return shape
        if best is None or _error(counts, shape, target) < _error(counts, best, target):
            best = shape
    return best or _smallest(counts, "widthwise", step)


def _fill_with_channels(counts: ParamCounts, shape: Shape, target: float, step: int, within: bool) -> Shape:
    """`shape` with the number of channels, a multiple of `step` or all of them, that comes nearest to `target`."""
    most = counts.dense.num_ffn_channels
    wanted = (target - counts.total(shape)) / (shape.num_layers * counts.per_channel)
    below = min(max(int(wanted // step) * step, step), most // step * step)
    sizes = {below, min(below + step, most), most if wanted >= most else below}
    return _nearest(counts, [replace(shape, num_ffn_channels=num) for num in sorted(sizes)], target, within)


def _nearest(counts: ParamCounts, candidates: Iterable[Shape], target: float, within: bool) -> Shape:
    shapes = list(candidates)
    fitting = [shape for shape in shapes if not within or counts.total(shape) <= target]
    return min(fitting or shapes[:1], key=lambda shape: _error(counts, shape, target))


def _error(counts: ParamCounts, shape: Shape, target: float) -> float:
    return abs(counts.total(shape) - target)
