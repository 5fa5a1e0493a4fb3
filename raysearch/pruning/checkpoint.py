"""Prune a checkpoint from folder to folder without a search, for `raysearch prune`."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from raysearch import models
from raysearch.config.budget import Budget
from raysearch.config.criteria import WITHOUT_DATA, ExpertCriterion, HiddenCriterion, needs_data
from raysearch.config.problems import first_problem
from raysearch.config.quantization import Quantization, check_installed
from raysearch.config.recipe import DEFAULT_EXPERT_CRITERION, DEFAULT_HIDDEN_CRITERION, Mode, Recipe, check_ratio
from raysearch.config.shape_rules import ShapeRules, shape_rules
from raysearch.data.bad_rows import BadRow, BadRows
from raysearch.data.encoding import Encoder
from raysearch.data.loading import check_samples, fraction_order, load_samples
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.export.save_checkpoint import save_checkpoint
from raysearch.files import check_free
from raysearch.models.param_count import counts_of
from raysearch.models.param_count_cache import is_shipped
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import exact_shape, shape_for_budget, shape_for_ratio
from raysearch.pruning import compensation, prune
from raysearch.pruning.importance import importance
from raysearch.pruning.prune import kept_layers, removed_parts
from raysearch.pruning.self_check import check_architecture


def prune_checkpoint(
    model: str | Path,
    *,
    mode: Mode,
    to: str | Path,
    ratio: float | None = None,
    budget: str | Budget | None = None,
    exact: Mapping[str, int] | None = None,
    criterion: str | None = None,
    calibration: str | Path | None = None,
    image_folder: str | Path | None = None,
    depth_share: float | None = None,
    attention_share: float | None = None,
    expert_ratio: float | None = None,
    expert_criterion: ExpertCriterion | None = None,
    hidden_ratio: float | None = None,
    hidden_criterion: HiddenCriterion | None = None,
    shapes: ShapeRules | Mapping[str, Any] | None = None,
    num_samples: int = 64,
    batch_size: int = 4,
    max_length: int = 2048,
    tokens: str | None = None,
    compensate: bool = False,
    quantization: Quantization = "none",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Load, score, prune, and write a folder that transformers alone can load.

    Args:
        model: a folder, a hub id, or `pocket`.
        mode: layerwise, widthwise or both.
        to: the folder to write; nothing is written unless every step succeeds.
        ratio: share of the decoder's parameters to remove; this, or `budget`, or `exact`.
        budget: largest size of the whole model, e.g. `60%`, `3.2GB`, `3B`.
        exact: extents of the pruned decoder by the names of `Shape`; `mode` follows from them.
        criterion: a layer or a width criterion, LAYER+WIDTH for mode both. None chooses block_influence and taylor
            with calibration data, deepest and magnitude without.
        calibration: data to score on, see `load_samples`; not read if the criterion needs none.
        image_folder: root of its image paths; None is the data's own folder.
        depth_share: for mode both, the share of the removal done by dropping layers.
        attention_share: share of the heads' parameters to remove, as a multiple of the FFN channels': 0 keeps all heads
            as long as the FFN suffices; None is 1. Not for mode layerwise.
        expert_ratio: share of the experts to remove, as part of the size to reach.
        expert_criterion: None chooses frequency with calibration data, magnitude without.
        hidden_ratio: share of the hidden size to remove, as part of the size to reach.
        hidden_criterion: None chooses activation with calibration data, magnitude without.
        shapes: numbers that the pruned model must have, by the keys of `ShapeRules`.
        num_samples, batch_size, max_length: samples to score on, samples per batch, tokens per sample. An LVLM is
            scored on samples with images only.
        tokens: which tokens count, see `importance`.
        compensate: refit the FFNs in front of dropped layers on the calibration data, see `pruning.compensate`.
        quantization: of the decoder's linear weights on disk; the budget is for the quantised model.
        dtype: of the weights in memory and on disk; None keeps the file's.
        seed: of the choice of samples, and of `random`.
        trust_remote_code: run code that comes with the checkpoint.

    Returns:
        Shapes, sizes, the layers kept, the criterion and seconds, as plain values.

    Raises:
        InputError: wrong use, an unreadable model or data, or a size that can't be reached.
    """
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    if exact:
        mode = "layerwise" if set(exact) == {"num_layers"} else "both" if "num_layers" in exact else "widthwise"
    rules = shape_rules(shapes)
    split = depth_share, attention_share, expert_ratio, hidden_ratio
    target = _SizeTarget(mode, ratio, budget, exact, *split, rules, quantization)
    has_data = calibration is not None
    drops_experts = bool(expert_ratio) or "num_experts" in (exact or ())
    drops_hidden = bool(hidden_ratio) or "hidden_size" in (exact or ())
    if expert_criterion and not drops_experts:
        raise InputError(
            f"expert_criterion {expert_criterion}: no experts are removed; give expert_ratio, or leave it out"
        )
    if hidden_criterion and not drops_hidden:
        raise InputError(
            f"hidden_criterion {hidden_criterion}: no hidden channels are removed; give hidden_ratio, or leave it out"
        )
    by = expert_criterion or (DEFAULT_EXPERT_CRITERION if has_data else "magnitude")
    hidden_by = hidden_criterion or (DEFAULT_HIDDEN_CRITERION if has_data else "magnitude")
    named = by if drops_experts else None, hidden_by if drops_hidden else None
    recipe = target.recipe(criterion or _default_criterion(mode, has_data), *named, seed)
    _check_use(recipe, has_data, compensate)
    if quantization != "none":
        check_installed()
    to = check_free(Path(to), "--to", model)
    config = models.load_config(model, trust_remote_code)
    if ratio != 0 and not is_shipped(str(model)):
        check_architecture(config, mode, drops_experts, drops_hidden)
    if (known := dtype or config.dtype) is not None:
        target.shape(config, known)  # refuses before weights are read
    samples: list[Sample] = []
    if calibration is not None and (compensate or any(map(needs_data, recipe.scored_by.values()))):
        samples = _samples(calibration, image_folder, config, num_samples, seed)

    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        dense, processor = models.load(model, dtype, trust_remote_code)
    shape = target.shape(dense.config, dense.dtype)
    data = None
    if samples:
        encoder = Encoder(processor, models.family_for(dense), max_length)
        data = _Calibration(encoder, samples, batch_size, BadRows(str(calibration), len(samples)))
    with _timed(seconds, "score"):
        removed = removed_parts(shape, shape_of(dense.config))
        names = {part: name for part, name in recipe.scored_by.items() if part in removed}
        by_name = {name: importance(dense, data, name, seed, tokens) for name in dict.fromkeys(names.values())}
        scores = {part: by_name[name] for part, name in names.items()}
    layers = kept_layers(dense.config, shape, scores)
    with _timed(seconds, "cut"):
        pruned = prune(dense, shape, scores, share=not compensate)
    summary = _summary(dense, shape, recipe, str(model), layers)
    if compensate and data:
        with _timed(seconds, "compensate"):
            summary["left_by_compensation"] = compensation.compensate(pruned, dense, layers, data)
    _save(pruned, processor, to, recipe, summary | {"seconds": seconds})
    return {**summary, "seconds": seconds, "to": str(to)}


@dataclass(frozen=True)
class _SizeTarget:
    """The size to reach, and what may shrink."""

    mode: Mode
    ratio: float | None
    budget: Budget | None
    exact: Mapping[str, int] | None
    depth_share: float | None
    attention_share: float | None
    expert_ratio: float | None
    hidden_ratio: float | None
    rules: ShapeRules
    quantization: Quantization

    def __post_init__(self) -> None:
        if (self.ratio, self.budget, self.exact or None).count(None) != 2:
            raise InputError("prune: needs one of ratio, budget and an exact shape; give just one")
        if self.ratio is not None:
            check_ratio(self.ratio)
        for name in ("expert_ratio", "hidden_ratio") if self.exact else ():
            if getattr(self, name) is not None:
                raise InputError(f"{name}: not beside an exact shape; give the number to keep, or leave it out")

    def shape(self, config: PretrainedConfig, dtype: torch.dtype) -> Shape:
        counts = counts_of(config).under(self.rules)
        if self.exact:
            return exact_shape(counts, self.exact)
        if self.ratio is not None:
            split = self.depth_share, None, self.attention_share, self.expert_ratio, self.hidden_ratio
            return shape_for_ratio(counts, self.mode, self.ratio, *split)
        assert self.budget is not None
        options = dtype.itemsize, self.quantization, self.attention_share, self.expert_ratio, self.hidden_ratio
        return shape_for_budget(counts, self.mode, self.budget, self.depth_share, None, *options)

    def recipe(self, criterion: str, expert_criterion: str | None, hidden_criterion: str | None, seed: int) -> Recipe:
        fields: dict[str, Any] = {"mode": self.mode, "ratio": self.ratio or 0.0, "criterion": criterion}
        fields |= {"quantization": self.quantization, "attention_share": self.attention_share}
        if expert_criterion:  # `_save` puts in the share that was reached
            fields |= {"expert_ratio": self.expert_ratio or 0.5, "expert_criterion": expert_criterion}
        if hidden_criterion:
            fields |= {"hidden_ratio": self.hidden_ratio or 0.5, "hidden_criterion": hidden_criterion}
        if self.mode == "both":
            fields["depth_share"] = self.depth_share
        try:
            return Recipe(**fields, seed=seed, trained="nothing")
        except ValidationError as error:
            raise InputError(first_problem(error, fields)) from None


def _samples(
    calibration: str | Path, image_folder: str | Path | None, config: PretrainedConfig, num_samples: int, seed: int
) -> list[Sample]:
    """The samples to score on; for an LVLM, only those with images."""
    rows = load_samples(calibration, image_folder)
    check_samples(rows)
    ordered = (rows[int(index)] for index in fraction_order(len(rows), seed))
    multimodal = models.family_for(config).is_multimodal
    found = list(islice((row for row in ordered if row.images or not multimodal), num_samples))
    if not found:
        raise InputError(
            f"{calibration}: none of its {len(rows)} samples has an image, and {config.model_type} is a "
            "vision-language model; calibrate on samples with images"
        )
    return found


@dataclass(frozen=True)
class _Calibration:
    """Calibration batches; samples that can't be encoded are left out with a warning."""

    encoder: Encoder
    samples: Sequence[Sample]
    batch_size: int
    bad_rows: BadRows

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rows: list[Any] = []
        for sample in self.samples:
            try:
                rows.append(self.encoder.encode(sample))
            except BadRow as error:
                self.bad_rows.found.setdefault(f"row {sample.id}", str(error))
            if len(rows) == self.batch_size:
                yield self.encoder.collate(rows)
                rows = []
        if rows:
            yield self.encoder.collate(rows)
        if len(self.bad_rows.found) == len(self.samples):
            raise InputError(
                f"{self.bad_rows.data}: none of {len(self.samples)} samples can be used ({self.bad_rows.named()}); "
                "correct them"
            )
        self.bad_rows.report()


def _check_use(recipe: Recipe, has_data: bool, compensate: bool) -> None:
    if compensate and recipe.hidden_ratio:
        raise InputError(
            "compensate: not with a smaller hidden size, which the dense model's states don't fit; leave out one"
        )
    if compensate and recipe.mode == "widthwise":
        raise InputError("compensate: is for dropped layers, and widthwise drops none; choose another mode")
    needing = [name for name in recipe.scored_by.values() if needs_data(name)]
    if not has_data and (compensate or needing):
        option = "compensate" if compensate else f"criterion {needing[0]}"
        raise InputError(f"{option}: needs calibration data; give --calibration (not needed by {WITHOUT_DATA})")


def _default_criterion(mode: Mode, has_data: bool) -> str:
    layer, width = ("block_influence", "taylor") if has_data else ("deepest", "magnitude")
    return {"layerwise": layer, "widthwise": width}.get(mode, f"{layer}+{width}")


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] = round(time.perf_counter() - started, 3)


def _summary(dense: PreTrainedModel, shape: Shape, recipe: Recipe, model: str, layers: list[int]) -> dict[str, Any]:
    before = counts_of(dense.config).size(None, dense.dtype.itemsize)
    after = counts_of(dense.config).size(shape, dense.dtype.itemsize, recipe.quantization)
    whole = shape_of(dense.config)
    shape = shape.filled(whole)
    return {
        "model": model,
        "mode": recipe.mode,
        "quantization": recipe.quantization,
        "criterion": recipe.criterion,
        "ratio": counts_of(dense.config).removed_share(shape),
        "expert_ratio": 1 - shape.num_experts / whole.num_experts if whole.num_experts else 0.0,
        "hidden_ratio": 1 - shape.hidden_size / whole.hidden_size,
        "num_params": after.num_params,
        "size_bytes": after.size_bytes,
        "size_ratio": after.size_bytes / before.size_bytes,
        "dense_num_params": before.num_params,
        "dense_size_bytes": before.size_bytes,
        "shape": dataclasses.asdict(shape),
        "dense_shape": dataclasses.asdict(whole),
        "layers_kept": layers,
    }


def _save(pruned: PreTrainedModel, processor: Any, to: str | Path, recipe: Recipe, summary: dict[str, Any]) -> None:
    """Write the folder; the recipe in it has the ratio that was reached."""
    base = summary["model"]
    card = {
        "title": f"{Path(base).name}, pruned",
        "base_model": base,
        "parameters": f"{summary['num_params']:,} of {summary['dense_num_params']:,}",
        "bytes": f"{summary['size_bytes']:,} of {summary['dense_size_bytes']:,}",
        "decoder parameters removed": f"{summary['ratio']:.2%}",
        "layers kept": ", ".join(map(str, summary["layers_kept"])),
    }
    reached = recipe.model_copy(update={name: summary[name] for name in ("ratio", "expert_ratio", "hidden_ratio")})
    unused = [f"{part}_criterion" for part in ("expert", "hidden") if not summary[f"{part}_ratio"]]
    reached = reached.model_copy(update=dict.fromkeys(unused))
    save_checkpoint(pruned, processor, to, recipe=reached, scores={"pruning": summary}, card=card)
