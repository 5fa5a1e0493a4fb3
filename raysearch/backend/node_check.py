"""What a node must have in common with the driver: the versions of packages, and the study's folder."""

import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ray

from raysearch.errors import InputError
from raysearch.files import is_storage_problem, read_json
from raysearch.study.folder import SPACE

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "accelerate")
SECONDS_TO_APPEAR = 60.0  # a network file system may show a new folder late


def versions() -> dict[str, str]:
    """Of the packages that a trial's result depends on; builds for CPU and GPU are the same version."""
    return {name: _version(name) for name in PACKAGES}


def node_name() -> str:
    """This node by its address."""
    return f"node {ray.util.get_node_ip_address()}"


def _version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "(none)"


def check_node(study: Path, space: Mapping[str, Any], wanted: Mapping[str, str]) -> InputError | None:
    """Why no trial can be run on this node, if there is a reason.

    Args:
        study: the folder of the study, as the driver names it.
        space: what the driver wrote into it.
        wanted: the driver's `versions`.

    Raises:
        OSError: the storage is away; it may come back.
    """
    here = node_name()
    mine = versions()
    other = [name for name in wanted if mine[name] != wanted[name]]
    if other:
        has, asked = (", ".join(f"{name} {found[name]}" for name in other) for found in (mine, wanted))
        return InputError(f"{here}: has {has} where the driver has {asked}; install requirements.lock on both")
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while _space_in(study) != space:
        if time.monotonic() > deadline:
            return InputError(f"--out {study}: not there on {here}; give a folder on storage that every node reaches")
        time.sleep(0.5)
    return None


def _space_in(study: Path) -> Any:
    try:
        return read_json(study / SPACE)
    except (OSError, ValueError) as error:
        if is_storage_problem(error):
            raise
        return None
