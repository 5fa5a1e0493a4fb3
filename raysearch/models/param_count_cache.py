"""The counts of a model by its name, without torch wherever they are known already.

Counting takes the seconds in which torch and transformers are imported. So the counts of a configuration are kept: the
embedded LVLM's ship with the package, all others lie in the user's cache folder. `python -m raysearch.models.param_count_cache` renews
the shipped ones, which new weights or another transformers make necessary.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from raysearch.errors import InputError
from raysearch.files import cache_folder, write_json
from raysearch.models.checkpoint_files import check_folder, model_folder
from raysearch.models.shape import Linear, ParamCounts, Shape

SHIPPED = Path(__file__).parents[1] / "pocket" / "counts.json"


def counts_of_model(model: str) -> ParamCounts:
    """The counts of a folder, of a hub id, or of the embedded LVLM (`pocket`).

    Raises:
        InputError: no such model, a folder whose weights are missing or truncated, or a model that can't be pruned.
    """
    path = _config_file(model)
    if path is None:
        return _counted(model)
    key = _key(path.read_bytes())
    own = cache_folder("counts") / f"{key}.json"
    known = _read(SHIPPED, key) or _read(own, key)
    if known is None:
        print(f"raysearch: counting the parameters of {model}, once", file=sys.stderr, flush=True)
        known = _counted(model)
        _keep(own, key, known)
    return known


def _counted(model: str) -> ParamCounts:
    from raysearch.models import load_config
    from raysearch.models.param_count import counts_of

    return counts_of(load_config(model))


def _config_file(model: str) -> Path | None:
    """The model's config.json, if it is on this machine."""
    folder = model_folder(model)
    if folder.is_dir():
        check_folder(folder)
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(found) if isinstance(found, str) else None


def _key(config: bytes) -> str:
    """Names a configuration, what is counted of it, and the transformers whose classes were tried."""
    fields = ",".join(field.name for field in dataclasses.fields(ParamCounts))
    facts = f"{metadata.version('transformers')} {fields}".encode()
    return hashlib.sha256(config + facts).hexdigest()[:20]


def _read(path: Path, key: str) -> ParamCounts | None:
    """Kept counts; None if there are none of this key, or none that can be read."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("key") != key:
            return None
        kept["dense"] = Shape(**kept["dense"])
        kept["linears"] = tuple(Linear(*map(tuple, linear.values())) for linear in kept["linears"])
        kept["attention_choices"] = tuple((kv, heads) for kv, heads in kept["attention_choices"])
        return ParamCounts(**kept)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(path: Path, key: str, counts: ParamCounts) -> None:
    with contextlib.suppress(OSError):  # a home that can't be written to costs the same seconds next time
        write_json(path, {"key": key, **dataclasses.asdict(counts)})


if __name__ == "__main__":
    config = _config_file("pocket")
    if config is None:
        raise InputError("pocket: no config.json")
    _keep(SHIPPED, _key(config.read_bytes()), _counted("pocket"))
