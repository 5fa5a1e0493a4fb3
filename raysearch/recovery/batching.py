"""The microbatches of a training step: which rows this worker takes, and how they are batched."""

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from raysearch.data.bad_rows import BadRow, BadRows
from raysearch.data.encoding import TOKEN_KEYS, Batch, Encoded, Encoder
from raysearch.data.labels import IGNORED, num_answer_labels
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.recovery.hidden_states import DistillationPoints
from raysearch.recovery.schedule import SampleOrder, group_by_tokens

LENGTH_MULTIPLE = 8
NO_SAMPLE = -1
_Row = tuple[int, Encoded]
"""A sample's index in the data, and its tensors."""


class Microbatch(NamedTuple):
    """The rows of one forward and backward pass; indices in the data, `NO_SAMPLE` for a row without answers."""

    batch: Batch
    sample_indices: list[int]


class Step(NamedTuple):
    """This worker's microbatches of a step, as many as every other worker's; counts are over all workers."""

    microbatches: list[Microbatch]
    num_answer_tokens: int
    num_points: int


@dataclass
class MicrobatchLoader:
    """Makes the microbatches of any step; every worker of a trial has its own.

    Attributes:
        order: which sample is the i-th to be seen.
        samples: the whole data set.
        bad_rows: collects the samples that can't be used.
        rank, num_workers: this worker, and how many share a step's samples.
        device: where batches go.
        points: where student and teacher are compared.
        image_in_every_microbatch: add an image to a microbatch without one (see `_batch`).
        max_tokens: bound on the tokens of a microbatch, padding included; None for one microbatch per step.
    """

    order: SampleOrder
    samples: Sequence[Sample]
    bad_rows: BadRows
    encoder: Encoder
    rank: int
    num_workers: int
    device: torch.device
    points: DistillationPoints
    image_in_every_microbatch: bool
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._prefetched: tuple[range, Future[list[_Row]]] | None = None

    def step(self, start: int, end: int, next_end: int) -> Step:
        """The step over the samples seen from `start` to `end`.

        The rows up to `next_end` are then read and encoded by another thread, while this one computes.

        Raises:
            BadData: too many samples can't be used.
        """
        rows = self._rows(start, end)
        groups = group_by_tokens([len(row["input_ids"]) for _, row in rows], self.max_tokens)
        microbatches = [self._batch([rows[index] for index in group]) for group in groups]
        num_answer_tokens = sum(num_answer_labels(row) for _, row in rows)
        num_points = sum(self.points.num_positions(row) for _, row in rows)
        num_microbatches = max(1, len(microbatches))
        if self.num_workers > 1:
            counts = torch.tensor([num_microbatches, num_answer_tokens, num_points, len(self.bad_rows.found)])
            gathered = [torch.empty_like(counts, device=self.device) for _ in range(self.num_workers)]
            torch.distributed.all_gather(gathered, counts.to(self.device))
            num_microbatches = max(int(theirs[0]) for theirs in gathered)
            num_answer_tokens, num_points, num_bad = sum(gathered)[1:].tolist()  # type: ignore[index]
            if num_bad > self.bad_rows.max_found:
                self._share_bad_rows()
        self.bad_rows.check()
        if len(microbatches) < num_microbatches:
            microbatches += [self._batch(self._unlabelled)] * (num_microbatches - len(microbatches))
        if next_end > end:  # until this has ended, nothing else may encode
            positions = self._own_positions(end, next_end)
            self._prefetched = positions, self._thread.submit(self._read, positions)
        return Step(microbatches, num_answer_tokens, num_points)

    def close(self) -> None:
        """Wait for the prefetching thread: the encoder serves one thread at a time."""
        self._thread.shutdown()

    def _rows(self, start: int, end: int) -> list[_Row]:
        wanted = self._own_positions(start, end)
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None:
            positions, rows = prefetched[0], prefetched[1].result()
            if positions == wanted:
                return rows
        return self._read(wanted)

    def _own_positions(self, start: int, end: int) -> range:
        return range(start + self.rank, end, self.num_workers)

    def _read(self, positions: range) -> list[_Row]:
        return [row for position in positions if (row := self._encoded(self.order[position])) is not None]

    def _encoded(self, index: int) -> _Row | None:
        """The sample at `index`; None for one that can't be used, which is recorded in `bad_rows`."""
        sample = self.samples[index]
        try:
            return index, self.encoder.encode(sample)
        except BadRow as error:
            self.bad_rows.found.setdefault(f"row {sample.id}", str(error))
            return None

    def _share_bad_rows(self) -> None:
        """Give every worker the bad rows of all, so that all stop or none does."""
        found: list[dict[str, str]] = [{} for _ in range(self.num_workers)]
        torch.distributed.all_gather_object(found, self.bad_rows.found)
        for theirs in found:
            self.bad_rows.found.update(theirs)

    def _batch(self, rows: Sequence[_Row]) -> Microbatch:
        """Where it matters, a microbatch without an image gets one in a row without answers: workers' collectives only
        match if all run the same modules, and if the projector alone is trained, it must be part of the loss."""
        if self.image_in_every_microbatch and not any(_has_image(row) for _, row in rows):
            rows = [*rows, *self._unlabelled]
        batch = self.encoder.collate([row for _, row in rows], multiple=LENGTH_MULTIPLE)
        return Microbatch({key: value.to(self.device) for key, value in batch.items()}, [index for index, _ in rows])

    @functools.cached_property
    def _unlabelled(self) -> list[_Row]:
        """The first row with an image, or else the first row, without its answers."""
        usable = (pair for index in range(self.order.num_samples) if (pair := self._encoded(index)))
        first = next(usable, None)
        if first is None:
            raise InputError(
                f"recipe.data_fraction: none of its {self.order.num_samples} samples can be used "
                f"({self.bad_rows.named()}); raise it, or mend them"
            )
        _, row = next((pair for pair in itertools.chain([first], usable) if _has_image(pair[1])), first)
        return [(NO_SAMPLE, {**row, "labels": torch.full_like(row["labels"], IGNORED)})]


def _has_image(row: Encoded) -> bool:
    return bool(set(row) - set(TOKEN_KEYS))
