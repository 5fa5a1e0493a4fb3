"""Checkpoints of a recovery: trained weights and optimizer state in safetensors, the position in JSON."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from raysearch.errors import InputError
from raysearch.files import read_json, write_json, write_tensors

POSITION, WEIGHTS, OWN = "position.json", "weights.safetensors", "worker-{rank}.safetensors"


@dataclass
class RecoveryState:
    """The tensors of a recovery.

    Attributes:
        weights: trained parameters by name, whole, in the precision of the forward pass.
        masters: this worker's fp32 weights and their optimizer state (`deepspeed_engine.master_states`).
        average: this worker's part of the averaged weights, fp32; empty without one.
    """

    weights: dict[str, torch.Tensor]
    masters: Sequence[tuple[torch.Tensor, dict[str, Any]]]
    average: Sequence[torch.Tensor]


def save(folder: Path, rank: int, saved: RecoveryState, position: Mapping[str, Any]) -> None:
    """Write `worker-RANK.safetensors`, and on worker 0 `weights.safetensors` and `position.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, torch.Tensor] = {}
    for index, (master, moments) in enumerate(saved.masters):
        state[f"{index}.master"] = master
        state |= {f"{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    state |= {f"average.{index}": value for index, value in enumerate(saved.average)}
    own = {key: value.detach().contiguous().cpu().clone() for key, value in state.items()}
    write_checked(folder / OWN.format(rank=rank), own)
    if rank == 0:
        write_checked(folder / WEIGHTS, saved.weights)
        write_json(folder / POSITION, dict(position))


def restore(folder: Path, rank: int, into: RecoveryState, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `save` wrote: masters and averages are overwritten in place, weights assigned to `into.weights`.

    Returns:
        The position that was saved.

    Raises:
        InputError: a file is missing or damaged, the position differs from `identity`, or a tensor is missing or has
            another shape; nothing is overwritten.
    """
    try:
        position = dict(read_json(folder / POSITION))
        state = read_checked(folder / OWN.format(rank=rank))
        weights = read_checked(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder}: no checkpoint of a recovery ({error}); start the trial again") from None
    for key, value in identity.items():
        if position.get(key) != value:
            raise InputError(f"{folder}: {key} is {position.get(key)}, here {value}; start the trial again")
    wanted = {f"{index}.master": master for index, (master, _) in enumerate(into.masters)}
    wanted |= {f"average.{index}": value for index, value in enumerate(into.average)}
    if any(name not in state or state[name].shape != value.shape for name, value in wanted.items()):
        raise InputError(f"{folder}: its tensors are not those of this model; start the trial again")
    into.weights = weights
    for index, (master, moments) in enumerate(into.masters):
        master.data.copy_(state.pop(f"{index}.master"))
        for key in [key for key in state if key.startswith(f"{index}.")]:
            value = state[key]  # Adam keeps its count of steps on the CPU
            moments[key.partition(".")[2]] = value.to(master.device) if value.ndim else value
    for index, value in enumerate(into.average):
        value.copy_(state[f"average.{index}"])
    return position


def write_checked(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace `path` by contiguous tensors on the CPU, with a checksum.

    Raises:
        OSError: it could not be written.
    """
    write_tensors(path, tensors, {"checksum": _checksum(tensors)})


def read_checked(path: Path) -> dict[str, torch.Tensor]:
    """Read what `write_checked` wrote.

    Raises:
        ValueError: some of its bytes have changed since.
        OSError, SafetensorError: it is missing or cut short.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        header = file.metadata()
    if header != {"checksum": _checksum(tensors)}:
        raise ValueError(f"{path.name} is damaged")
    return tensors


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 of names and values, since a file in which a disk has changed some bytes still loads."""
    total = 0
    for name in sorted(tensors):
        values = tensors[name].contiguous().flatten().view(torch.uint8).numpy()
        total = zlib.crc32(memoryview(values), zlib.crc32(name.encode(), total))
    return f"{total:08x}"
