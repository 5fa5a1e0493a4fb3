"""Streamed rows are the same however often reading was interrupted, and only those that were asked for are kept."""

import io
import json
import tarfile

import datasets
import pytest
from PIL import Image

from raysearch.config.settings import DataSource
from raysearch.data import streaming
from raysearch.data.loading import load_samples
from raysearch.data.pictures import open_image
from raysearch.data.streaming import streamed_table
from raysearch.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(streaming, "ROWS_PER_PART", 4)


def row(number):
    turns = [{"from": "human", "value": f"question {number}"}, {"from": "gpt", "value": "yes"}]
    return {"id": str(number), "conversations": turns}


@pytest.fixture
def shards(tmp_path):
    """Five files of seven rows."""
    (tmp_path / "data").mkdir()
    for shard in range(5):
        lines = [json.dumps(row(7 * shard + index)) for index in range(7)]
        (tmp_path / "data" / f"train-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "data")


def numbers(table):
    return [int(table.rows[index]["id"]) for index in range(len(table.rows))]


def test_what_is_streamed_in_parts_is_what_is_streamed_at_once(shards, monkeypatch, tmp_path):
    few = numbers(streamed_table(shards, 6))
    more = numbers(streamed_table(shards, 17))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    whole = numbers(streamed_table(shards, 1000))
    assert sorted(whole) == list(range(35))
    assert whole != sorted(whole)
    assert (few, more) == (whole[:6], whole[:17])
    assert len({number // 7 for number in few}) > 1, "from several files"


def test_an_interrupted_read_goes_on_behind_the_last_part(shards, monkeypatch):
    whole = numbers(streamed_table(shards, 1))
    real, num_saved = datasets.Dataset.save_to_disk, 0

    def fail(self, path):
        nonlocal num_saved
        num_saved += 1
        if num_saved == 3:
            raise ConnectionError("no route to host")
        real(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(datasets.Dataset, "save_to_disk", fail)
        with pytest.raises(InputError, match=r"can't be streamed \(ConnectionError: no route to host\)"):
            streamed_table(shards, 30)
    found = numbers(streamed_table(shards, 30))
    assert len(found) == len(set(found)) == 30
    assert found[:1] == whole


def test_what_is_there_is_not_read_again(shards, monkeypatch):
    first = numbers(streamed_table(shards, 8))
    monkeypatch.setattr(streaming, "_stream", lambda data: pytest.fail("it is read again"))
    assert numbers(streamed_table(shards, 8)) == first
    assert numbers(streamed_table(shards, 5)) == first[:5]


def test_a_web_dataset_behind_a_url_has_the_rows_of_its_file(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(picture, "png")
            turns = [{"from": "human", "value": f"<image>\nquestion {number}"}, {"from": "gpt", "value": "yes"}]
            for end, content in (("json", json.dumps({"conversations": turns}).encode()), ("png", picture.getvalue())):
                entry = tarfile.TarInfo(f"{number:04}.{end}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    streamed = load_samples([DataSource(path=f"file://{path}", stream=5)])
    in_place = load_samples(path)
    assert len(streamed) == 5
    assert [sample.problem for sample in streamed] == [""] * 5
    for one, other in zip(streamed, in_place, strict=False):
        assert one.messages == other.messages
        assert open_image(one.images[0]).tobytes() == open_image(other.images[0]).tobytes()


@pytest.mark.parametrize("data", ["/nowhere/at/all", "file:///nowhere/shard.tar"])
def test_what_cannot_be_streamed_is_one_line(data):
    with pytest.raises(InputError, match="can't be streamed") as error:
        load_samples([DataSource(path=data, stream=5)])
    assert "\n" not in str(error.value)
