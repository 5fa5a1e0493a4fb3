"""Learning rate, order of samples and weight of the average, as functions of the samples seen; groups of rows."""

from typing import Literal

import numpy as np

DECAY_SHARE = 0.2
"""Share of a trial over which `wsd` falls to 0; before it, a rung's value doesn't depend on the trial's length."""
AVERAGE_WINDOW = 0.1
"""Share of the samples seen so far that the average of the weights covers."""


def lr_factor(schedule: Literal["wsd", "cosine"], done: float, warmup: float) -> float:
    """Learning rate as a share of its peak.

    Args:
        schedule: wsd rises linearly, stays, and falls linearly over the last `DECAY_SHARE`; cosine rises linearly
            and falls along half a cosine.
        done: samples seen over samples to see, 0 to 1.
        warmup: share of the samples over which it rises.
    """
    if done < warmup:
        return done / warmup
    if schedule == "cosine":
        return 0.5 * (1 + float(np.cos(np.pi * (done - warmup) / (1 - warmup))))
    return min(1.0, (1 - done) / min(DECAY_SHARE, 1 - warmup))


def average_decay(samples_seen: int, batch_size: int) -> float:
    """Weight of the old average when the weights after a batch are added; 0 at first, then towards 1."""
    return max(0.0, 1 - batch_size / max(1.0, AVERAGE_WINDOW * samples_seen))


class SampleOrder:
    """Which sample is the i-th to be seen: every epoch takes all of them, in its own order."""

    def __init__(self, num_samples: int, seed: int) -> None:
        """`num_samples` in the recipe's fraction; `seed` of the recipe."""
        assert num_samples > 0, num_samples
        self.num_samples, self._seed = num_samples, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        """Index of the sample seen at `position`, counted from 0 over all epochs."""
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.num_samples)
        return int(self._order[place])


def group_by_tokens(lengths: list[int], max_tokens: int | None) -> list[list[int]]:
    """Group rows into microbatches, rows of similar length together.

    Args:
        lengths: tokens per row.
        max_tokens: bound on rows times longest row of a group; a longer row goes alone; None for one group.

    Returns:
        Indices into `lengths`, each exactly once; no empty group.
    """
    if max_tokens is None:
        return [list(range(len(lengths)))] if lengths else []
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
