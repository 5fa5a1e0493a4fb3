"""The embedded LVLM: a small `LlavaForConditionalGeneration` with its own data, trained by `scripts/pocket/train.py`.

Its weights ship with the package, so that the tests, a first run and the recorded trials need no download. Importing
this module loads neither torch nor transformers; pictures are drawn at first use, in seconds, and kept in memory.
"""

import functools
from pathlib import Path
from typing import Any

BENCHMARKS: tuple[str, ...] = ("easy-vqa", "digits", "scenes", "lists", "descriptions")
SPLITS: tuple[str, ...] = ("search", "heldout")

NUM_CONVERSATIONS = 2000
_IMAGE_PLACEHOLDER = "<image>\n"
_NUM_GUESSED: dict[str, dict[str, int]] = {
    "easy-vqa": {"search": 78, "heldout": 158},
    "digits": {"search": 59, "heldout": 113},
    "scenes": {"search": 52, "heldout": 141},
    "lists": {"search": 9, "heldout": 14},
    "descriptions": {"search": 0, "heldout": 0},
}
"""What `splits.num_guessed` finds, which draws thousands of training pictures first: seconds in every process."""


def weights_folder() -> Path:
    """The Hugging Face folder with the trained weights, tokenizer, processor and chat template."""
    return Path(__file__).parent / "weights"


@functools.cache
def _conversations(num: int) -> tuple[dict[str, Any], ...]:
    from PIL import Image

    from raysearch.pocket.splits import recovery_conversations

    rows = []
    for row_id, image, source, turns in recovery_conversations(num):
        said: list[dict[str, str]] = []
        for question in turns:
            said.append({"from": "human", "value": ("" if said else _IMAGE_PLACEHOLDER) + question.prompt})
            said.append({"from": "gpt", "value": question.answer})
        rows.append({"id": row_id, "source": source, "image": Image.fromarray(image), "conversations": said})
    return tuple(rows)


def conversations(num: int = NUM_CONVERSATIONS) -> list[dict[str, Any]]:
    """What trials train on: conversations of four turns about one picture each, as LLaVA writes them.

    Returns:
        Rows {"id", "source", "image": PIL RGB 48 x 48, "conversations": [{"from": "human" or "gpt", "value"}, ...]};
        the first human turn begins with "<image>" and a line break. A smaller `num` gives the first rows.
    """
    return list(_conversations(num))


@functools.cache
def _questions(benchmark: str, split: str) -> tuple[dict[str, Any], ...]:
    from PIL import Image

    from raysearch.pocket.splits import split_questions

    images: dict[str, Any] = {}
    rows = []
    for number, (asked, question) in enumerate(split_questions(benchmark, split)):
        image = images.setdefault(asked.image_id, Image.fromarray(asked.image))
        rows.append(
            {
                "id": f"{benchmark}-{split}-{number}",
                "image": image,
                "image_id": asked.image_id,
                "prompt": question.prompt,
                "answer": question.answer,
                "kind": question.kind,
            }
        )
    return tuple(rows)


def questions(benchmark: str, split: str) -> list[dict[str, Any]]:
    """The questions of a benchmark; questions about one picture follow each other.

    Args:
        benchmark: one of `BENCHMARKS`.
        split: "search" to guide a search, "heldout" to report.

    Returns:
        Rows {"id", "image": PIL RGB 48 x 48, "image_id", "prompt", "answer", "kind"}. An answer is right when it
        matches word for word.

    Raises:
        ValueError: the benchmark or the split is unknown.
    """
    return list(_questions(benchmark, split))


def chance(benchmark: str, split: str) -> float:
    """Share of right answers of the best guess that never sees the picture, learnt on training questions."""
    return _NUM_GUESSED[benchmark][split] / len(_questions(benchmark, split))
