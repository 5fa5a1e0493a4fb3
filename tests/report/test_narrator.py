"""Nobody waits in silence: what is printed when nothing else is, and what `raysearch status` says."""

import json
import os
import threading
import time

import pytest

from raysearch.cli.app import app
from raysearch.errors import InputError
from raysearch.report import narrator as narrator_module
from raysearch.report.narrator import Narrator
from raysearch.report.status_text import status_lines, study_status
from raysearch.study.folder import StudyFolder
from raysearch.study.status import ENDED, SECONDS_TO_MISS, STATUS, Stage, Status, read_status
from tests.support import synthetic_study

PATIENCE = 60


@pytest.fixture
def lines(monkeypatch):
    """What narrators print, as it comes."""
    printed, came = [], threading.Condition()

    def note(line, flush):
        with came:
            printed.append(line)
            came.notify_all()

    def wait_for(text):
        with came:
            assert came.wait_for(lambda: any(text in line for line in printed), PATIENCE), (text, printed)

    monkeypatch.setattr(narrator_module, "print", note, raising=False)
    monkeypatch.setattr(narrator_module, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(narrator_module, "SECONDS_TO_FIRST_LINE", 0.02)
    printed_and_wait = type("Lines", (list,), {"wait_for": staticmethod(wait_for)})
    printed_lines = printed_and_wait()
    printed_lines.printed = printed
    return printed_lines


def test_stages_are_said_and_said_again(lines, monkeypatch):
    monkeypatch.setattr(narrator_module, "SECONDS_OF_SILENCE", 0.02)
    with Narrator("starting Ray") as narrator:
        lines.wait_for("  starting Ray, ")
        narrator.enter("joining", "at \x1b[2J1.2.3.4")
        lines.wait_for(r"  joining (at \x1b[2J1.2.3.4), ")
        narrator.follow_slots([Stage(state="loading"), Stage(state="waiting for room", reason="2 CPUs")])
        lines.wait_for("  slot 1: loading, ")
        num = len(lines.printed)
        while len(lines.printed) < num + 2:
            time.sleep(0.01)
    assert any("slot 2: waiting for room (2 CPUs), " in line for line in lines.printed)


def test_what_is_quick_or_shown_elsewhere_is_not_said(lines, monkeypatch):
    monkeypatch.setattr(narrator_module, "SECONDS_TO_FIRST_LINE", 1000)
    told = []
    with Narrator("starting Ray") as narrator:
        narrator.listeners.append(told.append)
        narrator.say("a line")
        narrator.enter("joining")
    with Narrator("checking", began=-1e9) as silent:
        silent.is_silent = True
        time.sleep(0.1)
    assert lines.printed[:1] == ["a line"]
    assert "joining" not in "".join(lines.printed)
    assert told[-1].stage.state == ENDED


def test_an_end_says_why(tmp_path):
    for error, reason in ((KeyboardInterrupt(), "interrupted"), (InputError("no room\nat all"), "no room"), (None, "")):
        narrator = Narrator("searching")
        narrator.listeners.append(lambda status: status.write(tmp_path))
        try:
            with narrator:
                if error:
                    raise error
        except (KeyboardInterrupt, InputError):
            pass
        assert (read_status(tmp_path).stage.state, read_status(tmp_path).stage.reason) == (ENDED, reason)


def test_slots_that_do_the_same_share_a_line():
    now = time.time()
    slots = [Stage(state="training", since=now - 200 + number) for number in range(12)]
    slots[3] = Stage(state="waiting for room", reason="it needs 2 CPUs", since=now - 30)
    said = Status(started=now, stage=Stage(state="searching"), slots=slots).lines()
    assert said == [
        "slots 1, 2, 3, 5, 6, 7, 8, 9 and 3 more: training, 3 min",
        "slot 4: waiting for room (it needs 2 CPUs), 30 s",
    ]


@pytest.fixture
def study(tmp_path):
    return synthetic_study.make(tmp_path / "study", num_trials=12)


def status(**changes):
    now = time.time()
    fields = {"host": "far", "pid": 7, "started": now - 600, "stage": Stage(state="searching")}
    return Status(**fields | changes)


def test_a_running_search_is_described_from_its_files(study, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status(slots=[Stage(state="training", reason="layerwise 30%")]).write(study.folder)
    text = "\n".join(status_lines(study.folder))
    assert "search      running for 10 min, process 7 on far" in text
    assert "slot 1: training (layerwise 30%), 0 s" in text
    assert f"trials      12 ended: {sum(r.end == 'finished' for r in study.records)} finished" in text
    assert f": {study.records[-1].key} {study.records[-1].end}, retention" in text
    assert f"front       {len(study.front.points)} recipes, hypervolume {study.front.hypervolume:.3f}" in text
    assert "60%: " in text
    assert "next        wait, or end it with Ctrl-C" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "none has run here since this version"),
        ({"stage": Stage(state=ENDED, reason="interrupted")}, "ended 0 s ago: interrupted"),
        ({"updated": 1.0}, "gone without an end, process 7 on far; it last said something"),
    ],
)
def test_a_search_that_does_not_run_says_how_to_go_on(study, change, said):
    if change is not None:
        status(**change).write(study.folder)
    text = "\n".join(status_lines(study.folder))
    assert f"search      {said}" in text
    assert f"search --resume {study.folder}" in text
    assert not study_status(study.folder)["running"]


def test_a_new_study_has_a_status_and_what_is_none_is_refused(tmp_path, capsys):
    made = StudyFolder(tmp_path / "study", synthetic_study.space())
    made.create()
    assert "front       none yet" in "\n".join(status_lines(made.folder))
    with pytest.raises(SystemExit) as ended:
        app(["status", str(made.folder), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["trials"] == {}
    for text in ("[", "{}", '{"started": "x"}', "[" * 100_000):
        (made.folder / STATUS).write_text(text)
        with pytest.raises(InputError, match=r"status\.json: no status of this version \(.*; delete it"):
            status_lines(made.folder)
    with pytest.raises(InputError, match="no study; give the --out folder"):
        status_lines(tmp_path)


def test_a_status_is_read_by_this_process_too(tmp_path):
    Status(started=1.0, stage=Stage(state="searching")).write(tmp_path)
    found = read_status(tmp_path)
    assert (found.pid, found.is_running) == (os.getpid(), True)
    assert not found.model_copy(update={"updated": time.time() - SECONDS_TO_MISS - 1}).is_running
