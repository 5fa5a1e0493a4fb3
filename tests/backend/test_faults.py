"""The driver killed at any instant, and a study that goes on as if nothing had happened."""

import collections
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from raysearch.backend import coordinator, search_job
from raysearch.backend.faults import LostCoordinatorError, LostFileError, fatal_errors
from raysearch.backend.messages import Failed
from raysearch.backend.recorder import Recorder
from raysearch.backend.trainable import REPLY
from raysearch.backend.tuner import refuse_all_failed, resume_search
from raysearch.errors import InputError
from raysearch.files import append_json, read_json_lines
from raysearch.searching.journaled_search import JOURNAL, STATE
from raysearch.study.folder import StudyFolder, locked
from raysearch.study.front import Front
from scripts.fault_injection import driver as driver_faults
from scripts.fault_injection import processes
from scripts.testing import stand_in
from scripts.testing.local_coordinator import LocalCoordinator


def with_lines(path, num):
    """A condition that comes true when a file has so many lines."""
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= num


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "study"
    stand_in.drive(stand_in.plan(40), folder)
    return processes.outcome(folder), processes.num_lines(folder)


def ended_after_kills(made, root, draw, num_lines, after_start=lambda folder: None, **more):
    """The folders of studies killed again and again, each at a random moment of the next third of its `num_lines`.

    They are as many as it takes to be killed three times: on a crowded machine a study can end before its kill comes.
    """
    folders, num_kills = [], 0
    while num_kills < 3:
        assert len(folders) < 20, "hardly a study was killed"
        folder = root / str(len(folders)) / "study"
        folder.parent.mkdir()
        folders.append(folder)
        for start in itertools.count():
            when = processes.further(folder, draw.randrange(num_lines // 3), draw.uniform(0, 0.05))
            begun = {"name": f"{start}-", "log": folder.parent / "begun"}
            killed = processes.killed(made, folder, when, **begun, **more)
            after_start(folder)
            if not killed:
                break
            num_kills += 1
    return folders


@pytest.mark.parametrize("seed", range(2))
def test_a_driver_killed_again_and_again_comes_to_the_same_front(unbroken, tmp_path, seed):
    wanted, num_lines = unbroken
    keys = {row["key"] for row in wanted["trials"]}

    def only_known_trials(folder):
        assert {row["key"] for row in read_json_lines(folder / "trials.jsonl")} <= keys

    made = stand_in.plan(40)
    for folder in ended_after_kills(made, tmp_path, random.Random(seed), num_lines, only_known_trials):
        assert processes.outcome(folder) == wanted
        begun = (folder.parent / "begun").read_text().split()
        assert len(begun) == len(set(begun)) == 40  # none was begun twice


def test_a_killed_driver_keeps_to_its_quota_and_loses_no_point(unbroken, tmp_path):
    wanted, num_lines = unbroken
    made = stand_in.plan(40, num_checkpoints=1)
    for folder in ended_after_kills(made, tmp_path, random.Random(9), num_lines):
        found = processes.outcome(folder)
        assert len(found["checkpoints"]) == 1
        named = [point.pop("checkpoint") for point in found["front"]["points"]]
        assert [point.pop("heldout") is not None for point in found["front"]["points"]] == [
            name is not None for name in named
        ]
        assert sorted(f"checkpoints/{name}" for name in found["checkpoints"]) == sorted(filter(None, named))
        answer = found["front"]["budgets"]["60%"]
        assert answer in found["checkpoints"], "the answer to a budget goes last"
        assert found["trials"] == wanted["trials"]
        assert found["front"]["points"] == [
            {name: value for name, value in point.items() if name not in ("checkpoint", "heldout")}
            for point in wanted["front"]["points"]
        ]


def test_with_several_slots_no_trial_is_lost_or_run_twice_and_the_front_never_loses_a_point(unbroken, tmp_path):
    areas = collections.defaultdict(lambda: [0.0])

    def note_hypervolume(folder):
        if (folder / "front.json").exists():
            areas[folder].append(json.loads((folder / "front.json").read_text())["hypervolume"])

    made, draw = stand_in.plan(40), random.Random(5)
    for folder in ended_after_kills(made, tmp_path, draw, unbroken[1], note_hypervolume, num_slots=4):
        keys = [row["key"] for row in processes.outcome(folder)["trials"]]
        assert len(keys) == len(set(keys)) == 40
        assert len(areas[folder]) > 1
        assert areas[folder] == sorted(areas[folder])
        assert sorted((folder.parent / "begun").read_text().split()) == sorted(keys)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return driver_faults.Driver(tmp_path_factory.mktemp("driver"), seed=7, num_trials=24)


@pytest.mark.parametrize("fault", ["killed_in_a_write", "disk_full", "storage_away", "clock_jumps", "second_driver"])
def test_other_faults_of_the_driver_come_to_the_same_front(fault, driver, tmp_path):
    """As in `run.py driver`, once each."""
    assert getattr(driver, fault)(tmp_path / "study") >= 1


def test_the_suite_notices_what_is_wrong(driver, tmp_path):
    study = tmp_path / "study"
    stand_in.drive(stand_in.plan(24), study)
    driver.check_as_unbroken(study)
    (study / ".front.json.1").write_text("half")
    with pytest.raises(driver_faults.Failed):
        driver.check_as_unbroken(study)


@pytest.mark.slow
def test_faults_of_a_cluster_come_to_the_same_front(tmp_path):
    """As in `run.py cluster`."""
    from scripts.fault_injection import cluster, run

    studies = cluster.studies(tmp_path, seed=1)
    counts, num_failed = run.run(studies, num=6)
    studies.close()
    assert counts.total() >= 6
    assert num_failed == 0


def test_a_line_cut_short_does_not_join_the_next(tmp_path):
    path = tmp_path / "lines"
    append_json(path, {"a": 1})
    with path.open("a") as stream:
        stream.write('{"b": 2, "c')
    assert read_json_lines(path) == [{"a": 1}]
    append_json(path, {"d": 4})
    assert read_json_lines(path) == [{"a": 1}, {"d": 4}]
    path.write_text('{"only')
    append_json(path, [])
    assert path.read_text() == "[]\n"


@pytest.mark.parametrize("name", ["trials.jsonl", JOURNAL, "decisions.jsonl"])
def test_a_line_cut_short_by_a_crash_changes_nothing(unbroken, tmp_path, name):
    folder = tmp_path / "study"
    assert processes.killed(stand_in.plan(40), folder, with_lines(folder / "trials.jsonl", 15))
    with (folder / name).open("a") as stream:
        stream.write('{"trial": "t16", "key": "0123')
    stand_in.drive(stand_in.plan(40), folder, name="again")
    assert processes.outcome(folder) == unbroken[0]


@pytest.mark.parametrize("name", [JOURNAL, "decisions.jsonl"])
def test_lines_that_a_dying_machine_never_wrote_cost_no_trial(tmp_path, name):
    """Trials are flushed to the disk one by one; the rest may lag behind."""
    folder = tmp_path / "study"
    assert processes.killed(stand_in.plan(40), folder, with_lines(folder / "trials.jsonl", 15))
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join(lines[: len(lines) // 2]))
    before = read_json_lines(folder / "trials.jsonl")
    stand_in.drive(stand_in.plan(40), folder, name="again")
    rows = read_json_lines(folder / "trials.jsonl")
    assert rows[: len(before)] == before
    assert len({row["key"] for row in rows}) == len(rows) == 40


def test_a_lost_state_costs_no_trial(tmp_path):
    folder = tmp_path / "study"
    stand_in.drive(stand_in.plan(12), folder)
    before = processes.outcome(folder)["trials"]
    (folder / STATE).write_text("{}")
    with pytest.raises(InputError, match=r"search-state\.json: no state of this version.*delete it"):
        stand_in.drive(stand_in.plan(20), folder, name="again")
    (folder / STATE).unlink()
    stand_in.drive(stand_in.plan(20), folder, name="again")
    after = processes.outcome(folder)["trials"]
    assert after[:12] == before
    assert len({row["key"] for row in after}) == 20


def test_a_state_of_another_version_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "study"
    stand_in.drive(stand_in.plan(12), folder)
    state = json.loads((folder / STATE).read_text())
    state["schema"] -= 1
    (folder / STATE).write_text(json.dumps(state))
    before = contents(folder)
    with pytest.raises(InputError, match=r"search-state\.json: no state of this version.*delete it"):
        search_job.run(stand_in.plan(20), folder)
    assert contents(folder) == before


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_killed_study_is_extended_and_gets_other_budgets(tmp_path):
    folder = tmp_path / "study"
    assert processes.killed(stand_in.plan(40), folder, with_lines(folder / "trials.jsonl", 20))
    before = read_json_lines(folder / "trials.jsonl")
    stand_in.drive(stand_in.plan(50, budgets=("60%", "30%")), folder, name="again")
    found = processes.outcome(folder)
    assert len(found["trials"]) == 50
    assert read_json_lines(folder / "trials.jsonl")[: len(before)] == before
    assert found["front"]["budgets"].keys() == {"60%", "30%"}
    assert sum(row["size_bytes"] <= 600 for row in found["trials"]) >= 4


def test_a_file_that_cannot_be_written_ends_the_search_and_is_blamed_on_no_trial(tmp_path):
    """Ray Tune takes any `Exception` of a callback for a failure of the trial at hand."""

    @fatal_errors()
    def on_trial_result(result):
        append_json(tmp_path / "nowhere" / "lines", result)

    with pytest.raises(LostFileError, match="nowhere/lines: No such file or directory") as lost:
        on_trial_result({})
    assert not isinstance(lost.value, Exception)


def recorder(tmp_path, coordinator):
    plan = stand_in.plan(4)
    study = StudyFolder(tmp_path, plan.space)
    return Recorder(plan, study, resume_search(plan, study), coordinator), study


def test_storage_that_stays_away_ends_the_search_and_no_trial(tmp_path):
    made, _ = recorder(tmp_path, LocalCoordinator())
    reply = Failed(reason="OSError: [Errno 5] Input/output error", may_pass=True, by_storage=True)
    with pytest.raises(LostFileError, match="Input/output error"):
        made.on_trial_complete(0, [], SimpleNamespace(trial_id="a", config={}, last_result={REPLY: reply}))
    assert not (tmp_path / "trials.jsonl").exists()


class DeadCoordinator(LocalCoordinator):
    """One whose process has died."""

    def submit(self, method, *args, **named):
        raise ActorDiedError


def test_a_lost_coordinator_ends_the_search_and_is_blamed_on_no_trial(tmp_path):
    made, study = recorder(tmp_path, DeadCoordinator())
    with pytest.raises(LostCoordinatorError, match="the coordinator of the slots has died"):
        made.on_trial_error(0, [], SimpleNamespace(trial_id="t", get_error=lambda: None, last_result={}))
    assert not study.records


def test_the_coordinator_is_on_the_node_that_the_cluster_stands_on(monkeypatch):
    """A node that works and is lost took every later trial with it, when the coordinator happened to be there."""
    options = {}

    def remote(**given):
        options.update(given)
        return lambda actor: SimpleNamespace(remote=lambda *arguments: None)

    monkeypatch.setattr(coordinator.ray, "remote", remote)
    coordinator.start_coordinator()
    assert options == {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}


def test_a_search_that_has_only_failed_trials_says_why():
    failed = SimpleNamespace(end="failed", reason="InputError: none of its samples can be used")
    finished = SimpleNamespace(end="finished", reason="")
    for fine in ([], [failed, finished]):
        refuse_all_failed("runs/a", fine)
    with pytest.raises(InputError, match=r"^runs/a: every trial failed \(the last: InputError: none of its"):
        refuse_all_failed("runs/a", [failed, failed])


def test_two_drivers_on_one_study_get_one_plain_error(tmp_path):
    folder = tmp_path / "study"
    with locked(folder):
        code = (
            f"import pathlib, raysearch.study.folder as study\nwith study.locked(pathlib.Path({str(folder)!r})): pass"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "InputError" in done.stderr
        assert "a search is at work on this study; wait for its end" in done.stderr
    with locked(folder):  # the lock has ended with its holder
        pass


def test_a_crash_leaves_no_stale_lock(tmp_path):
    code = f"import os, filelock; filelock.FileLock({str(tmp_path / '.lock')!r}).acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass


def test_what_a_crash_has_left_is_swept_away(tmp_path):
    folder = tmp_path / "study"
    study = stand_in.drive(stand_in.plan(8), folder)
    (folder / ".front.json.a1b2c3.unfinished").write_text("{")
    for name in ("checkpoints/0123456789", f"running/{study.records[0].key}", "running/going-on"):
        (folder / name).mkdir(parents=True)
    StudyFolder(folder, study.space).create()
    assert not (folder / ".front.json.a1b2c3.unfinished").exists()
    assert not (folder / "checkpoints/0123456789").exists()
    assert [path.name for path in (folder / "running").iterdir()] == ["going-on"]


class Interrupts:
    """A callback that is interrupted when a number of points have been scored on held-out questions."""

    def __init__(self, num):
        self.num, self.fronts = num, []

    def trial_started(self, trial, recipe, size):
        pass

    def rung(self, trial, score):
        pass

    def trial_ended(self, record):
        pass

    def front_changed(self, front):
        self.fronts.append(front)
        if sum(point.heldout is not None for point in front.points) == self.num:
            raise KeyboardInterrupt


def test_held_out_questions_are_asked_at_the_end_only_of_the_front(tmp_path):
    follows = Interrupts(0.5)
    study = stand_in.drive(stand_in.plan(40), tmp_path, num_slots=2, callbacks=lambda study: [follows])
    points = study.front.points
    assert len(points) > 2
    assert all(point.heldout.retention == point.retention for point in points)
    num_scored = [sum(point.heldout is not None for point in front.points) for front in follows.fronts]
    before = len(num_scored) - len(points)
    assert num_scored == [0] * before + list(range(1, len(points) + 1))


def test_a_search_interrupted_while_held_out_questions_are_asked_goes_on_with_them(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stand_in.drive(stand_in.plan(40), tmp_path, callbacks=lambda study: [Interrupts(1)])
    trials, state = (tmp_path / "trials.jsonl").read_bytes(), search_state(tmp_path)
    front = Front.load(tmp_path)
    assert len(front.unscored()) == len(front.points) - 1 > 0
    follows = Interrupts(0.5)
    study = stand_in.drive(stand_in.plan(40), tmp_path, name="again", callbacks=lambda study: [follows])
    assert study.front.unscored() == Front.load(tmp_path).unscored() == []
    assert len(follows.fronts) == len(front.points) - 1
    assert (tmp_path / "trials.jsonl").read_bytes() == trials
    assert search_state(tmp_path) == state


def test_a_vanished_checkpoint_costs_its_held_out_score_and_no_more(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        stand_in.drive(stand_in.plan(40), tmp_path, callbacks=lambda study: [Interrupts(1)])
    gone, *others = Front.load(tmp_path).unscored()
    shutil.rmtree(tmp_path / gone.checkpoint)
    study = stand_in.drive(stand_in.plan(40), tmp_path, name="again")
    assert [point.key for point in study.front.unscored()] == [gone.key]
    assert others
    assert caplog.messages == [f"{tmp_path}/{gone.checkpoint}: not scored on held-out questions: no checkpoint"]


def search_state(folder):
    plan = stand_in.plan(40)
    return resume_search(plan, StudyFolder(folder, plan.space)).state()
