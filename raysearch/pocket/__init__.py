"""The embedded LVLM: a small `LlavaForConditionalGeneration` with its own data, trained by `scripts/pocket/train.py`.

Its weights ship with the package, so that tests and a first run need no download. Importing this module loads neither
torch nor transformers; images are drawn at first use, in seconds, and cached in memory.
"""

import functools
from pathlib import Path
from typing import Any

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
"""Results of `splits.num_guessed`, which takes seconds to draw thousands of training images."""


def weights_folder() -> Path:
    """The Hugging Face folder of the trained weights, tokenizer, processor and chat template."""
    return Path(__file__).parent / "weights"


@functools.cache
def conversations(num: int = NUM_CONVERSATIONS) -> tuple[dict[str, Any], ...]:
    """The recovery data: conversations of four turns about one image each, in LLaVA's format.

    Returns:
        Rows {"id", "source", "image": PIL RGB 48 x 48, "conversations": [{"from": "human" or "gpt", "value"}, ...]};
        the first human turn begins with "<image>" and a line break. A smaller `num` gives the first rows.
    """
    from PIL import Image

    from raysearch.pocket.splits import recovery_conversations

    rows = []
    for row_id, pixels, source, pairs in recovery_conversations(num):
        turns: list[dict[str, str]] = []
        for question in pairs:
            turns.append({"from": "human", "value": ("" if turns else _IMAGE_PLACEHOLDER) + question.prompt})
            turns.append({"from": "gpt", "value": question.answer})
        rows.append({"id": row_id, "source": source, "image": Image.fromarray(pixels), "conversations": turns})
    return tuple(rows)


@functools.cache
def questions(benchmark: str, split: str) -> tuple[dict[str, Any], ...]:
    """The questions of a benchmark; those about one image are adjacent.

    Args:
        benchmark: one of `config.settings.EMBEDDED_BENCHMARKS`.
        split: "search" to guide a search, "heldout" to report.

    Returns:
        Rows {"id", "image": PIL RGB 48 x 48, "image_id", "prompt", "answer", "kind"}.

    Raises:
        ValueError: the benchmark or the split is unknown.
    """
    from PIL import Image

    from raysearch.pocket.splits import split_questions

    images: dict[str, Any] = {}
    rows = []
    for number, (annotated, question) in enumerate(split_questions(benchmark, split)):
        image_id = annotated.image_id
        image = images.setdefault(image_id, Image.fromarray(annotated.pixels))
        row = {"id": f"{benchmark}-{split}-{number}", "image": image, "image_id": image_id}
        rows.append(row | {"prompt": question.prompt, "answer": question.answer, "kind": question.kind})
    return tuple(rows)


def chance(benchmark: str, split: str) -> float:
    """Accuracy of the best guess that doesn't see the image, learnt from training questions."""
    return _NUM_GUESSED[benchmark][split] / len(questions(benchmark, split))
