"""Files are replaced whole, never edited in place: a reader sees the old one or the new one."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STORAGE_PROBLEMS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}
"""Numbers of an `OSError` that lies with a disk or a network file system, not with who uses it: it may pass."""


class StorageProblem(OSError):
    """What the storage has done to one of several workers, raised on all of them at the same place."""


def is_storage_problem(error: BaseException | None) -> bool:
    """Whether an error lies with a full disk or lost storage."""
    return isinstance(error, OSError) and error.errno in STORAGE_PROBLEMS


def cache_folder(kind: str) -> Path:
    """Where things that can be made again are kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raysearch" / kind


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`; after a crash at any instant the old content or the new one is there.

    Raises:
        OSError: it could not be written; the error names `path`.
    """
    with _replaced(path) as sibling, open(sibling, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Replace `path` by a safetensors file of contiguous tensors, with texts in its header.

    Raises:
        OSError: it could not be written; the error names `path`.
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
    """A file beside `path`, of this writer alone, that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, sibling = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield sibling
        os.chmod(sibling, 0o644)
        os.replace(sibling, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        Path(sibling).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_json(path: Path, row: Any, flush: bool = True) -> None:
    """Append one line of JSON, whole, or nothing; what a crash has left of a line before it is cut off first.

    Args:
        flush: wait until the disk has it. A line that isn't flushed outlives the process, though not the machine.

    Raises:
        OSError: it could not be written.
    """
    line = (json.dumps(row) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _cut_half_line(handle)
        before = os.fstat(handle).st_size
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if flush:
            os.fsync(handle)
    finally:
        os.close(handle)


def _cut_half_line(handle: int) -> None:
    end = size = os.fstat(handle).st_size
    while end and os.pread(handle, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(handle, end)


def read_json_lines(path: Path) -> list[Any]:
    """The rows of a file of JSON lines, none if there is no file; a last line cut short by a crash is left out.

    Raises:
        ValueError: a line is no JSON; the message has its number.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return rows


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; what is deleted meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def replace_folder(built: Path, final: Path) -> None:
    """Move a finished folder to its place on the same file system, over an older one if there is one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(built, final)
        shutil.rmtree(old)
    else:
        os.replace(built, final)
