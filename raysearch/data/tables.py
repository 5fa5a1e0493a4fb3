"""Tables: the raw rows of a file, a folder or a data set of the hub, read at access."""

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysearch.data.bad_rows import logger
from raysearch.data.converted import csv_as_json, decompressed, in_utf8, tar_index
from raysearch.data.json_rows import FileParts, JsonRows
from raysearch.errors import InputError, first_line
from raysearch.files import parse_json

FORMATS = (
    "'pocket', a .json, .jsonl, .csv, .tsv, .parquet, .arrow or .tar file, a folder of such files or of the datasets "
    "library, or a hub id"
)
_KINDS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".arrow": "arrow", ".tar": "tar", ".tgz": "tar",
}  # fmt: skip
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_IMAGE_ENDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")


@dataclass(frozen=True)
class Table:
    """Raw rows of one data set.

    Attributes:
        name: of the file, folder or data set.
        rows: a mapping each, if nothing is wrong with it; reading a row may raise anything.
        folders: what paths in it are relative to, in this order.
    """

    name: str
    rows: Sequence[Any]
    folders: tuple[Path, ...] = ()


def open_table(data: str | Path, split: str | None = None, to_train: bool = False) -> Table:
    """Open a data set.

    Args:
        data: one of `FORMATS`, but `pocket`.
        split: of a folder or of a hub id; None for `train`, or the only one that there is.
        to_train: refuse a folder of splits without `train`.

    Raises:
        InputError: no such data or split, or a file that is not what its name says.
    """
    path = Path(data)
    try:
        if path.is_dir():
            return _open_folder(path, split, to_train)
        if path.exists():
            if not path.is_file():
                raise InputError(f"{path}: neither a file nor a folder; data is {FORMATS}")
            if split is not None:
                raise InputError(f"{path}: a file has no splits; give each split a file of its own")
            return Table(str(path), _rows_of([path]), (path.parent, path.parent / "images"))
        if kind_of(path) or path.is_absolute():
            raise InputError(f"{path}: no such file; data is {FORMATS}")
        return Table(str(data), _of_the_hub(str(data), split or "train"))
    except InputError:
        raise
    except Exception as error:  # the libraries raise whatever their readers raise
        named = repr(str(data)[:200]) + (f", split {split!r}" if split else "")
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"data {named}: can't be opened ({reason}); data is {FORMATS}") from None


def _open_folder(folder: Path, split: str | None, to_train: bool) -> Table:
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        return Table(str(folder), _saved(folder, split, to_train), (folder, folder / "images"))
    files = [path for path in (*folder.iterdir(), *folder.glob("data/*")) if path.is_file() and kind_of(path)]
    kinds = {kind_of(path) for path in files}
    if len(kinds) > 1:
        kinds.discard("json")  # which describes the other files
        files = [path for path in files if kind_of(path) in kinds]
    if len(kinds) > 1:
        raise InputError(f"{folder}: holds files of {' and '.join(sorted(map(str, kinds)))}; name one kind of them")
    chosen = _of_split(folder, sorted(files), split, to_train)
    if not chosen:
        raise InputError(f"{folder}: no files{f' of split {split}' if split else ''}; data is {FORMATS}")
    inner = chosen[0].parent
    folders = dict.fromkeys((inner, inner / "images", folder, folder / "images"))
    return Table(str(folder), _rows_of(chosen), tuple(folders))


def _of_split(folder: Path, files: Sequence[Path], split: str | None, to_train: bool) -> list[Path]:
    """The files of a split, by their names; all of them if none names one."""
    splits = [next((_SPLIT_OF[word] for word in _words(path) if word in _SPLIT_OF), None) for path in files]
    if split is not None and any(path.name.startswith(split) for path in files):
        return [path for path in files if path.name.startswith(split)]
    named = sorted({name for name in splits if name})
    wanted = _SPLIT_OF.get(split, split) if split else _default_split(folder, named, to_train) if named else None
    chosen = [path for path, name in zip(files, splits, strict=True) if name == wanted]
    if len(chosen) < len(files) and chosen:
        logger.warning("%s: split %s is read, %d of %d files", folder, wanted, len(chosen), len(files))
    return chosen


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", path.name.lower())


def _default_split(data: Path, splits: Sequence[str], to_train: bool) -> str:
    if "train" in splits:
        return "train"
    if len(splits) == 1 and not to_train:
        return splits[0]
    raise InputError(f"{data}: its splits are {', '.join(splits)}, without train; name the file or folder to read")


def _saved(folder: Path, split: str | None, to_train: bool) -> Any:
    """A folder that `save_to_disk` of the datasets library has written."""
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        name = split or _default_split(folder, list(loaded), to_train)
        if name not in loaded:
            raise InputError(f"{folder}: no split {name!r}; it has {', '.join(loaded)}")
        loaded = loaded[name]
    return undecoded(loaded)


def _of_the_hub(name: str, split: str) -> Any:
    import datasets

    return undecoded(datasets.load_dataset(name, split=split))


def _rows_of(files: Sequence[Path]) -> Sequence[Any]:
    """The rows of files of one kind, one after another."""
    kind = kind_of(files[0])
    if kind in ("parquet", "arrow"):
        import datasets

        return undecoded(datasets.load_dataset(kind, data_files=list(map(str, files)), split="train"))
    parts = [_rows_of_file(path, kind) for path in files]
    return parts[0] if len(parts) == 1 else _Joined(parts)


def _rows_of_file(path: Path, kind: str | None) -> Sequence[Any]:
    if kind == "tar":
        return _TarRows(decompressed(path))
    if kind in ("csv", "tsv"):
        return JsonRows(csv_as_json(path, "\t" if kind == "tsv" else ","))
    if kind == "json":
        return JsonRows(in_utf8(path))
    raise InputError(f"{path}: not a kind of file that is read; data is {FORMATS}")


def kind_of(path: Path) -> str | None:
    """What a file holds by its name, in lower or upper case; `.gz` may follow."""
    ends = [end.lower() for end in path.suffixes if end.lower() != ".gz"]
    return _KINDS.get(ends[-1]) if ends else None


def undecoded(dataset: Any) -> Any:
    """Keep images as the bytes of their files, which take a tenth of the memory."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset


class _Joined(Sequence[Any]):
    """Several sequences one after another."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts, self._ends = parts, list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


class _TarRows(Sequence[Any]):
    """Rows of a WebDataset: files of a tar, one after another, whose names differ only behind the first dot.

    A row is what its .json holds, with the image files as `images`, and texts by their ends.
    """

    def __init__(self, path: Path) -> None:
        self._file, self._index = FileParts(path), JsonRows(tar_index(path))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> Any:
        places = self._index[index]["files"].items()
        files = {end: self._file.read(start, start + size) for end, (start, size) in places}
        row: dict[str, Any] = {}
        for end, content in files.items():
            if end == "json":
                row |= parse_json(content)
            elif end in ("txt", "cls"):
                row[end] = content.decode("utf-8-sig").strip()
        names = sorted((end for end in files if end.rsplit(".", 1)[-1] in _IMAGE_ENDS), key=lambda end: (len(end), end))
        images = [files[name] for name in names]
        return row | {"images": images} if images else row
