"""Rows of data that are too large to be kept: as many as are asked for are read once, and only these are kept."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysearch.data.bad_rows import logger
from raysearch.data.tables import FORMATS, Table, kind_of, undecoded
from raysearch.errors import InputError, first_line
from raysearch.files import cache_folder, read_json, write_json

ROWS_PER_PART = 1000
_BUILDERS = {"tar": "webdataset", "json": "json", "csv": "csv", "parquet": "parquet", "arrow": "arrow"}
_SEED = 0  # not the study's: a part that is there serves all studies
_STATE = "state.json"


def streamed_table(data: str, num_rows: int) -> Table:
    """The first `num_rows` rows of a data set whose files are taken in turn, in a fixed random order.

    They are kept in the user's cache, in parts of `ROWS_PER_PART`, which are mapped into memory; an interrupted or a
    larger read goes on behind the last part, to the same rows as one that wasn't interrupted.

    Args:
        data: a hub id, a folder, or the URL of files; its split `train` is read.

    Raises:
        InputError: it can't be read.
    """
    import datasets
    from filelock import FileLock

    folder = cache_folder("streams") / hashlib.sha1(f"{datasets.__version__} {data}".encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of one node's workers, one reads
            parts = _read_parts(data, folder, num_rows)
        loaded = [datasets.load_from_disk(str(folder / name)) for name in parts]
    except Exception as error:  # the libraries raise whatever their readers and the network raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"data {data[:200]!r}: can't be streamed ({reason}); data is {FORMATS}") from None
    if not loaded:
        return Table(data, [])
    rows = datasets.concatenate_datasets(loaded)
    return Table(data, _Rows(rows, min(num_rows, len(rows))))


def _read_parts(data: str, folder: Path, num_rows: int) -> list[str]:
    """Names of the parts with the first rows; those that aren't there yet are read."""
    import datasets

    found = read_json(folder / _STATE) if (folder / _STATE).exists() else {"parts": [], "state": None, "is_over": False}
    missing = num_rows - ROWS_PER_PART * len(found["parts"])
    if missing > 0 and not found["is_over"]:
        logger.warning("%s: %d rows are streamed, once, into %s", data, missing, folder)
        stream = _stream(data)
        if found["state"]:
            stream.load_state_dict(found["state"])
        rows = iter(stream)
        while ROWS_PER_PART * len(found["parts"]) < num_rows and not found["is_over"]:
            part = list(itertools.islice(rows, ROWS_PER_PART))
            found["is_over"] = len(part) < ROWS_PER_PART
            if part:
                name = f"{len(found['parts']):06}"
                datasets.Dataset.from_list(part, features=stream.features).save_to_disk(str(folder / name))
                found["parts"].append(name)
            write_json(folder / _STATE, {**found, "state": stream.state_dict()})
    return found["parts"][: -(-num_rows // ROWS_PER_PART)]


def _stream(data: str) -> Any:
    import datasets

    kind = kind_of(Path(data)) if "://" in data else None
    source = {"path": _BUILDERS[kind], "data_files": data} if kind in _BUILDERS else {"path": data}
    stream = datasets.load_dataset(**source, split="train", streaming=True)
    stream = undecoded(stream) if stream.features else stream
    return stream.shuffle(seed=_SEED, buffer_size=1)  # of the files: rows are put in order by who takes them


class _Rows(Sequence[Any]):
    """Rows of a table; of a WebDataset as those of a file are read."""

    def __init__(self, rows: Any, num_rows: int) -> None:
        self._rows, self._num_rows = rows, num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: Any) -> Any:
        row = self._rows[index]
        if "__key__" not in row:
            return row
        images = [value for _, value in sorted(_images(row), key=lambda named: (len(named[0]), named[0]))]
        inner = row.get("json")
        texts = {end: value for end, value in row.items() if end in ("txt", "cls")}
        return {**texts, **(inner if isinstance(inner, Mapping) else {}), **({"images": images} if images else {})}


def _images(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return (
        (end, value) for end, value in row.items() if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}
    )
