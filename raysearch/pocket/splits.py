"""Which pictures and questions make up pretraining, the recovery conversations, and the benchmarks' splits."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raysearch.pocket.asking import LISTS, SHORT, PocketQuestion, ask, balanced_easy_vqa, describe
from raysearch.pocket.drawing import (
    SPLITS,
    Draw,
    Pictures,
    draw_digits,
    draw_scenes,
    easy_vqa_image,
    easy_vqa_questions,
)

BENCHMARKS = ("easy-vqa", "digits", "scenes", "lists", "descriptions")
SOURCES = ("easy-vqa", "digits", "scenes")

_DRAWERS = {"scenes": draw_scenes, "digits": draw_digits}
_DOMAIN_NUMBERS = {"easy-vqa": 0, "digits": 1, "scenes": 2}
_NUM_TURNS = 4
_NUM_CHANCE_PICTURES = 2500


@dataclass(frozen=True)
class SplitSize:
    """How many pictures of a benchmark's domain a split holds, and how many questions each picture carries."""

    num_pictures: int
    num_short: int
    num_lists: int
    num_described: int


_SIZES = {"search": SplitSize(50, 4, 2, 100), "heldout": SplitSize(100, 4, 2, 200)}
"""The first `num_pictures` carry questions and lists; `num_described` pictures are described."""


@dataclass
class AskedQuestion:
    """One picture and what is asked about it.

    Attributes:
        source: one of `SOURCES`.
        image_id: unique over all splits and sources.
        image: (48, 48, 3) uint8.
        short: questions with an answer of one word.
        lists: questions with an answer of several words.
        described: the picture's description, or None for easy-VQA.
    """

    source: str
    image_id: str
    image: np.ndarray
    short: list[PocketQuestion]
    lists: list[PocketQuestion]
    described: PocketQuestion | None


def pictures(source: str, split: str, chunk: int, num: int, num_things: tuple[int, int] | None = None) -> Pictures:
    """Chunk `chunk` of the pictures of "scenes" or "digits" in a split."""
    draw = _DRAWERS[source]
    return draw(split, chunk, num, num_things) if num_things else draw(split, chunk, num)


def question_draw(source: str, split: str, chunk: int) -> Draw:
    """The stream of choices that the questions of one chunk are drawn from."""
    return Draw(SPLITS.index(split), 3, _DOMAIN_NUMBERS[source], chunk)


def asked_pictures(
    source: str, split: str, chunk: int, num: int, num_short: int, num_lists: int,
    num_things: tuple[int, int] | None = None,
) -> Iterator[AskedQuestion]:  # fmt: skip
    """Draw `num` pictures of "scenes" or "digits" with questions; the kinds take turns, so that all are asked alike."""
    drawn = pictures(source, split, chunk, num, num_things)
    draw = question_draw(source, split, chunk)
    for index in range(num):
        things = drawn.things(index)
        short = ask(things, _taking_turns(SHORT[source], num_short, index), SHORT[source], draw)
        lists = ask(things, _taking_turns(LISTS[source], num_lists, index), LISTS[source], draw)
        image_id = f"{source}-{split}-{chunk}-{index}"
        yield AskedQuestion(source, image_id, drawn.images[index], short, lists, describe(source, things))


def _taking_turns(makers: dict, num: int, index: int) -> list[str]:
    kinds = tuple(makers)
    return [kinds[(index * num + turn) % len(kinds)] for turn in range(num)]


def easy_vqa_pictures(split: str) -> tuple[str, list[int]]:
    """easy-VQA's own part and the images of a split: its test images are dealt to `search` and `heldout` in turn."""
    part = "train" if split in ("train", "recovery") else "test"
    ids = list(easy_vqa_questions(part))
    return part, ids if part == "train" else ids[("search", "heldout").index(split) :: 2]


def asked_easy_vqa(split: str, index: int, num_pairs: int, draw: Draw) -> AskedQuestion:
    """Picture number `index` of easy-VQA in a split, with `num_pairs` balanced pairs of yes-or-no questions."""
    part, ids = easy_vqa_pictures(split)
    image_id = ids[index % len(ids)]
    short = balanced_easy_vqa(part, image_id, num_pairs, draw)
    return AskedQuestion("easy-vqa", f"easy-vqa-{part}-{image_id}", easy_vqa_image(part, image_id), short, [], None)


@functools.cache
def _split_pictures(source: str, split: str) -> tuple[AskedQuestion, ...]:
    size = _SIZES[split]
    if source != "easy-vqa":
        return tuple(asked_pictures(source, split, 0, size.num_described, size.num_short, size.num_lists))
    draw = question_draw(source, split, 0)
    chosen: list[AskedQuestion] = []
    for index in draw.shuffled(range(len(easy_vqa_pictures(split)[1]))):
        asked = asked_easy_vqa(split, index, 1, draw)
        checks = [question for question in asked.short if question.kind.endswith("check")]
        others = [question for question in asked.short if not question.kind.endswith("check")]
        if len(checks) == 2 and len(others) >= 2:
            asked.short = draw.shuffled(checks + others[:2])
            chosen.append(asked)
        if len(chosen) == size.num_pictures:
            break
    return tuple(chosen)


@functools.cache
def split_questions(benchmark: str, split: str) -> tuple[tuple[AskedQuestion, PocketQuestion], ...]:
    """The questions of one benchmark and split, each with its picture.

    Raises:
        ValueError: the benchmark or the split is unknown.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
    if split not in _SIZES:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(_SIZES)}")
    size, chosen = _SIZES[split], []
    for source in (benchmark,) if benchmark in SOURCES else ("digits", "scenes"):
        for index, asked in enumerate(_split_pictures(source, split)):
            if index < size.num_pictures or benchmark == "descriptions":
                chosen += [(asked, question) for question in _of_benchmark(benchmark, asked)]
    return tuple(chosen)


@functools.cache
def _training_questions(benchmark: str) -> tuple[PocketQuestion, ...]:
    """A sample of the training side of a benchmark, to learn from it what can be guessed without the picture."""
    if benchmark == "easy-vqa":
        draw = question_draw(benchmark, "train", 0)
        part, ids = easy_vqa_pictures("train")
        chosen = [balanced_easy_vqa(part, image_id, 1, draw) for image_id in ids]
        return tuple(question for asked in chosen for question in asked)
    questions: list[PocketQuestion] = []
    for source in (benchmark,) if benchmark in SOURCES else ("digits", "scenes"):
        for asked in asked_pictures(source, "train", 0, _NUM_CHANCE_PICTURES, 4, 2):
            questions += _of_benchmark(benchmark, asked)
    return tuple(questions)


def _of_benchmark(benchmark: str, asked: AskedQuestion) -> list[PocketQuestion]:
    """Those questions about a picture that belong to the benchmark; kinds of lists name the picture's source."""
    if benchmark == "descriptions":
        return [asked.described] if asked.described else []
    if benchmark == "lists":
        return [question._replace(kind=f"{asked.source}-{question.kind}") for question in asked.lists]
    return asked.short


def num_guessed(benchmark: str, split: str) -> int:
    """Right answers of the best guess that sees only the question.

    Two guesses are learnt on training questions: the commonest answer to the same words (to the same kind where the
    words are new), and the commonest answer of the kind. The better of them on this split counts.
    """
    asked = split_questions(benchmark, split)
    by_words: dict[str, Counter] = defaultdict(Counter)
    by_kind: dict[str, Counter] = defaultdict(Counter)
    for question in _training_questions(benchmark):
        by_words[question.prompt][question.answer] += 1
        by_kind[question.kind][question.answer] += 1

    def commonest(counts: Counter) -> str:
        return max(sorted(counts), key=counts.__getitem__, default="")

    of_kind = [commonest(by_kind[q.kind]) == q.answer for _, q in asked]
    of_words = [commonest(by_words[q.prompt] or by_kind[q.kind]) == q.answer for _, q in asked]
    return max(sum(of_kind), sum(of_words))


@functools.cache
def recovery_conversations(num: int) -> tuple[tuple[str, np.ndarray, str, tuple[PocketQuestion, ...]], ...]:
    """`num` conversations of four turns: (id, image, source, turns). A smaller `num` gives the first of them.

    Of five conversations two are about digits, two about scenes and one about easy-VQA. Those about digits and scenes
    hold two short questions, a list and, last, the description.
    """
    order = ("digits", "scenes", "easy-vqa", "scenes", "digits")
    draws = {source: question_draw(source, "recovery", 0) for source in SOURCES}
    streams = {source: _recovery_stream(source, draws[source]) for source in SOURCES}
    rows = []
    for index in range(num):
        source = order[index % len(order)]
        image, turns = next(streams[source])
        rows.append((f"recovery-{index}", image, source, turns))
    return tuple(rows)


def _recovery_stream(source: str, draw: Draw) -> Iterator[tuple[np.ndarray, tuple[PocketQuestion, ...]]]:
    chunk = 0
    while True:
        if source == "easy-vqa":
            for index in draw.shuffled(range(len(easy_vqa_pictures("recovery")[1]))):
                asked = asked_easy_vqa("recovery", index, 1, draw)
                if len(asked.short) >= _NUM_TURNS:
                    yield asked.image, tuple(asked.short[:_NUM_TURNS])
        else:
            for asked in asked_pictures(source, "recovery", chunk, 200, 2, 1):
                if len(asked.short) == 2 and asked.lists and asked.described:
                    yield asked.image, (*draw.shuffled(asked.short + asked.lists), asked.described)
        chunk += 1
