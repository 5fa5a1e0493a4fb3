"""The main job as a user runs it: Ray, DeepSpeed and MLflow on the embedded LVLM, with a small space."""

import json
import subprocess
import sys
from functools import partial

import pytest
import yaml

from scripts.maintenance.compare_studies import differences, read
from scripts.testing.spaces import SMALL_SPACE


@pytest.fixture(scope="module")
def job(run_module):
    """Run `python -m raysearch.pareto`."""
    return partial(run_module, "raysearch.pareto")


@pytest.fixture(scope="module")
def small_space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL_SPACE))
    return path


@pytest.fixture(scope="module")
def study(job, small_space, tmp_path_factory):
    """A finished study, run in an empty folder."""
    cwd = tmp_path_factory.mktemp("run")
    done = job(small_space, "--out", "study", cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return cwd / "study", done.stdout


def trials_of(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_every_trial_has_ended_with_its_rungs(study):
    rows = trials_of(study[0])
    assert len(rows) == 6
    assert {row["end"] for row in rows} <= {"finished", "stopped"}, [row["reason"] for row in rows]
    assert len({row["key"] for row in rows}) == 6
    for row in rows:
        seen = [rung["samples_seen"] for rung in row["rungs"]]
        assert seen == sorted(set(seen))
        assert all(0 <= rung["retention"] <= 2 for rung in row["rungs"])
        asked = [rung["num_questions"] for rung in row["rungs"]]  # a tenth below the end, and all at it
        assert asked == [100] * (len(asked) - 1) + [1000 if row["end"] == "finished" else 100]
        assert 0 < row["seconds_training"] + row["seconds_evaluating"] < row["seconds"]


def test_the_front_is_written_and_its_checkpoints_are_there(study):
    folder, printed = study
    front = json.loads((folder / "front.json").read_text())
    assert front["points"]
    assert list(front["budgets"]) == ["95%"]
    best = front["budgets"]["95%"]
    assert best in printed
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {point["key"] for point in front["points"]}
    finished = {row["key"] for row in trials_of(folder) if row["end"] == "finished"}
    assert kept <= finished
    for point in front["points"]:
        checkpoint = folder / point["checkpoint"]
        assert (checkpoint / "recipe.yaml").exists()
        assert point["heldout"]["retention"] > 0
        assert point["mlflow_run_id"]
    assert (folder / "front.png").stat().st_size > 10_000
    assert "plotly" in (folder / "front.html").read_text()


def test_what_layers_are_worth_is_kept(study):
    folder, _ = study
    layers = json.loads((folder / "layer-importance.json").read_text())
    assert set(layers) == {"deepest", "magnitude"}
    assert all(len(scores) == 7 for scores in layers.values())


def test_sizes_are_those_of_the_files(study):
    from safetensors import safe_open

    folder, _ = study
    for point in json.loads((folder / "front.json").read_text())["points"]:
        num_params = size_bytes = 0
        for shard in (folder / point["checkpoint"]).glob("*.safetensors"):
            with safe_open(shard, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118, it is no dict
                    tensor = stored.get_tensor(name)
                    num_params += tensor.numel()
                    size_bytes += tensor.numel() * tensor.element_size()
        assert (num_params, size_bytes) == (point["num_params"], point["size_bytes"])


def test_mlflow_has_a_parent_and_a_child_per_trial(study):
    from mlflow import MlflowClient

    folder, _ = study
    store = next(path for path in (folder / "mlflow.db", folder.parent / "mlflow.db") if path.exists())
    client = MlflowClient(f"sqlite:///{store}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "small"]
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 7
    assert len(children) == 6
    assert all({"retention", "size_ratio"} <= set(run.data.metrics) for run in children)


def test_best_answers_from_the_files(run_module, study):
    folder, _ = study
    answer = json.loads(run_module("raysearch", "best", folder, "--budget", "95%", "--json", cwd=folder).stdout)
    assert answer["key"] == json.loads((folder / "front.json").read_text())["budgets"]["95%"]


@pytest.mark.slow
def test_the_same_seed_and_one_slot_give_the_same_study(job, study, small_space, tmp_path):
    again = job(small_space, "--out", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert list(differences(read(study[0]), read(tmp_path / "again"))) == []


@pytest.mark.slow
def test_a_study_is_resumed_and_extended(job, study, tmp_path):
    import shutil

    folder = tmp_path / "study"
    shutil.copytree(study[0], folder)
    before = trials_of(folder)
    more = job("--resume", folder, "--trials", 8, cwd=tmp_path)
    assert more.returncode == 0, more.stderr[-3000:]
    after = trials_of(folder)
    assert after[:6] == before
    assert len({row["key"] for row in after}) == 8


BAD_COMMANDS = [
    (["none.yaml"], "none.yaml: no such file"),
    (["bad.yaml"], r"bad.yaml: modle: unknown key; known are name"),
    (["--budget", "12", "--out", "new"], "budget '12': not a size"),
    (["--budget", "1%", "--out", "new"], "1%: no recipe of the space is small enough; the smallest"),
    (["lost.yaml", "--out", "new"], "no-such-model"),
    (["--out", "taken"], "--out taken: holds a study already; resume it with --resume"),
    (["--out", "full"], "--out full: exists and is not an empty folder"),
    (["--resume", "full"], "no space.json; give the --out folder"),
    (["--trials", "0"], "trials"),
    (["--frobnicate"], "No such option"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS, ids=[" ".join(a) for a, _ in BAD_COMMANDS])
def test_mistakes_get_one_line_exit_2_and_no_file(job, arguments, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**SMALL_SPACE, "modle": "x"}))
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump({**SMALL_SPACE, "model": "./no-such-model"}))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "trials.jsonl").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    done = job(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_dry_run_counts_and_writes_nothing(job, small_space, tmp_path):
    done = job(small_space, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "60 samples" in done.stdout
    assert not list(tmp_path.iterdir())


def test_importing_the_package_loads_neither_torch_nor_ray():
    code = "import sys, raysearch; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.slow
def test_a_search_is_limited_by_runs_and_time_and_goes_on(job, small_space, tmp_path):
    def samples():
        return sum(row["rungs"][-1]["samples_seen"] for row in trials_of(tmp_path / "study"))

    done = job(small_space, "--runs", 2, "--time", "30m", "--out", "study", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert abs(samples() - 2 * 60) <= 60 / 2
    assert f"Ended after {len(trials_of(tmp_path / 'study'))} trials: they make " in done.stdout
    more = job("--resume", "study", "--runs", 4, cwd=tmp_path)
    assert more.returncode == 0, more.stdout[-3000:] + more.stderr[-6000:]
    assert abs(samples() - 4 * 60) <= 60 / 2
    assert "of 4 full runs" in more.stdout
