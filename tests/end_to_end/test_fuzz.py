"""A few of the inputs of `fuzzing.py`, which runs thousands."""

import pytest

from tests.support import fuzzing


@pytest.fixture(scope="module")
def place():
    with fuzzing.workplace() as made:
        yield made


def test_recipes():
    found = fuzzing.fuzz_recipes(200)
    assert found["taken"] > 0 < found["refused"]


@pytest.mark.parametrize(
    ("kind", "num"),
    [
        (fuzzing.fuzz_spaces, 60),
        (fuzzing.fuzz_values, 60),
        (fuzzing.fuzz_fronts, 60),
        (fuzzing.fuzz_study_files, 24),
        (fuzzing.fuzz_tracking, 60),
        (fuzzing.fuzz_command_lines, 60),
        (fuzzing.fuzz_data, 60),
        (fuzzing.fuzz_pictures, 60),
        (fuzzing.fuzz_questions, 30),
        (fuzzing.fuzz_model_folders, 20),
    ],
)
def test_files_and_command_lines(kind, num, place):
    place.statuses.clear()
    kind(place, num)
    assert place.statuses.total() >= num
    assert place.statuses[2] > 0
