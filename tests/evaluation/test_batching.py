import pytest
import torch

from raysearch.evaluation.batching import LARGEST_BATCH, compute_in_batches

GROUPS = [[0, 1], [2], [3, 4, 5, 6, 7], [8], [9], [10], [11], [12]]


class Memory:
    """An accelerator of `num_bytes`, on which each token of a batch takes a byte."""

    def __init__(self, num_bytes):
        self.num_bytes, self.peak, self.num_released = num_bytes, 0, 0

    def reset(self):
        self.peak = 0

    def peak_bytes(self):
        return self.peak

    def free_bytes(self):
        return self.num_bytes

    def release(self):
        self.num_released += 1


def run(groups, lengths, num_rows, memory=None, most=None):
    """Sizes of the batches that were tried, and the rows in the order in which they were computed."""
    sizes, seen = [], []

    def compute(batch):
        rows = [index for group in batch for index in group]
        sizes.append(len(rows))
        num_tokens = sum(lengths[index] for index in rows)
        if (most and len(rows) > most) or (memory and num_tokens > memory.num_bytes):
            raise torch.OutOfMemoryError
        if memory:
            memory.peak = num_tokens
        seen.extend(rows)

    compute_in_batches(compute, groups, lengths, num_rows, memory)
    return sizes, seen


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_batches_shrink_to_what_memory_holds(most):
    sizes, seen = run(GROUPS, [1] * 13, 4, most=most)
    assert sorted(seen) == list(range(13))
    assert sum(size > most for size in sizes) <= 2, "it is tried once or twice, not for every batch"


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        run([[0], [1]], [1, 1], 2, Memory(0))


def test_short_rows_come_first_and_groups_stay_whole():
    sizes, seen = run(GROUPS, [1, 1, 9, 1, 1, 1, 1, 1, 2, 3, 1, 1, 1], 3)
    assert seen == [10, 11, 12, 0, 1, 8, 9, 3, 4, 5, 6, 7, 2]
    assert sizes == [3, 3, 1, 5, 1]


def test_batches_double_while_twice_as_many_rows_fit():
    groups = [[index] for index in range(100)]
    assert run(groups, [10] * 100, 4, Memory(10**6))[0] == [4, 8, 16, 32, 40]
    # 16 rows would take 160 of 150 bytes
    assert run(groups, [10] * 100, 4, Memory(150))[0] == [4, *[8] * 12]
    # 8 rows of 20 tokens take 160 of 190 bytes, more than may be expected of memory: long rows are not doubled
    assert run(groups, [10] * 4 + [20] * 96, 4, Memory(190))[0] == [4] * 25
    assert run(groups, [10] * 100, 4)[0] == [4] * 25, "unmeasured memory"


def test_batches_do_not_grow_again_where_memory_did_not_suffice():
    memory = Memory(10**6)
    sizes, seen = run([[index] for index in range(100)], [1] * 100, 4, memory, most=20)
    assert sizes == [4, 8, 16, 32, *[16] * 4, 8]
    assert seen == list(range(100))
    assert memory.num_released == 1


def test_batches_have_an_upper_bound():
    sizes, _ = run([[index] for index in range(5000)], [1] * 5000, 512, Memory(10**9))
    assert sizes == [512, *[LARGEST_BATCH] * 4, 5000 - 512 - 4 * LARGEST_BATCH]
