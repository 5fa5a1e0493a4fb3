"""What ends a search besides a number of trials, as far as it follows from the trials alone."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each is None for no such limit.

    Attributes:
        num_samples: recovery samples of all trials (`Searcher.num_samples`).
        gain_points: the search ends when the forecast is below this many points.
    """

    num_samples: float | None = None
    gain_points: float | None = None

    def longest_trial(self, spent: float) -> float:
        """Samples that a further trial may see when all so far make `spent`: it may exceed the limit by half its own
        length; -1 where not even a trial without recovery may begin."""
        if self.num_samples is None:
            return math.inf
        return 2 * (self.num_samples - spent) if spent < self.num_samples else -1.0
