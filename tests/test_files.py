"""Files are whole, or as they were: also when the disk is full."""

import json
import subprocess
import sys

import pytest

from raysearch.files import append_json, read_json_lines, write_json

# A process that may write no more than 100 bytes to a file: what a full disk does to it, without filling one.
LIMITED = """
import resource, sys
from pathlib import Path
from raysearch.files import append_json, write_json
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


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "front.json", {"hypervolume": float("nan")})
    assert list(tmp_path.iterdir()) == []
