"""Atomic writes: a reader sees the old file or the new one, never a part. Nothing outside of a folder is deleted."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysearch.errors import InputError, first_line

if TYPE_CHECKING:
    import torch

STORAGE_PROBLEMS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
}  # fmt: skip
"""`OSError.errno` of faults of a disk or network file system; they may be transient."""
MAX_YAML_VALUES, MAX_NUMBER_CHARS = 20_000, 1000
_UNFINISHED = ".unfinished"


class StorageProblem(OSError):
    """A storage fault of one of several workers, raised on all of them at the same point."""


def is_storage_problem(error: BaseException | None) -> bool:
    """Whether an error is due to a full disk or lost storage."""
    return isinstance(error, OSError) and error.errno in STORAGE_PROBLEMS


def cache_folder(kind: str) -> Path:
    """This user's folder of reproducible files, under `$XDG_CACHE_HOME`; where there is no home folder, or none that
    can be written to, under the temporary one."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "raysearch" / kind


def home_folder() -> Path:
    """This user's home folder; where there is none that can be written to, one below the temporary folder."""
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry in the password file
        home = Path("/nonexistent")
    return home if os.access(home, os.W_OK) else Path(tempfile.gettempdir()) / f"raysearch-home-{os.getuid()}"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically: after a crash it has the old content or the new one.

    Raises:
        OSError: writing failed; the error names `path`.
    """
    with _replaced(path) as sibling, open(sibling, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Replace `path` by a safetensors file of contiguous tensors, with `metadata` in its header.

    Raises:
        OSError: writing failed; the error names `path`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with _replaced(path) as sibling:
        try:
            save_file(dict(tensors), sibling, dict(metadata or {}))
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from None


@contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """A temporary file beside `path` that replaces it if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sibling = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}{_UNFINISHED}"))
    try:
        handle = os.open(sibling, os.O_CREAT | os.O_EXCL, 0o666)  # less the person's umask
        mode = os.fstat(handle).st_mode
        os.close(handle)
        yield sibling
        os.chmod(sibling, mode)  # safetensors writes 0600
        os.replace(sibling, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        Path(sibling).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN and infinities are a ValueError, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_json(path: Path, *rows: Any, flush: bool = True) -> None:
    """Append lines of JSON completely or not at all; the partial last line of a crash is removed first.

    Args:
        flush: wait for the disk. A line that isn't flushed survives a crash of the process, not of the machine.

    Raises:
        OSError: writing failed.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        _remove_partial_line(handle)
        before = os.fstat(handle).st_size
        if os.write(handle, lines) < len(lines):
            os.ftruncate(handle, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if flush:
            os.fsync(handle)
    finally:
        os.close(handle)


def _remove_partial_line(handle: int) -> None:
    end = size = os.fstat(handle).st_size
    while end and os.pread(handle, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(handle, end)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it isn't JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it isn't JSON in UTF-8, or nested too deeply.
        OSError: it can't be read.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of at most MAX_YAML_VALUES, each alias counted as what it stands for.

    Raises:
        ValueError: it isn't YAML, nested too deeply, or larger.
    """
    import yaml

    class Bounded(yaml.SafeLoader):
        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if _num_values(node, {}) > MAX_YAML_VALUES:
                raise ValueError(f"more than {MAX_YAML_VALUES:,} values, each alias counted as what it stands for")
            return node

    try:
        return yaml.load(text, Bounded)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _num_values(node: Any, known: dict[int, float]) -> float:
    """Values under a YAML node; infinite if it holds itself.

    Raises:
        ValueError: a number has more than MAX_NUMBER_CHARS.
    """
    if getattr(node, "tag", "").endswith((":int", ":float")) and len(node.value) > MAX_NUMBER_CHARS:
        raise ValueError(f"a number of {len(node.value):,} characters")
    if id(node) not in known:
        known[id(node)] = math.inf
        content = getattr(node, "value", None)
        parts = content if isinstance(content, list) else []
        flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in flat)
    return known[id(node)]


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each row of a JSON lines file, read as they are asked for; none if there is no file.

    A partial last line and empty lines are left out.

    Raises:
        ValueError: a line isn't JSON; the message has its number.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                if line.endswith(b"\n") and line.strip():
                    yield number, parse_json(line.decode())
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def read_json_lines(path: Path) -> list[Any]:
    """The values of `json_lines`."""
    return [row for _, row in json_lines(path)]


def folder_bytes(folder: Path) -> int:
    """Total bytes of the files in a folder, without those deleted meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def delete_unfinished(folder: Path) -> None:
    """Delete the temporary files that a crash has left in a folder."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` lies in `folder`, at any depth, once all symbolic links are followed."""
    path, folder = path.resolve(), folder.resolve()
    return path != folder and path.is_relative_to(folder)


def delete_folder(path: Path, within: Path) -> None:
    """Delete what can be deleted of a folder inside `within`; a link, or what lies elsewhere, is left alone."""
    if not path.is_symlink() and is_inside(path, within):
        shutil.rmtree(path, ignore_errors=True)


def replace_folder(built: Path, final: Path) -> None:
    """Move the folder `built` to `final`, on the same file system, replacing an older one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        os.replace(final, old)
        os.replace(built, final)
        shutil.rmtree(old)
    else:
        os.replace(built, final)


def open_to_readers(folder: Path) -> None:
    """Give a folder and what it holds the permissions that the person's umask leaves: temporary folders and
    safetensors are readable by their owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def check_free(folder: Path, option: str, source: str | Path | None = None) -> Path:
    """Check that a command may write a folder that an option names; its links are followed.

    Args:
        source: what the command reads, if it is a folder; nothing is written into it.

    Returns:
        The folder itself: absolute, without links.

    Raises:
        InputError: it exists and is not an empty folder, lies inside the source, or can't be written.
    """
    try:
        final = folder.resolve()
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise InputError(f"{option} {folder}: exists and is not an empty folder; name a new or empty one")
        if source is not None and os.path.isdir(source) and final.is_relative_to(Path(source).resolve()):
            raise InputError(f"{option} {folder}: lies inside {source}, which is read; name a folder elsewhere")
        above = next(path for path in final.parents if path.exists())
        with tempfile.TemporaryDirectory(dir=above, prefix=".raysearch-"):
            pass  # what os.access says is not what a full, shared or special file system does
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, links in a circle
        if isinstance(error, InputError):
            raise
        raise InputError(f"{option} {folder}: can't be written ({first_line(error)}); name another") from None
    return final
