"""What trials take, by those that have ended, and which trials can be expected to end in a given time."""

import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import islice

import numpy as np

from raysearch.study.records import TrialRecord

NUM_RECORDS = 100  # newest trials that tell the pace: all pairs of them are compared at every proposal
MIN_PAIRS = 3  # of trials of different length, from which a sample's and an evaluation's time can be told apart


@dataclass(frozen=True)
class Work:
    """Work of trials, summed.

    Attributes:
        samples: recovery samples trained on.
        evaluations: one per rung that a trial reaches; one on a share of the questions counts as that share.
        operations: floating-point operations of the training alone, if every row had the greatest length.
    """

    samples: float = 0
    evaluations: float = 0
    operations: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(operator.add, astuple(self), astuple(other)))

    def __rmul__(self, times: float) -> "Work":
        return Work(*(times * value for value in astuple(self)))


@dataclass(frozen=True)
class Pace:
    """Speed of a study's trials."""

    seconds_per_evaluation: float
    seconds_per_sample: float
    basis: str

    def seconds(self, work: Work) -> float:
        """Seconds of the work, one trial at a time."""
        return self.seconds_per_evaluation * work.evaluations + self.seconds_per_sample * work.samples


def pace_of(records: Sequence[TrialRecord], basis: str = "") -> Pace | None:
    """The pace of the newest ended trials, NUM_RECORDS at most, pruning and evaluation included; None if too few of
    them differ in length.

    Fits a line to seconds per evaluation over samples per evaluation by the median of all slopes (Theil-Sen), which the
    first trial of a slot, the one that loads the model, doesn't bias.
    """
    usable = (record for record in reversed(records) if record.rungs and record.end != "failed")
    records = list(islice(usable, NUM_RECORDS))[::-1]
    evaluations = _num_evaluations(records)
    samples = np.array([record.rungs[-1].samples_seen for record in records]) / evaluations
    seconds = np.array([record.seconds for record in records]) / evaluations
    first, second = np.triu_indices(len(records), 1)
    apart = samples[first] != samples[second]
    if apart.sum() < MIN_PAIRS:
        return None
    rises = (seconds[second] - seconds[first])[apart] / (samples[second] - samples[first])[apart]
    slope = max(0.0, float(np.median(rises)))
    level = max(0.0, float(np.median(seconds - slope * samples)))
    return Pace(level, slope, basis)


def _num_evaluations(records: Sequence[TrialRecord]) -> np.ndarray:
    """(trials,): evaluations of each trial's rungs; one on a share of the questions counts as that share."""
    asked = [[score.num_questions or 1 for score in record.rungs] for record in records]
    return np.array([sum(nums) for nums in asked]) / max((max(nums) for nums in asked), default=1)


def seconds_per_run(records: Sequence[TrialRecord], full_run: float) -> float | None:
    """Slot time of ended trials, all that they took, per `full_run` samples that they trained on; None without any."""
    samples = sum(record.rungs[-1].samples_seen for record in records if record.rungs)
    return sum(record.seconds for record in records) * full_run / samples if samples else None


class Deadline:
    """Says which trials can be expected to end in the time that is left.

    Args:
        seconds: from `began` on.
        records: the trials that have ended, as they grow.
        num_evaluations: of a trial that runs to its end (`Work.evaluations`).
        began: by the clock; left out, now.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        seconds: float,
        records: Sequence[TrialRecord],
        num_evaluations: float,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records, self._num_evaluations, self._clock = records, num_evaluations, clock
        self._end = (clock() if began is None else began) + seconds
        self._num_asked = 0

    def longest_trial(self) -> float | None:
        """Samples of the longest trial that can be expected to end in time; infinite while there is no pace to tell by,
        None if there is time for none. The first trial of a start is never refused without a pace."""
        left, is_first = self._end - self._clock(), not self._num_asked
        self._num_asked += 1
        pace = pace_of(self._records) or self._one_length()
        if pace is None:
            return math.inf if is_first or left > 0 else None
        for_training = left - pace.seconds(Work(evaluations=self._num_evaluations))
        if for_training < 0:
            return None
        return for_training / pace.seconds_per_sample if pace.seconds_per_sample else math.inf

    def _one_length(self) -> Pace | None:
        """Seconds of training and evaluation as those of samples, where trials are too much alike; the quickest. As a
        whole a slot's first trial takes far longer, since it loads the model."""
        newest = self._records[-NUM_RECORDS:]
        scored = [record for record in newest if record.rungs and record.rungs[-1].samples_seen]
        rates = [
            (record.seconds_training + record.seconds_evaluating or record.seconds) / record.rungs[-1].samples_seen
            for record in scored
        ]
        return Pace(0.0, min(rates), "") if rates else None
