"""Which trials can be expected to end in time, on a clock that tests set."""

import math

import pytest

from raysearch.config.recipe import Recipe
from raysearch.searching.pace import NUM_RECORDS, Deadline, pace_of, seconds_per_run
from raysearch.study.records import Score, TrialRecord


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def record(number, samples, seconds, end="finished"):
    recipe = Recipe(mode="layerwise", ratio=0.01 * (number + 1), criterion="deepest")
    rungs = [Score(samples_seen=samples, retention=0.5, retention_se=0, scores={})]
    return TrialRecord(
        trial=str(number), key=recipe.key, recipe=recipe, num_params=1, size_bytes=2, rungs=rungs, end=end,
        seconds=seconds,
    )  # fmt: skip


def test_the_first_trial_always_starts_and_others_until_the_time_is_over():
    clock = Clock()
    late = Deadline(60, [], 1.0, began=0.0, clock=clock)
    assert late.longest_trial() == math.inf
    assert late.longest_trial() is None
    in_time = Deadline(60, [], 1.0, clock=clock)
    assert [in_time.longest_trial(), in_time.longest_trial()] == [math.inf, math.inf]
    clock.now = 161
    assert in_time.longest_trial() is None


def test_a_trial_must_end_in_time_by_the_pace_of_those_that_have():
    """2 s an evaluation and 10 ms a sample."""
    clock = Clock()
    records = [record(number, samples, 2 + 0.01 * samples) for number, samples in enumerate((100, 500, 1000))]
    deadline = Deadline(20, records, 1.5, clock=clock)
    assert deadline.longest_trial() == pytest.approx(1700)  # of 20 s, 3 s go to 1.5 evaluations
    clock.now += 16
    assert deadline.longest_trial() == pytest.approx(100)
    clock.now += 1.5
    assert deadline.longest_trial() is None


def test_trials_of_one_length_give_a_pace_by_the_quickest():
    records = [record(0, 100, 50), record(1, 100, 10), record(2, 0, 7), record(3, 100, 1, "failed")]
    deadline = Deadline(20, records[:3], 1.0, clock=Clock())
    assert deadline.longest_trial() == pytest.approx(200)
    assert pace_of(records[:2]) is None
    assert pace_of([]) is None


def test_the_pace_follows_the_records_as_they_grow():
    records = []
    deadline = Deadline(20, records, 1.0, clock=Clock())
    assert deadline.longest_trial() == math.inf
    records.append(record(0, 100, 10))
    assert deadline.longest_trial() == pytest.approx(200)


def test_the_newest_trials_tell_the_pace():
    slow = [record(0, 100, 1000)] * (2 * NUM_RECORDS)
    quick = [record(1, 100, 10), record(2, 101, 10)] * (NUM_RECORDS // 2)
    assert Deadline(20, [*slow, *quick], 0.0, clock=Clock()).longest_trial() > 100
    assert pace_of([*slow, *quick]) == pace_of(quick)
    assert pace_of([*quick, *[record(0, 100, 1000, "failed")] * NUM_RECORDS]) == pace_of(quick)


def test_slot_time_of_a_full_run_counts_all_trials():
    records = [record(0, 500, 10), record(1, 250, 5), record(2, 250, 7, "stopped")]
    assert seconds_per_run(records, 1000) == pytest.approx(22)
    assert seconds_per_run([], 1000) is None
