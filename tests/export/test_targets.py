"""No command that writes touches anything of the person's: only a new or empty folder is written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from raysearch import pocket
from raysearch.cli.app import app
from raysearch.errors import InputError
from raysearch.files import check_free
from tests.support import synthetic_study

WRITING = {
    "prune": ["prune", "MODEL", "--ratio", "0.3", "--to", "TARGET"],
    "export": ["export", "STUDY", "--budget", "100%", "--to", "TARGET"],
    "search": ["search", "--out", "TARGET", "--trials", "1"],
    "replicate": ["replicate", "search_spaces/pocket-study.yaml", "--out", "TARGET"],
    "retry": ["retry", "RECIPE", "--out", "TARGET"],
    "evaluate": ["evaluate", "pocket", "--benchmarks", "digits", "--to", "TARGET"],
}
"""Every command with an option that names a folder or file to write, with its arguments."""


def test_every_command_that_names_what_to_write_is_under_test() -> None:
    commands = {name: c for name, c in typer.main.get_command(app).commands.items() if not c.hidden}
    assert {name for name, c in commands.items() if {"to", "out"} & {p.name for p in c.params}} == WRITING.keys()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A person's folder: a model with notes beside its files, a study, other files and links."""
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    for path in pocket.weights_folder().iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "notes.txt").write_text("years of work")
    synthetic_study.make(tmp_path / "study", num_trials=6, fail=False)
    (tmp_path / "recipe.yaml").write_text("{mode: layerwise, ratio: 0.3, criterion: deepest, trained: nothing}")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "optimizer.pt").write_bytes(b"x" * 100)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".keep").write_text("")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "to-file").symlink_to(other / "config.json")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return tmp_path


def listing(folder: Path) -> dict[str, tuple[bool, bytes | str]]:
    found: dict[str, tuple[bool, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = path.is_symlink(), content
    return found


TARGETS: dict[str, Callable[[Path], Path]] = {
    "the source": lambda mine: mine / "models" / "mine",
    "the source's parent": lambda mine: mine / "models",
    "the source by another path": lambda mine: mine / "other" / ".." / "models" / "mine",
    "another model": lambda mine: mine / "other",
    "a folder with a hidden file": lambda mine: mine / "hidden",
    "a link to a folder": lambda mine: mine / "link",
    "a link to a file": lambda mine: mine / "to-file",
    "a file": lambda mine: mine / "other" / "config.json",
    "below a file": lambda mine: mine / "other" / "config.json" / "new",
    "everything": lambda mine: mine,
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_there_stays_as_it_is(command: str, target: str, mine: Path, capsys: pytest.CaptureFixture) -> None:
    before = listing(mine)
    places = {"MODEL": mine / "models" / "mine", "STUDY": mine / "study", "RECIPE": mine / "recipe.yaml"}
    places["TARGET"] = TARGETS[target](mine)
    with pytest.raises(SystemExit) as ended:
        app([str(places.get(part, part)) for part in WRITING[command]])
    assert ended.value.code == 2
    assert listing(mine) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert str(TARGETS[target](mine)) in line


def test_a_target_is_checked_and_links_are_followed(mine: Path) -> None:
    (mine / "disk").mkdir()
    (mine / "empty").symlink_to(mine / "disk")
    (mine / "dangling").symlink_to(mine / "disk" / "new")
    assert check_free(mine / "new" / "below", "--to") == mine / "new" / "below"
    assert check_free(mine / "disk", "--to") == check_free(mine / "empty", "--to") == mine / "disk"
    assert check_free(mine / "dangling", "--to") == mine / "disk" / "new"
    for name in ("circle", "x" * 300, "null\0byte"):
        with pytest.raises(InputError, match=r"--to .*name another") as caught:
            check_free(mine / name, "--to")
        assert "\n" not in str(caught.value)


def test_nothing_is_written_into_what_is_read(mine: Path, capsys: pytest.CaptureFixture) -> None:
    model = mine / "models" / "mine"
    (mine / "alias").symlink_to(model)
    before = listing(mine)
    for source, target in (
        (model, model / "small"),
        (model, mine / "alias" / "a" / "b"),
        (mine / "alias", model / "x"),
    ):
        with pytest.raises(SystemExit) as ended:
            app(["prune", str(source), "--ratio", "0.3", "--criterion", "deepest", "--to", str(target)])
        assert ended.value.code == 2
        assert "lies inside" in capsys.readouterr().err
    assert listing(mine) == before


def test_a_folder_that_takes_no_files_is_found_before_anything_is_read() -> None:
    """Whatever permissions say."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc")
    with pytest.raises(InputError, match=r"--to /proc/new: can't be written \(.*name another"):
        check_free(Path("/proc/new"), "--to")


def test_pruning_writes_through_a_link_and_leaves_the_link(mine: Path) -> None:
    (mine / "disk").mkdir()
    (mine / "out").symlink_to(mine / "disk")
    arguments = ["prune", str(mine / "models" / "mine"), "--ratio", "0.3", "--criterion", "deepest"]
    with pytest.raises(SystemExit, match="0"):
        app([*arguments, "--to", str(mine / "out")])
    assert (mine / "out").is_symlink()
    assert (mine / "disk" / "model.safetensors").is_file()
    assert [path.name for path in mine.glob(".*")] == []
