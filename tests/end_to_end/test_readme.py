"""The README's commands, word for word, as a newcomer would type them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.maintenance import document_cli, document_space

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
# What the newcomer's search takes minutes for, the test does with a few trials.
FEWER = {"./scripts/search --out runs/first": " --trials 2"}


def lines_of(language):
    return [line for name, block in BLOCKS if name == language for line in block.strip().splitlines() if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like a clone, but whose runs are its own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "search_spaces", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.timeout(1800)
def test_the_local_commands_run_one_after_another(folder):
    # A cluster's command needs one; MLflow's server, which never ends, is opened in test_mlflow_ui.
    elsewhere = ("ray job", "./scripts/mlflow_ui")
    commands = [line for line in lines_of("bash") if not line.startswith(elsewhere)]
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command + FEWER.get(command, "")],
            cwd=folder,
            env={**os.environ, "CI": "true"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.stdout.strip(), command
    snippet = "\n".join(block for name, block in BLOCKS if name == "python" and "from_pretrained" in block)
    code = snippet + "\nimport sys; assert 'raysearch' not in sys.modules"  # as where it is not installed
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_it_stands(tmp_path):
    """Its commands and snippets one after another, in an empty folder."""
    text = (ROOT / "docs" / "tutorials" / "own-model.md").read_text()
    blocks = [(name, block) for name, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)]
    assert [name for name, _ in blocks].count("bash") == 6
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "CI": "true", "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    for name, block in blocks:
        if name == "yaml":
            (tmp_path / "mine.yaml").write_text(block)
        if name not in ("bash", "python"):
            continue
        command = ["bash", "-ec", block] if name == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        print(block, done.stdout, done.stderr, sep="\n")
    assert {"small", "runs", "mine.yaml"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_python_tutorial_runs_as_it_stands(tmp_path):
    """With two trials instead of five minutes of them."""
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    text = (ROOT / "docs" / "tutorials" / "python.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert 'time="5m"' in code
    code = code.replace('time="5m"', "trials=2") + "print(small.num_parameters())"
    environment = {**os.environ, "CI": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (tmp_path / "small" / "config.json").is_file()


def test_the_space_of_the_readme_is_valid(tmp_path):
    from raysearch.config.space import SearchSpace

    (block,) = [block for name, block in BLOCKS if name == "yaml"]
    path = tmp_path / "my-space.yaml"
    path.write_text(block)
    assert SearchSpace.load(path).budgets == ["8GB", "60%"]


def test_every_key_of_a_space_is_documented():
    written = document_space.PAGE.read_text()
    assert written == document_space.page(), "write it anew: python scripts/maintenance/document_space.py"


def test_every_command_is_documented():
    written = document_cli.PAGE.read_text()
    assert written == document_cli.page(), "write it anew: python scripts/maintenance/document_cli.py"


def test_the_scheduler_snippet_runs():
    (block,) = [block for name, block in BLOCKS if name == "python" and "ParetoASHA" in block]
    names: dict = {}
    exec(block, names)
    assert names["scheduler"].levels[0] == 1


def test_every_path_of_the_tree_is_there():
    (tree,) = [block for name, block in BLOCKS if name == "" and block.startswith("raysearch/")]
    named, folder = set(), ROOT
    for line in tree.splitlines():
        names = [name for name in line.split() if re.fullmatch(r"[a-z_]+(\.py|\.ya?ml|/)", name)]
        assert names, line
        paths = [(folder if line.startswith("  ") else ROOT) / name for name in names]
        assert all(path.exists() for path in paths), line
        named.update(paths)
        if not line.startswith("  "):
            folder = paths[0]
    packages = {path.parent for path in (ROOT / "raysearch").glob("*/__init__.py")}
    assert packages <= named, "every package has its line"
