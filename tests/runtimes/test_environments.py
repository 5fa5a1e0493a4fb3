"""Environments of runtimes, and commands in them: what is said when one is missing or fails."""

import sys

import pytest

from raysearch.cli.app import app
from raysearch.errors import InputError
from raysearch.runtimes import environments
from raysearch.runtimes.environments import PACKAGES, environment, install, run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        app([str(arg) for arg in args])
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_runtime_is_one_line_with_the_way_out(name, tmp_path, capsys):
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    status, out, err = call(capsys, "export", checkpoint, "--to", tmp_path / "small", "--for", name)
    assert (status, out) == (2, "")
    assert err == f"raysearch: {name}: not installed; run raysearch runtime install {name}\n"
    assert not (tmp_path / "small").exists()


def test_the_list_says_what_is_installed(cache, capsys):
    folder = cache / "raysearch" / "runtimes" / "onnxruntime"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "runtime.json").write_text('{"package": "onnxruntime==1.0"}')
    assert environment("onnxruntime").version == "onnxruntime==1.0"
    status, out, _ = call(capsys, "runtime", "list")
    assert status == 0
    assert out.splitlines() == ["llama.cpp    not installed", "onnxruntime  onnxruntime==1.0"]


def test_an_installation_that_fails_leaves_nothing(cache, monkeypatch):
    monkeypatch.setitem(PACKAGES, "onnxruntime", ("raysearch-no-such-runtime==1",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(InputError, match=r"installing onnxruntime: failed .*raysearch-no-such-runtime"):
        install("onnxruntime")
    assert [path.name for path in (cache / "raysearch" / "runtimes").iterdir()] == [".onnxruntime.lock"]


def test_no_name_is_one_line(capsys):
    status, _, err = call(capsys, "runtime", "install")
    assert status == 2
    assert err == "raysearch: runtime install: needs a name; known are llama.cpp, onnxruntime\n"


def test_a_command_gives_its_output_or_the_line_that_tells_most():
    assert run([sys.executable, "-c", "print(7)"], "counting") == "7\n"
    code = "import sys; print('ValueError: too odd', file=sys.stderr); print('bye', file=sys.stderr); sys.exit(3)"
    with pytest.raises(InputError, match=r"^counting: failed \(ValueError: too odd\)$"):
        run([sys.executable, "-c", code], "counting")
    with pytest.raises(InputError, match="counting: nowhere/python can't be run"):
        run(["nowhere/python"], "counting")


def test_a_long_command_is_not_silent(monkeypatch, capsys):
    monkeypatch.setattr(environments, "_SECONDS_BETWEEN_LINES", 0.05)
    run([sys.executable, "-c", "import time; time.sleep(0.4)"], "sleeping")
    assert "raysearch: sleeping: 0 s\n" in capsys.readouterr().err


def test_options_that_do_not_go_together_are_refused(tmp_path, capsys):
    status, _, err = call(capsys, "export", tmp_path, "--budget", "60%", "--to", tmp_path / "a", "--dense", "pocket")
    assert status == 2
    assert "--dense: needs --for" in err
