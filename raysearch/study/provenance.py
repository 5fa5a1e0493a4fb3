"""When, where and by what command a study's search was started, as `starts.json` in its folder."""

import os
import platform
import re
import shlex
import socket
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from raysearch.files import write_json
from raysearch.study.records import Printable, read_document
from raysearch.study.secrets import mask
from raysearch.study.status import Time

STARTS = "starts.json"
PACKAGES = ("raysearch", "torch", "transformers", "ray", "deepspeed", "optuna", "peft", "mlflow")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed PACKAGES; imports none of them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


class Start(BaseModel):
    """One start of a study's search, on the machine that drove it.

    Attributes:
        ended: None while it runs, and of one that ended without a word.
        num_slots: trials at a time.
        gpus: names of the driving machine's GPUs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    began: Time = Field(default_factory=time.time)
    ended: Time | None = None
    command: Printable = Field(default_factory=lambda: _command())
    host: Printable = Field(default_factory=socket.gethostname)
    platform: Printable = Field(default_factory=platform.platform)
    num_cpus: int = Field(default_factory=lambda: os.cpu_count() or 1)
    memory_bytes: int = Field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    gpus: list[Printable] = Field(default_factory=lambda: _gpus())
    num_slots: int = 1
    versions: dict[str, Printable] = Field(default_factory=versions)


def read_starts(folder: Path) -> list[Start]:
    """The starts of a study's search, the first one first; none if they weren't noted.

    Raises:
        InputError: the file holds something else.
    """
    return read_document(folder / STARTS, list[Start], "starts") or []


def note_start(folder: Path, start: Start) -> None:
    """Add a start, or replace the one that began at the same time."""
    others = [other for other in read_starts(folder) if other.began != start.began]
    write_json(folder / STARTS, [one.model_dump() for one in sorted([*others, start], key=lambda one: one.began)])


def _command() -> str:
    """The command line of this process as a shell takes it, without secrets."""
    program, *arguments = sys.argv or [""]
    if Path(program).name in ("raysearch", "__main__.py"):
        words = ["raysearch"]
    elif Path(program).parts[-2:] == ("raysearch", "pareto.py"):
        words = ["python", "-m", "raysearch.pareto"]
    else:
        words = ["python", program or "-"]
    return str(mask(shlex.join([*words, *arguments])))


def _gpus() -> list[str]:
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            names += re.findall(r"^Model:\s*(.+?)\s*$", path.read_text(), re.M)
    return names
