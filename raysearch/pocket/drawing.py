"""The images of the embedded LVLM: drawn scenes, scenes of scanned digits, and those of easy-VQA.

Every image is 48 x 48 RGB. Scenes and digits lie on a grid of 3 x 3 cells of 16 x 16 pixels. Arithmetic is on integers
and randomness is the raw output of PCG64, whose stream NumPy guarantees, so every machine draws the same bytes.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Thing = dict[str, str]
"""Attributes of one object of an image: `row`, `column` and `color`, and `shape` and `size` or `digit`."""

IMAGE_SIZE = 48
CELL = 16
GRID = 3
NUM_CELLS = GRID * GRID

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle", "cross")
SIZES = ("small", "large")
DIGITS = tuple("0123456789")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": COLORS, "shape": SHAPES, "size": SIZES, "digit": DIGITS, "row": ROWS, "column": COLUMNS,
}  # fmt: skip

SPLITS = ("train", "recovery", "search", "heldout")
"""`train` is the endless stream for pretraining, `recovery` the conversations that trials train on."""

_PAINT = np.array([  # RGB by color
    (15, 15, 15), (30, 60, 220), (130, 75, 30), (128, 128, 128), (30, 150, 50), (220, 40, 40), (20, 180, 180),
    (235, 210, 40),
])  # fmt: skip
_SMALL_RADII = (7, 8, 9)  # in half pixels
_LARGE_RADII = (11, 12, 13)
_NUM_SEARCH_SCANS = _NUM_HELDOUT_SCANS = 250
_SCAN_SIZE = 14
_DOMAIN_SEEDS = {"scenes": 1, "digits": 2, "questions": 3}


def random_words(split: str, stream: str, chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform 31-bit integers of `shape`, a pure function of the arguments."""
    seed = (SPLITS.index(split), _DOMAIN_SEEDS[stream], chunk)
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (raw >> np.uint64(33)).astype(np.int64).reshape(shape)


class Draw:
    """Random choices from one fixed stream of integers, by `seed`; `below` is uniform to 2**-25 for small `n`."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._pool: list[int] = []

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        if not self._pool:
            self._pool = (self._bits.random_raw(4096) >> np.uint64(33)).tolist()
        return self._pool.pop() % n

    def pick(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """`items` in random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


@dataclass
class LabeledImages:
    """Images on the grid and their labels; cells are numbered row by row.

    Attributes:
        images: (num, 48, 48, 3) uint8.
        labels: per attribute (num, 9) int64, the index into `ATTRIBUTES[name]`, or -1 where a cell is empty or the
            domain has no such attribute.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]

    def things(self, index: int) -> list[Thing]:
        """The objects of one image, row by row."""
        named = {name: label[index].tolist() for name, label in self.labels.items()}
        things = []
        for cell in range(NUM_CELLS):
            if named["color"][cell] < 0:
                continue
            thing = {"row": ROWS[cell // GRID], "column": COLUMNS[cell % GRID]}
            thing |= {name: ATTRIBUTES[name][label[cell]] for name, label in named.items() if label[cell] >= 0}
            things.append(thing)
        return things


def draw_scenes(split: str, chunk: int, num: int, num_things: tuple[int, int] = (4, 7)) -> LabeledImages:
    """Scenes of things in 8 colours, 4 shapes and 2 sizes.

    Args:
        split: one of `SPLITS`; each has a random stream of its own.
        chunk: index of this chunk in the stream.
        num: number of images.
        num_things: fewest and most things in an image.
    """
    words = random_words(split, "scenes", chunk, (num, 60))
    present = _choose_cells(words[:, :10], num_things)
    palette = np.argsort(words[:, 10:18], axis=1, kind="stable")
    palette_size = 4 + words[:, 18:19] % 5
    color = np.take_along_axis(palette, words[:, 19:28] % palette_size, axis=1)
    shape = words[:, 28:37] % len(SHAPES)
    size = words[:, 37:46] % len(SIZES)
    radius = size * len(_SMALL_RADII) + (words[:, 46:55] >> 8) % len(_SMALL_RADII)
    jitter = words[:, 28:37] >> 8
    masks = _shape_masks()
    cover = masks[shape, radius, jitter % 8, (jitter >> 3) % 8] * present[..., None, None]
    images = _compose(cover, _PAINT[color], words[:, 55:58], _noise_words(split, "scenes", chunk, num))
    drawn = {"color": color, "shape": shape, "size": size}
    labels = {name: np.where(present, value, -1) for name, value in drawn.items()}
    labels["digit"] = np.full_like(color, -1)
    return LabeledImages(images, labels)


def draw_digits(split: str, chunk: int, num: int, num_things: tuple[int, int] = (3, 6)) -> LabeledImages:
    """Scenes of scanned digits in coloured ink; the scans of `search` and `heldout` occur in no other split."""
    words = random_words(split, "digits", chunk, (num, 60))
    present = _choose_cells(words[:, :10], num_things)
    scans, values = digit_scans(split)
    scan = words[:, 10:19] % len(scans)
    palette = np.argsort(words[:, 19:27], axis=1, kind="stable")
    color = np.take_along_axis(palette, words[:, 28:37] % (3 + words[:, 27:28] % 6), axis=1)
    shift = words[:, 37:46]
    cover = np.zeros((num, NUM_CELLS, CELL, CELL), np.int64)
    slack = CELL - _SCAN_SIZE + 1
    for down in range(slack):
        for right in range(slack):
            here = present & (shift % slack == down) & ((shift >> 8) % slack == right)
            cover[here, down : down + _SCAN_SIZE, right : right + _SCAN_SIZE] = scans[scan[here]]
    images = _compose(cover, _PAINT[color] * 4 // 5, words[:, 55:58], _noise_words(split, "digits", chunk, num))
    missing = np.full_like(color, -1)
    labels = {"color": np.where(present, color, -1), "shape": missing, "size": missing}
    labels["digit"] = np.where(present, values[scan], -1)
    return LabeledImages(images, labels)


def _choose_cells(words: np.ndarray, num_things: tuple[int, int]) -> np.ndarray:
    """Which of the 9 cells hold a thing, (num, 9) bool, from 10 random integers per image."""
    fewest, most = num_things
    rank = np.argsort(np.argsort(words[:, :9], axis=1, kind="stable"), axis=1, kind="stable")
    return rank < fewest + words[:, 9:10] % (most - fewest + 1)


def _noise_words(split: str, stream: str, chunk: int, num: int) -> np.ndarray:
    """Random bytes for every pixel and channel, (num, 48, 48, 3)."""
    num_bytes = num * IMAGE_SIZE * IMAGE_SIZE * 3
    raw = np.random.PCG64((SPLITS.index(split), _DOMAIN_SEEDS[stream], chunk, 1)).random_raw(num_bytes // 8)
    return raw.astype("<u8").view(np.uint8).reshape(num, IMAGE_SIZE, IMAGE_SIZE, 3)


def _compose(cover: np.ndarray, ink: np.ndarray, ground_words: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw ink over a light background and add noise.

    Args:
        cover: (num, 9, 16, 16), opacity of the ink at each pixel of a cell, from 0 to 255.
        ink: (num, 9, 3), colour of each cell's thing.
        ground_words: (num, 3), random integers that choose the background colour.
        noise: (num, 48, 48, 3) random bytes.

    Returns:
        (num, 48, 48, 3) uint8.
    """
    num = len(cover)
    ground = (215 + ground_words % 41).astype(np.int32)[:, None, None, None, :]
    share = cover.astype(np.int32)[..., None]
    cells = (ground * (255 - share) + ink.astype(np.int32)[:, :, None, None, :] * share + 127) // 255
    cells = cells.reshape(num, GRID, GRID, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    grain = (noise & 7).astype(np.int32) + ((noise >> 3) & 7) - 7
    return np.clip(cells.reshape(num, IMAGE_SIZE, IMAGE_SIZE, 3) + grain, 0, 255).astype(np.uint8)


@functools.cache
def _shape_masks() -> np.ndarray:
    """Cover of one cell for (shape, radius, vertical and horizontal jitter): (4, 6, 8, 8, 16, 16), 0 or 255."""
    radii = _SMALL_RADII + _LARGE_RADII
    masks = np.zeros((len(SHAPES), len(radii), 8, 8, CELL, CELL), np.int64)
    at = 2 * np.arange(CELL) + 1  # pixel centres in half pixels
    for number, radius in enumerate(radii):
        room = CELL - radius
        for down in range(8):
            for right in range(8):
                y = (at - CELL - (down * 2 * room // 7 - room))[:, None]
                x = (at - CELL - (right * 2 * room // 7 - room))[None, :]
                circle = x * x + y * y <= radius * radius
                rectangle = (abs(x) <= radius) & (5 * abs(y) <= 4 * radius)
                triangle = (5 * y <= 4 * radius) & (y >= -radius) & (5 * abs(x) <= 3 * (y + radius))
                bar = max(2, radius * 9 // 25)
                cross = ((abs(x) <= bar) | (abs(y) <= bar)) & (abs(x) <= radius) & (abs(y) <= radius)
                for kind, mask in enumerate((circle, rectangle, triangle, cross)):
                    masks[kind, number, down, right] = mask * 255
    return masks


@functools.cache
def digit_scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The scans of a split, (num, 14, 14) from 0 to 255, and their digits, (num,); `recovery` uses those of `train`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.argsort(np.random.PCG64(7).random_raw(len(bunch.target)), kind="stable")
    first_heldout = len(order) - _NUM_HELDOUT_SCANS
    first_search = first_heldout - _NUM_SEARCH_SCANS
    reserved = {"search": order[first_search:first_heldout], "heldout": order[first_heldout:]}
    chosen = reserved.get(split, order[:first_search])
    return _enlarge(bunch.images.astype(np.int64)[chosen]), bunch.target.astype(np.int64)[chosen]


def _enlarge(scans: np.ndarray) -> np.ndarray:
    """Bilinear upsampling of (num, 8, 8) scans from 0 to 16 to (num, 14, 14) from 0 to 255, in integers."""
    unit = 2 * _SCAN_SIZE
    where = np.clip((2 * np.arange(_SCAN_SIZE) + 1) * 8 - _SCAN_SIZE, 0, 7 * unit)
    low, part = where // unit, where % unit
    high = np.minimum(low + 1, 7)
    down = scans[:, low] * (unit - part)[None, :, None] + scans[:, high] * part[None, :, None]
    both = down[:, :, low] * (unit - part) + down[:, :, high] * part
    return both * 255 // (16 * unit * unit)


@functools.cache
def easy_vqa_questions(part: str) -> dict[int, list[tuple[str, str]]]:
    """Prompts and answers of easy-VQA by image id; `part` is its own "train" or "test"."""
    text = (_easy_vqa_folder() / part / "questions.json").read_text(encoding="utf-8")
    by_image: dict[int, list[tuple[str, str]]] = {}
    for prompt, answer, image_id in json.loads(text):
        by_image.setdefault(image_id, []).append((prompt, answer))
    return dict(sorted(by_image.items()))


@functools.cache
def easy_vqa_image(part: str, image_id: int) -> np.ndarray:
    """One easy-VQA image, (48, 48, 3) uint8, downsampled from 64 x 64 by area averages in integers."""
    from PIL import Image

    with Image.open(_easy_vqa_folder() / part / "images" / f"{image_id}.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    tripled = pixels.repeat(3, axis=0).repeat(3, axis=1)
    blocks = tripled.reshape(IMAGE_SIZE, 4, IMAGE_SIZE, 4, 3).sum(axis=(1, 3))
    return ((blocks + 8) // 16).astype(np.uint8)


@functools.cache
def _easy_vqa_folder() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the embedded LVLM's data need easy-vqa: pip install easy-vqa==1.0")
    return Path(spec.origin).parent / "data"
