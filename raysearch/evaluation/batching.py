"""Batches of an evaluation: by length, and as large as memory allows."""

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch

from raysearch import progress

LARGEST_BATCH = 1024
"""Rows; above it no accelerator gains, and the logits of one forward pass become what memory is spent on."""

SHARE_OF_FREE_MEMORY = 0.8
"""What a batch may be expected to take; the rest is for padding and for what else fragments memory."""


class DeviceMemory:
    """What computing a batch takes of an accelerator's memory."""

    def reset(self) -> None:
        """Begin to watch for the peak."""
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def peak_bytes(self) -> int:
        """Most that was allocated at once since `reset`, beyond what had been allocated before."""
        return torch.cuda.max_memory_allocated() - self._before

    def free_bytes(self) -> int:
        """What can be allocated now, the allocator's own reserve included."""
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def release(self) -> None:
        """Give the allocator's reserve back, which may be in pieces."""
        torch.cuda.empty_cache()


def compute_in_batches(
    compute: Callable[[list[list[int]]], None],
    groups: Sequence[list[int]],
    lengths: Sequence[int],
    num_rows: int,
    memory: DeviceMemory | None = None,
) -> None:
    """Compute groups of rows in batches, those with few tokens first.

    The first batch has at most `num_rows` rows. Where `memory` is measured, twice as many are taken from then on
    whenever that is expected to fit, by the last batch's peak per token; where it is exhausted, on any device, a batch
    is computed in halves, and no later one is larger than they are.

    Args:
        compute: is given a batch, groups of indices of rows.
        groups: indices of rows that share work; a group is divided only where memory does not suffice for it.
        lengths: (all rows,) tokens.
        memory: of the device that `compute` uses; None where it can't be measured.

    Raises:
        OutOfMemoryError: there is not enough for one row.
    """

    def num_tokens(batch: list[list[int]]) -> int:
        return sum(lengths[index] for group in batch for index in group)

    waiting = deque(sorted(groups, key=lambda group: num_tokens([group])))
    most: float = math.inf
    while waiting:
        batch = _take(waiting, num_rows, most)
        size = sum(map(len, batch))
        try:
            if memory:
                memory.reset()
            compute(batch)
            progress.step()
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            most = size // 2
            waiting.extendleft(batch[::-1])
            if memory:
                memory.release()
            continue
        doubled = min(2 * num_rows, LARGEST_BATCH)
        if memory and num_rows < doubled <= most and waiting:
            bytes_per_token = memory.peak_bytes() / max(num_tokens(batch), 1)
            expected = bytes_per_token * num_tokens(_take(deque(waiting), doubled, most))
            num_rows = doubled if expected < SHARE_OF_FREE_MEMORY * memory.free_bytes() else num_rows


def _take(waiting: deque[list[int]], num_rows: int, most: float) -> list[list[int]]:
    """The next groups, of `num_rows` rows together or one group; of a group of more than `most` rows the first ones."""
    first = waiting.popleft()
    if len(first) > most:
        waiting.appendleft(first[int(most) :])
        return [first[: int(most)]]
    batch = [first]
    while waiting and sum(map(len, batch)) + len(waiting[0]) <= min(num_rows, most):
        batch.append(waiting.popleft())
    return batch
