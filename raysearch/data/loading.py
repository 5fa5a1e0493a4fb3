"""Recovery data: samples from the usual formats, and the order in which fractions take them."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np

from raysearch.data.samples import BAD_ROWS_ALLOWED, BadRow, BadRows, Sample, sample_from_row
from raysearch.errors import InputError

FORMATS = (
    "'pocket', a LLaVA-style .json or .jsonl file, a .parquet file, a folder of the datasets library or of Parquet "
    "files, or a hub id with a column of messages"
)


def load_samples(
    data: str | Path, image_folder: str | Path | None = None, bad_rows_allowed: float = BAD_ROWS_ALLOWED
) -> Sequence[Sample]:
    """Read recovery data.

    Args:
        data: one of `FORMATS`.
        image_folder: what image paths are relative to; None for the file's own folder and `images` in it.
        bad_rows_allowed: share of the rows that may be unusable; these are left out and named in a warning.

    Raises:
        InputError: no such data, no rows, or too many that can't be used.
    """
    if str(data) == "pocket":
        from raysearch.pocket import conversations

        rows: list[Any] = list(conversations())
        return _samples(rows, "pocket", [], bad_rows_allowed)
    path = Path(data)
    if path.suffix in (".json", ".jsonl"):
        own = [path.parent, path.parent / "images"]
        folders = own if image_folder is None else [Path(image_folder)]
        return _samples(_read_json(path), str(path), folders, bad_rows_allowed)
    return _dataset_samples(path, str(data), bad_rows_allowed)


def read_rows(data: str | Path, split: str | None = None) -> tuple[Sequence[Any], list[Path]]:
    """Raw rows of a data set, whatever their columns; images stay paths or the bytes of their files.

    Args:
        data: one of `FORMATS`, except `pocket`.
        split: of a folder of the datasets library, of Parquet files named by split, or of a hub id.

    Returns:
        Mappings, or None for a line that isn't JSON; and the folders that image paths are relative to.

    Raises:
        InputError: no such data or split.
    """
    path = Path(data)
    if path.suffix in (".json", ".jsonl"):
        if split is not None:
            raise InputError(f"{path}: a JSON file has no splits; give each split a file of its own")
        return _read_json(path), [path.parent, path.parent / "images"]
    folder = path if path.is_dir() else path.parent
    return _undecoded(_open_dataset(path, str(data), split)), [folder, folder / "images"]


def fraction_order(num_samples: int, seed: int, sources: Sequence[str] | None = None) -> np.ndarray:
    """The order in which fractions take samples: a fraction is a prefix, so fractions nest.

    Args:
        num_samples: rows of the whole data set.
        seed: of the study; the same for all trials and workers.
        sources: one name per sample, to keep every source's share in every prefix (to a sample or two).

    Returns:
        (num_samples,), a permutation of the indices.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(num_samples)
    if sources is None:
        return order
    names = np.asarray(sources)[order]
    assert len(names) == num_samples, (len(names), num_samples)
    place = np.empty(num_samples)
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        place[own] = (np.arange(len(own)) + random.random()) / len(own)
    return order[np.argsort(place, kind="stable")]


def in_order(samples: Sequence[Sample], order: np.ndarray) -> Sequence[Sample]:
    """The samples at the indices `order`; those that are read lazily stay on disk."""
    if isinstance(samples, _Rows):
        return samples.at(order)
    return [samples[index] for index in order]


def num_rows(data: str | Path) -> int:
    """How many samples `load_samples` returns, without drawing the embedded ones."""
    if str(data) == "pocket":
        from raysearch.pocket import NUM_CONVERSATIONS

        return NUM_CONVERSATIONS
    return len(load_samples(data))


def _samples(rows: Sequence[Any], data: str, folders: Sequence[Path], allowed: float) -> list[Sample]:
    bad = BadRows(data, len(rows), allowed)
    samples = []
    for index, row in enumerate(rows):
        try:
            samples.append(sample_from_row(row, index, folders, check_files=True))
        except BadRow as error:
            named = f" (id {row['id']})" if isinstance(row, dict) and row.get("id") is not None else ""
            bad.add(f"row {index}{named}", str(error))
    bad.report()
    if not samples:
        raise InputError(f"{data}: no rows; give {FORMATS}")
    return _with_own_ids(samples)


def _with_own_ids(samples: list[Sample]) -> list[Sample]:
    """Make ids unique, which repeat in published mixes: the second `a` becomes `a#2`."""
    seen: Counter[str] = Counter()
    for index, sample in enumerate(samples):
        seen[sample.id] += 1
        if seen[sample.id] > 1:
            samples[index] = dataclasses.replace(sample, id=f"{sample.id}#{seen[sample.id]}")
    return samples


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; data is {FORMATS}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
    if path.suffix == ".jsonl":
        return [_parsed(line) for line in text.splitlines() if line.strip()]
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); one object per line goes into a .jsonl file") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds no list of rows")
    return rows


def _parsed(line: str) -> Any:
    """The row; None, which counts as a bad row, for a line that isn't JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


class _Rows(Sequence[Sample]):
    """Rows of a `datasets.Dataset`, read at access; a sample that is still referenced is not read again."""

    def __init__(self, dataset: Any, indices: np.ndarray) -> None:
        self._dataset, self._indices = dataset, indices
        self._held: WeakValueDictionary[int, Sample] = WeakValueDictionary()

    def at(self, indices: np.ndarray | slice) -> "_Rows":
        return _Rows(self._dataset, self._indices[indices])

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return self.at(index)
        row = int(self._indices[index])
        sample = self._held.get(row)
        if sample is None:
            sample = dataclasses.replace(sample_from_row(self._dataset[row], row), id=str(row))
            self._held[row] = sample
        return sample


def _dataset_samples(path: Path, data: str, allowed: float) -> Sequence[Sample]:
    dataset = _open_dataset(path, data)
    columns = [name for name in ("messages", "conversations") if name in dataset.column_names]
    if not columns:
        raise InputError(f"{data}: columns {', '.join(dataset.column_names)}; one must be messages or conversations")
    bad = BadRows(data, len(dataset), allowed)
    for index, row in enumerate(dataset.select_columns(columns)):
        if not any(_is_answer(turn) for turn in row[columns[0]] or []):
            bad.add(f"row {index}", "no answer")
    bad.report()
    left_out = {int(name.split()[1]) for name in bad.found}
    indices = np.array([index for index in range(len(dataset)) if index not in left_out], dtype=np.int64)
    if not len(indices):
        raise InputError(f"{data}: no rows; give {FORMATS}")
    return _Rows(_undecoded(dataset), indices)


def _undecoded(dataset: Any) -> Any:
    """Keep images as the bytes of their files, which take a tenth of the memory."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset


def _is_answer(turn: dict[str, Any]) -> bool:
    return turn.get("role", turn.get("from")) in ("assistant", "gpt") and bool(turn.get("content", turn.get("value")))


def _open_dataset(path: Path, data: str, split: str | None = None) -> Any:
    import datasets

    try:
        if path.suffix == ".parquet":
            return datasets.Dataset.from_parquet(str(path))
        if path.is_dir():
            files = sorted(map(str, path.glob(f"{split or ''}*.parquet")))
            if files:
                return datasets.Dataset.from_parquet(files)
            loaded = datasets.load_from_disk(str(path))
            return loaded[split or "train"] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(data, split=split or "train")
    except Exception as error:  # the library raises whatever its readers raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        named = f"{data!r}, split {split!r}" if split else repr(data)
        raise InputError(f"data {named}: can't be opened ({reason}); data is {FORMATS}") from None
