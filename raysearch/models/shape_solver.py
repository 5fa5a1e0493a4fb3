"""From a recipe, a ratio or a budget to the shape of a pruned decoder, by arithmetic on parameter counts, no torch.

Every function returns the shape whose parameter count is nearest to the target (for a ratio) or the largest one within
it (for a budget), to within one unit: one layer, or one step of FFN channels.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

from raysearch.config.budget import Budget, Size
from raysearch.config.quantization import Quantization
from raysearch.config.recipe import Mode, Recipe, check_ratio
from raysearch.errors import InputError
from raysearch.models.shape import UNITS, ParamCounts, Shape


def shape_for(counts: ParamCounts, recipe: Recipe) -> Shape:
    """The shape that a recipe gives a dense model of `counts`; see `shape_for_ratio`."""
    split = recipe.depth_share, None, recipe.attention_share, recipe.expert_ratio, recipe.hidden_ratio
    return shape_for_ratio(counts, recipe.mode, recipe.ratio, *split)


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
    expert_ratio: float | None = None,
    hidden_ratio: float | None = None,
) -> Shape:
    """The shape that removes nearest to `ratio` of the decoder's parameters; for 0 the dense one, if rules admit it.

    Args:
        counts: of the dense model.
        mode: what may shrink.
        ratio: share of the language model's parameters to remove: embeddings, layers, norm and head
            (arXiv 2604.24380, Table 5).
        depth_share: for mode `both`, the share of the removal done by dropping layers; 0.5 if None.
        multiple: FFN channels come in multiples of this; None chooses `ParamCounts.channels_step`.
        attention_share: share of the heads' parameters to remove, as a multiple of the FFN's: 0 keeps all heads as long
            as the FFN suffices, 1 (None) removes the same share of both.
        expert_ratio: share of the experts to remove first, as part of `ratio`.
        hidden_ratio: share of the hidden channels to remove first, as part of `ratio`; as near as
            `ParamCounts.hidden_step` allows.

    Raises:
        InputError: `ratio` outside [0, 1), or no shape removes about so much; the message has the nearest.
    """
    check_ratio(ratio)
    base, step = _base(counts, mode, expert_ratio, hidden_ratio), _step(counts, multiple)
    target = counts.decoder(counts.dense) * (1 - ratio) + counts.num_outside(base)
    least = smallest_shape(counts, mode, step, base)
    unit = counts.layer(base) if mode == "layerwise" else step * counts.channels(base)
    if target < counts.total(least) - unit / 2:
        most = counts.removed_share(least)
        raise InputError(
            f"ratio {ratio}: {mode} can remove at most {most:.4f} of this decoder's parameters; lower the ratio"
        )
    shape = _shape_near(counts, mode, target, depth_share, attention_share, step, base, within=False)
    if (counts.rules or expert_ratio or hidden_ratio) and _error(counts, shape, target) > (
        unit / 2 if shape == base else unit or _largest_gap(counts, base)
    ):
        first = {"shapes": counts.rules, "expert_ratio": expert_ratio, "hidden_ratio": hidden_ratio}
        limits = [f"{name} {value}" for name, value in first.items() if value]
        raise InputError(
            f"ratio {ratio}: with {' and '.join(limits)} no model removes about so much; the nearest removes "
            f"{counts.removed_share(shape):.4f} of this decoder's parameters"
        )
    return shape


def shape_for_budget(
    counts: ParamCounts,
    mode: Mode,
    budget: Budget,
    depth_share: float | None = None,
    multiple: int | None = None,
    bytes_per_param: int = 2,
    quantization: Quantization = "none",
    attention_share: float | None = None,
    expert_ratio: float | None = None,
    hidden_ratio: float | None = None,
) -> Shape:
    """The largest shape whose whole model, its decoder quantised, is within `budget`; a share is of the bytes of the
    dense, unquantised model. Arguments as in `shape_for_ratio` and `ParamCounts.size`.

    Raises:
        InputError: even the smallest model that `mode` can reach is larger; the message says how large that is.
    """
    dense = counts.size(counts.dense, bytes_per_param)

    def size(shape: Shape) -> Size:
        return counts.size(shape, bytes_per_param, quantization)

    base, step = _base(counts, mode, expert_ratio, hidden_ratio), _step(counts, multiple)
    if budget.admits(size(base), dense):
        return base
    best = smallest_shape(counts, mode, step, base)
    smallest = size(best)
    if not budget.admits(smallest, dense):
        raise InputError(
            f"budget {budget.text}: below the smallest model that {mode} can reach, {smallest.num_params} "
            f"parameters in {budget.costs_text(smallest, dense)}; raise it"
        )
    low, high = float(smallest.num_params), float(counts.total(base))
    while high - low > 0.5:
        middle = (low + high) / 2
        shape = _shape_near(counts, mode, middle, depth_share, attention_share, step, base, within=True)
        if budget.admits(size(shape), dense):
            best, low = shape, middle
        else:
            high = middle
    return best


def exact_shape(counts: ParamCounts, kept: Mapping[str, int]) -> Shape:
    """The dense shape but for the extents that are given, by the names of `Shape`.

    Raises:
        InputError: more than the dense model has, less than 1, or what the stock class or the rules can't hold.
    """
    dense, shape = counts.dense, replace(counts.dense, **kept)
    for name, num in kept.items():
        least = {"num_layers": counts.smallest.num_layers, "num_experts": counts.least_experts}.get(name, 1)
        if not least <= num <= getattr(dense, name):
            raise InputError(f"{name} {num}: outside {least} to {getattr(dense, name)}, what this decoder has")
    step = counts.channels_multiple
    if shape.num_ffn_channels % step and shape.num_ffn_channels != counts.most_channels:
        raise InputError(f"num_ffn_channels {shape.num_ffn_channels}: must be a multiple of {step}")
    if shape.hidden_size != dense.hidden_size and shape.hidden_size % counts.hidden_step:
        fixed = counts.hidden_step == dense.hidden_size
        must = _HIDDEN_STAYS if fixed else f"must be a multiple of {counts.hidden_step}"
        raise InputError(f"hidden_size {shape.hidden_size}: {must}")
    if (shape.num_kv_heads, shape.num_heads) not in counts.attention_choices:
        pairs = ", ".join(f"{kv} and {heads}" for kv, heads in counts.attention_choices[:12])
        within = f" within shapes {counts.rules}" * bool(counts.rules)
        raise InputError(
            f"num_kv_heads {shape.num_kv_heads} and num_heads {shape.num_heads}: the stock class can't hold "
            f"these{within}; choose {pairs}"
        )
    return shape


def smallest_shape(counts: ParamCounts, mode: Mode, multiple: int | None = None, base: Shape | None = None) -> Shape:
    """The smallest decoder that `mode` can reach from `base`, the largest one.

    Raises:
        InputError: rules forbid the widths of the dense model, which `mode` keeps.
    """
    least, step = counts.smallest, _step(counts, multiple)
    base = _base(counts, mode, None, None) if base is None else base
    if mode == "layerwise":
        return replace(base, num_layers=least.num_layers)
    widths = replace(
        base,
        num_kv_heads=least.num_kv_heads,
        num_heads=least.num_heads,
        num_ffn_channels=max(step, least.num_ffn_channels),
    )
    return replace(widths, num_layers=base.num_layers if mode == "widthwise" else least.num_layers)


_HIDDEN_STAYS = "this decoder's hidden size can't be pruned; leave it out"


def _base(counts: ParamCounts, mode: Mode, expert_ratio: float | None, hidden_ratio: float | None) -> Shape:
    """The largest shape within the rules, with the experts and hidden channels that stay."""
    base, dense = counts.largest, counts.dense
    if mode == "layerwise" and base != dense:
        kept = ", ".join(
            f"{num} {unit.noun}"
            for unit, num, most in zip(UNITS, dense.widths, base.widths, strict=True)
            if num != most
        )
        raise InputError(f"shapes: layerwise keeps {kept}, which they forbid; choose mode widthwise or both")
    if hidden_ratio:
        step = counts.hidden_step
        if step == dense.hidden_size:
            raise InputError(f"hidden_ratio {hidden_ratio:g}: {_HIDDEN_STAYS}")
        kept_channels = max(1, round((1 - hidden_ratio) * dense.hidden_size / step)) * step
        base = replace(base, hidden_size=min(kept_channels, dense.hidden_size))
    if not expert_ratio:
        return base
    if counts.least_experts == dense.num_experts:
        raise InputError(
            f"expert_ratio {expert_ratio:g}: this decoder has no experts that can be dropped; leave it out"
        )
    kept_experts = round((1 - expert_ratio) * dense.num_experts)
    if kept_experts < counts.least_experts:
        most = 1 - counts.least_experts / dense.num_experts
        raise InputError(
            f"expert_ratio {expert_ratio:g}: leaves {kept_experts} of {dense.num_experts} experts, fewer than a token "
            f"goes through; at most {most:.4g}"
        )
    return replace(base, num_experts=kept_experts)


def _step(counts: ParamCounts, multiple: int | None) -> int:
    step = counts.channels_step if multiple is None else math.lcm(multiple, counts.channels_multiple)
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
    base: Shape,
    within: bool,
) -> Shape:
    """The shape, of those no larger than `base`, whose whole model has nearest to `target` parameters, or at most so
    many if `within`."""
    if mode == "layerwise":
        return _drop_layers(counts, base, target, within)
    if mode == "widthwise":
        return _narrow(counts, base, target, attention_share, step, within)
    dense = counts.total(base)
    share = 0.5 if depth_share is None else depth_share
    num_layers = _drop_layers(counts, base, dense - share * (dense - target), within=False).num_layers
    narrowest = smallest_shape(counts, "widthwise", step, base)
    while num_layers > counts.smallest.num_layers and counts.total(replace(narrowest, num_layers=num_layers)) > target:
        num_layers -= 1
    return _narrow(counts, replace(base, num_layers=num_layers), target, attention_share, step, within)


def _drop_layers(counts: ParamCounts, base: Shape, target: float, within: bool) -> Shape:
    nums = range(counts.smallest.num_layers, counts.dense.num_layers + 1)
    return _nearest(counts, [replace(base, num_layers=num) for num in nums], target, within)


def _narrow(
    counts: ParamCounts, base: Shape, target: float, attention_share: float | None, step: int, within: bool
) -> Shape:
    """As many heads as `attention_share` asks for, as near as whole heads allow; FFN channels take the rest."""
    fixed = counts.total(replace(base, num_kv_heads=0, num_heads=0, num_ffn_channels=0))
    prunable = counts.total(base) - fixed
    share = min(max((target - fixed) / prunable, 0.0), 1.0) if prunable else 1.0
    attention = {pair: counts.attention(pair, base.hidden_size) for pair in counts.attention_choices}
    wanted = _attention_left(counts, base, share, 1.0 if attention_share is None else attention_share, step)
    choices = sorted(attention, key=lambda pair: (abs(attention[pair] - wanted), pair))
    unit = step * counts.channels(base)
    best: Shape | None = None
    for kv_heads, heads in choices:
        narrowed = replace(base, num_kv_heads=kv_heads, num_heads=heads, num_ffn_channels=0)
        shape = _fill_with_channels(counts, narrowed, target, step, within)
        if within and counts.total(shape) > target:
            continue
        if _error(counts, shape, target) <= unit:
            return shape
        if best is None or _error(counts, shape, target) < _error(counts, best, target):
            best = shape
    return best or smallest_shape(counts, "widthwise", step, base)


def _attention_left(counts: ParamCounts, base: Shape, share: float, attention_share: float, step: int) -> float:
    """Parameters of all heads that stay where `share` of the prunable parameters stays.

    With A and F the heads' and channels' parameters of `base` with all layers and a the attention share, channels lose
    the share r = (1 - share)(A + F) / (aA + F), at most all but one step, and heads what is left to remove.
    """
    whole = replace(base, num_layers=counts.dense.num_layers)
    heads = counts.attention((base.num_kv_heads, base.num_heads), base.hidden_size)
    if attention_share == 1:
        return share * heads
    one = counts.channels(whole)
    channels = base.num_ffn_channels * one
    removed = (1 - share) * (heads + channels)
    from_channels = min(removed * channels / (attention_share * heads + channels), channels - step * one)
    return heads + from_channels - removed


def _fill_with_channels(counts: ParamCounts, shape: Shape, target: float, step: int, within: bool) -> Shape:
    """`shape` with the number of channels, a multiple of `step` or all of them, nearest to `target`."""
    most, one = counts.most_channels, counts.channels(shape)
    if not one:
        return replace(shape, num_ffn_channels=most)
    wanted = (target - counts.total(shape)) / one
    below = min(max(int(wanted // step) * step, step), most // step * step)
    sizes = {below, min(below + step, most), most if wanted >= most else below}
    return _nearest(counts, [replace(shape, num_ffn_channels=num) for num in sorted(sizes)], target, within)


def _largest_gap(counts: ParamCounts, base: Shape) -> int:
    """Between two sizes that differ in the heads alone."""
    pairs = [replace(base, num_kv_heads=kv, num_heads=heads) for kv, heads in counts.attention_choices]
    sizes = sorted(map(counts.total, pairs))
    return max((more - less for less, more in itertools.pairwise(sizes)), default=0)


def _nearest(counts: ParamCounts, shapes: list[Shape], target: float, within: bool) -> Shape:
    fitting = [shape for shape in shapes if not within or counts.total(shape) <= target]
    return min(fitting or shapes[:1], key=lambda shape: _error(counts, shape, target))


def _error(counts: ParamCounts, shape: Shape, target: float) -> float:
    return abs(counts.total(shape) - target)
