"""Data in every format that people have hold the same samples; hostile files are one line."""

import base64
import csv
import gzip
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from raysearch.config.settings import DataSource
from raysearch.config.space import SearchSpace
from raysearch.data import json_rows
from raysearch.data.bad_rows import BadData
from raysearch.data.loading import Samples, check_samples, load_samples
from raysearch.data.pictures import open_image
from raysearch.data.tables import open_table
from raysearch.errors import InputError

NUM_ROWS = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "data" / "images" / f"{index}.png")
    return tmp_path / "data"


def rows(num: int = NUM_ROWS) -> list[dict[str, Any]]:
    """With characters that some take for line breaks."""
    return [
        {
            "image": f"{index % 3}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nwhat\u2028is\u0085 {index} – “é”?"},
                {"from": "gpt", "value": "red\u2029blue" if index == 7 else "red"},
            ],
        }
        for index in range(num)
    ]


def lines(of: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of).encode()


def _write(to: Path, content: bytes) -> Path:
    to.parent.mkdir(exist_ok=True, parents=True)
    to.write_bytes(content)
    return to


def _tar(folder: Path, name: str, compressed: bool = False) -> Path:
    with tarfile.open(folder / name, "w:gz" if compressed else "w") as tar:
        for index, row in enumerate(rows()):
            row = {key: value for key, value in row.items() if key != "image"}
            picture = (folder / "images" / f"{index % 3}.png").read_bytes()
            for end, content in (("png", picture), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"shard/{index:04}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / name


def _csv(folder: Path, name: str, delimiter: str, encoding: str = "utf-8") -> Path:
    with open(folder / name, "w", newline="", encoding=encoding) as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["image", "conversations", "note"])
        writer.writerows([row["image"], json.dumps(row["conversations"]), ""] for row in rows())
    return folder / name


def _dataset() -> datasets.Dataset:
    return datasets.Dataset.from_list(rows())


def _saved(folder: Path) -> Path:
    _dataset().save_to_disk(str(folder / "saved"))
    os.symlink(folder / "images", folder / "saved" / "images")
    return folder / "saved"


def _splits(folder: Path, end: str) -> Path:
    (folder / "splits" / "data").mkdir(parents=True)
    os.symlink(folder / "images", folder / "splits" / "images")
    for split, num in (
        ("train-00000-of-00002", 7),
        ("train-00001-of-00002", 5),
        ("validation-00000", 4),
        ("test-00000", 9),
    ):
        part = rows()[:7] if num == 7 else rows()[7:] if num == 5 else rows(num)
        path = folder / "splits" / "data" / f"{split}.{end}"
        if end == "parquet":
            datasets.Dataset.from_list(part).to_parquet(str(path))
        else:
            path.write_bytes(lines(part))
    (folder / "splits" / "dataset_infos.json").write_text("{}")
    return folder / "splits"


def _arrow(folder: Path) -> Path:
    with datasets.arrow_writer.ArrowWriter(path=str(folder / "a.arrow")) as writer:
        for row in rows():
            writer.write(row)
        writer.finalize()
    return folder / "a.arrow"


def _parquet(folder: Path, name: str = "a.parquet") -> Path:
    _dataset().to_parquet(str(folder / name))
    return folder / name


def _pretty(of: list[Any]) -> bytes:
    return json.dumps(of, indent=1).encode()


FORMATS: dict[str, Callable[[Path], Path]] = {
    "json": lambda f: _write(f / "a.json", json.dumps(rows()).encode()),
    "json, readable": lambda f: _write(f / "a.json", b"\n  " + _pretty(rows()) + b"\n"),
    "json with a mark": lambda f: _write(f / "a.json", b"\xef\xbb\xbf" + _pretty(rows())),
    "json in UTF-16": lambda f: _write(f / "a.json", json.dumps(rows(), ensure_ascii=False).encode("utf-16")),
    "json compressed": lambda f: _write(f / "a.json.gz", gzip.compress(json.dumps(rows()).encode())),
    "jsonl": lambda f: _write(f / "a.jsonl", lines(rows())),
    "jsonl with a mark": lambda f: _write(f / "a.jsonl", b"\xef\xbb\xbf" + lines(rows())),
    "jsonl in UTF-16": lambda f: _write(f / "a.jsonl", b"\xff\xfe" + lines(rows()).decode().encode("utf-16-le")),
    "jsonl of Windows": lambda f: _write(f / "a.jsonl", lines(rows()).replace(b"\n", b"\r\n")),
    "jsonl with empty lines": lambda f: _write(f / "a.jsonl", b"\n \n" + lines(rows()).replace(b"\n", b"\n\n") + b"  "),
    "jsonl without a last end": lambda f: _write(f / "a.jsonl", lines(rows())[:-1]),
    "jsonl compressed": lambda f: _write(f / "a.jsonl.gz", gzip.compress(lines(rows()))),
    "jsonl compressed under another name": lambda f: _write(f / "a.jsonl", gzip.compress(lines(rows()))),
    "ndjson": lambda f: _write(f / "a.ndjson", lines(rows())),
    "upper case": lambda f: _write(f / "A.JSONL", lines(rows())),
    "lines in a json": lambda f: _write(f / "a.json", lines(rows())),
    "a list in a jsonl": lambda f: _write(f / "a.jsonl", _pretty(rows())),
    "csv": lambda f: _csv(f, "a.csv", ","),
    "csv of Excel": lambda f: _csv(f, "a.CSV", ",", "utf-8-sig"),
    "tsv": lambda f: _csv(f, "a.tsv", "\t"),
    "tar": lambda f: _tar(f, "a.tar"),
    "tar compressed": lambda f: _tar(f, "a.tar.gz", compressed=True),
    "parquet": _parquet,
    "parquet, upper case": lambda f: _parquet(f, "A.PARQUET"),
    "arrow": _arrow,
    "a saved folder": _saved,
    "a folder of parquet": lambda f: _splits(f, "parquet"),
    "a folder of jsonl": lambda f: _splits(f, "jsonl"),
}


def read(samples: Samples) -> list[Any]:
    """What the samples are, with their pictures opened."""
    assert not [sample.problem for sample in samples if sample.problem]
    return [
        (
            s.id,
            [(turn["role"], turn["content"]) for turn in s.messages],
            [open_image(i).getpixel((0, 0)) for i in s.images],
        )
        for s in samples
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("block", [7, json_rows.BLOCK_BYTES])
def test_every_format_holds_the_same_samples(
    name: str, block: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from another folder, in blocks of any size, and again."""
    if block == 7 and "json" not in name:
        pytest.skip("not read in blocks")
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", block)
    monkeypatch.setattr(json_rows, "MIN_KEPT_BYTES", 0)
    path = FORMATS[name](folder)
    monkeypatch.chdir("/")
    wanted = [
        (
            str(index),
            [
                ("user", [{"type": "image"}, {"type": "text", "text": f"what\u2028is\u0085 {index} – “é”?"}]),
                ("assistant", [{"type": "text", "text": "red\u2029blue" if index == 7 else "red"}]),
            ],
            [(index % 3, 0, 0)],
        )
        for index in range(NUM_ROWS)
    ]
    assert read(load_samples(path)) == wanted
    assert read(load_samples(str(path))) == wanted


def test_only_train_trains_and_a_folder_of_splits_says_what_is_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _splits(folder, "parquet")
    assert len(load_samples(path)) == NUM_ROWS
    assert "split train is read, 2 of 4 files" in caplog.text
    for split, num in {"train": 12, "validation": 4, "val": 4, "test": 9}.items():
        assert len(open_table(path, split).rows) == num
    with pytest.raises(InputError, match="no files of split other"):
        open_table(path, "other")
    for file in (path / "data").glob("train*"):
        file.unlink()
    with pytest.raises(InputError, match="its splits are test, validation, without train"):
        load_samples(path)
    for file in (path / "data").glob("val*"):
        file.unlink()
    assert len(open_table(path).rows) == 9
    with pytest.raises(InputError, match="its splits are test, without train"):
        load_samples(path)
    parts = {"validation": _dataset(), "test": _dataset()}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "dict"))
    with pytest.raises(InputError, match="without train"):
        load_samples(folder / "dict")
    with pytest.raises(InputError, match="no split 'train'"):
        open_table(folder / "dict", "train")


LARGE = 400


def dirty() -> list[Any]:
    """Rows of which five can't be used, each for another reason."""
    found: list[Any] = [dict(row, id=index) for index, row in enumerate(rows(LARGE - 5))]
    turns = found[0]["conversations"]
    bad = [
        {"image": "gone.png", "conversations": turns},
        {"image": "0.png", "conversations": [turns[0], {"from": "robot", "value": "x"}]},
        {"image": "0.png", "conversations": turns[:1]},
        {"image": "0.png", "conversations": [{"from": "human", "value": "<image><image>"}, turns[1]]},
        {"image": None, "conversations": None},
    ]
    for index, row in enumerate(bad):
        found.insert(50 * index + 7, {**row, "id": 1000 + index})
    return found


@pytest.mark.parametrize("end", ["json", "jsonl", "parquet", "csv"])
def test_bad_rows_are_the_same_in_every_format(end: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / f"a.{end}"
    if end == "parquet":
        datasets.Dataset.from_list(dirty()).to_parquet(str(path))
    elif end == "csv":
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "image", "conversations"])
            writer.writeheader()
            writer.writerows({**row, "conversations": json.dumps(row["conversations"])} for row in dirty())
    else:
        path.write_bytes(lines(dirty()) if end == "jsonl" else json.dumps(dirty()).encode())
    samples = load_samples(path)
    bad = check_samples(samples, 0.02)
    assert list(bad.found) == ["row 7", "row 57", "row 107", "row 157", "row 207"]
    assert [sample.id for sample in samples if sample.problem] == ["7", "57", "107", "157", "207"]
    assert f"{path}: left out 5 of 400 rows (row 7: image gone.png not found" in caplog.text
    with pytest.raises(BadData, match=r"more than 1\.0% of 400 rows can't be used"):
        check_samples(samples)


BROKEN_LINES = {
    "cut": b'{"id": "cut',
    "deep": b"[" * 100_000,
    "a huge number": b"1" * 5000,
    "not UTF-8": b'{"id": "\xff\xfe"}',
    "a lone surrogate": lines(rows(1)).replace(b"what", b"\\ud83d"),
    "NUL": b"\0\0\0",
    "a list": b"[1]",
    "text": b"text",
    "an escaped path": b'{"image": "a\\u0000b", "conversations": [{"from": "gpt", "value": "x"}]}',
}


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_broken_line_is_a_bad_row(name: str, folder: Path) -> None:
    path = _write(folder / "a.jsonl", lines(rows(200)) + BROKEN_LINES[name] + b"\n")
    bad = check_samples(load_samples(path))
    assert list(bad.found) == ["row 200"]
    assert all(reason.isprintable() for reason in bad.found.values())


HOSTILE: dict[str, tuple[str, bytes]] = {
    "no rows": ("a.json", b"[]"),
    "empty": ("a.jsonl", b""),
    "empty csv": ("a.csv", b""),
    "empty parquet": ("a.parquet", b""),
    "an empty tar": ("a.tar", b""),
    "cut": ("a.json", b'[{"a": 1}, {"b'),
    "two lists": ("a.json", b'[{"a": 1}] [{"b": 2}]'),
    "an object over several lines": ("a.json", b'{\n "a": [\n  1\n ]\n}'),
    "no comma": ("a.json", b'[{"a": 1} {"b": 2}]'),
    "damaged": ("a.json", b'[{"a": 1}, {b: 2}]'),
    "deep": ("a.json", b"[" * 100_000),
    "text": ("a.json", b"hello"),
    "a picture": ("a.json", b"\x89PNG\r\n\x1a\n"),
    "parquet in json": ("a.json", b"PAR1\0\0\0\0PAR1"),
    "json in parquet": ("a.parquet", b'[{"a": 1}]'),
    "json in arrow": ("a.arrow", b'[{"a": 1}]'),
    "json in tar": ("a.tar", b'[{"a": 1}]' * 100),
    "damaged gzip": ("a.json.gz", gzip.compress(b"[]")[:-9]),
    "damaged UTF-16": ("a.json", b"\xff\xfe" + "[]".encode("utf-16-le") + b"\0"),
    "csv of another encoding": ("a.csv", "a,b\né,ü\n".encode("latin-1")),
    "another kind": ("a.txt", b"hello"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(name: str, folder: Path) -> None:
    file, content = HOSTILE[name]
    _write(folder / file, content)
    with pytest.raises(InputError) as error:
        check_samples(load_samples(folder / file))
    assert file in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["gone.json", "a" * 5000, "a\0b", "a" * 5000 + ".json", "\ud83d.json", "/gone"])
def test_names_that_are_no_data_are_one_line(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as error:
        load_samples(name)
    assert "\n" not in str(error.value)
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        load_samples(folder / "pipe.json")


def test_a_file_that_is_cut_short_or_changed_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MIN_KEPT_BYTES", 0)
    path = _write(folder / "a.json", json.dumps(rows()).encode())
    samples = load_samples(path)
    os.truncate(path, 100)
    assert "cut short" in samples[9].problem
    path.write_bytes(json.dumps(rows(3)).encode())
    assert len(load_samples(path)) == 3
    assert len(list((folder.parent / "cache" / "raysearch" / "data").glob("*/*"))) == 1, "the old one is gone"


TURNS = {
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "0.png"}}, {"type": "text", "text": "q"}],
            },
            {"role": "assistant", "content": "a"},
        ]
    },
    "openai responses": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "0.png"}, {"type": "input_text", "text": "q"}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        ]
    },
    "qwen": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "0.png", "text": None},
                    {"type": "text", "text": "q", "image": None},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ]
    },
    "qwen-vl": {
        "messages": [
            {"role": "user", "content": [{"image": "0.png"}, {"text": "q"}]},
            {"role": "assistant", "content": [{"text": "a"}]},
        ]
    },
    "trl": {
        "images": ["0.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ],
    },
    "trl with paths": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "0.png"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ]
    },
    "trl prompt and completion": {
        "images": ["0.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}],
        "completion": [{"role": "assistant", "content": "a"}],
    },
    "llava": {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}],
    },
    "llava without a placeholder": {
        "image": ["0.png"],
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    },
    "sharegpt": {
        "images": ["0.png"],
        "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}],
    },
    "the text of json": {
        "images": '["0.png"]',
        "messages": '[{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]',
    },
    "columns of lists": {"image": "0.png", "conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}},
    "given twice": {
        "images": ["0.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ],
    },
    "path and bytes": {
        "image": {"path": "0.png", "bytes": None},
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    },
    "anthropic": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "path", "media_type": "image/png", "path": "0.png"}},
                    {"type": "text", "text": "q"},
                ],
            },
            {"role": "assistant", "content": "a"},
        ]
    },
    "qwen-vl of old": {
        "conversations": [
            {"from": "user", "value": "Picture 1: <img>0.png</img>\nq"},
            {"from": "assistant", "value": "a"},
        ]
    },
    "phi's numbers": {
        "images": ["0.png"],
        "messages": [{"role": "user", "content": "<|image_1|>\nq"}, {"role": "assistant", "content": "a"}],
    },
    "internlm": {
        "image": "0.png",
        "conversations": [{"from": "user", "value": "<ImageHere>q"}, {"from": "assistant", "value": "a"}],
    },
    "a question and its answer": {"image": "0.png", "question": "q", "answer": "a"},
    "ms-swift": {"images": [{"path": "0.png", "bytes": None}], "query": "<image>q", "response": "a", "history": []},
    "trl's texts": {"images": ["0.png", None], "prompt": "q", "completion": "a"},
    "alpaca": {"image": "0.png", "instruction": "q", "input": "", "output": "a"},
    "of windows": {"image": "images\\0.png", "question": "q", "answer": "a"},
    "roles with spaces": {
        "image": "0.png",
        "conversations": [{"from": "Human ", "value": "q"}, {"from": "AI", "value": "a"}],
    },
    "a question behind": {
        "image": "0.png",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
            {"from": "human", "value": "q2"},
        ],
    },
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_in_the_layouts_that_people_have(name: str, folder: Path) -> None:
    (sample,) = load_samples(_write(folder / "a.json", json.dumps([TURNS[name]]).encode()))
    assert not sample.problem
    assert sample.images == (folder / "images" / "0.png",)
    assert sample.messages == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]


def test_earlier_turns_of_a_pair_are_kept(folder: Path) -> None:
    row = {"instruction": "q", "input": "of this", "output": 7, "system": "be brief", "history": [["first", "one"]]}
    (sample,) = load_samples(_write(folder / "a.json", json.dumps([row]).encode()))
    assert [(turn["role"], sample.text_of(place)) for place, turn in enumerate(sample.messages)] == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "q\nof this"),
        ("assistant", "7"),
    ]


def test_numbered_placeholders_take_their_pictures(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image 2> or <image 1>?"}, {"from": "gpt", "value": "<image 1>"}]
    (sample,) = load_samples(
        _write(folder / "a.json", json.dumps([{"images": ["0.png", "1.png"], "conversations": turns}]).encode())
    )
    assert [path.name for path in sample.images] == ["1.png", "0.png"]
    assert sample.text_of(1) == "<image 1>", "an answer speaks of it"


NOT_READ: dict[str, tuple[dict[str, Any], str]] = {
    "a video": ({"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>q"}]}, "it holds video"),
    "sound": ({"audios": ["a.wav"], "messages": [{"role": "user", "content": "q"}]}, "it holds audios"),
    "an index of options": ({"question": "q", "choices": ["x", "y"], "answer": 1}, "a question with choices"),
    "a context": ({"context": "c", "question": "q", "answer": "a"}, "a question with context"),
    "a pair without an answer": ({"question": "q", "answer": None}, "it has question, answer"),
    "a history of texts": ({"query": "q", "response": "a", "history": ["x", "y"]}, "history that is not"),
    "yes as true": ({"messages": [{"role": "user", "content": True}]}, "content is a bool"),
    "an unknown number": ({"images": ["0.png"], "question": "<image 2>", "answer": "a"}, r"placeholders \[2\] for 1"),
    "a picture without a number": (
        {"images": ["0.png", "1.png"], "question": "<image 2>", "answer": "a"},
        r"placeholders \[2\] for 2",
    ),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_would_be_misread_is_a_bad_row(name: str, folder: Path) -> None:
    row, reason = NOT_READ[name]
    (sample,) = load_samples(_write(folder / "a.json", json.dumps([row]).encode()))
    assert re.search(reason, sample.problem), sample.problem


def test_pictures_in_base64_are_no_sources(folder: Path) -> None:
    picture = base64.b64encode((folder / "images" / "0.png").read_bytes()).decode()
    given = [picture, "data:image/png;base64," + picture, "coco/0.png", "file:///coco/0.png", float("nan")]
    rows = [{"image": image, "question": "q", "answer": "a"} for image in given]
    found = load_samples(_write(folder / "a.json", json.dumps(rows).encode()))
    assert list(found.sources()) == ["images", "images", "coco", "/", "text"]


@pytest.mark.parametrize("first", [b"null", b"[]", b'"text"', b"3", b"{cut", b"[1, 2"])
def test_a_broken_first_line_is_a_bad_row(first: bytes, folder: Path) -> None:
    path = _write(folder / "a.jsonl", first + b"\n" + lines(rows(200)))
    assert list(check_samples(load_samples(path)).found) == ["row 0"]


def test_thinking_tools_and_several_pictures_are_kept(folder: Path) -> None:
    row = {
        "images": ["1.png"],
        "tools": '[{"type": "function", "function": {"name": "look"}}]',
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "image"}, "compare", {"type": "image", "image": "2.png"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "look", "arguments": '{"at": 1}'}}],
            },
            {"role": "tool", "content": "a dog"},
            {"role": "assistant", "reasoning_content": "hm", "content": "a dog"},
        ],
    }
    (sample,) = load_samples(_write(folder / "a.json", json.dumps([row]).encode()))
    assert [turn["role"] for turn in sample.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [path.name for path in sample.images] == ["1.png", "2.png"]
    assert [part["type"] for part in sample.messages[1]["content"]] == ["image", "text", "image"]
    assert sample.messages[2]["tool_calls"][0]["function"]["arguments"] == {"at": 1}
    assert sample.messages[4]["reasoning_content"] == "hm"
    assert sample.tools == ({"type": "function", "function": {"name": "look"}},)


def test_a_million_rows_are_indexed_without_being_read(folder: Path) -> None:
    """Here 100,000; each is read where it stands."""
    path = folder / "a.jsonl"
    path.write_bytes(b"".join(lines(rows(1)).replace(b"what", b"%06d" % index) for index in range(100_000)))
    samples = load_samples(path)
    assert len(samples) == 100_000
    for index in np.random.default_rng(0).integers(0, 100_000, 20):
        assert f"{index:06}" in samples[int(index)].text_of(0)


def test_several_sources_with_weights(folder: Path) -> None:
    one = _write(folder / "a.json", json.dumps(rows(8)).encode())
    two = _write(folder / "b.jsonl", lines(rows(4)))
    sources = [DataSource(path=str(one), weight=0.5), DataSource(path=str(two), weight=2.25)]
    samples = load_samples(sources)
    counts = Counter(sample.id for sample in samples)
    assert sum(count for name, count in counts.items() if name.startswith(f"{one}:")) == 4
    assert sorted(count for name, count in counts.items() if name.startswith(f"{two}:")) == [2, 2, 2, 3]
    assert [s.id for s in samples] == [s.id for s in load_samples(sources)]
    fields = {"name": "a", "model": "pocket", "recipe": {"mode": "layerwise", "ratio": 0.1, "criterion": "deepest"}}
    space = SearchSpace.model_validate({**fields, "data": [{"path": str(one), "weight": 0.5}, {"path": "pocket"}]})
    assert space.data_text == f"0.5 x {one}, pocket"
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space
    assert len(load_samples(space.data)) == 4 + 2000
