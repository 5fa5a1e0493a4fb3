"""Parameter counts of a model by its name, without torch where they are cached.

Counting imports torch and transformers, which takes seconds. So counts are cached by configuration: those of the
embedded LVLM ship with the package, all others are in the user's cache folder. After a change of the embedded weights
or of transformers, `python -m raysearch.models.param_count_cache` renews the shipped ones.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from raysearch.files import cache_folder, read_json, write_json
from raysearch.models.checkpoint_files import check_folder, model_folder, read_config
from raysearch.models.shape import LayerCounts, ParamCounts, Shape, Tensor

SHIPPED = Path(__file__).parents[1] / "pocket" / "counts.json"


def counts_of_model(model: str) -> ParamCounts:
    """The counts of a folder, of a hub id, or of the embedded LVLM (`pocket`).

    Raises:
        InputError: no such model, a folder whose weights are missing or truncated, or a model that can't be pruned.
    """
    folder = _local_folder(model)
    if folder is None:
        return _count(model)
    key = _key(folder)
    own = cache_folder("counts") / f"{key}.json"
    counts = _read(SHIPPED, key) or _read(own, key)
    if counts is None:
        print(f"raysearch: counting the parameters of {model}, once", file=sys.stderr, flush=True)
        counts = _count(model)
        _write(own, key, counts)
    return counts


def is_shipped(model: str) -> bool:
    """Whether a model has the configuration of the embedded LVLM, whose counts ship with the package."""
    folder = _local_folder(model)
    return folder is not None and _read(SHIPPED, _key(folder)) is not None


def _count(model: str) -> ParamCounts:
    from raysearch.models import load_config
    from raysearch.models.param_count import counts_of

    return counts_of(load_config(model))


def _local_folder(model: str) -> Path | None:
    """The model's folder, if it is on this machine."""
    folder = model_folder(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _key(folder: Path) -> str:
    """Hash of a configuration, of its tensors' names, of the fields of counts, and of transformers' version."""
    config, shards = read_config(folder), check_folder(folder)
    identity: list[Any] = [config, sorted(shards), metadata.version("transformers")]
    identity += [field.name for kind in (ParamCounts, LayerCounts, Shape) for field in dataclasses.fields(kind)]
    if any(name.endswith("lm_head.weight") for name in shards) and '"tie_word_embeddings": true' in json.dumps(config):
        identity += [path.stat().st_mtime_ns for path in sorted(set(shards.values()))]  # its values decide on the tie
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]


def _read(path: Path, key: str) -> ParamCounts | None:
    """Cached counts; None if there are none of this key, or none that can be read."""
    try:
        cached: dict[str, Any] = read_json(path)
        if cached.pop("key") != key:
            return None
        cached["dense"] = Shape(**cached["dense"])
        cached |= {name: _kind(cached[name]) for name in ("outside", "rest")}
        cached["kinds"] = tuple(_kind(fields) for fields in cached["kinds"])
        cached["fixed_layers"] = tuple(cached["fixed_layers"])
        cached["attention_choices"] = tuple((kv, heads) for kv, heads in cached["attention_choices"])
        return ParamCounts(**cached)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _kind(fields: dict[str, Any]) -> LayerCounts:
    tensors = {name: tuple(map(_tensor, fields[name])) for name in ("tensors", "buffers")}
    return LayerCounts(**{**fields, "layers": tuple(fields["layers"]), **tensors})


def _tensor(fields: dict[str, Any]) -> Tensor:
    return Tensor(tuple(map(tuple, fields["axes"])), fields["is_linear"])


def _write(path: Path, key: str, counts: ParamCounts) -> None:
    with contextlib.suppress(OSError):  # without a cache, counting is repeated next time
        write_json(path, {"key": key, **dataclasses.asdict(counts)})


if __name__ == "__main__":
    _write(SHIPPED, _key(model_folder("pocket")), _count("pocket"))
