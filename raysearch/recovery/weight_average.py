"""Exponential average of the trained weights, for evaluation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from raysearch.recovery.deepspeed_engine import local
from raysearch.recovery.schedule import average_decay


class WeightAverage:
    """The fp32 average of parameters, of the part that this worker holds; it begins with their values."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        """Average `params` from now on."""
        self._params = list(params)
        self.values = [local(param).float().clone() for param in self._params]

    def update(self, samples_seen: int, batch_size: int) -> None:
        """Add the weights after a batch of `batch_size`, the last of `samples_seen` samples."""
        decay = average_decay(samples_seen, batch_size)
        for value, param in zip(self.values, self._params, strict=True):
            value.lerp_(local(param).float(), 1 - decay)

    def apply(self) -> None:
        """Overwrite the weights by their average."""
        self._overwrite(self.values)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The average in place of the weights; afterwards every bit is as before."""
        before = [local(param).clone() for param in self._params]
        self.apply()
        try:
            yield
        finally:
            self._overwrite(before)

    def _overwrite(self, values: Iterable[torch.Tensor]) -> None:
        for value, param in zip(values, self._params, strict=True):
            local(param).copy_(value)
