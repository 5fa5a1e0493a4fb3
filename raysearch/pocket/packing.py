"""Training rows: several conversations about one picture behind a single copy of its image tokens.

A row is the shared prefix `<bos><user><image> x 36` and then conversations. A token of a conversation sees the prefix
and what comes before it in the same conversation, and its position counts on from the prefix, so that every
conversation is computed exactly as if it stood alone in the chat format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from raysearch.pocket.asking import PocketQuestion
from raysearch.pocket.model import ASSISTANT, BOS, EOS, IMAGE, NUM_IMAGE_TOKENS, USER

IGNORED = -100
PREFIX = 2 + NUM_IMAGE_TOKENS
BIN = 72
"""Tokens of a bin: the longest conversation of four turns fits."""
_SHORT_WEIGHTS = (2.0, 0.2)  # the answer's one word, and the end after it
_LIST_WEIGHT = 1.0
_DESCRIPTION_WEIGHT = 0.5
_DESCRIPTION_PROMPT = "describe"


@dataclass
class Row:
    """One packed row: the prefix, then bins of `BIN` tokens; no conversation crosses the edge of a bin.

    Every list has one entry per token.

    Attributes:
        tokens: token ids.
        conversations: 0 for the prefix, the number of the token's conversation from 1, or -1 for padding.
        positions: position ids.
        labels: the token to predict at this place, or `IGNORED`.
        weights: weight of the label in the loss.
        turns: 0 where there is no label, else the number of the question in the row, from 1.
    """

    tokens: list[int]
    conversations: list[int]
    positions: list[int]
    labels: list[int]
    weights: list[float]
    turns: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, other: "Row") -> None:
        """Put the other row's tokens behind this one's."""
        for field in fields(self):
            getattr(self, field.name).extend(getattr(other, field.name))

    def pad(self, length: int) -> None:
        """Pad to `length` tokens."""
        missing = length - len(self)
        for field in fields(self):
            getattr(self, field.name).extend([_FILL.get(field.name, 0)] * missing)


_FILL = {"conversations": -1, "labels": IGNORED, "weights": 0.0}


@dataclass
class PackedBatch:
    """Rows padded on the right to the same number of bins of `bin_size`; every array is (batch, seq)."""

    tokens: np.ndarray
    conversations: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    turns: np.ndarray
    bin_size: int = BIN

    def visible(self) -> np.ndarray:
        """What each token sees, (batch, seq, seq) bool, query by key."""
        same = self.conversations[:, :, None] == self.conversations[:, None, :]
        return (same | (self.conversations == 0)[:, None, :]) & np.tri(same.shape[1], dtype=bool)

    def visible_in_bins(self) -> np.ndarray:
        """What a token behind the prefix sees of its bin, (batch, bins, bin_size, bin_size) bool; it sees the whole
        prefix."""
        prefix = int((self.conversations[0] == 0).sum())
        binned = self.conversations[:, prefix:].reshape(len(self.tokens), -1, self.bin_size)
        return (binned[..., :, None] == binned[..., None, :]) & np.tri(self.bin_size, dtype=bool)


def words_of(text: str) -> list[str]:
    """The words of a prompt or answer as the tokenizer splits them."""
    return text.replace("?", " ?").replace(",", " ,").split()


class Packer:
    """Turns conversations into rows of token ids, by the embedded LVLM's chat format."""

    bin_size = BIN

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab
        self.prefix = [vocab[word] for word in (BOS, USER, *[IMAGE] * NUM_IMAGE_TOKENS)]

    def asked(self, prompt: str, is_first: bool) -> list[int]:
        """The tokens of a question, up to and including the cue for its answer."""
        words = [USER] * (not is_first) + words_of(prompt) + [ASSISTANT]
        return [self._vocab[word] for word in words]

    def answered(self, answer: str) -> list[int]:
        """The tokens of an answer and of its end."""
        return [self._vocab[word] for word in (*answer.split(), EOS)]

    def pack(self, conversations: Sequence[Sequence[PocketQuestion]]) -> Row:
        """One row of independent conversations about one picture.

        Raises:
            ValueError: a conversation is longer than a bin.
        """
        length = len(self.prefix)
        row = Row(
            [*self.prefix],
            [0] * length,
            list(range(length)),
            [IGNORED] * length,
            [0.0] * length,
            [0] * length,
        )
        bins: list[Row] = []
        turn = 1
        for number, conversation in enumerate(conversations, 1):
            piece = self._conversation(conversation, number, turn)
            turn += len(conversation)
            if len(piece) > self.bin_size:
                raise ValueError(f"a conversation of {len(piece)} tokens does not fit in a bin of {self.bin_size}")
            for each in bins:
                if len(each) + len(piece) <= self.bin_size:
                    each.append(piece)
                    break
            else:
                bins.append(piece)
        for each in bins:
            each.pad(self.bin_size)
            row.append(each)
        return row

    def _conversation(self, conversation: Sequence[PocketQuestion], number: int, first_turn: int) -> Row:
        """The tokens of one conversation; its last answer's <eos> is a label only."""
        row = Row([], [], [], [], [], [])
        for index, question in enumerate(conversation):
            middle = index < len(conversation) - 1
            asked, labels = self.asked(question.prompt, index == 0), self.answered(question.answer)
            before = len(asked) - 1
            row.tokens += asked + labels[: None if middle else -1]
            row.labels += [IGNORED] * before + labels + [IGNORED] * middle
            row.weights += [0.0] * before + _weights(question, len(labels)) + [0.0] * middle
            row.turns += [0] * before + [first_turn + index] * len(labels) + [0] * middle
        row.conversations += [number] * len(row)
        row.positions += range(len(self.prefix), len(self.prefix) + len(row))
        return row


def _weights(question: PocketQuestion, num_tokens: int) -> list[float]:
    if " " not in question.answer:
        word, end = _SHORT_WEIGHTS
        return [word] * (num_tokens - 1) + [end]
    described = question.prompt.startswith(_DESCRIPTION_PROMPT)
    return [_DESCRIPTION_WEIGHT if described else _LIST_WEIGHT] * num_tokens


def batch_rows(rows: Sequence[Row], bin_size: int = BIN) -> PackedBatch:
    """Pad rows, which were packed in bins of `bin_size`, to the longest."""
    length = max(len(row) for row in rows)
    arrays = {}
    for field in fields(Row):
        dtype = np.float32 if field.name == "weights" else np.int64
        array = np.full((len(rows), length), _FILL.get(field.name, 0), dtype)
        for index, row in enumerate(rows):
            array[index, : len(row)] = getattr(row, field.name)
        arrays[field.name] = array
    return PackedBatch(**arrays, bin_size=bin_size)
