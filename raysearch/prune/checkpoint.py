"""Prune a checkpoint from folder to folder: what `raysearch prune` does."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from raysearch import export, families
from raysearch.errors import InputError
from raysearch.importance import Importance, importance, needs_data
from raysearch.prune.cut import kept_layers, prune
from raysearch.prune.shape import Shape, shape_of, size_of, solve, solve_budget
from raysearch.recipe import Mode, Recipe
from raysearch.size import Budget

DATA_CRITERIA = ("block_influence", "taylor")
"""Used for layers and widths when a person names no criterion and gives calibration data."""
BLIND_CRITERIA = ("deepest", "magnitude")
"""The same without data."""


def prune_checkpoint(
    model: str | Path,
    *,
    mode: Mode,
    to: str | Path,
    ratio: float | None = None,
    budget: str | Budget | None = None,
    criterion: str | None = None,
    calibration: str | Path | None = None,
    image_folder: str | Path | None = None,
    depth_share: float | None = None,
    multiple: int | None = None,
    num_samples: int = 64,
    batch_size: int = 4,
    max_length: int = 2048,
    tokens: str | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Load, score, cut, and write a folder that transformers alone can load.

    Args:
        model: a folder, a hub id, or `pocket`.
        mode: layerwise, widthwise or both.
        to: the folder to write; nothing is written unless everything worked.
        ratio: share of the decoder's parameters to remove; this or `budget`.
        budget: largest size of the whole model, e.g. `60%`, `3.2GB`, `3B`.
        criterion: a layer or a width criterion, LAYER+WIDTH for mode both. None chooses block_influence and taylor
            with calibration data, deepest and magnitude without.
        calibration: data to score on, see `data.load_samples`; not read by criteria that need none.
        image_folder: where its image paths begin, if not beside it.
        depth_share: for mode both, the share of the removal done by dropping layers.
        multiple: FFN channels come in multiples of this.
        num_samples, batch_size, max_length: samples to score on, per batch, and their longest length in tokens.
        tokens: which tokens count, see `importance`.
        dtype: of the weights in memory and on disk; None keeps the file's.
        seed: which samples are taken, and the choice of `random`.
        trust_remote_code: run code that comes with the checkpoint.

    Returns:
        What was done: shapes, sizes, the layers kept, the criterion and seconds, all plain values.

    Raises:
        InputError: wrong use, an unreadable model or data, or a size that can't be reached.
    """
    if (ratio is None) == (budget is None):
        raise InputError(
            "prune: needs one of ratio and budget; give the share to remove, or the size to reach"
        )
    criterion = criterion or _default_criterion(mode, calibration is not None)
    recipe = _recipe(mode, ratio or 0.0, criterion, depth_share, seed)
    if needs_data(criterion) and calibration is None:
        raise InputError(
            f"criterion {criterion}: needs calibration data; give --calibration, or choose magnitude or deepest"
        )
    export.check_target(Path(to))
    config = families.load_config(model, trust_remote_code)
    if ratio is not None:
        solve(config, mode, ratio, depth_share, multiple)  # refuses before anything heavy is loaded

    started = time.perf_counter()
    dense, processor = families.load(model, dtype, trust_remote_code)
    shape = _solved(dense, mode, ratio, budget, depth_share, multiple)
    loaded = time.perf_counter()
    batches = Calibration(
        dense, processor, calibration, image_folder, num_samples, batch_size, max_length, seed
    )
    scores = _scores(dense, recipe, batches, seed, tokens)
    scored = time.perf_counter()
    pruned = prune(dense, shape, scores)
    cut = time.perf_counter()

    summary = _summary(dense, shape, recipe, str(model), kept_layers(dense.config, shape, scores))
    summary["seconds"] = {
        "load": round(loaded - started, 3),
        "score": round(scored - loaded, 3),
        "cut": round(cut - scored, 3),
    }
    recipe = _recipe(mode, summary["ratio"], criterion, depth_share, seed)
    card = {"title": f"{Path(model).name}, pruned", "base_model": str(model), **_card(summary)}
    export.save(pruned, processor, to, recipe=recipe, scores={"pruning": summary}, card=card)
    return {**summary, "to": str(to)}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Batches for a criterion, encoded anew on every pass; an LVLM is calibrated on rows with images alone."""

    model: PreTrainedModel
    processor: Any
    data: str | Path | None
    image_folder: str | Path | None
    num_samples: int
    batch_size: int
    max_length: int
    seed: int

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from raysearch.data.encoding import Encoder
        from raysearch.data.reading import BadRow, fraction_order, load_samples

        assert self.data is not None
        samples = load_samples(self.data, self.image_folder)
        family = families.family_for(self.model)
        encoder = Encoder(self.processor, family, self.max_length)
        rows, taken = [], 0
        for index in fraction_order(len(samples), self.seed):
            if family.is_multimodal and not samples[int(index)].images:
                continue
            try:
                rows.append(encoder.encode(samples[int(index)]))
            except BadRow:
                continue
            taken += 1
            if len(rows) == self.batch_size or taken == self.num_samples:
                yield encoder.collate(rows)
                rows = []
            if taken == self.num_samples:
                return
        if rows:
            yield encoder.collate(rows)


def _default_criterion(mode: Mode, has_data: bool) -> str:
    layer, width = DATA_CRITERIA if has_data else BLIND_CRITERIA
    return {"layerwise": layer, "widthwise": width}.get(mode, f"{layer}+{width}")


def _recipe(mode: Mode, ratio: float, criterion: str, depth_share: float | None, seed: int) -> Recipe:
    if not 0 <= ratio < 1:
        raise InputError(
            f"ratio {ratio}: outside [0, 1); give the share of the decoder's parameters to remove"
        )
    fields: dict[str, Any] = {"mode": mode, "ratio": ratio, "criterion": criterion, "seed": seed}
    if mode == "both" and depth_share is not None:
        fields["depth_share"] = depth_share
    try:
        return Recipe(**fields, trained="nothing")
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _solved(
    dense: PreTrainedModel,
    mode: Mode,
    ratio: float | None,
    budget: str | Budget | None,
    depth_share: float | None,
    multiple: int | None,
) -> Shape:
    if ratio is not None:
        return solve(dense.config, mode, ratio, depth_share, multiple)
    assert budget is not None
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    return solve_budget(dense.config, mode, parsed, depth_share, multiple, dense.dtype)


def _scores(
    dense: PreTrainedModel, recipe: Recipe, batches: Iterable, seed: int, tokens: str | None
) -> dict[Any, Importance]:
    parts = zip(("depth", "width"), recipe.criteria, strict=True)
    return {
        part: importance(dense, batches if needs_data(name) else None, name, seed, tokens)
        for part, name in parts
        if name is not None
    }


def _summary(
    dense: PreTrainedModel, shape: Shape, recipe: Recipe, model: str, layers: list[int]
) -> dict[str, Any]:
    before, after = size_of(dense.config, None, dense.dtype), size_of(dense.config, shape, dense.dtype)
    return {
        "model": model,
        "mode": recipe.mode,
        "criterion": recipe.criterion,
        "ratio": removed_share(dense.config, shape),
        "num_params": after.num_params,
        "size_bytes": after.size_bytes,
        "size_ratio": after.size_bytes / before.size_bytes,
        "dense_num_params": before.num_params,
        "dense_size_bytes": before.size_bytes,
        "shape": dataclasses.asdict(shape),
        "dense_shape": dataclasses.asdict(shape_of(dense.config)),
        "layers_kept": layers,
    }


def removed_share(config: PretrainedConfig, shape: Shape) -> float:
    """Share of the decoder's parameters that `shape` removes: the exact value of a recipe's ratio."""
    from raysearch.prune.count import counts_of

    counts = counts_of(config)
    return 1 - counts.decoder(shape) / counts.decoder(counts.dense)


def _card(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "parameters": f"{summary['num_params']:,} of {summary['dense_num_params']:,}",
        "bytes": f"{summary['size_bytes']:,} of {summary['dense_size_bytes']:,}",
        "decoder parameters removed": f"{summary['ratio']:.2%}",
        "layers kept": ", ".join(map(str, summary["layers_kept"])),
    }
