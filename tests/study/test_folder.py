"""Files of a study that are damaged or come from elsewhere: one line that names the file and the line."""

import json

import pytest

from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.study.folder import LAYERS, TRIALS, read_layer_importance, read_trials
from raysearch.study.front import Front, FrontPoint
from raysearch.study.records import TrialRecord, seconds_text

RECIPE = Recipe(mode="layerwise", ratio=0.5, criterion="deepest")


def row(**changes):
    record = TrialRecord(
        trial="t", key=RECIPE.key, recipe=RECIPE, num_params=1, size_bytes=2, rungs=[], end="failed", seconds=1.0
    )
    return json.dumps(record.model_dump(mode="json") | changes)


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / TRIALS).write_text(f"{row()}\n\n{row(trial='u')}\n{row()[:20]}")
    assert [record.trial for record in read_trials(tmp_path)] == ["t", "u"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[1, 2]", "valid dictionary"),
        (b"\xff\xfe", "codec can't decode"),
        (row(end="magic").encode(), "end: Input should be 'finished', 'stopped' or 'failed'"),
        (row(recipe={**RECIPE.as_dict(), "mode": "no"}).encode(), r"recipe\.mode: Input should be"),
        (row(__class__="os.system").encode(), "__class__: Extra inputs are not permitted"),
    ],
)
def test_a_row_that_is_no_trial_names_file_and_line(tmp_path, line, reason):
    (tmp_path / TRIALS).write_bytes(row().encode() + b"\n" + line + b"\n" + row().encode() + b"\n")
    with pytest.raises(InputError, match=rf"trials\.jsonl, line 2: no trial of this version \(.*{reason}"):
        read_trials(tmp_path)


def test_layer_scores_that_are_none_are_refused(tmp_path):
    assert read_layer_importance(tmp_path) == {}
    (tmp_path / LAYERS).write_text('{"deepest": [1.0, "high"]}')
    with pytest.raises(InputError, match=r"layer-importance\.json: no scores of layers \(deepest\.1: .*delete it"):
        read_layer_importance(tmp_path)


def test_a_front_of_another_form_names_the_key(tmp_path):
    (tmp_path / "front.json").write_text('{"schema": 1, "study": 2}')
    with pytest.raises(
        InputError, match=r"front\.json: not a front of this version \(study: Input should be a valid string"
    ):
        Front.load(tmp_path)


def test_a_checkpoint_lies_inside_its_study(tmp_path):
    def point(checkpoint):
        fields = {"key": RECIPE.key, "recipe": RECIPE, "num_params": 1, "size_bytes": 2, "size_ratio": 0.5}
        quality = {"retention": 0.5, "retention_ci": (0.4, 0.6), "scores": {}, "samples_seen": 1}
        return FrontPoint(**fields, **quality, checkpoint=checkpoint)

    assert point(None).checkpoint_path(tmp_path) is None
    assert point("checkpoints/a").checkpoint_path(tmp_path) == tmp_path / "checkpoints" / "a"
    for outside in ("../../etc", "/etc"):
        with pytest.raises(InputError, match=r"front\.json: checkpoint .*etc lies outside the study; correct it"):
            point(outside).checkpoint_path(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(99.4, "99 s"), (100, "2 min"), (7140, "119 min"), (7200, "2 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_as_people_read_them(seconds, text):
    assert seconds_text(seconds) == text
