"""The settings of a search space that are not dimensions."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

EMBEDDED = ("pocket", "pocket-smollm2")
"""Models that raysearch brings along, by name."""
Scalar = bool | int | float | str


class Strict(BaseModel):
    """Refuses keys that are unknown and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _absolute(name: str) -> str:
    """A path that is here, from the root, since workers run in folders of their own; other names as they are."""
    return os.path.abspath(name) if name not in EMBEDDED and os.path.exists(name) else name


PathOrName = Annotated[str, AfterValidator(_absolute)]


class SearchSettings(Strict):
    """How the search goes about it."""

    trials: int = Field(24, ge=1)
    """Trials to run, the stopped ones included."""
    sampler: Literal["ehvi", "tpe", "nsga2", "random", "quasirandom", "grid"] = "ehvi"
    """Who proposes the recipes: a model of retention that knows the sizes (ehvi), or a sampler of Optuna's; grid takes
    every recipe of a space that has no ranges, in order."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler, of the data order and of the interval estimates."""
    early_stopping: bool = True
    """Stop trials that are behind at a rung (ParetoASHA)."""
    first_rung: float = Field(1 / 9, gt=0, le=1)
    """Where the first verdict falls, as a share of the largest recovery in the space."""
    early_questions: float = Field(0.1, gt=0, le=1)
    """The share of each benchmark's questions that a trial is scored on at a rung below its end: the same for all
    trials, and at least 20."""
    reduction_factor: float = Field(3, gt=1)
    """The share of trials that goes on from a rung is one in this many."""
    keep_scores: bool = False
    """Keep every finished trial's scores per held-out question, as DIR/scores/KEY.npz."""


class RecoverySettings(Strict):
    """What all trials share in recovery training."""

    batch_size: int = Field(8, ge=1)
    """Samples per optimizer step, over all workers."""
    max_length: int = Field(2048, ge=8)
    """Longest row in tokens, image tokens included."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto is bf16 where the hardware multiplies it fast, else fp32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; left out, it is chosen by the memory found."""
    offload: Literal["none", "cpu"] | None = None
    """Where fp32 weights and optimizer state lie: on the GPU, or in the machine's memory, which is slower. Left out,
    on the GPU if they fit."""
    tokens_per_pass: int | None = Field(None, ge=8)
    """Most tokens of one forward pass, padding included; a step takes as many passes as it needs. Left out, it is
    chosen by the memory found."""
    deepspeed: dict[str, Any] | None = None
    """A DeepSpeed configuration of your own, or the path of its JSON file; merged over what raysearch would write."""
    teacher: Literal["cache", "online"] = "cache"
    """Compute the dense model's states once per study and keep them on disk, or at every step of every trial."""
    teacher_quota_gb: float = Field(100, gt=0)
    """The most that these states may take on disk, in 10^9 bytes."""
    vision_cache_gb: float = Field(2, ge=0)
    """The most memory, in 10^9 bytes, in which each worker keeps what the vision tower says of pictures, since no trial
    changes it; 0 runs the tower at every step."""
    checkpoint_quota_gb: float | None = Field(None, gt=0)
    """The most that the front's checkpoints and the running trials' states may take on disk, in 10^9 bytes, over the
    whole study; left out, no bound."""
    hidden_layers: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Where `hidden_kd` compares hidden states, as shares of the dense decoder's depth: 1 is the last normalised state,
    0.5 what comes out of the middle layer. A student without that layer is compared behind the last one before it."""
    kd_tokens: Literal["answers", "answers+images"] = "answers"
    """Where the teacher is compared with: before answer tokens, or at image tokens too."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """Learning rate over a trial: warm-up/stable/decay, or cosine."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of a trial's samples spent warming up."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest norm of a step's gradient."""
    gradient_checkpointing: bool = False
    """Always recompute activations; left out, only where memory is short."""
    weight_average: bool = False
    """Evaluate rungs on an exponential average of the weights."""

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _read_deepspeed(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{given}: no JSON file that can be read ({error})") from None


class Slots(Strict):
    """The workers that take recipes one after another."""

    num: int | None = Field(None, ge=1)
    """Trials at a time; left out, as many as the cluster has room for."""
    workers: int = Field(1, ge=1)
    """Ray Train workers per trial."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores that Ray sets aside for each; also its threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs for each: 1, or 0 on machines without."""
    autoscaling: bool = False
    """The cluster adds nodes when asked: ask for `num` slots, whether there is room for them yet or not."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds without a sign of life after which a slot is replaced; left out, half an hour, or ten times its longest
    step so far if that is more."""

    @model_validator(mode="after")
    def _check(self) -> "Slots":
        if self.autoscaling and self.num is None:
            raise ValueError("autoscaling needs num: the slots to ask for at most")
        return self


class Calibration(Strict):
    """The samples on which importance is measured."""

    num_samples: int = Field(64, ge=1)
    """How many, from the front of the data's order."""
    batch_size: int = Field(8, ge=1)
    """Samples per pass."""
