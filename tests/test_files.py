"""Files are whole, or as they were: also when the disk is full."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from raysearch.files import (
    append_json,
    cache_folder,
    delete_folder,
    json_lines,
    open_to_readers,
    read_json,
    read_json_lines,
    write_json,
    write_tensors,
)

# A process that may write no more than 100 bytes to a file: what a full disk does to it, without filling one.
LIMITED = """
import resource, sys
from pathlib import Path
from raysearch.files import append_json, cache_folder, write_json
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
path = Path(sys.argv[2])
for number in range(9):
    row = {"number": number, "text": "x" * 20}
    append_json(path, row) if sys.argv[1] == "append" else write_json(path, [row] * (number + 1))
"""


def limited(how, path):
    done = subprocess.run([sys.executable, "-c", LIMITED, how, str(path)], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1]


def test_a_line_that_does_not_fit_is_not_begun(tmp_path):
    path = tmp_path / "trials.jsonl"
    assert f"No space left on device: {str(path)!r}" in limited("append", path)
    assert [row["number"] for row in read_json_lines(path)] == [0, 1]
    append_json(path, {"number": 2})
    assert [row["number"] for row in read_json_lines(path)] == [0, 1, 2]


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path):
    path = tmp_path / "front.json"
    assert f"File too large: {str(path)!r}" in limited("write", path)
    assert [row["number"] for row in json.loads(path.read_text())] == [0]
    assert [found.name for found in tmp_path.iterdir()] == ["front.json"], "no half-written sibling"


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_says_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "front.json", 1)
        write_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(2)})
        append_json(tmp_path / "trials.jsonl", 1)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ("front.json", "weights.safetensors", "trials.jsonl"), mode
    )


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o700), (0o002, 0o775), (0o022, 0o755)])
def test_a_temporary_folder_is_opened_as_the_umask_says(tmp_path, umask, mode):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "inner").mkdir(mode=0o700)
    (folder / "inner" / "weights").touch(mode=0o600)
    before = os.umask(umask)
    try:
        open_to_readers(folder)
    finally:
        assert os.umask(before) == umask
    found = [path.stat().st_mode & 0o777 for path in (folder, folder / "inner", folder / "inner" / "weights")]
    assert found == [mode, mode, mode & 0o666]


def test_lines_are_appended_behind_whole_lines_only(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2')
    append_json(path, {"b": 1}, {"b": 2})
    append_json(path)
    assert path.read_text() == '{"a": 1}\n\n{"b": 1}\n{"b": 2}\n'
    assert list(json_lines(path)) == [(1, {"a": 1}), (3, {"b": 1}), (4, {"b": 2})]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "trials.jsonl"
    for line in (b"[" * 100_000, b"\xff", b"{"):
        path.write_bytes(b"1\n" + line + b"\n")
        rows = json_lines(path)
        assert next(rows) == (1, 1)
        with pytest.raises(ValueError, match="line 2: "):
            next(rows)


def test_no_folder_elsewhere_is_deleted(tmp_path):
    study, other = tmp_path / "study", tmp_path / "other"
    for folder in (study / "a" / "b", other / "x"):
        folder.mkdir(parents=True)
    (study / "link").symlink_to(other)
    for path in (study, other, study / "link", study / "link" / "x", study / ".." / "other", tmp_path, study / "none"):
        delete_folder(path, within=study)
    assert (study / "a" / "b").exists()
    assert (other / "x").exists()
    delete_folder(study / "a", within=study)
    assert not (study / "a").exists()


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "front.json", {"hypervolume": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_that_can_be_written_to_files_go_below_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("models") == tmp_path / ".cache" / "raysearch" / "models"
    elsewhere = tmp_path / f"raysearch-home-{os.getuid()}" / ".cache" / "raysearch" / "models"
    monkeypatch.setenv("HOME", "/proc/nope")
    assert cache_folder("models") == elsewhere

    def no_entry():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_entry)
    assert cache_folder("models") == elsewhere


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 50_000, b"{", b"\xff\xfe", b"9" * 10_000, b""])
def test_json_of_any_depth_and_size_is_a_value_or_a_value_error(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "a.json")
