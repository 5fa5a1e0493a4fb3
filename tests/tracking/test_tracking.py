"""MLflow gets every event, live, late or after a resume, and never delays a search. Real SQLite stores."""

import json
import shutil
import socket
import time

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from transformers import AutoModelForImageTextToText

from raysearch import pocket
from raysearch.cli.app import app
from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Front, Measured, Speed, retention_text
from raysearch.study.records import Score
from raysearch.study.secrets import mask
from raysearch.tracking.events import event_of, parent_event, rung_event
from raysearch.tracking.lookup import front_of_experiment, register
from raysearch.tracking.mlflow_runs import connect, read_state
from raysearch.tracking.sender import UNSENT, read_unsent
from raysearch.tracking.tracker import Tracker, log_report, log_speeds, sync_unsent, tracking_uri
from tests.support import synthetic_study

PATIENCE = 300  # seconds; the machine may be busy
CLOSED_PORT = "http://127.0.0.1:9"
DENSE = synthetic_study.BASELINE.size


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One SQLite store for all tests, since making one takes seconds; every test has an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def client(store):
    return MlflowClient(tracking_uri=store)


@pytest.fixture
def replay(tmp_path, request):
    """A new study, and the trials to replay in it."""
    study = synthetic_study.make(tmp_path / "made", num_trials=12)
    name = request.node.name.replace("[", "-").replace("]", "")
    space = study.space.model_copy(update={"name": name})
    fresh = StudyFolder(tmp_path / "run", space)
    fresh.create()
    return Replay(fresh, study.records, study.front)


class Replay:
    """Calls a tracker with the events of a study, as a search does."""

    def __init__(self, study, records, front):
        self.study, self.records, self.final_front = study, records, front

    def play(self, tracker, records=None):
        for record in self.records if records is None else records:
            self.begin(tracker, record)
            self.study.records.append(record)
            tracker.trial_ended(record)
        keys = {record.key for record in self.study.records}
        points = [point for point in self.final_front.points if point.key in keys]
        front, budgets = self.final_front, self.study.budgets
        self.study.front = Front.build(front.study, front.model, front.baseline, points, budgets)
        self.study.front.save(self.study.folder)
        tracker.front_changed(self.study.front)

    def begin(self, tracker, record):
        self.study.trial_started(record.trial, record.recipe)
        tracker.trial_started(record.trial, record.recipe, Size(record.num_params, record.size_bytes))
        for score in record.rungs:
            tracker.rung(record.trial, score)

    def write_trials(self):
        lines = [record.model_dump_json(exclude_none=True) + "\n" for record in self.study.records]
        (self.study.folder / "trials.jsonl").write_text("".join(lines))


def runs_of(client, study):
    """The parent run and the child runs by recipe key, from MLflow."""
    experiment = client.get_experiment_by_name(study.space.name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run is not parents[0]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parents[0].info.run_id}
    assert len({run.data.tags["raysearch.key"] for run in children}) == len(children)
    return parents[0], {run.data.tags["raysearch.key"]: run for run in children}


def check_everything_is_there(client, replay):
    parent, children = runs_of(client, replay.study)
    on_front = {point.key for point in replay.final_front.points}
    assert set(children) == {record.key for record in replay.records}
    for record in replay.records:
        run = children[record.key]
        assert run.data.params == {name: str(value) for name, value in record.recipe.as_dict().items()}
        assert run.data.tags["mode"] == record.recipe.mode
        assert run.data.tags["end"] == record.end
        assert run.data.tags["front"] == ("yes" if record.key in on_front else "no")
        assert run.info.status == ("FAILED" if record.end == "failed" else "FINISHED")
        history = client.get_metric_history(run.info.run_id, "retention")
        assert sorted((point.step, point.value) for point in history) == [
            (score.samples_seen, score.retention) for score in record.rungs
        ]
        assert run.data.metrics["size_bytes"] == record.size_bytes
        assert run.data.metrics["size_ratio"] == pytest.approx(record.size_bytes / DENSE.size_bytes)
        if record.rungs:
            last = record.rungs[-1]
            assert run.data.metrics["retention_se"] == last.retention_se
            assert run.data.metrics["score.digits"] == last.scores["digits"]
            assert run.data.metrics["loss.sft"] == last.losses["sft"]
    assert not (replay.study.folder / UNSENT).exists()
    return parent, children


def test_a_search_is_told_in_full_and_not_held_up(store, client, replay):
    began = time.thread_time()
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    assert time.thread_time() - began < 1, "the driver only queues"
    assert tracker.flush(PATIENCE)
    parent, children = check_everything_is_there(client, replay)
    record = replay.records[0]
    assert tracker.run_id(record.trial) == children[record.key].info.run_id
    replay.write_trials()
    tracker.close(PATIENCE)
    parent, children = check_everything_is_there(client, replay)
    assert parent.data.metrics["hypervolume"] == replay.final_front.hypervolume
    assert parent.data.metrics["num_stopped"] == sum(record.end == "stopped" for record in replay.records)
    assert "retention_at.60pct" in parent.data.metrics
    assert parent.data.params["model"] == "pocket"
    assert parent.data.tags["env.torch"].startswith("2.")
    assert parent.info.status == "KILLED", "12 of 28 trials"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"front.json", "space.json", "trials.jsonl"}
    for point in Front.load(replay.study.folder).points:
        assert point.mlflow_run_id == children[point.key].info.run_id


def test_a_server_that_is_away_stops_nothing_and_sync_sends_later(store, client, replay, capsys):
    tracker = Tracker(replay.study, CLOSED_PORT, dense=DENSE)
    replay.play(tracker)
    replay.write_trials()
    tracker.close(PATIENCE)
    said = capsys.readouterr().err
    assert said.count("raysearch:") == 1, "one warning, however much fails"
    assert "raysearch sync" in said
    waiting = list(read_unsent(replay.study.folder))
    assert {event.run for event in waiting} >= {record.key for record in replay.records}
    assert tracker.run_id(replay.records[0].trial) is None
    sent, refused = sync_unsent(replay.study.folder, store)
    assert sent >= len(waiting)
    assert refused == 0
    parent, _ = check_everything_is_there(client, replay)
    assert parent.data.metrics["hypervolume"] == replay.final_front.hypervolume
    assert all(point.mlflow_run_id for point in Front.load(replay.study.folder).points)


def test_what_waits_is_sent_first_once_the_server_is_back(store, client, replay, monkeypatch):
    monkeypatch.setattr("raysearch.tracking.sender.SECONDS_BETWEEN_TRIES", 0.0)
    tracker = Tracker(replay.study, store, dense=DENSE)
    sender = tracker.sender
    sender.uri = CLOSED_PORT
    replay.play(tracker, replay.records[:6])
    assert not tracker.flush(PATIENCE)
    assert list(read_unsent(replay.study.folder))
    sender.uri = store
    replay.play(tracker, replay.records[6:])
    assert tracker.flush(PATIENCE)
    check_everything_is_there(client, replay)
    tracker.close(PATIENCE)


def test_a_resumed_study_continues_its_runs(store, client, replay):
    first = Tracker(replay.study, store, dense=DENSE)
    replay.play(first, replay.records[:5])
    replay.begin(first, replay.records[5])  # interrupted
    first.close(PATIENCE)
    before, children = runs_of(client, replay.study)
    assert children[replay.records[5].key].data.tags["end"] == "interrupted"
    assert children[replay.records[5].key].info.status == "KILLED"
    resumed = Tracker(replay.study, store, dense=DENSE)
    again = replay.records[5].model_copy(update={"trial": "another", "rungs": []})
    resumed.trial_started(again.trial, again.recipe, Size(again.num_params, again.size_bytes))
    replay.study.records.append(replay.records[5])
    resumed.trial_ended(replay.records[5])
    replay.play(resumed, replay.records[6:])
    resumed.close(PATIENCE)
    parent, now = check_everything_is_there(client, replay)
    assert parent.info.run_id == before.info.run_id
    assert {key: now[key].info.run_id for key in children} == {key: run.info.run_id for key, run in children.items()}


def test_a_killed_driver_loses_no_ended_trial(store, client, replay):
    """Queued events are lost; the next start sends them from the study's own files."""
    tracker = Tracker(replay.study, store, dense=DENSE)
    tracker.flush(PATIENCE)
    replay.study.records += replay.records
    replay.write_trials()
    replay.final_front.save(replay.study.folder)
    reopened = StudyFolder(replay.study.folder, replay.study.space)
    late = Tracker(reopened, store)
    late.close(PATIENCE)
    check_everything_is_there(client, replay)


def test_a_server_that_hangs_is_given_up(replay, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(replay.study, f"http://127.0.0.1:{silent.getsockname()[1]}", dense=DENSE)
        replay.play(tracker)
        began = time.monotonic()
        tracker.close(seconds=2)
        assert time.monotonic() - began < 30
    waiting = list(read_unsent(replay.study.folder))
    assert {event.run for event in waiting} >= {record.key for record in replay.records}
    assert "takes too long" in capsys.readouterr().err


def test_who_leaves_the_front_is_untagged(store, client, replay):
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    front = replay.final_front
    fewer = Front.build(front.study, front.model, front.baseline, front.points[1:], replay.study.budgets)
    gone = replay.final_front.points[0].key
    tracker.front_changed(fewer)
    assert tracker.flush(PATIENCE)
    _, children = runs_of(client, replay.study)
    assert children[gone].data.tags["front"] == "no"
    assert {key for key, run in children.items() if run.data.tags["front"] == "yes"} == {
        point.key for point in fewer.points
    }
    tracker.close(PATIENCE)


def test_events_wait_behind_whole_lines_only(replay, monkeypatch):
    folder = replay.study.folder
    (folder / UNSENT).write_text(
        '{"run": null, "time": 1, "metrics": {"x": 1.0}, "step": 0}\n{"run": null, "time": 2, "me'
    )
    tracker = Tracker(replay.study, CLOSED_PORT, dense=DENSE)
    assert not tracker.flush(PATIENCE)
    tracker.close(PATIENCE)
    first, second, *_ = read_unsent(folder)
    assert (first.time, first.metrics) == (1, {"x": 1.0})
    assert second.documents["space.json"]["name"] == replay.study.space.name


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[]", "must be a mapping of keys to values"),
        ('{"run": null, "ti', "Invalid control character"),
        ('{"run": null}', "time: missing"),
        ('{"run": null, "time": 1, "files": ["../../.ssh/id_rsa"]}', "files.0: must match"),
        ('{"run": null, "time": 1, "files": ["/etc/passwd"]}', "files.0: must match"),
        ('{"run": null, "time": 1, "documents": {"../a": 1}}', "documents.*must match"),
        ('{"run": null, "time": 1, "metrics": {"a": "b"}}', "metrics.a: must be a number"),
    ],
    ids=list("abcdefg"),
)
def test_a_waiting_line_that_is_no_event_names_file_and_line(replay, store, line, problem):
    (replay.study.folder / UNSENT).write_text('{"run": null, "time": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=rf"mlflow-unsent\.jsonl, line 2: .*{problem}.*; correct or remove the line"):
        sync_unsent(replay.study.folder, store)
    assert (replay.study.folder / UNSENT).exists()


@pytest.mark.parametrize(
    "content", ["[1]", '{"uri": "x"}', '{"uri": "U", "runs": [1]}', '{"uri": "U", "ended": {}}', "["]
)
def test_run_ids_that_are_none_lead_to_new_runs(tmp_path, content):
    (tmp_path / "mlflow.json").write_text(content.replace("U", CLOSED_PORT))
    assert read_state(tmp_path, CLOSED_PORT).model_dump() == {"uri": CLOSED_PORT, "runs": {}, "ended": []}


def test_a_run_deleted_over_there_is_made_anew(store, client, replay):
    first = Tracker(replay.study, store, dense=DENSE)
    replay.play(first, replay.records[:2])
    first.close(PATIENCE)
    state = json.loads((replay.study.folder / "mlflow.json").read_text())
    state["runs"][replay.records[0].key] = "0" * 32
    (replay.study.folder / "mlflow.json").write_text(json.dumps(state))
    second = Tracker(replay.study, store, dense=DENSE)
    second.rung(
        second_trial(second, replay.records[0]), Score(samples_seen=9, retention=0.5, retention_se=0, scores={})
    )
    assert second.flush(PATIENCE)
    assert second.run_id(replay.records[0].trial) not in (None, "0" * 32)
    second.close(PATIENCE)


def second_trial(tracker, record):
    tracker.trial_started(record.trial, record.recipe, Size(record.num_params, record.size_bytes))
    return record.trial


def test_what_the_server_refuses_does_not_block_the_rest(store, client, replay, capsys):
    tracker = Tracker(replay.study, store, dense=DENSE)
    assert tracker.flush(PATIENCE)
    tracker.sender.put(event_of(None, params={"model": "another"}), event_of(None, metrics={"hypervolume": 0.25}))
    assert tracker.flush(PATIENCE)
    tracker.close(PATIENCE)
    assert "refused" in capsys.readouterr().err
    parent, _ = runs_of(client, replay.study)
    assert parent.data.metrics["hypervolume"] == 0.25
    assert parent.data.params["model"] == "pocket"


def test_best_answers_from_mlflow(store, client, replay, capsys, monkeypatch):
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    tracker.close(PATIENCE)
    name = replay.study.space.name
    front, folder = front_of_experiment(name, store)
    assert folder == replay.study.folder
    assert [p.key for p in front.points] == [p.key for p in replay.final_front.points]
    answers = []
    for where in ([str(folder)], ["--mlflow", name, "--uri", store]):
        with pytest.raises(SystemExit) as ended:
            app(["best", *where, "--budget", "75%", "--json"])
        assert ended.value.code == 0
        answers.append(json.loads(capsys.readouterr().out))
        answers[-1].pop("mlflow_run_id")  # filled in at the end, after the front was sent
    assert answers[0] == answers[1]
    with pytest.raises(InputError, match=f"no such experiment at .*there are .*{name}"):
        front_of_experiment("another", store)
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9: .*name another with --uri"):
        front_of_experiment(name, CLOSED_PORT)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"no mlflow\.db in runs/ or here"):
        front_of_experiment(name)


def test_an_experiment_without_a_front_says_so(store, client):
    client.create_experiment("empty")
    with pytest.raises(InputError, match="no study there has a front yet"):
        front_of_experiment("empty", store)


def test_a_chosen_model_becomes_a_version(store, client, replay, tmp_path):
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    tracker.close(PATIENCE)
    model = tmp_path / "model"
    shutil.copytree(pocket.weights_folder(), model)
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\nA small model.\n")
    point = Front.load(replay.study.folder).points[0]
    name = replay.study.space.name
    assert register(replay.study.folder, point, model, name, store) == 1
    assert register(replay.study.folder, point, model, name, store) == 2
    version = client.get_model_version(name, "2")
    assert version.run_id == point.mlflow_run_id
    assert version.tags["raysearch.key"] == point.key
    assert version.description == point.recipe.describe()
    assert client.get_run(point.mlflow_run_id).info.status == "FINISHED"
    loaded = mlflow.transformers.load_model(f"models:/{name}/2", return_type="components")
    dense = AutoModelForImageTextToText.from_pretrained(model)
    assert type(loaded["model"]) is type(dense)
    weights = loaded["model"].state_dict()
    assert all(torch.equal(weights[key], value) for key, value in dense.state_dict().items())
    inputs = loaded["processor"](
        images=Image.new("RGB", (64, 64), "red"), text="<image>What colour?", return_tensors="pt"
    )
    assert loaded["model"].generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
    lost = point.model_copy(update={"key": "0123456789"})
    with pytest.raises(InputError, match="raysearch sync"):
        register(replay.study.folder, lost, model, name, store)
    state = json.loads((replay.study.folder / "mlflow.json").read_text())
    (replay.study.folder / "mlflow.json").write_text(json.dumps({**state, "uri": CLOSED_PORT}))
    with pytest.raises(InputError, match="is exported, but MLflow at http://127"):
        register(replay.study.folder, point, model, name, CLOSED_PORT)


def test_what_was_measured_is_told(store, client, replay, monkeypatch):
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    tracker.close(PATIENCE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    front = Front.load(replay.study.folder)
    speed = Speed(
        device="a card", dtype="bfloat16", num_prompt_tokens=45, prefill_seconds=0.0125, decode_tokens_per_second=80,
        peak_memory_bytes=3, checkpoint_bytes=2, kv_cache_bytes_per_1000_tokens=1000,
    )  # fmt: skip
    points = [front.points[0].model_copy(update={"measured": speed}), *front.points[1:]]
    log_speeds(replay.study.folder, front.model_copy(update={"points": points}), PATIENCE)
    _, children = runs_of(client, replay.study)
    told = children[points[0].key].data
    assert told.metrics["speed.prefill_seconds"] == 0.0125
    assert told.metrics["speed.kv_cache_bytes_per_1000_tokens"] == 1000
    assert told.tags["speed.device"] == "a card"
    assert "speed.prefill_seconds" not in children[points[1].key].data.metrics


def test_held_out_scores_are_told_when_they_come_and_the_study_is_described(store, client, replay):
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    assert tracker.flush(PATIENCE)
    heldout = Measured(retention=0.875, retention_ci=(0.85, 0.9), scores={"digits": 0.5}, num_questions=600)
    first = replay.study.front.points[0]
    bare = [p.model_copy(update={"heldout": None}) for p in replay.study.front.points]
    tracker.front_changed(replay.study.front.model_copy(update={"points": bare}))
    points = [bare[0].model_copy(update={"heldout": heldout}), *bare[1:]]
    replay.study.front = replay.study.front.model_copy(update={"points": points, "budgets": {"99%": first.key}})
    replay.study.front.save(replay.study.folder)
    tracker.front_changed(replay.study.front)
    tracker.close(PATIENCE)
    parent, children = runs_of(client, replay.study)
    told = children[first.key].data.metrics
    assert told["heldout_retention"] == 0.875
    assert told["heldout_score.digits"] == 0.5
    history = client.get_metric_history(children[first.key].info.run_id, "heldout_retention")
    assert history[-1].step == first.samples_seen
    note = parent.data.tags["mlflow.note.content"]
    assert f"| 99% | 87.5% [85.0, 90.0] | {retention_text(first)} | {first.size_ratio:.1%} | `{first.key}`" in note
    assert f"#/compare-runs?runs=%5B%22{children[first.key].info.run_id}" in note
    assert f"experiments=%5B%22{parent.info.experiment_id}%22%5D" in note


def test_a_report_is_sent_when_it_is_written(store, client, replay, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    log_report(replay.study.folder)  # no run there: nothing is sent, and none is made
    assert not (replay.study.folder / "mlflow.json").exists()
    tracker = Tracker(replay.study, store, dense=DENSE)
    replay.play(tracker)
    tracker.close(PATIENCE)
    (replay.study.folder / "report.html").write_text("new")
    log_report(replay.study.folder, PATIENCE)
    parent, _ = runs_of(client, replay.study)
    assert "report.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_numbers_that_are_none_and_odd_names():
    score = Score(
        samples_seen=3,
        retention=float("nan"),
        retention_se=0.1,
        scores={"VQA (val)%": 0.5},
        losses={"sft": float("inf")},
    )
    assert rung_event("k", score).metrics == {"retention_se": 0.1, "score.VQA _val__": 0.5}


def test_secrets_are_masked_in_what_is_sent(tmp_path):
    recovery = synthetic_study.space().recovery.model_copy(
        update={"deepspeed": {"wandb": {"api_key": "abc", "team": "mine"}, "hf_token": "x"}}
    )
    space = synthetic_study.space(model="https://me:pw@host/model", recovery=recovery)
    sent = parent_event(StudyFolder(tmp_path, space)).model_dump_json(indent=1)
    assert "abc" not in sent
    assert "pw@" not in sent
    assert '"team": "mine"' in sent
    assert '"max_length": 256' in sent


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("http://user:pw@host:5000/x", "http://***@host:5000/x"),
        ("http://user:p@ss/wo:rd-2@host:5000/x y@z", "http://***@host:5000/x y@z"),
        ("see http://user:se/cret@h, and me@here", "see http://***@h, and me@here"),
        ("postgresql://h/db?user=u&passwd=a;b/c@d&x=1", "postgresql://***@d&x=1"),
        ("postgresql://h/db?user=u&pass%77ord=hunter2&x=1", "postgresql://h/db?user=u&pass%77ord=***&x=1"),
        ({"password": "x", "batch_size": 8}, {"password": "***", "batch_size": 8}),
        ({"tokens": 5, "max_length": 9, "keys": ["a"]}, {"tokens": 5, "max_length": 9, "keys": ["a"]}),
        (["hf_abcdefghijklmnopqrst"], ["***"]),
        ("https://x/?token=abc&b=1", "https://x/?token=***&b=1"),
        ({"secret": {"deep": {"api_key": "k"}}}, {"secret": {"deep": {"api_key": "***"}}}),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        (None, None),
    ],
)
def test_mask(value, masked):
    assert mask(value) == masked


def test_mlflow_prints_nothing_into_the_lines_of_a_search():
    """A server would have two lines printed per ended run."""
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    connect("http://127.0.0.1:9")
    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()


def test_where_a_study_is_tracked(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path / "run") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(tmp_path / "run") == "http://server:5000"


def test_a_study_that_moved_with_its_store_knows_its_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here, there = tmp_path / "a" / "run", tmp_path / "b" / "run"
    here.mkdir(parents=True)
    state = read_state(here, tracking_uri(here))
    assert state.runs == {}
    state.runs["key"] = "id"
    (here / "mlflow.json").write_text(state.model_dump_json())
    here.parent.rename(there.parent)
    assert read_state(there, tracking_uri(there)).runs == {"key": "id"}
    assert read_state(there, "http://server:5000").runs == {}
    assert read_state(there, tracking_uri(here)).runs == {}, "another study's store"


def test_the_same_recipe_has_the_same_run(tmp_path):
    recipe = Recipe(mode="layerwise", ratio=0.3, criterion="random")
    assert recipe.key == Recipe(**recipe.as_dict()).key
