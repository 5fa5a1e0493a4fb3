"""Rows of JSON files, read in place.

Where each row begins and ends is found once. A row is then one read of that part of the file, so that a million rows
open in seconds, and processes share what the system keeps of the file in memory.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raysearch.data.bad_rows import BadRow
from raysearch.data.converted import cached_file
from raysearch.errors import InputError, first_line
from raysearch.files import parse_json

BLOCK_BYTES = 2**22
MIN_KEPT_BYTES = 2**24
_LONGEST_TOKEN = 64
"""Signs before the end of what is read where an error may be due to the end."""
_NUM_LINES_TRIED = 1000
_SPACE = re.compile(r"[ \t\r\n]*")
_WAY_OUT = "data are a list of objects, or one object per line"


class FileParts:
    """Reads parts of a file, from any thread and after a fork."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, os.open(path, os.O_RDONLY)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`.

        Raises:
            BadRow: the file has been cut short.
        """
        found = os.pread(self._file, end - start, start)
        if len(found) != end - start:
            raise BadRow(f"{self._path} has been cut short since it was opened")
        return found

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


class JsonRows(Sequence[Any]):
    """Rows of a UTF-8 file of JSON lines or of one JSON list, whichever it holds, parsed at access."""

    def __init__(self, path: Path) -> None:
        """Find the rows.

        Raises:
            InputError: the file is neither.
        """
        self._file = FileParts(path)
        with open(path, "rb") as stream:
            first = _first_byte(stream)
            begin = stream.tell()
            if first == b"" or (first != b"[" and _holds_objects(stream, begin)):
                self._bounds = _lines(stream)
            elif first == b"[":
                try:
                    self._bounds = _kept_elements(path, stream)
                except InputError:
                    if not _holds_objects(stream, begin):
                        raise
                    self._bounds = _lines(stream)
            else:
                found = "none of its first lines is a whole object" if first == b"{" else f"it begins with {first!r}"
                raise InputError(f"{path}: not JSON: {found}; {_WAY_OUT}")

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: Any) -> Any:
        text = self._file.read(*map(int, self._bounds[index]))
        try:
            return parse_json(text)
        except ValueError as error:
            raise BadRow(f"not JSON ({first_line(error)})") from None


def _first_byte(stream: BinaryIO) -> bytes:
    """The first byte that is no white space; the stream is put at the text's beginning, behind a byte-order mark."""
    begin = 3 if stream.read(3) == b"\xef\xbb\xbf" else 0
    stream.seek(begin)
    first = b""
    while not first and (block := stream.read(BLOCK_BYTES)):
        first = block.strip()[:1]
    stream.seek(begin)
    return first


def _holds_objects(stream: BinaryIO, begin: int) -> bool:
    """Whether one of the first lines is a JSON object; the stream is put back to `begin`."""
    stream.seek(begin)
    is_one = any(_is_object(line) for line in itertools.islice(stream, _NUM_LINES_TRIED))
    stream.seek(begin)
    return is_one


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _lines(stream: BinaryIO) -> np.ndarray:
    """(num_rows, 2) start and end of the lines that aren't empty; lines end with `\\n` alone."""
    begin = at = stream.tell()
    ends = []
    while block := stream.read(BLOCK_BYTES):
        ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at)
        at += len(block)
    stops = np.concatenate([*ends, [at]]).astype(np.int64)
    starts = np.concatenate([[begin], stops[:-1] + 1])
    sizes = stops - starts
    for row in np.flatnonzero((sizes > 0) & (sizes < 16)):  # the object of a row is longer
        stream.seek(int(starts[row]))
        sizes[row] = len(stream.read(int(sizes[row])).strip())
    return np.stack([starts, stops], axis=1)[sizes > 0]


def _kept_elements(path: Path, stream: BinaryIO) -> np.ndarray:
    """`_elements`, found once for a large file."""
    if os.path.getsize(path) < MIN_KEPT_BYTES:
        return _elements(path, stream)
    kept = cached_file(path, ".rows.npy", lambda to: np.save(to, _elements(path, stream)))
    return np.load(kept, mmap_mode="r")


def _elements(path: Path, stream: BinaryIO) -> np.ndarray:
    """(num_rows, 2) start and end of the elements of the JSON list in `stream`.

    Raises:
        InputError: it is damaged.
    """
    try:
        return np.array(list(_Elements(stream)), dtype=np.int64).reshape(-1, 2)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({first_line(error)}); {_WAY_OUT}") from None


class _Elements:
    """Start and end of each element, with a part of the file in memory.

    The text is read as Latin-1, in which every byte is a letter and JSON's own signs are the same: places are exact.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decoder = stream, json.JSONDecoder()
        self._start, self._text, self._at = stream.tell(), "", 0  # `_start` is the place of `_text` in the file

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self._expect("[")
        is_first = True
        while self._next_sign() != "]":
            if not is_first:
                self._expect(",")
            yield self._element()
            is_first = False
        self._expect("]")
        if self._next_sign():
            raise ValueError(f"more behind the list, at byte {self._start + self._at}")

    def _element(self) -> tuple[int, int]:
        self._next_sign()
        while True:
            try:
                end = self._decoder.raw_decode(self._text, self._at)[1]
                if end < len(self._text):  # else it may go on: a number
                    break
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_TOKEN
                if not is_cut or not self._read_more():
                    raise ValueError(f"{error.msg} at byte {self._start + error.pos}") from None
                continue
            if not self._read_more():
                raise ValueError("the list has no end")
        start, self._at = self._start + self._at, end
        return start, self._start + end

    def _expect(self, sign: str) -> None:
        if (found := self._next_sign()) != sign:
            raise ValueError(f"{found or 'the end'!r} instead of {sign!r} at byte {self._start + self._at}")
        self._at += 1

    def _next_sign(self) -> str:
        """The next sign that is no white space, where reading goes on; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def _read_more(self) -> bool:
        """Read on, as much again as is there, so that a long element isn't begun anew too often."""
        block = self._stream.read(max(BLOCK_BYTES, len(self._text) - self._at))
        self._start, self._text, self._at = self._start + self._at, self._text[self._at :] + block.decode("latin-1"), 0
        return bool(block)
