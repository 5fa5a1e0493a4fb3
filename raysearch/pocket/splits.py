"""The images and questions of pretraining, of the recovery conversations, and of the benchmarks' splits."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raysearch.config.settings import EMBEDDED_BENCHMARKS
from raysearch.pocket.drawing import (
    SPLITS,
    Draw,
    LabeledImages,
    draw_digits,
    draw_scenes,
    easy_vqa_image,
    easy_vqa_questions,
)
from raysearch.pocket.question_templates import (
    LISTS,
    SHORT,
    PocketQuestion,
    balanced_easy_vqa,
    describe,
    make_questions,
)

SOURCES = ("easy-vqa", "digits", "scenes")

_DRAWERS = {"scenes": draw_scenes, "digits": draw_digits}
_DOMAIN_NUMBERS = {"easy-vqa": 0, "digits": 1, "scenes": 2}
_NUM_TURNS = 4
_NUM_CHANCE_IMAGES = 2500


@dataclass(frozen=True)
class SplitSize:
    """Images of a source in a split: the first `num_images` have questions, the first `num_described` a description."""

    num_images: int
    num_short: int
    num_lists: int
    num_described: int


_SIZES = {"search": SplitSize(50, 4, 2, 100), "heldout": SplitSize(100, 4, 2, 200)}


@dataclass
class AnnotatedImage:
    """One image and the questions about it.

    Attributes:
        source: one of `SOURCES`.
        image_id: unique over all splits and sources.
        pixels: (48, 48, 3) uint8.
        short: questions with an answer of one word.
        lists: questions with an answer of several words.
        description: the description of the image, or None for easy-VQA.
    """

    source: str
    image_id: str
    pixels: np.ndarray
    short: list[PocketQuestion]
    lists: list[PocketQuestion]
    description: PocketQuestion | None


def labeled_images(
    source: str, split: str, chunk: int, num: int, num_things: tuple[int, int] | None = None
) -> LabeledImages:
    """Chunk `chunk` of the images of "scenes" or "digits" in a split."""
    draw = _DRAWERS[source]
    return draw(split, chunk, num, num_things) if num_things else draw(split, chunk, num)


def question_draw(source: str, split: str, chunk: int) -> Draw:
    """The random choices that the questions of one chunk are drawn with."""
    return Draw(SPLITS.index(split), 3, _DOMAIN_NUMBERS[source], chunk)


def annotated_images(
    source: str, split: str, chunk: int, num: int, num_short: int, num_lists: int,
    num_things: tuple[int, int] | None = None,
) -> Iterator[AnnotatedImage]:  # fmt: skip
    """`num` images of "scenes" or "digits" with questions, whose kinds rotate so that all are equally frequent."""
    drawn = labeled_images(source, split, chunk, num, num_things)
    draw = question_draw(source, split, chunk)
    for index in range(num):
        things = drawn.things(index)
        short = make_questions(things, _rotated(SHORT[source], num_short, index), SHORT[source], draw)
        lists = make_questions(things, _rotated(LISTS[source], num_lists, index), LISTS[source], draw)
        image_id = f"{source}-{split}-{chunk}-{index}"
        yield AnnotatedImage(source, image_id, drawn.images[index], short, lists, describe(source, things))


def _rotated(templates: dict, num: int, index: int) -> list[str]:
    kinds = tuple(templates)
    return [kinds[(index * num + turn) % len(kinds)] for turn in range(num)]


def easy_vqa_images(split: str) -> tuple[str, list[int]]:
    """easy-VQA's own part and the image ids of a split; `search` and `heldout` get its test images alternately."""
    part = "train" if split in ("train", "recovery") else "test"
    ids = list(easy_vqa_questions(part))
    return part, ids if part == "train" else ids[("search", "heldout").index(split) :: 2]


def annotated_easy_vqa(split: str, index: int, num_pairs: int, draw: Draw) -> AnnotatedImage:
    """Image `index` of easy-VQA in a split, with `num_pairs` balanced pairs of yes-or-no questions."""
    part, ids = easy_vqa_images(split)
    image_id = ids[index % len(ids)]
    short = balanced_easy_vqa(part, image_id, num_pairs, draw)
    return AnnotatedImage("easy-vqa", f"easy-vqa-{part}-{image_id}", easy_vqa_image(part, image_id), short, [], None)


@functools.cache
def _split_images(source: str, split: str) -> tuple[AnnotatedImage, ...]:
    size = _SIZES[split]
    if source != "easy-vqa":
        return tuple(annotated_images(source, split, 0, size.num_described, size.num_short, size.num_lists))
    draw = question_draw(source, split, 0)
    chosen: list[AnnotatedImage] = []
    for index in draw.shuffled(range(len(easy_vqa_images(split)[1]))):
        image = annotated_easy_vqa(split, index, 1, draw)
        checks = [question for question in image.short if question.kind.endswith("check")]
        others = [question for question in image.short if not question.kind.endswith("check")]
        if len(checks) == 2 and len(others) >= 2:
            image.short = draw.shuffled(checks + others[:2])
            chosen.append(image)
        if len(chosen) == size.num_images:
            break
    return tuple(chosen)


@functools.cache
def split_questions(benchmark: str, split: str) -> tuple[tuple[AnnotatedImage, PocketQuestion], ...]:
    """The questions of one benchmark and split, each with its image.

    Raises:
        ValueError: the benchmark or the split is unknown.
    """
    if benchmark not in EMBEDDED_BENCHMARKS:
        raise ValueError(f"unknown benchmark {benchmark!r}; known: {', '.join(EMBEDDED_BENCHMARKS)}")
    if split not in _SIZES:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(_SIZES)}")
    size, chosen = _SIZES[split], []
    for source in _sources_of(benchmark):
        for index, image in enumerate(_split_images(source, split)):
            if index < size.num_images or benchmark == "descriptions":
                chosen += [(image, question) for question in _of_benchmark(benchmark, image)]
    return tuple(chosen)


@functools.cache
def _training_questions(benchmark: str) -> tuple[PocketQuestion, ...]:
    """Training questions of a benchmark, from which guesses without the image are learnt."""
    if benchmark == "easy-vqa":
        draw = question_draw(benchmark, "train", 0)
        part, ids = easy_vqa_images("train")
        return tuple(question for image_id in ids for question in balanced_easy_vqa(part, image_id, 1, draw))
    questions: list[PocketQuestion] = []
    for source in _sources_of(benchmark):
        for image in annotated_images(source, "train", 0, _NUM_CHANCE_IMAGES, 4, 2):
            questions += _of_benchmark(benchmark, image)
    return tuple(questions)


def _sources_of(benchmark: str) -> tuple[str, ...]:
    return (benchmark,) if benchmark in SOURCES else ("digits", "scenes")


def _of_benchmark(benchmark: str, image: AnnotatedImage) -> list[PocketQuestion]:
    """The questions about an image that belong to the benchmark; kinds of lists are prefixed by the source."""
    if benchmark == "descriptions":
        return [image.description] if image.description else []
    if benchmark == "lists":
        return [question._replace(kind=f"{image.source}-{question.kind}") for question in image.lists]
    return image.short


def num_guessed(benchmark: str, split: str) -> int:
    """Right answers of the best guess that sees only the question.

    Two guesses are learnt from training questions: the commonest answer to the same prompt (to the same kind for a new
    prompt), and the commonest answer of the kind. The better of them on this split counts.
    """
    questions = [question for _, question in split_questions(benchmark, split)]
    by_prompt: dict[str, Counter] = defaultdict(Counter)
    by_kind: dict[str, Counter] = defaultdict(Counter)
    for question in _training_questions(benchmark):
        by_prompt[question.prompt][question.answer] += 1
        by_kind[question.kind][question.answer] += 1

    def commonest(counts: Counter) -> str:
        return max(sorted(counts), key=counts.__getitem__, default="")

    of_kind = [commonest(by_kind[q.kind]) == q.answer for q in questions]
    of_prompt = [commonest(by_prompt[q.prompt] or by_kind[q.kind]) == q.answer for q in questions]
    return max(sum(of_kind), sum(of_prompt))


@functools.cache
def recovery_conversations(num: int) -> tuple[tuple[str, np.ndarray, str, tuple[PocketQuestion, ...]], ...]:
    """`num` conversations of four turns: (id, pixels, source, turns). A smaller `num` gives the first of them.

    Of five conversations two are about digits, two about scenes and one about easy-VQA. Those about digits and scenes
    have two short questions, a list and, last, the description.
    """
    order = ("digits", "scenes", "easy-vqa", "scenes", "digits")
    streams = {source: _recovery_stream(source, question_draw(source, "recovery", 0)) for source in SOURCES}
    rows = []
    for index in range(num):
        source = order[index % len(order)]
        pixels, turns = next(streams[source])
        rows.append((f"recovery-{index}", pixels, source, turns))
    return tuple(rows)


def _recovery_stream(source: str, draw: Draw) -> Iterator[tuple[np.ndarray, tuple[PocketQuestion, ...]]]:
    chunk = 0
    while True:
        if source == "easy-vqa":
            for index in draw.shuffled(range(len(easy_vqa_images("recovery")[1]))):
                image = annotated_easy_vqa("recovery", index, 1, draw)
                if len(image.short) >= _NUM_TURNS:
                    yield image.pixels, tuple(image.short[:_NUM_TURNS])
        else:
            for image in annotated_images(source, "recovery", chunk, 200, 2, 1):
                if len(image.short) == 2 and image.lists and image.description:
                    yield image.pixels, (*draw.shuffled(image.short + image.lists), image.description)
        chunk += 1
