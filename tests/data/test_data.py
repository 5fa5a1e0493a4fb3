"""Rows of every format, answers marked, batches padded, bad rows counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raysearch.data.bad_rows import BadRow
from raysearch.data.encoding import Encoder, aligned, collate
from raysearch.data.labels import IGNORED
from raysearch.data.loading import check_samples, fraction_order, in_order, load_samples
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from tests.support.recovery_setup import processor, samples, tiny_encoder, tiny_family

ANSWERS = ("yes", "red", "left")


def _row(index: int, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nis it red?"}, {"from": "gpt", "value": "yes"}]
    return {"id": f"row-{index}", "image": "train/a.png", "conversations": turns} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "train").mkdir(parents=True)
    Image.new("RGB", (48, 48), "red").save(tmp_path / "images" / "train" / "a.png")
    return tmp_path


def _write(folder: Path, rows: list[Any], name: str = "data.json") -> Path:
    path = folder / name
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return path


def _tokens(ids: torch.Tensor) -> str:
    return processor().tokenizer.decode(ids)


def _answers(labels: torch.Tensor) -> str:
    return _tokens(labels[labels != IGNORED])


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_llava_rows(folder: Path, name: str) -> None:
    found = load_samples(_write(folder, [_row(0), _row(1)], name))
    assert [sample.id for sample in found] == ["0", "1"]
    assert found[0].source == "train"
    assert found[0].images == (folder / "images/train/a.png",)
    assert found[0].messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "is it red?"}]
    encoded = tiny_encoder().encode(found[0])
    assert _answers(encoded["labels"]) == "yes <eos>"
    assert encoded["pixel_values"].shape == (1, 3, 48, 48)


def test_an_image_without_a_placeholder_comes_first(folder: Path) -> None:
    turns = [{"from": "human", "value": "is it red?"}, {"from": "gpt", "value": "yes"}]
    (sample,) = load_samples(_write(folder, [_row(0, conversations=turns)]))
    assert sample.messages[0]["content"][0] == {"type": "image"}


def test_many_turns_many_images_and_text_only() -> None:
    picture = Image.new("RGB", (48, 48))
    say = lambda role, *parts: {  # noqa: E731
        "role": role,
        "content": [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts],
    }
    many = Sample(
        "a",
        "test",
        (picture, picture),
        [
            say("user", "<image>", "is it red?"),
            say("assistant", "yes"),
            say("user", "<image>", "and this digit?"),
            say("assistant", "left left"),
            say("user", "describe"),
            say("assistant", "yes"),
        ],
    )
    text_only = Sample("b", "test", (), [say("user", "is it red?"), say("assistant", "yes")])
    encoder = tiny_encoder()
    encoded = encoder.encode(many)
    assert _answers(encoded["labels"]) == "yes <eos> left left <eos> yes <eos>"
    assert encoded["pixel_values"].shape[0] == 2
    batch = encoder.collate([encoder.encode(text_only), encoded])
    assert batch["pixel_values"].shape == (2, 3, 48, 48)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert _answers(batch["labels"][0]) == "yes <eos>"
    assert (batch["labels"][0] != IGNORED).nonzero().max() < batch["attention_mask"][0].sum()
    assert "pixel_values" not in encoder.collate([encoder.encode(text_only)])


def test_answers_are_those_of_the_templates_own_marks() -> None:
    """The template of the embedded LVLM marks its answers itself; ours are found by rendering prefixes."""
    encoder = tiny_encoder()
    for sample in samples()[:10]:
        reference = processor().apply_chat_template(
            [sample.messages],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            images=[list(sample.images)],
        )
        marked = torch.as_tensor(reference["assistant_masks"])[0].bool()
        assert torch.equal(encoder.encode(sample)["labels"] != IGNORED, marked)


def test_prompt_ends_with_the_cue() -> None:
    sample = samples()[0]
    encoder = tiny_encoder()
    prompt, whole = encoder.encode_prompt(sample)["input_ids"], encoder.encode(sample)["input_ids"]
    assert _tokens(prompt).endswith("<assistant>")
    assert torch.equal(whole[: len(prompt)], prompt)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 9))
def test_alignment_past_expanded_images(segments: list[list[int]], width: int) -> None:
    """Placeholders (0) become `width` zeros; every other token is found again, at its own place."""
    plain, expanded, wanted = [], [7], []
    for index, segment in enumerate(segments):
        if index:
            plain, expanded = [*plain, 0], [*expanded, *[0] * width]
            wanted.append(None)
        wanted += range(len(expanded), len(expanded) + len(segment))
        plain, expanded = plain + segment, expanded + segment
    assert aligned(plain, expanded, [0]) == wanted


def test_alignment_of_many_like_turns_and_of_joined_ends() -> None:
    """Forty times the same turn with an image; then line breaks that join those around the image."""
    turn, plain, expanded, wanted = [1, 0, 10, 11, 2, 20, 3], [5], [7, 5], [1]
    for token in turn * 40:
        plain.append(token)
        wanted.append(None if token == 0 else len(expanded))
        expanded += [0] * 36 if token == 0 else [token]
    assert aligned(plain, expanded, [0]) == wanted
    assert aligned([1, 8, 0, 8, 2, 3], [1, 88, 0, 0, 88, 2, 3], [0]) == [0, None, None, None, 5, 6]
    assert aligned([1, 2, 3], [7, 9, 2, 3], []) == [None, 2, 3]
    assert aligned([1, 2, 3], [7, 1, 2, 3], []) == [1, 2, 3]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["left", "right"]), st.sampled_from([1, 8]))
def test_collate_pads(lengths: list[int], side: str, multiple: int) -> None:
    rows = [
        {"input_ids": torch.arange(1, n + 1), "attention_mask": torch.ones(n), "labels": torch.arange(1, n + 1)}
        for n in lengths
    ]
    batch = collate(rows, pad_id=0, padding_side=side, multiple=multiple)
    longest = -max(lengths) // multiple * -multiple
    for index, length in enumerate(lengths):
        kept = slice(0, length) if side == "right" else slice(longest - length, longest)
        assert batch["input_ids"].shape[1] == longest
        assert batch["input_ids"][index, kept].tolist() == list(range(1, length + 1))
        assert int(batch["attention_mask"][index].sum()) == length
        assert int((batch["labels"][index] == IGNORED).sum()) == longest - length


def test_images_of_different_shapes_are_padded_and_text_rows_get_zeros() -> None:
    ids = {"input_ids": torch.ones(2, dtype=torch.long)}
    rows = [ids | {"pixel_values": torch.ones(1, 2, 3, 4, 4)}, ids, ids | {"pixel_values": torch.ones(1, 1, 3, 4, 6)}]
    batch = collate(rows, pad_id=0, one_entry_per_row=True)
    assert batch["pixel_values"].shape == (3, 2, 3, 4, 6)
    assert batch["pixel_values"][1].sum() == 0
    assert batch["pixel_values"].sum() == 2 * 3 * 16 + 3 * 24
    assert collate(rows, pad_id=0)["pixel_values"].shape == (2, 2, 3, 4, 6)


BAD = {
    "no answer": _row(0, conversations=[{"from": "human", "value": "<image>\nis it red?"}]),
    "not found": _row(0, image="gone.png"),
    "placeholders for 1 images": _row(
        0, conversations=[{"from": "human", "value": "<image> <image>"}, {"from": "gpt", "value": "yes"}]
    ),
    "a turn of 'robot'": _row(0, conversations=[{"from": "robot", "value": "is it red?"}]),
    "no conversations and no messages; it has id": {"id": "row-0"},
    "begins with an answer": _row(0, image=None, conversations=[{"from": "gpt", "value": "yes"}]),
    "not an object": "text",
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_named_and_skipped_within_the_limit(
    folder: Path, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(folder, [BAD[reason], *(_row(index) for index in range(1, 100))])
    found = load_samples(path)
    assert [sample.id for sample in found if not sample.problem] == [str(index) for index in range(1, 100)]
    check_samples(found)
    assert reason in caplog.text
    assert "left out 1 of 100" in caplog.text
    path = _write(folder, [BAD[reason], *(_row(index) for index in range(1, 50))])
    with pytest.raises(InputError, match="row 0") as error:
        check_samples(load_samples(path))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_line_is_a_bad_row(folder: Path) -> None:
    path = _write(folder, [*(_row(index) for index in range(150)), '{"id": "cut'], "data.jsonl")
    assert list(check_samples(load_samples(path)).found) == ["row 150"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.json", None, "no such file"),
        ("cut.json", "[{", "not JSON"),
        ("text.json", "rows", "begins with b'r'"),
        ("open.json", '[{"a": 1}, {"b": 2}', "the list has no end|'the end' instead of ','"),
        ("empty.json", "[]", "no rows"),
        ("empty.jsonl", "", "no rows"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_samples(tmp_path / name)
    assert name in str(error.value)


def test_encoding_refuses(folder: Path) -> None:
    (folder / "images/train/b.png").write_bytes(b"no picture")
    rows = [_row(0, image="train/b.png"), _row(1, conversations=[*_row(1)["conversations"], *_row(1)["conversations"]])]
    rows[1]["image"] = ["train/a.png", "train/a.png"]
    broken, long = load_samples(_write(folder, rows))
    with pytest.raises(BadRow, match=r"b\.png: can't be read"):
        tiny_encoder().encode(broken)
    with pytest.raises(BadRow, match="more than max_length 60"):
        tiny_encoder(60).encode(long)


def test_chat_rows_of_the_datasets_library(tmp_path: Path) -> None:
    import datasets

    picture = Image.new("RGB", (48, 48), "blue")
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "is it red?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    rows = datasets.Dataset.from_dict(
        {"messages": [messages] * 3, "images": [[picture]] * 3},
        features=datasets.Features(
            {
                "messages": datasets.List(
                    {
                        "role": datasets.Value("string"),
                        "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
                    }
                ),
                "images": datasets.List(datasets.Image()),
            }
        ),
    )
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    for data in (tmp_path / "saved", tmp_path / "rows.parquet", tmp_path):
        found = load_samples(data)
        assert len(found) == 3
        assert [sample.id for sample in found] == ["0", "1", "2"]
        encoded = tiny_encoder().encode(found[2])
        assert _answers(encoded["labels"]) == "yes <eos>"
        blue = encoded["pixel_values"][0, :, 0, 0]
        torch.testing.assert_close(blue, torch.tensor([-1.0, -1.0, 1.0]))


def test_no_such_data() -> None:
    with pytest.raises(InputError, match="can't be opened"):
        load_samples("no-such-owner/no-such-data")


def test_fractions_nest_and_are_seeded() -> None:
    order = fraction_order(100, seed=3)
    assert sorted(order) == list(range(100))
    assert np.array_equal(order, fraction_order(100, seed=3))
    assert not np.array_equal(order, fraction_order(100, seed=4))


def test_a_fraction_without_a_sample_is_refused_before_anything_runs() -> None:
    from raysearch.config.space import SearchSpace
    from raysearch.study.plan import plan_study

    pocket = SearchSpace.load(Path(__file__).parents[2] / "search_spaces" / "pocket.yaml").model_dump(mode="json")
    pocket["recipe"]["data_fraction"] = [1.0, 0.0004]
    with pytest.raises(InputError, match=r"^recipe\.data_fraction: 0\.0004 of 1000 samples is none; raise it"):
        plan_study(SearchSpace.model_validate(pocket))


def test_stratified_fractions_hold_every_source_in_proportion() -> None:
    sources = ["a"] * 80 + ["b"] * 15 + ["c"] * 5
    order = fraction_order(100, seed=0, sources=sources)
    assert sorted(order) == list(range(100))
    for size in (20, 40, 60, 80):
        taken = [sources[index] for index in order[:size]]
        for name, share in (("a", 0.8), ("b", 0.15), ("c", 0.05)):
            assert abs(taken.count(name) - share * size) <= 2


def test_rows_on_disk_are_put_in_order_without_reading_them(tmp_path: Path) -> None:
    import datasets

    say = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}  # noqa: E731
    rows = [{"messages": [say("user", f"is it {i}?"), say("assistant", "yes")]} for i in range(9)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    found = in_order(load_samples(tmp_path / "rows.parquet"), np.array([4, 0, 8]))
    assert not isinstance(found, list)
    assert [sample.id for sample in found] == ["4", "0", "8"]
    held = found[1]
    assert found[1] is held, "so that its tensors are found again"
    assert [sample.id for sample in in_order(samples(), np.array([2, 1]))] == [samples()[i].id for i in (2, 1)]


def test_cache_keeps_to_its_bytes() -> None:
    encoder = Encoder(processor(), tiny_family(), 512, cache_bytes=100_000)
    first = encoder.encode(samples()[0])
    assert encoder.encode(samples()[0]) is first
    for sample in samples()[1:10]:
        encoder.encode(sample)
    again = encoder.encode(samples()[0])
    assert again is not first
    assert torch.equal(again["input_ids"], first["input_ids"])
