"""Locate a model's files and check that they are complete, without loading them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysearch.errors import InputError, first_line
from raysearch.files import read_json

MAX_JSON_BYTES = 64 * 2**20
_MODULES = re.compile(r"(layers?|depth|blocks|stages|experts?|heads?)$")
"""Keys of a configuration whose number is one of modules or units to build."""
_TOO_MANY = 4096


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


def stored_folder(model: str | Path, with_weights: bool = True) -> Path:
    """The folder of `model`; a hub id is downloaded into the hub's cache first.

    Raises:
        InputError: no such folder, and the hub doesn't give it.
    """
    folder = model_folder(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(model).startswith((".", "~")):
        raise InputError(f"model {str(model)!r}: no such folder; give a Hugging Face folder or hub id")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(model), allow_patterns=[*_SMALL_FILES, *["*.safetensors"] * with_weights]))
    except Exception as error:
        raise InputError(
            f"model {str(model)!r}: no such folder, and the hub didn't give it ({first_line(error)})"
        ) from None


_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*", "NOTICE*", "README.md")


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`.

    Raises:
        InputError: it is missing or no JSON object, says that the weights are quantised, or has a number of modules
            that no model has.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json, so this is no Hugging Face model folder")
    config = _read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type", ""), str):
        raise InputError(f"{path}: no configuration of a model; download the folder again")
    for name, value in _entries(config):
        key = name.rpartition(".")[2]
        if key == "quantization_config" and value:
            raise InputError(
                f"{folder}: its weights are quantised; give the folder that they were quantised from "
                f"({name} in config.json)"
            )
        if _MODULES.search(key) and isinstance(value, int | float) and not value < _TOO_MANY:
            raise InputError(f"{path}: {name} is {value}, more than any model has; correct it")
    return config


def check_folder(folder: Path) -> dict[str, Path]:
    """Check that a checkpoint folder has a configuration and every safetensors shard, none truncated.

    Returns:
        The shard of each tensor.

    Raises:
        InputError: a file is missing, truncated or of another format, or an adapter lies beside the model.
    """
    adapters = [path.name for path in folder.glob("adapter_*") if path.suffix in (".json", ".safetensors", ".bin")]
    if adapters:
        raise InputError(
            f"{folder}: holds an adapter ({min(adapters)}), which would be left out; merge it into the model first "
            "(merge_and_unload of peft), or move its files away"
        )
    read_config(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _shards_of(index)
    else:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if not shards and list(folder.glob("*.bin")):
        raise InputError(f"{folder}: its weights are pickled .bin files, which are not read; save it as safetensors")
    paths = [folder / shard for shard in shards or ["model.safetensors"]]
    return {name: path for path in paths for name in _tensor_names(path)}


def _shards_of(index: Path) -> list[str]:
    """The files that an index names; plain names only, so that none lies outside the folder."""
    content = _read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    shards: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    if not all(isinstance(shard, str) and shard.endswith(".safetensors") and "/" not in shard for shard in shards):
        raise InputError(f"{index}: not an index of shards; download the folder again")
    return sorted(set(shards))


def _tensor_names(path: Path) -> list[str]:
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"{path}: missing; download or copy the folder again")
    try:
        with safe_open(path, "np") as stream:  # checks header, offsets and length
            return list(stream.keys())
    except Exception as error:
        raise InputError(
            f"{path}: truncated or no safetensors file, {path.stat().st_size} bytes ({first_line(error)}); download or "
            "copy it again"
        ) from None


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        return read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as JSON ({first_line(error)}); download the folder again") from None


def _entries(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of nested objects by its dotted name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}", inner
            yield from _entries(inner, f"{prefix}{key}.")
