"""Checkpoints of a running recovery: what is trained and its optimizer state, in safetensors and JSON."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from raysearch.errors import InputError
from raysearch.files import write_json, write_tensors

POSITION, WEIGHTS = "position.json", "weights.safetensors"


@dataclass
class Saved:
    """The tensors of a recovery.

    Attributes:
        weights: trained parameters by name, whole, in the precision that they compute in.
        masters: this worker's fp32 weights and their optimizer state (`engine.master_states`).
        average: this worker's part of the averaged weights; empty without one.
    """

    weights: dict[str, torch.Tensor]
    masters: Sequence[tuple[torch.Tensor, dict[str, Any]]]
    average: Sequence[torch.Tensor]


def save(folder: Path, rank: int, saved: Saved, position: Mapping[str, Any]) -> None:
    """Write `worker-RANK.safetensors`, and on worker 0 `weights.safetensors` and `position.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, torch.Tensor] = {}
    for index, (master, moments) in enumerate(saved.masters):
        state[f"{index}.master"] = master
        state |= {f"{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    state |= {f"average.{index}": value for index, value in enumerate(saved.average)}
    own = {key: value.detach().contiguous().cpu().clone() for key, value in state.items()}
    _write(folder / _own_file(rank), own)
    if rank == 0:
        _write(folder / WEIGHTS, saved.weights)
        write_json(folder / POSITION, dict(position))


def restore(folder: Path, rank: int, into: Saved, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `save` wrote: masters and averages are overwritten in place, weights put into `into.weights`.

    Returns:
        The position that was saved.

    Raises:
        InputError: files are missing or broken, the position disagrees with `identity`, or the tensors are of other
            shapes; nothing is overwritten.
    """
    try:
        position = json.loads((folder / POSITION).read_text())
        state = _read(folder / _own_file(rank))
        weights = _read(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: no checkpoint of a recovery ({error}); start the trial anew") from None
    for key, value in identity.items():
        if position.get(key) != value:
            raise InputError(f"{folder}: {key} is {position.get(key)}, here {value}; start the trial anew")
    wanted = {f"{index}.master": master for index, (master, _) in enumerate(into.masters)}
    wanted |= {f"average.{index}": value for index, value in enumerate(into.average)}
    if any(name not in state or state[name].shape != value.shape for name, value in wanted.items()):
        raise InputError(f"{folder}: its tensors are not those of this model; start the trial anew")
    into.weights = weights
    for index, (master, moments) in enumerate(into.masters):
        master.data.copy_(state.pop(f"{index}.master"))
        for key in [key for key in state if key.startswith(f"{index}.")]:
            value = state[key]  # Adam keeps its count of steps on the CPU
            moments[key.partition(".")[2]] = value.to(master.device) if value.ndim else value
    for index, kept in enumerate(into.average):
        kept.copy_(state[f"average.{index}"])
    return position


def _own_file(rank: int) -> str:
    return f"worker-{rank}.safetensors"


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    write_tensors(path, tensors, {"checksum": _checksum(tensors)})


def _read(path: Path) -> dict[str, torch.Tensor]:
    """What `_write` has written.

    Raises:
        ValueError: the file is whole, and some of its bytes are not those that were written.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        header = file.metadata()
    if header != {"checksum": _checksum(tensors)}:
        raise ValueError(f"{path.name} is damaged")
    return tensors


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 of names and values: a disk that changes some bytes leaves a file that reads well."""
    total = 0
    for name in sorted(tensors):
        values = tensors[name].contiguous().flatten().view(torch.uint8).numpy()
        total = zlib.crc32(memoryview(values), zlib.crc32(name.encode(), total))
    return f"{total:08x}"
