"""Locate a model's files and check that they are complete, without loading them."""

import json
import struct
from pathlib import Path

from raysearch.errors import InputError


def model_folder(model: str | Path) -> Path:
    """The folder of `model`, of an embedded LVLM too; for a hub id, a path that does not exist.

    Raises:
        InputError: `pocket-smollm2` without the package that has its decoder's weights.
    """
    if str(model) == "pocket":
        from raysearch.pocket import weights_folder

        return weights_folder()
    if str(model) == "pocket-smollm2":
        from raysearch.pocket.smollm2 import assembled_folder

        return assembled_folder()
    return Path(model)


def check_folder(folder: Path) -> None:
    """Check that a checkpoint folder has a configuration and every safetensors shard, none truncated.

    Raises:
        InputError: a file is missing, truncated or of another format.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so this is no Hugging Face model folder")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise InputError(f"{index}: not an index of shards; download the folder again") from None
    else:
        shards = [path.name for path in folder.glob("*.safetensors")]
    if not shards and list(folder.glob("*.bin")):
        raise InputError(f"{folder}: its weights are pickled .bin files, which are not read; save it as safetensors")
    for shard in shards or ["model.safetensors"]:
        _check_shard(folder / shard)


def _check_shard(path: Path) -> None:
    """A safetensors file is 8 bytes of header length, the header in JSON, then the tensors."""
    if not path.is_file():
        raise InputError(f"{path}: missing; download or copy the folder again")
    with path.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (struct.error, ValueError, KeyError, TypeError, MemoryError, OverflowError):
            raise InputError(f"{path}: truncated or no safetensors file; download it again") from None
    if path.stat().st_size != expected:
        raise InputError(f"{path}: truncated, {path.stat().st_size} bytes of {expected}; download or copy it again")
