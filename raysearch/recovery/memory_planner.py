"""Fits recovery into memory: ZeRO stage, microbatch size, gradient checkpointing and offloading, by estimate."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysearch.config.settings import RecoverySettings
from raysearch.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from raysearch.models import Family

LOGITS_PER_CHUNK = 2**25
"""Logits that `losses.RecoveryLoss.sums` computes at once, per model; 128 MiB of fp32."""
MAX_GRADIENT_BYTES = 16 * LOGITS_PER_CHUNK
"""Up to which the gradients of a microbatch's logits are stored for its backward pass; beyond, they are recomputed."""
USABLE = 0.85
"""Share of the free memory that is planned for; the rest is for fragmentation and libraries."""
GIB = 2**30


@dataclass(frozen=True)
class MemoryRequirements:
    """What a trial's memory depends on.

    Attributes:
        num_params: of the whole pruned model.
        num_trained: of them, those that are trained.
        bytes_per_param: in the precision of the forward pass.
        num_layers: decoder layers.
        hidden: hidden size of the decoder.
        layer_width: numbers that a layer stores for its backward pass, per token.
        vocabulary: its size; 0 if no loss is computed from logits.
        online_bytes: of what else is on the same device, the dense model for instance.
    """

    num_params: int
    num_trained: int
    bytes_per_param: int
    num_layers: int
    hidden: int
    layer_width: int
    vocabulary: int
    online_bytes: int = 0

    def state_bytes(self, stage: int, num_workers: int, offload: bool = False) -> int:
        """Bytes on a worker's device under ZeRO (arXiv 1910.02054): weights, gradients and, unless they are offloaded,
        fp32 weights and Adam's two moments."""
        weights = self.bytes_per_param * self.num_params
        gradients = self.bytes_per_param * self.num_trained + (4 * self.num_trained if stage >= 2 else 0)
        optimizer = 0 if offload else 12 * self.num_trained
        if stage >= 1:
            optimizer //= num_workers
        if stage >= 2:
            gradients //= num_workers
        if stage >= 3:
            layer = self.bytes_per_param * self.num_params // max(1, self.num_layers)
            weights = weights // num_workers + 2 * layer  # the current layer, and the next
        return weights + gradients + optimizer + self.online_bytes

    def offloaded_bytes(self, num_workers: int) -> int:
        """Bytes that offloading takes of the machine's memory per worker: fp32 weights, moments and gradients."""
        return 16 * self.num_trained // num_workers

    def bytes_per_token(self, checkpointing: bool) -> int:
        """Bytes that a token of a forward pass stores until its backward pass."""
        own = self.bytes_per_param * self.layer_width
        if checkpointing:
            return self.num_layers * self.bytes_per_param * self.hidden + own
        return self.num_layers * own

    @property
    def logit_bytes(self) -> int:
        """Bytes of one chunk of logits of student and teacher, in fp32, and of the gradients that are stored."""
        return 2 * 4 * LOGITS_PER_CHUNK + MAX_GRADIENT_BYTES if self.vocabulary else 0


@dataclass(frozen=True)
class MemoryPlan:
    """How a trial is fitted in; with `tokens_per_pass` None, a worker's whole share of a batch is one microbatch."""

    zero_stage: int
    tokens_per_pass: int | None
    checkpointing: bool
    estimated_bytes: int
    offload: bool = False

    def describe(self) -> str:
        """One line: what was chosen, and the memory that it takes."""
        sizes = f"microbatches of {self.tokens_per_pass} tokens" if self.tokens_per_pass else "one microbatch per step"
        recomputed = ", activations recomputed" if self.checkpointing else ""
        offloaded = ", optimizer state in the machine's memory" if self.offload else ""
        return (
            f"ZeRO {self.zero_stage}, {sizes}{recomputed}{offloaded}: "
            f"about {self.estimated_bytes / GIB:.1f} GiB a worker"
        )


def plan_memory(
    needs: MemoryRequirements, settings: RecoverySettings, free_bytes: int, num_workers: int, host_bytes: int = 0
) -> MemoryPlan:
    """The fastest plan that fits: no offloading, lowest stage, then no recomputation, then the largest microbatches.

    Values that the settings name are fixed. Several microbatches per step take at least stage 2, which accumulates
    gradients in fp32.

    Args:
        free_bytes: of one worker's device, without anything of the trial.
        num_workers: workers of one trial.
        host_bytes: of the machine's memory, for one worker to offload to; 0 where the device is the machine itself.

    Raises:
        InputError: no plan fits.
    """
    usable = int(USABLE * free_bytes)
    share = -(-settings.batch_size // num_workers) * settings.max_length  # tokens, if all rows had max_length
    wanted = min(share, settings.tokens_per_pass or share)
    stages = [settings.zero_stage] if settings.zero_stage is not None else [1, 2, 3] if num_workers > 1 else [1, 2]
    room_to_offload = host_bytes > 0 and needs.offloaded_bytes(num_workers) <= USABLE * host_bytes
    offloads = [settings.offload == "cpu"] if settings.offload else [False, True][: 1 + room_to_offload]
    for offload, stage in itertools.product(offloads, stages):
        for checkpointing in [True] if settings.gradient_checkpointing else [False, True]:
            fixed = needs.state_bytes(stage, num_workers, offload and host_bytes > 0) + needs.logit_bytes
            per_token = needs.bytes_per_token(checkpointing)
            fitting = (usable - fixed) // per_token
            if fitting >= share == wanted:
                return MemoryPlan(stage, None, checkpointing, fixed + share * per_token, offload)
            if fitting >= settings.max_length and (stage >= 2 or settings.zero_stage is not None):
                tokens = min(fitting, wanted)
                estimate = fixed + max(tokens, settings.max_length) * per_token
                return MemoryPlan(stage, tokens, checkpointing, estimate, offload)
    least = needs.state_bytes(stages[-1], num_workers, offloads[-1]) + needs.logit_bytes
    least += settings.max_length * needs.bytes_per_token(checkpointing=True)
    raise InputError(
        f"recovery: a row of {settings.max_length} tokens needs about {least / USABLE / GIB:.1f} GiB a worker and "
        f"{free_bytes / GIB:.1f} GiB are free; give slots.workers more, recovery.max_length less, or a smaller "
        "part in recipe.trained"
    )


def needs_of(
    model: "PreTrainedModel",
    family: "Family",
    trained: "Mapping[str, nn.Parameter]",
    dtype: "torch.dtype",
    need_logits: bool,
    online_bytes: int = 0,
) -> MemoryRequirements:
    """The requirements of a model whose trained parameters have been chosen."""
    text: Any = family.text_config(model.config)
    heads = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return MemoryRequirements(
        num_params=sum(param.numel() for param in model.parameters()),
        num_trained=sum(param.numel() for param in trained.values()),
        bytes_per_param=dtype.itemsize,
        num_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        layer_width=layer_width(text.hidden_size, heads, text.intermediate_size),
        vocabulary=text.vocab_size if need_logits else 0,
        online_bytes=online_bytes,
    )


def layer_width(hidden: int, heads: int, ffn: int) -> int:
    """Numbers that a decoder layer stores per token for its backward pass, given the widths of its parts.

    They are the inputs and outputs of both norms, residuals, queries, keys, values (twice, for the rotation),
    attention's output, and gate, up, their product and its activation.
    """
    return 8 * hidden + 7 * heads + 4 * ffn


def host_bytes() -> int:
    """The machine's memory that this worker may offload to: its share of what is available; 0 without a GPU."""
    import psutil
    import torch

    workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(psutil.virtual_memory().available) // workers_here if torch.cuda.is_available() else 0


def free_bytes() -> int:
    """Free memory of this worker's device: the GPU's, else the machine's."""
    import torch

    if torch.cuda.is_available():
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by this process, for reuse
        return int(torch.cuda.mem_get_info()[0]) + unused
    import psutil

    return int(psutil.virtual_memory().available)
