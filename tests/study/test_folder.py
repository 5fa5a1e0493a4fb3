"""Files of a study that are damaged or come from elsewhere: one line that names the file and the line."""

import json

import pytest

from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.report.terminal import print_result
from raysearch.study.folder import LAYERS, TRIALS, StudyFolder, read_layer_importance, read_trials
from raysearch.study.front import Front
from raysearch.study.records import TrialRecord, seconds_text
from tests.support import synthetic_study

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
        (b"[1, 2]", "mapping of keys to values"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "codec can't decode"),
        (row(end="magic").encode(), "end: must be 'finished', 'stopped' or 'failed'"),
        (row(recipe={**RECIPE.as_dict(), "mode": "no"}).encode(), r"recipe\.mode: must be"),
        (row(__class__="os.system").encode(), "__class__: unknown key"),
    ],
)
def test_a_row_that_is_no_trial_names_file_and_line(tmp_path, line, reason):
    (tmp_path / TRIALS).write_bytes(row().encode() + b"\n" + line + b"\n" + row().encode() + b"\n")
    with pytest.raises(InputError, match=rf"trials\.jsonl, line 2: .*{reason}.*; correct or remove"):
        read_trials(tmp_path)


def test_layer_scores_that_are_none_are_refused(tmp_path):
    assert read_layer_importance(tmp_path) == {}
    (tmp_path / LAYERS).write_text('{"deepest": [1.0, "high"]}')
    line = r"layer-importance\.json: no scores of layers of this version \(deepest\.1: .*delete it"
    with pytest.raises(InputError, match=line):
        read_layer_importance(tmp_path)


def test_a_front_of_another_form_names_the_key(tmp_path):
    (tmp_path / "front.json").write_text('{"schema": 1, "study": 2}')
    with pytest.raises(InputError, match=r"front\.json: not a front of this version \(study: must be text"):
        Front.load(tmp_path)


@pytest.mark.parametrize(
    "checkpoint",
    ["../../etc", "/etc", ".", "", "checkpoints", "checkpoints/..", "checkpoints/../running", "checkpoints/a/b",
     "running/a", "checkpoints/link", "checkpoints/up"],
)  # fmt: skip
def test_a_front_that_names_a_checkpoint_elsewhere_is_refused(tmp_path, checkpoint):
    study = synthetic_study.make(tmp_path / "study", num_trials=6)
    (study.folder / "checkpoints" / "link").symlink_to(tmp_path)
    (study.folder / "checkpoints" / "up").symlink_to("..")
    front = json.loads((study.folder / "front.json").read_text())
    front["points"][0]["checkpoint"] = checkpoint
    (study.folder / "front.json").write_text(json.dumps(front))
    for read in (Front.load, lambda folder: StudyFolder(folder, study.space)):
        with pytest.raises(InputError, match=r"front\.json: checkpoint .* is no folder in .*checkpoints; correct it"):
            read(study.folder)


def test_a_linked_folder_of_checkpoints_is_refused(tmp_path):
    study = synthetic_study.make(tmp_path / "study", num_trials=6)
    (study.folder / "checkpoints").rename(tmp_path / "elsewhere")
    (study.folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is no folder in"):
        Front.load(study.folder)
    assert any((tmp_path / "elsewhere").iterdir())


def test_a_key_names_no_folder_elsewhere(tmp_path):
    study = synthetic_study.make(tmp_path / "study", num_trials=6)
    path = study.folder / "front.json"
    path.write_text(path.read_text().replace(study.front.points[0].key, "../../etc"))
    with pytest.raises(InputError, match=r"front\.json: .*points\.0\.key: must match"):
        Front.load(study.folder)
    (study.folder / TRIALS).write_text(row(key="../x") + "\n")
    with pytest.raises(InputError, match=r"line 1: .*key: must match"):
        read_trials(study.folder)


def test_what_is_not_of_the_study_stays_and_what_a_crash_left_goes(tmp_path):
    study = synthetic_study.make(tmp_path / "study", num_trials=8)
    folder, ended = study.folder, study.records[0].key
    victim = tmp_path / "home"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    mine = ["checkpoints/my-notes/a.txt", "checkpoints/Thumbs.db", ".git.bak/x", ".nfs.0001", ".a.b", "running/notes/a",
            ".ipynb_checkpoints/x", "checkpoints/.DS_Store"]  # fmt: skip
    left = [".front.json.0123abcd.unfinished", "checkpoints/0123456789/x", "checkpoints/.0123456789.abcd1234/x",
            f"running/{ended}/10/x"]  # fmt: skip
    for name in (*mine, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    links = [folder / "checkpoints" / "abcdef0123", folder / "running" / study.records[1].key]
    for link in links:
        link.symlink_to(victim)
    StudyFolder(folder, study.space).create()
    assert [name for name in mine if not (folder / name).exists()] == []
    assert [name for name in left if (folder / name).exists()] == []
    assert (victim / "thesis.tex").exists()
    assert all((folder / point.checkpoint).is_dir() for point in study.front.points)


def test_text_of_a_study_cannot_steer_a_terminal(tmp_path, capsys):
    study = synthetic_study.make(tmp_path / "study", num_trials=6)
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\x9b"
    front = json.loads((study.folder / "front.json").read_text())
    front |= {"study": evil, "model": evil, "budgets": {"60%": front["points"][0]["key"]}}
    front["points"][0]["scores"] = {evil: 0.5}
    (study.folder / "front.json").write_text(json.dumps(front))
    (study.folder / TRIALS).write_text(row(reason=evil, trial=evil) + "\n")
    record = read_trials(study.folder)[0]
    print_result(Front.load(study.folder), study.folder)
    shown = capsys.readouterr().out + record.reason + record.trial + Front.load(study.folder).model_dump_json()
    assert r"\x1b]0;owned\x07\x1b[2J\u202e\x9b" in shown
    assert set(shown) & set(evil) <= set("]0;owned[2J")


@pytest.mark.parametrize(
    ("seconds", "text"), [(99.4, "99 s"), (100, "2 min"), (7140, "119 min"), (7200, "2 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_as_people_read_them(seconds, text):
    assert seconds_text(seconds) == text
