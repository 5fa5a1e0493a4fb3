"""The forward passes of a training step: which rows this worker takes, and how they are put together."""

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from raysearch.data.encoding import TOKEN_KEYS, Batch, Encoded, Encoder
from raysearch.data.labels import IGNORED, num_answer_labels
from raysearch.data.samples import BadRow, BadRows, Sample
from raysearch.errors import InputError
from raysearch.recovery.hidden_states import DistillationPoints
from raysearch.recovery.schedule import SampleOrder, micro_batches

LENGTH_MULTIPLE = 8
NO_SAMPLE = -1
_Row = tuple[int, Encoded]
"""A sample's place in the data, and its tensors."""
Pass = tuple[Batch, list[int]]
"""A batch, and its rows' places in the data; `NO_SAMPLE` for a row without answers."""


@dataclass
class Microbatches:
    """Makes the passes of any step; every worker of a trial makes its own.

    Attributes:
        order: which sample is the i-th to be seen.
        samples: the whole data set.
        bad_rows: takes those that can't be used.
        rank, num_workers: this worker, and how many share a step's samples.
        device: where batches go.
        compared: where student and teacher are.
        image_in_every_pass: add an image to a pass without one (see `_batch`).
        max_tokens: bound on the tokens of a pass, padding included; None for one pass per step.
    """

    order: SampleOrder
    samples: Sequence[Sample]
    bad_rows: BadRows
    encoder: Encoder
    rank: int
    num_workers: int
    device: torch.device
    compared: DistillationPoints
    image_in_every_pass: bool
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[range, Future[list[_Row]]] | None = None

    def of_step(self, start: int, end: int, next_end: int) -> tuple[list[Pass], int, int]:
        """This worker's passes over the samples from `start` to `end`, as many as every other worker's.

        The rows up to `next_end` are then read and encoded by another thread, while this one computes.

        Returns:
            The passes; and of the whole step, over all workers, the answer tokens and the positions that are compared.

        Raises:
            BadData: too many samples can't be used.
        """
        rows = self._rows(start, end)
        groups = micro_batches([len(row["input_ids"]) for _, row in rows], self.max_tokens)
        passes = [self._batch([rows[index] for index in group]) for group in groups]
        num_answers = sum(num_answer_labels(row) for _, row in rows)
        num_compared = sum(self.compared.num_positions(row) for _, row in rows)
        num_passes = max(1, len(passes))
        if self.num_workers > 1:
            counts = torch.tensor([num_passes, num_answers, num_compared, len(self.bad_rows.found)])
            every = [torch.empty_like(counts, device=self.device) for _ in range(self.num_workers)]
            torch.distributed.all_gather(every, counts.to(self.device))
            num_passes = max(int(theirs[0]) for theirs in every)
            num_answers, num_compared, num_bad = sum(every)[1:].tolist()  # type: ignore[index]
            if num_bad > self.bad_rows.most:
                self._share_bad_rows()
        self.bad_rows.check()
        if len(passes) < num_passes:
            passes += [self._batch(self._unlabelled)] * (num_passes - len(passes))
        if next_end > end:  # from here on nothing else encodes until this has ended
            mine = self._mine(end, next_end)
            self._ahead = mine, self._reader.submit(self._read, mine)
        return passes, num_answers, num_compared

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
            self.bad_rows.found.setdefault(f"row {sample.id}", str(error))
            return None

    def _share_bad_rows(self) -> None:
        """Let every worker know all, so that all come to an end, or none."""
        found: list[dict[str, str]] = [{} for _ in range(self.num_workers)]
        torch.distributed.all_gather_object(found, self.bad_rows.found)
        for theirs in found:
            self.bad_rows.found.update(theirs)

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
