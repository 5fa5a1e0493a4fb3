"""Durations as people write them."""

import pytest

from raysearch.config.duration import parse_duration
from raysearch.config.settings import SearchSettings
from raysearch.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("1.5h", 5400), ("1 H 30 M", 5400)],
)
def test_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "2 hours", "2w", "-2h", "0s", "0h0m", "m", "30m1h", "1h1h", "nan", "1e3s"])
def test_any_other_text_is_one_line_with_the_forms(text):
    with pytest.raises(InputError, match="write 90s, 20m, 2h, 1h30m or 1d") as error:
        parse_duration(text)
    assert "\n" not in str(error.value)


def test_the_default_number_of_trials_holds_without_any_other_limit():
    assert SearchSettings().num_trials == 24
    assert SearchSettings(trials=7).num_trials == 7
    for limit in ({"runs": 12}, {"time": "2h"}, {"gpu_hours": 10}, {"until_gain": 0.5}):
        assert SearchSettings(**limit).num_trials is None
    assert SearchSettings(trials=7, runs=12).num_trials == 7


def test_the_time_is_the_shorter_one_and_gpu_hours_are_shared():
    assert SearchSettings().seconds(0) is None
    assert SearchSettings(time="2h").seconds(0) == 7200
    assert SearchSettings(gpu_hours=10).seconds(4) == 9000
    assert SearchSettings(gpu_hours=10, time="2h").seconds(4) == 7200


def test_limits_in_words():
    assert SearchSettings().limits_text() == "24 trials"
    every = SearchSettings(trials=7, runs=12, time="2h", gpu_hours=10, until_gain=0.5)
    assert every.limits_text() == "7 trials or 12 full runs or 2h or 10 GPU hours or a forecast below 0.5 points"
