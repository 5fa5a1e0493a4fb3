"""The same 500 rows, some unusable, in three formats: the same rows are left out, and the trials are the same."""

import base64
import io
import itertools
import json
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raysearch.pocket import conversations
from scripts.maintenance.compare_studies import differences, read
from scripts.testing.spaces import SMALL_SPACE

NUM_ROWS = 500
NO_ANSWER, NO_PICTURE = (17, 301), (44, 208)
"""Rows whose answers are empty, and rows whose picture is none; together less than 1%."""


def dirty_rows():
    """Conversations, and the bytes of their pictures."""
    for number, row in enumerate(itertools.islice(conversations(), NUM_ROWS)):
        turns = [dict(turn) for turn in row["conversations"]]
        if number in NO_ANSWER:
            turns = [{**turn, "value": ""} if turn["from"] == "gpt" else turn for turn in turns]
        picture = io.BytesIO()
        row["image"].save(picture, "png")
        content = b"this is no picture" if number in NO_PICTURE else picture.getvalue()
        yield {"id": str(number), "source": row["source"], "conversations": turns}, content


def write_jsonl(path):
    with path.open("w") as stream:
        for row, picture in dirty_rows():
            image = "data:image/png;base64," + base64.b64encode(picture).decode()
            stream.write(json.dumps({**row, "image": image}) + "\n")


def write_parquet(path):
    rows = [{**row, "image": {"bytes": picture, "path": None}} for row, picture in dirty_rows()]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for row, picture in dirty_rows():
            for end, content in (("json", json.dumps(row).encode()), ("png", picture)):
                entry = tarfile.TarInfo(f"{int(row['id']):06}.{end}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.mark.slow
def test_a_search_is_the_same_on_dirty_rows_of_every_format(run_module, tmp_path):
    studies, left_out = {}, {}
    for write, name in ((write_jsonl, "rows.jsonl"), (write_parquet, "rows.parquet"), (write_tar, "rows.tar")):
        write(tmp_path / name)
        space = {**SMALL_SPACE, "data": str(tmp_path / name), "num_samples": NUM_ROWS}
        space["recipe"] = {**SMALL_SPACE["recipe"], "data_fraction": [0.2, 0.4]}
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
        out = tmp_path / f"study-{name}"
        done = run_module(
            "raysearch.pareto", "space.yaml", "--out", out, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        studies[name] = read(out)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "left out" in line]
        left_out[name] = {int(row) for line in said for row in re.findall(r"\brow (\d+)", line)}
    first = studies.pop("rows.jsonl")
    assert len(first["trials"]) == 6
    assert all(row["end"] in ("finished", "stopped") for row in first["trials"])
    for study in studies.values():
        assert list(differences(first, study)) == []
    assert set(NO_ANSWER) < left_out["rows.jsonl"] <= {*NO_ANSWER, *NO_PICTURE}
    assert left_out["rows.jsonl"] == left_out["rows.parquet"] == left_out["rows.tar"]
