"""Text files that are not plain JSON in UTF-8, as files that are, in the user's cache."""

import csv
import gzip
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from raysearch.errors import InputError
from raysearch.files import cache_folder

_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


def cached_file(path: Path, ending: str, write: Callable[[Path], None]) -> Path:
    """A file that `write` makes from `path`, in the cache; older ones of the same path are removed.

    Raises:
        InputError: it can't be written there.
    """
    found = path.resolve().stat()
    folder = cache_folder("data") / hashlib.sha1(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    name = f"{found.st_size}-{found.st_mtime_ns}"
    final = folder / f"{name}{ending}"
    if final.exists():
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / f"made{ending}"
            write(made)
            os.replace(made, final)
        for older in folder.iterdir():
            if older.is_file() and not older.name.startswith(name):
                older.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: no space to convert it in {folder} ({error.strerror}); set XDG_CACHE_HOME") from None
    return final


def is_gzip(path: Path) -> bool:
    """Whether the file's content is compressed by gzip, whatever its name."""
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def decompressed(path: Path) -> Path:
    """The file, or what it holds if it is compressed by gzip."""
    if not is_gzip(path):
        return path

    def write(to: Path) -> None:
        try:
            with gzip.open(path) as source, open(to, "wb") as stream:
                shutil.copyfileobj(source, stream, 2**20)
        except (EOFError, gzip.BadGzipFile, ValueError) as error:
            raise InputError(f"{path}: damaged gzip ({error})") from None

    return cached_file(path, ".plain", write)


def in_utf8(path: Path) -> Path:
    """The text file, decompressed, in UTF-8 if its mark says that it is in UTF-16.

    Raises:
        InputError: it is not what its first bytes say.
    """
    plain = decompressed(path)
    if _encoding(plain) != "utf-16":
        return plain

    def write(to: Path) -> None:
        with open(plain, encoding="utf-16", newline="") as source, open(to, "wb") as stream:
            while block := source.read(2**20):
                stream.write(block.encode())

    try:
        return cached_file(plain, ".utf8", write)
    except UnicodeError as error:
        raise InputError(f"{path}: not UTF-16, as its first bytes say ({error})") from None


def csv_as_json(path: Path, delimiter: str) -> Path:
    """A file of comma- or tab-separated values with a row of names, as JSON lines; empty cells are left out.

    Raises:
        InputError: it is no such file.
    """
    plain = decompressed(path)

    def write(to: Path) -> None:
        csv.field_size_limit(sys.maxsize)  # pictures in base64
        with open(plain, encoding=_encoding(plain), newline="") as source, open(to, "w", encoding="utf-8") as stream:
            for row in csv.DictReader(source, delimiter=delimiter):
                cells = {name: cell for name, cell in row.items() if name and isinstance(cell, str) and cell}
                stream.write(json.dumps(cells) + "\n")

    try:
        return cached_file(plain, f"{delimiter!r}.jsonl"[1:], write)
    except (csv.Error, UnicodeError) as error:
        raise InputError(f"{path}: not a file of separated values in UTF-8 ({error})") from None


def tar_index(path: Path) -> Path:
    """JSON lines, one per row of a WebDataset: its key, and by the end of their names its files' [start, size].

    Raises:
        InputError: it is no tar file.
    """

    def write(to: Path) -> None:
        with tarfile.open(path, "r:") as tar, open(to, "w", encoding="utf-8") as stream:
            _write_index(tar, stream)

    try:
        return cached_file(path, ".index.jsonl", write)
    except tarfile.TarError as error:
        raise InputError(f"{path}: not a tar file ({error})") from None


def _write_index(tar: tarfile.TarFile, stream: TextIO) -> None:
    key, files = "", dict[str, list[int]]()
    for member in tar:
        if member.isfile():
            folder, _, name = member.name.rpartition("/")
            stem, _, end = name.partition(".")
            if (found := f"{folder}/{stem}") != key and files:
                stream.write(json.dumps({"key": key, "files": files}) + "\n")
                files = {}
            key = found
            files[end.lower()] = [member.offset_data, member.size]
        tar.members = []  # type: ignore[attr-defined]  # else all are kept
    if files:
        stream.write(json.dumps({"key": key, "files": files}) + "\n")


def _encoding(path: Path) -> str:
    with open(path, "rb") as stream:
        begin = stream.read(3)
    return next((name for mark, name in _MARKS.items() if begin.startswith(mark)), "utf-8")
