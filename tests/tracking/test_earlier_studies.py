"""Warm starts from prior studies: folders and MLflow experiments."""

import pytest

from raysearch.errors import InputError
from raysearch.study.folder import StudyFolder
from raysearch.tracking.earlier_studies import read_prior_trials
from raysearch.tracking.tracker import Tracker
from tests.support import synthetic_study


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return synthetic_study.make(tmp_path_factory.mktemp("prior") / "study", num_trials=12)


def test_the_finished_trials_of_a_folder_and_which_were_on_its_front(prior):
    found = read_prior_trials(str(prior.folder), "sqlite:///none.db")
    finished = [record for record in prior.records if record.end == "finished"]
    assert [trial.recipe for trial in found] == [record.recipe for record in finished]
    assert {trial.recipe.key for trial in found if trial.on_front} == {p.key for p in prior.front.points}
    assert all(trial.retention == record.rungs[-1].retention for trial, record in zip(found, finished, strict=True))


def test_an_experiment_in_mlflow_gives_the_same(prior, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    copied = StudyFolder(prior.folder, prior.space)
    Tracker(copied, uri).close()
    found = read_prior_trials("synthetic", uri)
    told = {(trial.recipe.key, trial.size_bytes, trial.retention, trial.on_front) for trial in found}
    wanted = read_prior_trials(str(prior.folder), uri)
    assert told == {(trial.recipe.key, trial.size_bytes, trial.retention, trial.on_front) for trial in wanted}
    with pytest.raises(InputError, match="no such experiment in MLflow"):
        read_prior_trials("synthetic2", uri)


BAD = [
    ("nothing", "--warm-start nothing: no such folder, and no such experiment"),
    ("empty", "--warm-start empty: no study; give the --out folder"),
    ("none-finished", "--warm-start none-finished: no trial has finished there"),
]


@pytest.mark.parametrize(("source", "message"), BAD)
def test_what_is_no_study_is_refused_before_anything_is_written(run_module, source, message, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none-finished").mkdir()
    (tmp_path / "none-finished" / "trials.jsonl").write_text("")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = sorted(tmp_path.rglob("*"))
    done = run_module("raysearch.pareto", "--warm-start", source, "--out", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_resumed_study_takes_no_new_start(run_module, prior, tmp_path):
    done = run_module("raysearch.pareto", "--resume", prior.folder, "--warm-start", prior.folder, cwd=tmp_path)
    assert done.returncode == 2
    assert "--warm-start: holds for a new study only; leave it out with --resume" in done.stderr
