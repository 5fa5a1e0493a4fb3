"""The licence of the model that another is derived from: its files, and what its model card says."""

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

from raysearch.files import parse_yaml
from raysearch.models.checkpoint_files import model_folder

FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
UNKNOWN = "unknown"
_METADATA = ("license", "license_name", "license_link", "base_model")
MAX_BYTES = 2**20


def copy_license_files(base_model: str, folder: Path) -> None:
    """Copy the licence's files of a model to the folder of one that is derived from it."""
    origin = _folder(base_model)
    for path in [path for pattern in FILES if origin for path in origin.glob(pattern)]:
        if path.is_file() and path.stat().st_size <= MAX_BYTES and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def card_metadata(base_model: str) -> dict[str, Any]:
    """`license` and `base_model` for the card of a derived model, as the hub reads them; an unknown licence is said to
    be unknown. The base of a folder is the base of the model in it."""
    origin, found = _folder(base_model), {}
    if origin and (origin / "README.md").is_file():
        with contextlib.suppress(Exception):  # a card that others wrote
            _, header, _ = (origin / "README.md").read_text(encoding="utf-8")[:MAX_BYTES].split("---", 2)
            said = parse_yaml(header)
            found = {name: said[name] for name in _METADATA if isinstance(said.get(name), str | list) and said[name]}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base_model) and not Path(base_model).exists():  # a hub id
        found["base_model"] = base_model
    return {"license": UNKNOWN} | found


def _folder(base_model: str) -> Path | None:
    """The model's folder, if it is on this machine."""
    with contextlib.suppress(Exception):  # no hub id, or an embedded model whose weights are missing
        folder = model_folder(base_model)
        if folder.is_dir():
            return folder
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base_model, "config.json")
        if isinstance(found, str):
            return Path(found).parent
    return None
