"""A runtime's own Python environment, in the user's cache folder, so that its pins don't meet raysearch's.

A conversion runs in raysearch's Python, with the runtime's packages behind its own: torch and transformers are not
installed twice. What the runtime computes runs in the runtime's Python.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from raysearch.errors import InputError
from raysearch.files import cache_folder, replace_folder

RuntimeName = Literal["llama.cpp", "onnxruntime"]
PACKAGES: dict[RuntimeName, tuple[str, ...]] = {
    "llama.cpp": ("llama-cpp-python==0.3.36", "sentencepiece"),
    "onnxruntime": ("onnxruntime==1.31.1", "onnx", "onnxscript"),
}
"""The first one is the runtime itself."""
_FROM_SOURCE = ("llama.cpp",)
_CONVERTER = ("vendor/llama.cpp/convert_hf_to_gguf.py", "vendor/llama.cpp/conversion", "vendor/llama.cpp/gguf-py/gguf")
"""The parts of the source package that a conversion needs; the rest is deleted once it is built."""
_SECONDS_BETWEEN_LINES = 15
_WITH_PACKAGES_BEHIND = """
import runpy, sys
source, packages, script, *arguments = sys.argv[1:]
sys.path[0] = source
sys.path.append(packages)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class Environment:
    """A runtime that is installed.

    Attributes:
        folder: of its virtual environment; `source` in it holds its converter, if it has one.
    """

    name: RuntimeName
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next(self.folder.glob("lib/python3*/site-packages"))

    def converter(self, script: Path) -> list[str | Path]:
        """The start of a command that runs a script in raysearch's Python, this runtime's packages behind its own."""
        return [sys.executable, "-c", _WITH_PACKAGES_BEHIND, self.folder / "source", self.packages, script]

    @property
    def version(self) -> str:
        """Package and version of the runtime."""
        return json.loads((self.folder / "runtime.json").read_text())["package"]


def environment(name: RuntimeName) -> Environment:
    """The environment of a runtime.

    Raises:
        InputError: it isn't installed.
    """
    found = Environment(name, cache_folder("runtimes") / name)
    if not (found.folder / "runtime.json").is_file() or not found.python.exists():
        raise InputError(f"{name}: not installed; run raysearch runtime install {name}")
    return found


def install(name: RuntimeName) -> Environment:
    """Install a runtime, whole or not at all; at once if it is there. llama.cpp is compiled for this machine, which
    takes minutes and needs a C++ compiler.

    Raises:
        InputError: a package can't be had or built.
    """
    final = cache_folder("runtimes") / name
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.parent / f".{name}.lock"):
        try:
            found = environment(name)
        except InputError:
            pass
        else:
            if found.version == PACKAGES[name][0]:
                return found
        built = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{name}."))
        try:
            _build(name, built)
            replace_folder(built, final)
        finally:
            shutil.rmtree(built, ignore_errors=True)
    return environment(name)


def _build(name: RuntimeName, folder: Path) -> None:
    what = f"installing {name}"
    run([sys.executable, "-m", "venv", folder], what)
    pip: list[str | Path] = [Environment(name, folder).python, "-m", "pip", "--disable-pip-version-check"]
    if name in _FROM_SOURCE:
        source = folder / "download"
        run([*pip, "download", "--no-deps", "--no-binary", ":all:", "-d", source, PACKAGES[name][0]], what)
        with tarfile.open(next(source.glob("*.tar.gz"))) as archive:
            archive.extractall(source, filter="data")
        (unpacked,) = (path for path in source.iterdir() if path.is_dir())
        threads = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
        run([*pip, "install", unpacked], f"building {name}", {**os.environ, **threads})
        for part in _CONVERTER:
            kept = folder / "source" / Path(part).relative_to("vendor/llama.cpp")
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(unpacked / part, kept)
        shutil.rmtree(source)
    missing = PACKAGES[name][1:] if name in _FROM_SOURCE else PACKAGES[name]
    run([*pip, "install", *missing], what)
    (folder / "runtime.json").write_text(json.dumps({"package": PACKAGES[name][0]}) + "\n")


def run(command: Sequence[str | Path], what: str, variables: dict[str, str] | None = None) -> str:
    """Run a command to its end, with a line on stderr as long as it lasts.

    Args:
        what: it does, for these lines and the error.
        variables: its environment; None for this process's own.

    Returns:
        What it wrote to stdout.

    Raises:
        InputError: it failed; with the last lines that it wrote.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err, env=variables)
        except OSError as error:
            raise InputError(f"{what}: {command[0]} can't be run ({error.strerror})") from None
        started = time.monotonic()
        try:
            while True:
                try:
                    status = process.wait(_SECONDS_BETWEEN_LINES)
                    break
                except subprocess.TimeoutExpired:
                    print(f"raysearch: {what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0), err.seek(0)
        said, complaints = out.read(), err.read()
    if status:
        lines = [line.strip() for line in (complaints or said).splitlines() if line.strip()]
        raise InputError(f"{what}: failed ({_reason(lines)})")
    return said


def _reason(lines: Sequence[str]) -> str:
    """The line that tells most: the last one that names an error, else the last one."""
    named = [line for line in lines if "error" in line.lower()]
    return (named or list(lines) or ["no reason given"])[-1][:300]
