"""DeepSpeed engines: process group, collectives, configuration, and the flat states that a checkpoint needs."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from raysearch.config.settings import RecoverySettings
from raysearch.files import StorageProblem, is_storage_problem
from raysearch.models.precision import multiplies_bf16_fast

ADAM_BETAS = (0.9, 0.95)
logger = logging.getLogger(__name__)


def start_distributed() -> None:
    """Use the process group that exists, or start one of this process alone; further calls change nothing.

    Collectives on CPUs use gloo: DeepSpeed would compile shared-memory ones at first use, which takes 40 s and a C++
    compiler.
    """
    deepspeed = quiet_deepspeed()
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")  # required by DeepSpeed
    if not torch.cuda.is_available():
        _keep_freed_memory()
    if not deepspeed.comm.is_initialized():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of tensors instead of returning it to the system, which costs page faults at the next
    step (a sixth of a step of the embedded LVLM on the CPU)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**25)


def quiet_deepspeed() -> Any:
    """The library, imported at first use (2.5 s), at log level WARNING."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _importing_deepspeed() if "deepspeed" not in sys.modules else nullcontext():
        import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


@contextmanager
def _importing_deepspeed() -> Iterator[None]:
    """Discard the linker's messages about optional libraries, which DeepSpeed looks for by linking to them; and keep
    its autotuner from importing MLflow, which takes 90 MB of every worker."""
    is_imported = "mlflow" in sys.modules
    if not is_imported:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(nowhere)
        os.close(stderr)
        if not is_imported:
            del sys.modules["mlflow"]


def is_rank_zero() -> bool:
    """Whether this process is rank 0, which writes the files that a trial's workers share."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def all_reduce_min(value: int) -> int:
    """The minimum of all workers' values; every worker must call it."""
    if _is_alone():
        return value
    shared = torch.tensor(value)
    if torch.distributed.get_backend() == "nccl":
        shared = shared.cuda()
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
    return int(shared)


def _is_alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


@contextmanager
def collective_io() -> Iterator[None]:
    """Reads and writes that fail on all workers if they fail on one. Every worker must enter, and inside none may wait
    for another.

    Raises:
        StorageProblem: the storage failed a worker of several.
    """
    if _is_alone():
        yield
        return
    problem = None
    try:
        yield
    except OSError as error:
        if not is_storage_problem(error):
            raise
        problem = error
    number = -all_reduce_min(-(problem.errno or 0) if problem else 0)
    if problem:
        raise StorageProblem(problem.errno, problem.strerror, problem.filename)
    if number:
        raise StorageProblem(number, f"{os.strerror(number)}, on another worker")


def current_device() -> torch.device:
    """This process's device: its GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on `device`; afterwards it is back on its own."""
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def compute_dtype(precision: Literal["auto", "bf16", "fp32"]) -> torch.dtype:
    """Precision of the forward and backward pass; auto is bf16 where the hardware multiplies it fast, else fp32."""
    if precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = "bf16" if multiplies_bf16_fast(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def deepspeed_config(
    settings: RecoverySettings, dtype: torch.dtype, stage: int, offload: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration, with `settings.deepspeed` merged over it.

    The trainer sets the accumulation boundary itself, since the number of microbatches per step varies. Stage 0 in bf16
    runs as stage 1, which is the same for one worker: DeepSpeed's bf16 path without ZeRO takes the gradient's norm in
    bf16, and its losses drift from those of every other stage. Stages 2 and 3 accumulate gradients in fp32.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.grad_clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
        config["zero_optimization"]["stage"] = max(1, stage)
        if stage in (2, 3):
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    if offload:
        config["zero_optimization"] |= {
            "stage": max(1, stage),
            "offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()},
        }
        config["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own is compiled at first use
    return _merged(config, settings.deepspeed or {})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value) if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) else value
        for key, value in over.items()
    }
    return {**base, **both}


def start_engine(module: nn.Module, trained: list[nn.Parameter], config: dict[str, Any], lr: float) -> Any:
    """A DeepSpeed engine over `module` that updates `trained` by `config`'s optimizer, else AdamW without decay."""
    start_distributed()
    deepspeed = quiet_deepspeed()
    buffers = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    optimizer = None
    if "optimizer" not in config:
        optimizer = torch.optim.AdamW(trained, lr=lr, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, model_parameters=trained, config=config)
    for part, name, buffer in buffers:
        # DeepSpeed casts buffers too; a checkpoint is loaded with its own (see `cast_weights`).
        setattr(part, name, buffer.to(getattr(part, name).device))
    return engine


def master_states(engine: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """This worker's fp32 weights and their optimizer state, in a fixed order: flat partitions under ZeRO."""
    partitioned = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO 3
    if partitioned is None:
        partitioned = [param for group in engine.basic_optimizer.param_groups for param in group["params"]]
    return [(master, engine.basic_optimizer.state[master]) for master in partitioned]


def local(param: nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this worker holds: all of it, except under ZeRO 3."""
    return getattr(param, "ds_tensor", param).data
