"""A recipe: how the dense model is pruned, quantised and recovered."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysearch.config.criteria import LAYER_CRITERIA, WIDTH_CRITERIA, ExpertCriterion, HiddenCriterion
from raysearch.config.quantization import Quantization
from raysearch.errors import InputError

Mode = Literal["layerwise", "widthwise", "both"]
DEFAULT_EXPERT_CRITERION: ExpertCriterion = "frequency"
DEFAULT_HIDDEN_CRITERION: HiddenCriterion = "activation"
Trained = Literal["nothing", "projector", "projector+lora", "projector+decoder", "decoder"]


@dataclass(frozen=True)
class LossWeight:
    """Marks a field of `Recipe` as the weight of a recovery loss, whose row is in `recovery.losses.LOSS_TERMS`.

    Attributes:
        default: the weight where a recipe that trains something leaves it out.
        inputs: what the loss is computed from.
        needs_teacher: whether it compares with the dense model, at every distillation point; else answer tokens count.
    """

    default: float
    inputs: Literal["logits", "states"]
    needs_teacher: bool


def check_ratio(ratio: float) -> None:
    """Check the share of the decoder's parameters to remove.

    Raises:
        InputError: `ratio` is outside [0, 1), or NaN.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"ratio {ratio}: outside [0, 1); give the share of the decoder's parameters to remove")


def applies(field: str, values: Mapping[str, Any]) -> bool:
    """Whether `field` applies to a recipe with `values` for the fields before it."""
    return field not in _CONDITIONS or _CONDITIONS[field][0](values)


class Recipe(BaseModel):
    """What to prune, what to train and how. Fields that don't apply are None, and are left out of files."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode
    """Remove decoder layers, or KV groups, heads and FFN channels, or both."""
    quantization: Quantization = "none"
    """Weight format of the decoder's linear layers after recovery, for evaluation, size and export."""
    ratio: float = Field(ge=0, lt=1)
    """Share of the decoder's parameters to remove (arXiv 2604.24380, Table 5)."""
    criterion: str
    """Importance criterion: for layers, for widths, or LAYER+WIDTH if `mode` is both."""
    depth_share: float | None = Field(None, gt=0, lt=1)
    """Share of the removed parameters that removed layers account for; only if `mode` is both."""
    attention_share: float | None = Field(None, ge=0, le=1)
    """Share of the heads' parameters to remove, as a multiple of the FFN channels': 0 keeps all heads as long as the
    FFN suffices, 1 removes the same share of both; not if `mode` is layerwise."""
    expert_ratio: float | None = Field(None, ge=0, lt=1)
    """Share of the experts to remove from every layer that has experts, as part of `ratio`, in any mode."""
    expert_criterion: ExpertCriterion | None = None
    """Importance criterion for experts; only with `expert_ratio` above 0."""
    hidden_ratio: float | None = Field(None, ge=0, lt=1)
    """Share of the hidden size to remove (residual stream, embeddings, head), as part of `ratio`, in any mode."""
    hidden_criterion: HiddenCriterion | None = None
    """Importance criterion for hidden channels; only with `hidden_ratio` above 0."""
    trained: Trained = "projector+decoder"
    """Parts that recovery trains; never the vision tower."""
    lora_rank: int | None = Field(None, ge=1, le=65_536)
    """Rank of the adapters on the decoder's linear layers; only with projector+lora."""
    sft: Annotated[float | None, LossWeight(1.0, "logits", needs_teacher=False)] = Field(None, ge=0)
    """Weight of the cross-entropy on answer tokens."""
    logits_kd: Annotated[float | None, LossWeight(0.0, "logits", needs_teacher=True)] = Field(None, ge=0)
    """Weight of the KL divergence between the dense model's answer distribution and the student's."""
    hidden_kd: Annotated[float | None, LossWeight(0.0, "states", needs_teacher=True)] = Field(None, ge=0)
    """Weight of the match between last normalised hidden states on answer tokens; not with `hidden_ratio` above 0,
    where they have other sizes."""
    temperature: float | None = Field(None, gt=0)
    """Softmax temperature of `logits_kd`."""
    kl: Literal["forward", "reverse"] | None = None
    """Direction of `logits_kd`: forward is KL(dense || student)."""
    hidden_match: Literal["mse", "cosine"] | None = None
    """Distance of `hidden_kd`."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate."""
    data_fraction: float | None = Field(None, gt=0, le=1)
    """Share of the recovery data that is used; smaller shares are subsets of larger ones."""
    epochs: float | None = Field(None, gt=0, le=10_000)
    """Passes over that share."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of the data order and of the initialisation of adapters."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: object) -> object:
        """Set defaults of the fields that apply, so that equal recipes have equal keys."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        trained = values.setdefault("trained", "projector+decoder")
        for field, value in _DEFAULTS.items():
            if values.get(field) is None and applies(field, values):
                values[field] = value
        if values.get("lr") is None and applies("lr", values):
            values["lr"] = 1e-3 if trained in ("projector", "projector+lora") else 3e-4
        return values

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        layer, width = self.criteria
        if self.mode != "widthwise" and layer not in LAYER_CRITERIA:
            raise ValueError(
                f"criterion {self.criterion!r} names no layer criterion; choose of {', '.join(LAYER_CRITERIA)}"
            )
        if self.mode != "layerwise" and width not in WIDTH_CRITERIA:
            raise ValueError(
                f"criterion {self.criterion!r} names no width criterion; choose of {', '.join(WIDTH_CRITERIA)}"
            )
        values = vars(self)
        for field, (_, condition) in _CONDITIONS.items():
            if values[field] is not None and not applies(field, values):
                raise ValueError(f"{field} needs {condition}; remove it")
        if self.trained != "nothing" and not self.loss_weights:
            raise ValueError(f"{', '.join(LOSS_FIELDS)} are all 0; raise one, or set trained: nothing")
        return self

    @property
    def criteria(self) -> tuple[str | None, str | None]:
        """The layer criterion and the width criterion; None where the mode has none."""
        if self.mode == "layerwise":
            return self.criterion, None
        if self.mode == "widthwise":
            return None, self.criterion
        layer, _, width = self.criterion.partition("+")
        return layer, width

    @property
    def scored_by(self) -> dict[Literal["depth", "width", "experts", "hidden"], str]:
        """The criteria that the recipe needs, by what they are for."""
        layer, width = self.criteria
        named = {"depth": layer, "width": width, "experts": self.expert_criterion, "hidden": self.hidden_criterion}
        return {part: name for part, name in named.items() if name}  # type: ignore[misc]

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 of recovery losses, by field."""
        return {name: weight for name in LOSS_FIELDS if (weight := getattr(self, name))}

    @property
    def key(self) -> str:
        """Ten hexadecimal digits that identify the recipe: equal recipes have equal keys."""
        return _hash(self.as_dict())

    @property
    def key_without_ratio(self) -> str:
        """Like `key`, without the ratio: recipes with the same one and the same pruned shape give the same model."""
        return _hash({name: value for name, value in self.as_dict().items() if name != "ratio"})

    def as_dict(self) -> dict[str, object]:
        """The fields that apply; floats to nine significant digits, so that the key survives a round trip as text."""
        fields = self.model_dump(exclude_none=True)
        return {name: float(f"{value:.9g}") if isinstance(value, float) else value for name, value in fields.items()}

    def trains_less_than(self, other: "Recipe") -> bool:
        """Whether both are equal but for data and epochs, of which this one has less."""
        if self.data_fraction is None or self.epochs is None or other.data_fraction is None or other.epochs is None:
            return False
        if self.mode != other.mode or self.trained != other.trained or self.criterion != other.criterion:
            return False
        mine, others = ({**one.as_dict(), "data_fraction": 1.0, "epochs": 1.0} for one in (self, other))
        return mine == others and self.data_fraction * self.epochs < other.data_fraction * other.epochs

    def samples_to_see(self, num_samples: int) -> int:
        """Samples that recovery sees, of a data set of `num_samples`, over all epochs; 0 without recovery."""
        if self.data_fraction is None or self.epochs is None:
            return 0
        return max(1, round(max(1, round(self.data_fraction * num_samples)) * self.epochs))

    def describe(self) -> str:
        """One short line for tables and logs."""
        parts = [f"{self.mode} {self.ratio:.0%} by {self.criterion}"]
        if self.attention_share not in (None, 1.0):
            parts.append(f"attention share {self.attention_share:g}")
        if self.expert_ratio:
            parts.append(f"{self.expert_ratio:.0%} of the experts by {self.expert_criterion}")
        if self.hidden_ratio:
            parts.append(f"{self.hidden_ratio:.0%} of the hidden size by {self.hidden_criterion}")
        if self.quantization != "none":
            parts.append(self.quantization)
        if self.trained == "nothing":
            parts.append("no recovery")
        else:
            losses = "+".join(self.loss_weights)
            parts.append(f"{self.trained} by {losses}, lr {self.lr:.1e}, {self.data_fraction:.0%} of the data")
        return ", ".join(parts)


LOSS_FIELDS = {
    name: mark for name, field in Recipe.model_fields.items() for mark in field.metadata if isinstance(mark, LossWeight)
}
"""The recipe's fields that weigh a recovery loss."""
_CONDITIONS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    "depth_share": (lambda values: values.get("mode") == "both", "mode: both"),
    "attention_share": (lambda values: values.get("mode") != "layerwise", "mode: widthwise or both"),
    "expert_criterion": (lambda values: bool(values.get("expert_ratio")), "expert_ratio above 0"),
    "hidden_criterion": (lambda values: bool(values.get("hidden_ratio")), "hidden_ratio above 0"),
    **dict.fromkeys(
        (*LOSS_FIELDS, "lr", "data_fraction", "epochs"),
        (lambda values: values.get("trained") != "nothing", "something to train"),
    ),
    "hidden_kd": (
        lambda values: values.get("trained") != "nothing" and not values.get("hidden_ratio"),
        "something to train and hidden_ratio 0",
    ),
    "lora_rank": (lambda values: values.get("trained") == "projector+lora", "trained: projector+lora"),
    **dict.fromkeys(("temperature", "kl"), (lambda values: bool(values.get("logits_kd")), "logits_kd above 0")),
    "hidden_match": (lambda values: bool(values.get("hidden_kd")), "hidden_kd above 0"),
}
# Ordered: the field that a condition reads comes before the fields that depend on it.
_DEFAULTS: dict[str, object] = {
    "depth_share": 0.5,
    "attention_share": 1.0,
    "expert_ratio": 0.0,
    "expert_criterion": DEFAULT_EXPERT_CRITERION,
    "hidden_ratio": 0.0,
    "hidden_criterion": DEFAULT_HIDDEN_CRITERION,
    **{name: loss.default for name, loss in LOSS_FIELDS.items()},
    "data_fraction": 1.0,
    "epochs": 1.0,
    "lora_rank": 16,
    "temperature": 2.0,
    "kl": "forward",
    "hidden_match": "mse",
}
_KEYED_AT_0 = ("sft", "logits_kd", "hidden_kd")
"""Losses that are part of a key even at weight 0, as the keys of existing studies have them."""
_LEFT_OUT_OF_KEYS = {
    "quantization": "none",
    "attention_share": 1.0,
    "expert_ratio": 0.0,
    "hidden_ratio": 0.0,
    **{name: 0.0 for name in LOSS_FIELDS if name not in _KEYED_AT_0},
}
"""Fields added later, with the value that changes nothing: recipes keep the keys that they had before."""


def _hash(fields: Mapping[str, object]) -> str:
    named = {name: value for name, value in fields.items() if (name, value) not in _LEFT_OUT_OF_KEYS.items()}
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]
