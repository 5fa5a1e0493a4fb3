"""Every script that can be run opens with its command, and answers to --help."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNNABLE = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted((ROOT / "scripts").glob("*/*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}
WITH_OPTIONS = [name for name, path in RUNNABLE.items() if "argparse" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_docstring_has_the_command(name):
    docstring = RUNNABLE[name].read_text(encoding="utf-8").split('"""')[1]
    module = name.removesuffix(".py").replace("/", ".")
    assert f"python {name}" in docstring or f"python -m {module}" in docstring


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_help_is_printed(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUNNABLE[name]), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: {Path(name).name}" in capsys.readouterr().out
