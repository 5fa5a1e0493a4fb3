"""The forward passes of a training step: which rows this worker takes, and how they are put together."""

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from raysearch.data.encoding import IGNORED, TOKEN_KEYS, Batch, Encoded, Encoder
from raysearch.data.samples import BadRow, BadRows, Sample
from raysearch.recovery.schedule import SampleOrder, micro_batches
from raysearch.recovery.teacher import num_answer_labels

LENGTH_MULTIPLE = 8
NO_SAMPLE = -1
_Row = tuple[int, Encoded]
"""A sample's place in the data, and its tensors."""
Pass = tuple[Batch, list[int]]
"""A batch, and its rows' places in the data; `NO_SAMPLE` for a row without answers."""


@dataclass
class Passes:
    """Makes the passes of any step; every worker of a trial makes its own.

    Attributes:
        order: which sample is the i-th to be seen.
        samples: the whole data set.
        rank, num_workers: this worker, and how many share a step's samples.
        device: where batches go.
        image_in_every_pass: add an image to a pass without one (see `_batch`).
        max_tokens: bound on the tokens of a pass, padding included; None for one pass per step.
    """

    order: SampleOrder
    samples: Sequence[Sample]
    encoder: Encoder
    rank: int
    num_workers: int
    device: torch.device
    image_in_every_pass: bool
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        self.bad = BadRows("recovery data", len(self.samples))
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[range, Future[list[_Row]]] | None = None

    def of_step(self, start: int, end: int, next_end: int) -> tuple[list[Pass], int]:
        """This worker's passes over the samples from `start` to `end`, as many as every other worker's.

        The rows up to `next_end` are then read and encoded by another thread, while this one computes.

        Returns:
            The passes, and the answer tokens of the whole step, over all workers.

        Raises:
            InputError: too many samples can't be used.
        """
        rows = self._rows(start, end)
        groups = micro_batches([len(row["input_ids"]) for _, row in rows], self.max_tokens)
        passes = [self._batch([rows[index] for index in group]) for group in groups]
        num_tokens, num_passes = sum(num_answer_labels(row) for _, row in rows), max(1, len(passes))
        if self.num_workers > 1:
            counts = torch.tensor([num_tokens, num_passes], device=self.device)
            gathered = [torch.empty_like(counts) for _ in range(self.num_workers)]
            torch.distributed.all_gather(gathered, counts)
            num_tokens = int(sum(count[0] for count in gathered))
            num_passes = int(max(count[1] for count in gathered))
        if len(passes) < num_passes:
            passes += [self._batch(self._unlabelled)] * (num_passes - len(passes))
        if next_end > end:  # from here on nothing else encodes until this has ended
            mine = self._mine(end, next_end)
            self._ahead = mine, self._reader.submit(self._read, mine)
        return passes, num_tokens

    def close(self) -> None:
        """Wait until nothing is read ahead any more: the encoder serves one thread at a time."""
        self._reader.shutdown()

    def _rows(self, start: int, end: int) -> list[_Row]:
        mine = self._mine(start, end)
        read, self._ahead = self._ahead, None
        if read is not None:
            positions, rows = read[0], read[1].result()
            if positions == mine:
                return rows
        return self._read(mine)

    def _mine(self, start: int, end: int) -> range:
        return range(start + self.rank, end, self.num_workers)

    def _read(self, positions: range) -> list[_Row]:
        return [row for position in positions if (row := self._encoded(self.order[position])) is not None]

    def _encoded(self, index: int) -> _Row | None:
        """A sample's place and tensors; None, and a note, for one that can't be used."""
        sample = self.samples[index]
        try:
            return index, self.encoder.encode(sample)
        except BadRow as error:
            self.bad.add(f"row {sample.id}", str(error))
            return None

    def _batch(self, rows: Sequence[_Row]) -> Pass:
        """Rows as a pass. Where it matters, a pass without an image gets one that nothing is learnt from: workers'
        collectives only match if all go through the same modules, and a projector alone must be in the loss."""
        if self.image_in_every_pass and not any(_has_image(row) for _, row in rows):
            rows = [*rows, *self._unlabelled]
        batch = self.encoder.collate([row for _, row in rows], multiple=LENGTH_MULTIPLE)
        return {key: value.to(self.device) for key, value in batch.items()}, [place for place, _ in rows]

    @functools.cached_property
    def _unlabelled(self) -> list[_Row]:
        """The first row with an image, or else the first row, without its answers."""
        usable = (pair for index in range(self.order.num_samples) if (pair := self._encoded(index)))
        first = next(usable)
        _, row = next((pair for pair in itertools.chain([first], usable) if _has_image(pair[1])), first)
        return [(NO_SAMPLE, {**row, "labels": torch.full_like(row["labels"], IGNORED)})]


def _has_image(row: Encoded) -> bool:
    return bool(set(row) - set(TOKEN_KEYS))
