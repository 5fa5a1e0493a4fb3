"""Recovery data: samples of one or several sources, read when they are needed, and the order in which fractions take
them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np

from raysearch.config.settings import DataSource
from raysearch.data.bad_rows import BAD_ROWS_ALLOWED, BadRow, BadRows, only_bad_rows
from raysearch.data.samples import Sample, sample_from_row, source_of
from raysearch.data.streaming import streamed_table
from raysearch.data.tables import FORMATS, Table, open_table
from raysearch.errors import InputError

NUM_ROWS_CHECKED, SECONDS_OF_CHECK = 20_000, 15.0
"""How much is read before a search starts."""


class Samples(Sequence[Sample]):
    """Rows of tables as samples, read at access; a sample that is still referenced is not read again.

    A row that can't be used is a sample with a `problem`, whatever its reading has raised.
    """

    def __init__(self, tables: Sequence[Table], order: np.ndarray) -> None:
        """Take the rows at `order`, (num_samples, 2): the table, and the row in it."""
        self._tables, self._order = tables, order
        self._held: WeakValueDictionary[tuple[int, int], Sample] = WeakValueDictionary()

    @property
    def name(self) -> str:
        """Names of the tables."""
        return ", ".join(table.name for table in self._tables)

    def at(self, indices: np.ndarray | slice) -> "Samples":
        """The samples at `indices`."""
        return Samples(self._tables, self._order[indices])

    def sources(self) -> list[str]:
        """The collection that each sample belongs to, (num_samples,); of unreadable rows, `text`."""
        return [source_of(self._row(table, row)) for table, row in self._order]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return self.at(index)
        key = int(self._order[index][0]), int(self._order[index][1])
        sample = self._held.get(key)
        if sample is None:
            self._held[key] = sample = self._read(*key)
        return sample

    def _read(self, table: int, row: int) -> Sample:
        name = str(row) if len(self._tables) == 1 else f"{self._tables[table].name}:{row}"
        try:
            with only_bad_rows("can't be read"):
                return sample_from_row(self._tables[table].rows[row], name, self._tables[table].folders)
        except BadRow as error:
            return Sample(name, "text", (), [], problem=str(error))

    def _row(self, table: int, row: int) -> Any:
        try:
            with only_bad_rows("can't be read"):
                return self._tables[table].rows[int(row)]
        except BadRow:
            return None


Data = str | Path | Sequence[DataSource]
"""Recovery data: `pocket`, one of `FORMATS`, or several of these with weights."""


def load_samples(data: Data, image_folder: str | Path | None = None) -> Samples:
    """Open recovery data; no row is read.

    Args:
        image_folder: what image paths are relative to; None for the file's own folder and `images` in it.

    Raises:
        InputError: no such data, or no rows.
    """
    sources = [DataSource(path=str(data))] if isinstance(data, str | Path) else data
    tables = [_table(source, image_folder) for source in sources]
    rows = [_weighted(len(table.rows), source.weight) for table, source in zip(tables, sources, strict=True)]
    return Samples(tables, np.concatenate([np.stack([np.full_like(r, i), r], axis=1) for i, r in enumerate(rows)]))


def _table(source: DataSource, image_folder: str | Path | None) -> Table:
    data = source.path
    if source.stream is not None and data != "pocket":
        table = streamed_table(data, source.stream)
    elif data == "pocket":
        from raysearch.pocket import conversations

        table = Table("pocket", conversations())
    else:
        table = open_table(data, to_train=True)
    if not len(table.rows):
        raise InputError(f"{data}: no rows; data is {FORMATS}")
    return table if image_folder is None else Table(table.name, table.rows, (Path(image_folder),))


def _weighted(num_rows: int, weight: float) -> np.ndarray:
    """Every row as often as the weight says, and of the rest of it a fixed random part."""
    num_passes, rest = divmod(round(weight * num_rows), num_rows)
    return np.concatenate([*[np.arange(num_rows)] * num_passes, np.sort(fraction_order(num_rows, seed=0)[:rest])])


def check_samples(samples: Samples, allowed: float = BAD_ROWS_ALLOWED) -> BadRows:
    """Read rows in a fixed random order, and warn of those that can't be used.

    It ends at `NUM_ROWS_CHECKED` or `SECONDS_OF_CHECK`.

    Args:
        allowed: share of the rows that may be unusable.

    Raises:
        BadData: too many are.
    """
    began, found, num_read = time.monotonic(), {}, 0
    for index in fraction_order(len(samples), seed=0)[:NUM_ROWS_CHECKED]:
        if problem := samples[int(index)].problem:
            found[int(index)] = problem
        num_read += 1
        if time.monotonic() - began > SECONDS_OF_CHECK:
            break
    bad = BadRows(samples.name, num_read, allowed, {f"row {samples[i].id}": found[i] for i in sorted(found)})
    bad.check()
    bad.report()
    return bad


def num_rows(data: Data) -> int:
    """How many samples recovery data have, unusable ones included, which are reported; `pocket` isn't drawn for it.

    Raises:
        InputError: as `load_samples` and `check_samples`.
    """
    if data == "pocket":
        from raysearch.pocket import NUM_CONVERSATIONS

        return NUM_CONVERSATIONS
    samples = load_samples(data)
    check_samples(samples)
    return len(samples)


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
    """The samples at the indices `order`; those that are read at access stay on disk."""
    if isinstance(samples, Samples):
        return samples.at(order)
    return [samples[index] for index in order]
