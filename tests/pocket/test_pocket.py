"""The embedded LVLM: its data are the same bytes everywhere, and its folder is a good stock Hugging Face model."""

import functools
import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from raysearch import pocket
from raysearch.config.settings import EMBEDDED_BENCHMARKS
from raysearch.pocket import drawing, splits
from raysearch.pocket.question_templates import SHORT, PocketQuestion, vocabulary
from scripts.pocket.packing import IGNORED, PREFIX, Packer, batch_rows

SAMPLE = {"easy-vqa": 40, "digits": 48, "scenes": 48, "lists": 32, "descriptions": 16}
"""Questions answered by `generate`; one by one they take longest."""

CONVERSATIONS_SHA256 = "fbb408b63a66d130e45eefbdf00b21d463d8366c1c7f1f5d24b3529d8a966600"
QUESTIONS_SHA256 = {
    "search": "b3b4a32728926e519f27f780b63588bfe0ece6c74c89aa0081ac0a00ef7c8e30",
    "heldout": "ddcb631cdcf1cf0ba2fc200a20695f15e888eef4a458aec45ec8ae8c96049cb4",
}


def digest(rows: list[dict]) -> str:
    """sha256 of all images and texts in order."""
    running = hashlib.sha256()
    for row in rows:
        running.update(np.asarray(row["image"]).tobytes())
        text = {key: value for key, value in row.items() if key != "image"}
        running.update(json.dumps(text, sort_keys=True).encode())
    return running.hexdigest()


def test_importing_the_package_loads_nothing_heavy():
    heavy = "('torch', 'transformers', 'PIL', 'sklearn')"
    code = f"import sys, raysearch.pocket; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_conversations_are_the_same_bytes_everywhere():
    assert digest(pocket.conversations(500)) == CONVERSATIONS_SHA256


@pytest.mark.parametrize("split", pocket.SPLITS)
def test_the_questions_are_the_same_bytes_everywhere(split):
    rows = [row for benchmark in EMBEDDED_BENCHMARKS for row in pocket.questions(benchmark, split)]
    assert digest(rows) == QUESTIONS_SHA256[split]


def test_the_numbers_of_questions():
    for benchmark in EMBEDDED_BENCHMARKS:
        assert len(pocket.questions(benchmark, "search")) == 200
        assert len(pocket.questions(benchmark, "heldout")) == 400


def test_fewer_conversations_are_the_first_of_more():
    assert [row["id"] for row in pocket.conversations(60)] == [f"recovery-{n}" for n in range(60)]
    few, many = pocket.conversations(60), pocket.conversations(500)[:60]
    assert digest(few) == digest(many)


def test_a_conversation_has_four_turns_and_names_its_image_first():
    for row in pocket.conversations(500):
        said = row["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * 4
        assert said[0]["value"].startswith("<image>\n")
        assert not any("<image>" in turn["value"] for turn in said[1:])
        assert row["image"].size == (48, 48)
        assert row["image"].mode == "RGB"
    sources = Counter(row["source"] for row in pocket.conversations(500))
    assert sources == {"digits": 200, "scenes": 200, "easy-vqa": 100}


def test_no_image_is_in_two_splits():
    seen = defaultdict(set)
    for row in pocket.conversations(500):
        seen["recovery"].add(row["image"].tobytes())
    for split in pocket.SPLITS:
        for benchmark in EMBEDDED_BENCHMARKS:
            seen[split] |= {row["image"].tobytes() for row in pocket.questions(benchmark, split)}
    assert not seen["search"] & seen["heldout"]
    assert not seen["recovery"] & (seen["search"] | seen["heldout"])


def test_no_scanned_digit_is_in_two_splits():
    scans = {split: {s.tobytes() for s in drawing.digit_scans(split)[0]} for split in ("train", "search", "heldout")}
    assert [len(scans[split]) for split in ("search", "heldout")] == [250, 250]
    assert not scans["train"] & (scans["search"] | scans["heldout"])
    assert not scans["search"] & scans["heldout"]


def test_questions_about_one_picture_share_its_image_id():
    rows = pocket.questions("scenes", "search")
    pictures = defaultdict(set)
    for row in rows:
        pictures[row["image_id"]].add(row["image"].tobytes())
    assert len(pictures) == 50
    assert all(len(images) == 1 for images in pictures.values())


@pytest.mark.parametrize(
    ("source", "kind"), [("scenes", "exists"), ("scenes", "compare"), ("digits", "exists"), ("digits", "compare")]
)
def test_yes_and_no_are_balanced(source, kind):
    asked = splits.annotated_images(source, "train", 3, 800, len(SHORT[source]), 0)
    answers = Counter(question.answer for picture in asked for question in picture.short if question.kind == kind)
    assert set(answers) == {"yes", "no"}
    assert answers["yes"] / answers.total() == pytest.approx(0.5, abs=0.07)  # 4 standard errors


def test_easy_vqa_checks_are_balanced_for_either_wording():
    counts = defaultdict(Counter)
    for row in pocket.questions("easy-vqa", "heldout"):
        if row["kind"].endswith("check"):
            negated = any(word in row["prompt"].rstrip("?").split() for word in ("not", "no"))
            counts[negated][row["answer"]] += 1
    for answers in counts.values():
        assert answers["yes"] / answers.total() == pytest.approx(0.5, abs=0.2)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="easy-vqa, digits, scenes, lists, descriptions"):
        pocket.questions("vqa", "search")
    with pytest.raises(ValueError, match="search, heldout"):
        pocket.questions("scenes", "test")


# --- the model


@functools.cache
def loaded():
    """The folder's model in float32 and its processor, by the stock classes."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = pocket.weights_folder()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder, use_fast=False)


def chat(turns: list[PocketQuestion], answered: bool) -> list[dict]:
    """The turns as messages; without the last answer unless `answered`."""
    messages = []
    for number, turn in enumerate(turns):
        image = [] if number else [{"type": "image"}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages if answered else messages[:-1]


def turns_of(row: dict) -> list[PocketQuestion]:
    """The questions of a conversation."""
    said = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
    return [PocketQuestion("", prompt, answer) for prompt, answer in zip(said[::2], said[1::2], strict=True)]


@functools.cache
def generated(benchmark: str) -> tuple[str, ...]:
    """Greedy answers to the first questions of the held-out split."""
    import torch

    model, processor = loaded()
    rows = pocket.questions(benchmark, "heldout")[:: 400 // SAMPLE[benchmark]][: SAMPLE[benchmark]]
    prompts = [
        processor.apply_chat_template(chat([PocketQuestion("", row["prompt"], "")], False), add_generation_prompt=True)
        for row in rows
    ]
    inputs = processor(images=[row["image"] for row in rows], text=prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tuple(processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def sampled(benchmark: str) -> list[dict]:
    return pocket.questions(benchmark, "heldout")[:: 400 // SAMPLE[benchmark]][: SAMPLE[benchmark]]


def packed_logits(images: list, conversations: list[list[list[PocketQuestion]]]):
    """A packed batch and the stock model's logits for it, (batch, seq, words)."""
    import torch

    model, processor = loaded()
    packer = Packer(processor.tokenizer.get_vocab())
    batch = batch_rows([packer.pack(each) for each in conversations])
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    mask = torch.zeros(batch.visible().shape).masked_fill_(torch.from_numpy(~batch.visible()), -1e9)
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(batch.tokens),
            pixel_values=pixels,
            attention_mask=mask[:, None],
            position_ids=torch.from_numpy(batch.positions),
        )
    return batch, out.logits


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in pocket.weights_folder().iterdir()) < 20e6


def test_every_word_is_a_token():
    tokenizer = loaded()[1].tokenizer
    assert set(vocabulary()) <= set(tokenizer.get_vocab())
    assert tokenizer.unk_token_id not in tokenizer("is there a red 7? list all digits, largest first").input_ids


def test_the_chat_template_gives_the_training_tokens():
    processor = loaded()[1]
    packer = Packer(processor.tokenizer.get_vocab())
    for row in pocket.conversations(25):
        text = processor.apply_chat_template(chat(turns_of(row), True))
        encoded = processor(images=row["image"], text=text, return_tensors="np")
        tokens = encoded["input_ids"][0].tolist()
        packed = packer.pack([turns_of(row)])
        num_tokens = sum(number >= 0 for number in packed.conversations)
        assert packed.tokens[:num_tokens] == tokens[:-1]
        assert tokens[-1] == processor.tokenizer.eos_token_id
        assert packed.positions[:num_tokens] == list(range(num_tokens))


def test_the_template_marks_the_answers():
    processor = loaded()[1]
    row = pocket.conversations(1)[0]
    messages = chat(turns_of(row), True)
    messages[0]["content"][0] = {"type": "image", "image": row["image"]}
    encoded = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="np"
    )
    answers = encoded["input_ids"][0][np.asarray(encoded["assistant_masks"][0], bool)]
    packed = Packer(processor.tokenizer.get_vocab()).pack([turns_of(row)])
    assert answers.tolist() == [label for label in packed.labels if label != IGNORED]


def test_packed_questions_are_computed_as_if_alone():
    import torch

    model, processor = loaded()
    row = pocket.conversations(1)[0]
    turns = turns_of(row)
    batch, logits = packed_logits([row["image"]], [[[turn] for turn in turns] + [turns]])
    starts = [int(np.argmax(batch.conversations[0] == number)) for number in range(1, len(turns) + 2)]
    for conversation, start in zip([*[[turn] for turn in turns], turns], starts, strict=True):
        text = processor.apply_chat_template(chat(conversation, True))
        encoded = processor(images=row["image"], text=text, return_tensors="pt")
        with torch.no_grad():
            alone = model(**encoded).logits[0, PREFIX:-1]
        torch.testing.assert_close(logits[0, start : start + len(alone)], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("split", pocket.SPLITS)
@pytest.mark.parametrize("benchmark", EMBEDDED_BENCHMARKS)
def test_chance_is_what_the_best_guess_gets(benchmark, split):
    num_right = splits.num_guessed(benchmark, split)
    assert pocket.chance(benchmark, split) == num_right / len(pocket.questions(benchmark, split))


@pytest.mark.parametrize("benchmark", EMBEDDED_BENCHMARKS)
def test_it_does_better_than_chance(benchmark):
    rows = sampled(benchmark)
    score = np.mean([answer == row["answer"] for answer, row in zip(generated(benchmark), rows, strict=True)])
    assert score > pocket.chance(benchmark, "heldout") + 0.15


@pytest.mark.parametrize("benchmark", ["scenes", "lists", "descriptions"])
def test_generating_and_teacher_forcing_agree(benchmark):
    """An answer is right as generated exactly if each of its words is the likeliest after the right ones before it."""
    rows = sampled(benchmark)
    asked = [[[PocketQuestion("", row["prompt"], row["answer"])]] for row in rows]
    batch, logits = packed_logits([row["image"] for row in rows], asked)
    forced = ((logits.argmax(-1).numpy() == batch.labels) | (batch.labels == IGNORED)).all(axis=1)
    free = [answer == row["answer"] for answer, row in zip(generated(benchmark), rows, strict=True)]
    assert sum(forced != np.array(free)) <= 1  # a tie may fall either way when sums run in another order


def test_the_folder_needs_transformers_alone(tmp_path):
    rows = pocket.questions("easy-vqa", "heldout")[:12]
    for number, row in enumerate(rows):
        row["image"].save(tmp_path / f"{number}.png")
    (tmp_path / "prompts.json").write_text(json.dumps([row["prompt"] for row in rows]))
    code = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1], use_fast=False)
answers = []
for number, prompt in enumerate(json.load(open("prompts.json"))):
    content = [{"type": "image", "image": Image.open(f"{number}.png")}, {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    ).to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answers.append(processor.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
assert "raysearch" not in sys.modules
print(json.dumps([type(model).__name__, answers]))
"""
    command = [sys.executable, "-c", code, str(pocket.weights_folder())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    name, answers = json.loads(done.stdout.splitlines()[-1])
    assert name == "LlavaForConditionalGeneration"
    assert sum(answer == row["answer"] for answer, row in zip(answers, rows, strict=True)) >= 9
