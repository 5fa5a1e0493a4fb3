"""The command line: answers, plain mistakes, and what each command does without."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from PIL import Image

from raysearch import pocket
from raysearch.backend.search_job import with_options
from raysearch.cli.app import app
from raysearch.config.budget import Budget
from raysearch.config.space import SearchSpace, load_recipe
from raysearch.errors import InputError
from raysearch.study.front import Front
from tests.support import fuzzing, synthetic_study

HEAVY = ("torch", "ray", "transformers", "optuna", "mlflow", "matplotlib", "plotly", "pandas")


@pytest.fixture(scope="module")
def study(synthetic):
    return synthetic.folder


def call(capsys, *args):
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        app([str(arg) for arg in args])
    return ended.value.code, *capsys.readouterr()


def alone(*args, code="from raysearch.cli.app import app; app()"):
    """Run a command in a process of its own, and name the heavy modules it has imported at its end."""
    watched = (
        "import atexit, sys; atexit.register(lambda: print('HEAVY', *(set(sys.modules) & "
        f"set({HEAVY!r})), file=sys.stderr)); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", watched, *map(str, args)], capture_output=True, text=True, env=os.environ
    )
    heavy = next(line for line in done.stderr.splitlines() if line.startswith("HEAVY")).split()[1:]
    return done.returncode, heavy, done


SPACE = synthetic_study.POCKET
COMMANDS = {
    "help": ["--help"],
    "help of the search": ["search", "--help"],
    "help of a command": ["best", "--help"],
    "best": ["best", "STUDY", "--budget", "60%"],
    "best as JSON": ["best", "STUDY", "--budget", "60%", "--json"],
    "dry run": ["search", "--dry-run"],
    "dry run of a space": ["search", SPACE, "--budget", "60%", "--trials", "9", "--dry-run"],
    "status": ["status", "STUDY"],
    "status as JSON": ["status", "STUDY", "--json"],
    "estimate": ["estimate", SPACE],
    "estimate by an earlier study": ["estimate", SPACE, "--like", "STUDY"],
    "wrong budget": ["best", "STUDY", "--budget", "60"],
    "wrong budget of a search": ["search", "--budget", "60"],
    "no study": ["best", "NOWHERE", "--budget", "60%"],
    "no space": ["search", "nowhere.yaml"],
    "prune without a size": ["prune", "pocket", "--to", "NOWHERE"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_answers_come_without_heavy_imports(name, study, tmp_path):
    args = [{"STUDY": study, "NOWHERE": tmp_path / "no"}.get(arg, arg) for arg in COMMANDS[name]]
    status, heavy, _ = alone(*args)
    assert heavy == []
    assert status == (0 if name.startswith(("help", "best", "dry run", "estimate", "status")) else 2)


def test_a_dry_run_of_own_model_and_data_is_as_light(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "black"}]
    rows = [{"id": str(number), "image": "0.png", "conversations": turns} for number in range(21)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    own = {"model": str(pocket.weights_folder()), "data": str(tmp_path / "data.json"), "num_samples": None}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**yaml.safe_load(SPACE.read_text()), **own}))
    status, heavy, done = alone("search", tmp_path / "space.yaml", "--dry-run")
    assert (status, heavy, done.stderr.count("\n")) == (0, [], 1)
    assert "21 samples; the longest trial sees 84" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["best", "STUDY", "--budget", "60"], "budget '60'"),
        (["best", "STUDY", "--budget", "1%"], "raise the budget"),
        (["best", "NOWHERE", "--budget", "60%"], "no front.json"),
        (["best", "--budget", "60%"], "DIR"),
        (["best", "STUDY", "--mlflow", "synthetic", "--budget", "60%"], "give one of them"),
        (["best", "STUDY", "--key", "0"], "--key 0: not on the front; raysearch best "),
        (["best", "STUDY", "--key", "0", "--budget", "60%"], "leave out --budget"),
        (["export", "STUDY", "--to", "NOWHERE"], "export: needs --budget or --key"),
        (["retry", "NOWHERE"], "no such file; give a recipe.yaml"),
        (["retry", SPACE], "search_spaces/pocket.yaml: mode: "),
        (["benchmark", "NOWHERE"], "no front.json"),
        (["estimate", SPACE, "--like", "NOWHERE"], "no trials.jsonl"),
        (["export", "STUDY", "--budget", "60%", "--to", "NOWHERE", "--finetune", "--epochs", "0"], "--epochs"),
        (["bets", "STUDY"], "best"),
        (["best", "STUDY", "--bugdet", "60%"], "--budget"),
        (["export", "STUDY", "--budget", "60%", "--to", "STUDY"], "not an empty folder"),
        (["prune", "pocket", "--ratio", "0.3", "--budget", "60%", "--to", "NOWHERE"], "one of --ratio"),
        (["prune", "pocket", "--ratio", "1", "--to", "NOWHERE"], "ratio 1.0: outside [0, 1)"),
        (["prune", "pocket", "--ratio", "nan", "--to", "NOWHERE"], "ratio nan: outside [0, 1)"),
        (["prune", "pocket", "--ratio", "-0.1", "--to", "NOWHERE"], "ratio -0.1: outside [0, 1)"),
        (["prune", "pocket", "--mode", "sideways", "--to", "NOWHERE"], "sideways"),
        (["search", "--runs", "0", "--out", "NOWHERE"], "--runs: must be above 0, not 0.0"),
        (["search", "--runs", "-1", "--out", "NOWHERE"], "--runs: must be above 0, not -1.0"),
        (["search", "--runs", "nan", "--out", "NOWHERE"], "--runs: must be finite, not nan"),
        (["search", "--runs", "many", "--out", "NOWHERE"], "--runs"),
        (["search", "--time", "0s", "--out", "NOWHERE"], "--time: '0s' is no time to search in"),
        (["search", "--time", "90", "--out", "NOWHERE"], "--time: '90' is no duration; write 90s, 20m, 2h"),
        (["search", "--time", "2 weeks", "--out", "NOWHERE"], "is no duration"),
        (
            ["search", "--time", "1s", "--out", "NOWHERE"],
            "search.time 1s: the shortest trial, 50 samples, is estimated at",
        ),
        (["search", "--gpu-hours", "10", "--out", "NOWHERE"], "search.gpu_hours 10: the slots have no GPU"),
        (["search", "--gpu-hours", "0", "--out", "NOWHERE"], "--gpu-hours: must be above 0, not 0.0"),
        (["search", "--until-gain", "0", "--out", "NOWHERE"], "--until-gain: must be above 0, not 0.0"),
        (["search", "--trials", "0", "--out", "NOWHERE"], "--trials"),
        (["search", "NOWHERE"], "no such file"),
        (["report", "NOWHERE"], "no space.json; give the --out folder"),
        (["sync", "NOWHERE"], "no study"),
        (["estimate", "NOWHERE"], "no such file"),
    ],
)
def test_a_mistake_is_one_plain_line_and_status_2(args, said, study, tmp_path, capsys):
    args = [{"STUDY": study, "NOWHERE": tmp_path / "no"}.get(arg, arg) for arg in args]
    status, out, err = call(capsys, *args)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("raysearch: ")
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--runs", "3"], "buys       about 3"),
        (["--time", "20m"], "1 at a time, by counted operations"),
        (["--until-gain", "0.5"], "the forecast ends it sooner"),
        (["--runs", "3", "--trials", "2"], "in 2 trials"),
    ],
)
def test_a_dry_run_says_what_a_limit_buys(args, said, capsys):
    status, out, _ = call(capsys, "search", "--dry-run", *args)
    assert (status, said in out) == (0, True), out


def test_limits_of_the_command_line_replace_those_of_the_space():
    space = SearchSpace.load(SPACE)
    assert space.search.runs == 2
    changed = with_options(space, None, {"runs": None, "trials": 40}, None, None).search
    assert (changed.trials, changed.runs, changed.num_trials) == (40, None, 40)
    assert with_options(space, None, {"trials": None}, 7, None).search.runs == 2


def test_ctrl_c_is_130(monkeypatch, study, capsys):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(Front, "load", interrupted)
    status, _, err = call(capsys, "best", study, "--budget", "60%")
    assert status == 130
    assert "Traceback" not in err


def test_full_disk_is_a_plain_line(monkeypatch, study, capsys):
    def full(folder):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(Front, "load", full)
    status, _, err = call(capsys, "best", study, "--budget", "60%")
    assert (status, err.count("\n")) == (2, 1)
    assert "No space left" in err


def test_best_says_what_the_front_says(study, capsys):
    point = Front.load(study).pick(Budget.parse("60%"))
    status, out, _ = call(capsys, "best", study, "--budget", "60%", "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["key"] == point.key
    assert answer["retention_ci"] == list(point.retention_ci)
    assert answer["recipe"] == point.recipe.as_dict()
    assert answer["checkpoint"] == str(study / "checkpoints" / point.key)
    assert answer["size_bytes"] <= 0.6 * synthetic_study.BASELINE.size_bytes
    _, table, _ = call(capsys, "best", study, "--budget", "60%")
    assert point.key in table
    assert f"{point.retention:.1%}" in table


def test_best_names_who_cannot_be_told_apart(study, capsys):
    front = Front.load(study)
    for budget in ("60%", "75%", "90%", "100%"):
        answer = json.loads(call(capsys, "best", study, "--budget", budget, "--json")[1])
        # Every standard error in this study is .012: two retentions differ above 1.96 * sqrt(2) * .012 = .03326.
        near = [
            p.key
            for p in front.points
            if p.size_ratio <= float(budget[:-1]) / 100
            and p.key != answer["key"]
            and abs(p.retention - answer["retention"]) <= 0.03326
        ]
        assert answer["not_told_apart"] == near
        _, table, _ = call(capsys, "best", study, "--budget", budget)
        assert table.count("Statistically tied") == len(near)


def test_a_budget_without_a_unit_is_told_the_forms(study, capsys):
    _, _, err = call(capsys, "best", study, "--budget", "60")
    for form in ("60%", "3.2GB", "900MiB", "3B"):
        assert form in err


def pretend_search(monkeypatch, tmp_path, fail_at, exhausted=False):
    """`search` with a cluster that is not there, to see in which order it opens and closes what it uses."""
    from raysearch.report import plots
    from raysearch.tracking import tracker as tracking

    told = []

    def run(plan, study, search, callbacks, runtime, deadline, narrator):
        search.searcher.exhausted = exhausted
        study.front = Front.build("x", "pocket", synthetic_study.BASELINE, [])
        return study.front

    def draw(folder, front, records):
        if fail_at == "pictures":
            raise OSError(28, "No space left on device", str(folder))

    class Told:
        def __init__(self, study, dense):
            told.append("opened")

        def status(self, status):
            pass

        def close(self):
            told.append("closed")

    def join(slots):
        if fail_at == "cluster":
            raise InputError("slots: too few")
        return 1

    from raysearch.backend import cluster, tuner

    monkeypatch.setattr(cluster, "join_cluster", join)
    monkeypatch.setattr(tuner, "run_trials", run)
    monkeypatch.setattr(plots, "write_pictures", draw)
    monkeypatch.setattr(tracking, "Tracker", Told)
    return told


@pytest.mark.parametrize(
    ("exhausted", "reason"), [(True, "the space has no further recipe to try"), (False, "run/tune")]
)
def test_a_search_that_ends_early_says_why(exhausted, reason, monkeypatch, tmp_path, capsys):
    told = pretend_search(monkeypatch, tmp_path, None, exhausted)
    status, out, _ = call(capsys, "search", "--trials", "40", "--out", tmp_path / "run")
    assert (status, told) == (0, ["opened", "closed"])
    last = out.splitlines()[-1]
    assert last.startswith("Ended after 0 of 40 trials: ")
    assert reason in last


def test_a_picture_that_fails_does_not_keep_mlflow_open(monkeypatch, tmp_path, capsys):
    told = pretend_search(monkeypatch, tmp_path, "pictures")
    status, _, err = call(capsys, "search", "--out", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert "No space left on device; make room" in err
    assert told == ["opened", "closed"]


def test_a_cluster_that_is_too_small_leaves_no_folder(monkeypatch, tmp_path, capsys):
    told = pretend_search(monkeypatch, tmp_path, "cluster")
    status, _, err = call(capsys, "search", "--out", tmp_path / "run")
    assert (status, err) == (2, "raysearch: slots: too few\n")
    assert told == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", fuzzing.COMMANDS)
def test_every_help_has_examples(command, capsys):
    status, out, _ = call(capsys, command, "--help")
    assert status == 0
    assert f"raysearch {command}" in out
    assert "--verbose" in out
    assert "Raises" not in out


def test_without_a_budget_the_whole_front_is_listed(study, capsys):
    front = Front.load(study)
    status, out, _ = call(capsys, "best", study)
    assert status == 0
    assert all(point.key in out for point in front.points)
    assert all(f"{budget}  {key}" in out for budget, key in front.budgets.items())
    assert json.loads(call(capsys, "best", study, "--json")[1])["budgets"] == front.budgets


def test_a_recipe_is_found_by_its_key_and_can_be_given_back(study, tmp_path, capsys):
    point = Front.load(study).points[0]
    status, out, _ = call(capsys, "best", study, "--key", point.key, "--json")
    assert (status, json.loads(out)["key"]) == (0, point.key)
    (tmp_path / "best.json").write_text(out)
    assert load_recipe(tmp_path / "best.json").key == point.key
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(point.recipe.as_dict()))
    assert load_recipe(tmp_path / "recipe.yaml").key == point.key
    status, out, _ = call(capsys, "retry", tmp_path / "best.json", SPACE, "--dry-run")
    assert status == 0
    assert "1 trials" in out


def test_the_version_is_printed(capsys):
    assert call(capsys, "--version") == (0, f"raysearch {version('raysearch')}\n", "")


@pytest.mark.parametrize(("old", "new"), [("measure", "benchmark"), ("study", "replicate")])
def test_a_renamed_command_answers_to_its_old_name(old, new, tmp_path, capsys):
    assert f"│ {old} " not in call(capsys, "--help")[1]
    wanted = call(capsys, new, tmp_path / "no")
    status, out, err = call(capsys, old, tmp_path / "no")
    notice, line = err.splitlines()
    assert (status, out, line + "\n") == wanted
    assert notice == f"raysearch: warning: raysearch {old} is now raysearch {new}; the next version drops the old name"


@pytest.mark.parametrize(("old", "new"), [("--polish", "--finetune"), ("--retrain", "--rebuild")])
def test_a_renamed_option_has_its_old_name_too(old, new, study, capsys):
    for option in (old, new):
        status, _, err = call(capsys, "export", study, "--budget", "60%", "--to", study, option)
        assert (status, "not an empty folder" in err) == (2, True), err


@pytest.mark.parametrize("command", [["best", "STUDY", "--budget", "60%"], ["search", "--dry-run"]])
def test_a_wrong_log_level_is_a_mistake(command, study, capsys, monkeypatch):
    monkeypatch.setenv("RAYSEARCH_LOG_LEVEL", "loud")
    status, out, err = call(capsys, *(study if arg == "STUDY" else arg for arg in command))
    known = "known are DEBUG, INFO, WARNING, ERROR"
    assert (status, out, err) == (2, "", f"raysearch: RAYSEARCH_LOG_LEVEL 'loud': no such level; {known}\n")
