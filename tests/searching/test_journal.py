"""The journal of a search: events by a fixed table; damaged and foreign rows are one line."""

import json
import math

import pytest

from raysearch.errors import InputError
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.searching.journal import (
    ENDS,
    EVENTS,
    RungArgs,
    ShapesArgs,
    TrialArgs,
    append_event,
    apply_event,
    read_events,
)
from raysearch.searching.judged_shapes import JudgedShape


def rows(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


GOOD = {"number": 1, "event": "suggested", "trial": "a"}


def test_events_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "search-events.jsonl"
    rung = RungArgs(trial="a", size=0.5, retention=0.25, retention_se=0.0, samples_seen=9)
    events = [
        (1, "suggested", TrialArgs(trial="a")),
        (2, "rung_reached", rung),
        (3, "end_reached", rung.model_copy(update={"retention": math.inf})),
        (4, "shapes_judged", ShapesArgs(shapes=[JudgedShape(params={"ratio": 0.5}, size_ratio=0.6, divergence=0.1)])),
    ]
    for event in events:
        append_event(path, *event)
    assert list(read_events(path)) == events
    append_event(path, 5, "rung_reached", rung.model_copy(update={"retention": math.nan}))
    *_, (number, _, last) = read_events(path)
    assert (number, math.isnan(last.retention)) == (5, True)
    assert list(read_events(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"number": 2, "event": "__class__", "trial": "a"}, "line 2: no event of this version"),
        ({"number": 2, "event": "set_state", "trial": "a"}, "line 2: no event of this version"),
        ({"number": 2, "event": "suggested", "trial": 7}, "line 2: suggested.trial: must be text, not 7"),
        ({"number": 2, "event": "suggested"}, "line 2: suggested.trial: missing"),
        ({"number": 2, "event": "suggested", "trial": "a", "x": 1}, "line 2: suggested.x: unknown key"),
        ({"number": "two", "event": "suggested", "trial": "a"}, "line 2: no event of this version"),
        (
            {"number": 2, "event": "shapes_judged", "shapes": [{"x": 1}]},
            "line 2: shapes_judged.shapes.0.params: missing",
        ),
        ({"event": "suggested", "trial": "a"}, "line 2: no event of this version"),
        ([2, "recipes", "suggest", "a"], "line 2: no event of this version"),
        ('{"number": 2, "eve', "line 2: "),
        ("null", "line 2: no event of this version"),
    ],
)
def test_a_foreign_or_damaged_row_is_one_line_that_names_it(tmp_path, line, says):
    path = rows(tmp_path / "search-events.jsonl", GOOD, line)
    with pytest.raises(InputError, match=says) as error:
        list(read_events(path))
    assert str(error.value).startswith(f"{path}: line 2: ")
    assert "\n" not in str(error.value)
    assert "delete it and search-state.json" in str(error.value)


def test_events_do_to_the_bracket_what_they_say():
    assert set(ENDS) < set(EVENTS)
    bracket = AshaBracket(27, 1)
    rung = RungArgs(trial="a", size=0.5, retention=0.9, retention_se=0, samples_seen=1)
    assert apply_event(None, bracket, "rung_reached", rung).go_on
    apply_event(None, bracket, "lost", TrialArgs(trial="a"))
    assert bracket.rungs[0].failed == {"a"}
    apply_event(None, bracket, "added", TrialArgs(trial="a"))
    assert not bracket.rungs[0].failed
