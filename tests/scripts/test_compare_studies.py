"""Two studies compared key by key."""

import json
import shutil

import pytest

from raysearch.files import append_json, write_json
from scripts.maintenance import compare_studies
from tests.support import synthetic_study


@pytest.fixture
def compare(monkeypatch, capsys):
    """Exit status and output of the script."""

    def run(*folders):
        monkeypatch.setattr("sys.argv", ["compare_studies.py", *map(str, folders)])
        with pytest.raises(SystemExit) as ended:
            compare_studies.main()
        return ended.value.code, capsys.readouterr().out.strip()

    return run


@pytest.fixture
def copy(synthetic, tmp_path):
    """A copy of the synthetic study, with decisions."""
    folder = tmp_path / "copy"
    shutil.copytree(synthetic.folder, folder)
    return folder


def test_names_times_and_places_do_not_count(synthetic, copy, compare):
    rows = [json.loads(line) for line in (copy / "trials.jsonl").read_text().splitlines()]
    (copy / "trials.jsonl").unlink()
    for number, row in enumerate(rows):
        append_json(copy / "trials.jsonl", {**row, "trial": f"t{number}", "seconds": 1.0, "seconds_training": 2.0})
    front = json.loads((copy / "front.json").read_text())
    for point in front["points"]:
        point |= {"checkpoint": "elsewhere", "mlflow_run_id": "0"}
    write_json(copy / "front.json", front)
    num_points = len(front["points"])
    assert compare(synthetic.folder, copy) == (0, f"same: 40 trials, 0 decisions, {num_points} front points")


def test_what_differs_is_named(synthetic, copy, compare):
    front = json.loads((copy / "front.json").read_text())
    retention = front["points"][0]["retention"]
    front["points"][0]["retention"] = 0.25
    del front["points"][1]["heldout"]
    write_json(copy / "front.json", front)
    append_json(copy / "decisions.jsonl", {"trial": "00001", "go_on": True})
    status, out = compare(synthetic.folder, copy)
    assert status == 1
    assert out.splitlines() == [
        "decisions: 0 entries, 1 in the second study",
        f"front.points[0].retention: {retention!r}, 0.25 in the second study",
        "front.points[1].heldout: only in the first study",
    ]


def test_decisions_count(synthetic, copy, tmp_path, compare):
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    for folder, go_on in ((copy, True), (other, False)):
        append_json(folder / "decisions.jsonl", {"trial": folder.name, "go_on": go_on})
    assert compare(copy, other) == (1, "decisions[0].go_on: True, False in the second study")


def test_only_the_first_differences_of_another_seed_are_shown(synthetic, tmp_path, compare):
    other = synthetic_study.make(tmp_path / "other", seed=1)
    status, out = compare(synthetic.folder, other.folder)
    assert (status, len(out.splitlines())) == (1, 10)
    assert out.startswith("trials[0].")


def test_a_folder_that_holds_no_study_is_a_mistake(synthetic, tmp_path, compare):
    assert compare(synthetic.folder, tmp_path)[0] == 2
