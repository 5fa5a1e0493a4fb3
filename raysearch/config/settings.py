"""The settings of a search space that are not dimensions."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from raysearch.config.duration import parse_duration
from raysearch.files import parse_json

EMBEDDED_MODELS = ("pocket", "pocket-smollm2")
"""Models that ship with raysearch, by name."""
EMBEDDED_BENCHMARKS = ("easy-vqa", "digits", "scenes", "lists", "descriptions")
"""Benchmarks that ship with raysearch, by name."""
NUM_SHAPE_SAMPLES = 16
"""Calibration samples that a shape is judged on before any is trained (`SearchSettings.shapes`)."""
MAX_SEED = 2**32 - 1
MAX_SLOTS = 10_000
Scalar = bool | int | float | str


class Strict(BaseModel):
    """Immutable; refuses unknown keys, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _absolute(name: str) -> str:
    """An existing path made absolute, since workers run in folders of their own; any other name unchanged."""
    return os.path.abspath(name) if name not in EMBEDDED_MODELS and os.path.exists(name) else name


PathOrName = Annotated[str, AfterValidator(_absolute)]


class DataSource(Strict):
    """One of several sources of recovery data."""

    path: PathOrName
    """What `data` may be if it is the only source."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often its rows are taken: 0.5 takes half of them, 2 takes each twice."""
    stream: int | None = Field(None, ge=1, le=100_000_000)
    """Read so many rows by streaming, and keep only these, of a source that is too large to be kept."""


def _duration(given: Any) -> Any:
    if given is None:
        return None
    parse_duration(str(given))
    return str(given).replace(" ", "")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r}: begin with a letter or digit, and go on with these, dots, _ and -")
    return text


_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
Name = Annotated[str, AfterValidator(_name)]
"""Of a study or a benchmark: it becomes part of file names and of metrics."""


LIMITS = ("trials", "runs", "time", "gpu_hours", "until_gain")
"""Fields of `SearchSettings` that say when a search ends; of several, whichever comes first."""
DEFAULT_TRIALS = 24


class SearchSettings(Strict):
    """Sampler, limits and early stopping. A search ends at the first of its limits that it reaches."""

    trials: int | None = Field(None, ge=1, le=1_000_000)
    """Trials to run, early-stopped ones included; left out, 24 if there is no other limit."""
    runs: float | None = Field(None, gt=0, le=1e6)
    """Recovery samples to train on, in full runs: trials of the greatest length. A stopped trial counts by its own."""
    time: Annotated[str | None, BeforeValidator(_duration)] = None
    """Time from a start to its end, loading included: 90s, 20m, 2h, 1h30m, 1d. No trial is begun that can't be expected
    to end in it; none is interrupted. A resumed study has as much again."""
    gpu_hours: float | None = Field(None, gt=0, le=1e6)
    """The same as hours of all GPUs of the slots together."""
    until_gain: float | None = Field(None, gt=0)
    """Points: the search ends when another ten full runs are expected to add less at every budget (without budgets, to
    the hypervolume times 100)."""
    sampler: Literal["ehvi", "tpe", "nsga2", "random", "quasirandom", "grid"] = "ehvi"
    """What proposes recipes: ehvi (expected hypervolume improvement, with known sizes) or a sampler of Optuna's; grid
    takes every recipe of a space without ranges, in order."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the sampler, of the data order and of the interval estimates."""
    early_stopping: bool = True
    """Stop trials that are dominated at a rung (ParetoASHA)."""
    first_rung: float = Field(1 / 9, gt=0, le=1)
    """The first rung, as a share of the largest recovery in the space."""
    early_questions: float = Field(0.1, gt=0, le=1)
    """Share of each benchmark's questions that score a trial at a rung below its end: the same for all, at least 20."""
    reduction_factor: float = Field(3, ge=1.1)
    """One in this many trials is promoted from a rung."""
    shapes: int = Field(200, ge=0, le=100_000)
    """Shapes that are judged without training before the first proposals; 0 for none. A grid needs none."""
    keep_scores: bool = False
    """Keep every finished trial's scores per held-out question, as DIR/scores/KEY.npz."""

    @property
    def num_trials(self) -> int | None:
        """The most trials; None if other limits end the search."""
        has_limit = any(getattr(self, name) is not None for name in LIMITS)
        return self.trials if has_limit else DEFAULT_TRIALS

    @property
    def num_shapes(self) -> int:
        """Shapes to judge: none for a grid, whose recipes are given."""
        return 0 if self.sampler == "grid" else self.shapes

    def limits_text(self) -> str:
        """The limits in words, e.g. `12 full runs or 2h`."""
        words = {"runs": "{:g} full runs", "time": "{}", "gpu_hours": "{:g} GPU hours"}
        words["until_gain"] = "a forecast below {:g} points"
        texts = [] if self.num_trials is None else [f"{self.num_trials} trials"]
        given = {name: getattr(self, name) for name in words}
        texts += [words[name].format(value) for name, value in given.items() if value is not None]
        return " or ".join(texts)

    def seconds(self, num_gpus: float) -> float | None:
        """The time of a start whose slots have so many GPUs together, above 0 where there are `gpu_hours`; None for no
        such limit."""
        limits = [parse_duration(self.time)] if self.time is not None else []
        if self.gpu_hours is not None:
            limits.append(3600 * self.gpu_hours / num_gpus)
        return min(limits, default=None)


class RecoverySettings(Strict):
    """Settings of recovery training that all trials share."""

    batch_size: int = Field(8, ge=1, le=1_000_000)
    """Samples per optimizer step, over all workers."""
    max_length: int = Field(2048, ge=8, le=10_000_000)
    """Longest row in tokens, image tokens included."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto is bf16 where the hardware multiplies it fast, else fp32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; left out, chosen by the memory available."""
    offload: Literal["none", "cpu"] | None = None
    """cpu keeps fp32 weights and optimizer state in host memory, which is slower; left out, on the GPU if they fit."""
    tokens_per_pass: int | None = Field(None, ge=8)
    """Most tokens of one microbatch, padding included; left out, chosen by the memory available."""
    deepspeed: dict[str, Any] | None = None
    """A DeepSpeed configuration, or the path of its JSON file; overrides the generated one key by key."""
    teacher: Literal["cache", "online"] = "cache"
    """Compute the dense model's hidden states once per study and cache them on disk, or at every step of a trial."""
    teacher_quota_gb: float = Field(100, gt=0)
    """Largest size of that cache, in 10^9 bytes."""
    vision_cache_gb: float = Field(2, ge=0)
    """Memory of each worker's cache of vision tower outputs, in 10^9 bytes; 0 runs the tower at every step."""
    checkpoint_quota_gb: float | None = Field(None, gt=0)
    """Disk quota of the checkpoints of front and running trials, in 10^9 bytes; left out, no bound."""
    hidden_layers: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Where `hidden_kd` compares hidden states, as shares of the dense decoder's depth: 1 is the last normalised state,
    0.5 the output of the middle layer. If that layer is pruned, the last remaining one before it is compared."""
    kd_tokens: Literal["answers", "answers+images"] = "answers"
    """Positions that distillation compares: before answer tokens, or image tokens too."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Learning rate schedule of a trial: warm-up/stable/decay, or cosine."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of a trial's samples spent warming up."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    gradient_checkpointing: bool = False
    """Always recompute activations; otherwise only where memory is short."""
    weight_average: bool = False
    """Evaluate rungs on an exponential moving average of the weights."""

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _read_deepspeed(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return parse_json(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{given}: not a readable JSON file ({error})") from None


class Slots(Strict):
    """Slots run one trial at a time each, on one or more workers."""

    num: int | None = Field(None, ge=1, le=MAX_SLOTS)
    """Trials at a time; left out, as many as fit on the cluster."""
    workers: int = Field(1, ge=1, le=MAX_SLOTS)
    """Ray Train workers per trial."""
    cpus_per_worker: float = Field(1, gt=0, le=10_000)
    """CPU cores that Ray reserves for each worker; also its number of threads."""
    gpus_per_worker: float = Field(0, ge=0, le=1_000)
    """GPUs of each worker: 1, or 0 on machines without."""
    autoscaling: bool = False
    """Request resources for `num` slots even where they don't fit yet, so that the cluster adds nodes."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds without a heartbeat before a slot is replaced; left out, half an hour, or ten longest steps if more."""

    @model_validator(mode="after")
    def _check(self) -> "Slots":
        if self.autoscaling and self.num is None:
            raise ValueError("autoscaling needs num: the most slots to request")
        return self


class Calibration(Strict):
    """The samples on which importance is measured."""

    num_samples: int = Field(64, ge=1, le=1_000_000)
    """Number of samples, the first in the order of the data."""
    batch_size: int = Field(8, ge=1, le=1_000_000)
    """Samples per forward pass."""
