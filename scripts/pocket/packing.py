"""Packed training rows: several conversations about one image share a prefix with its image tokens.

A row is the prefix `<bos><user><image> x 36`, then conversations. A token of a conversation attends to the prefix and
to earlier tokens of the same conversation, and its position continues from the prefix, so every conversation is
computed exactly as it would be alone in the chat format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from raysearch.pocket.model import ASSISTANT, BOS, EOS, IMAGE, NUM_IMAGE_TOKENS, USER
from raysearch.pocket.question_templates import PocketQuestion

IGNORED = -100
PREFIX = 2 + NUM_IMAGE_TOKENS
BIN = 72
"""Tokens of a bin; the longest conversation of four turns fits."""
_SHORT_WEIGHTS = (2.0, 0.2)  # of the answer's only word, and of the end token
_LIST_WEIGHT = 1.0
_DESCRIPTION_WEIGHT = 0.5


@dataclass
class Row:
    """One packed row: the prefix, then bins of `BIN` tokens; every conversation is within one bin.

    Every list has one entry per token.

    Attributes:
        tokens: token ids.
        conversations: index of the token's conversation from 1, 0 for the prefix, -1 for padding.
        positions: position ids.
        labels: the next token to predict, or `IGNORED`.
        weights: weight of the label in the loss.
        turns: index of the label's question in the row from 1, 0 without a label.
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
        """Append the tokens of `other`."""
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
    """Rows right-padded to the same number of bins of `bin_size` tokens; every array is (batch, seq)."""

    tokens: np.ndarray
    conversations: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    turns: np.ndarray
    bin_size: int = BIN

    def visible(self) -> np.ndarray:
        """The attention mask, (batch, seq, seq) bool, query by key; True where attended."""
        same = self.conversations[:, :, None] == self.conversations[:, None, :]
        return (same | (self.conversations == 0)[:, None, :]) & np.tri(same.shape[1], dtype=bool)

    def visible_in_bins(self) -> np.ndarray:
        """The mask within bins, (batch, bins, bin_size, bin_size) bool; the whole prefix is attended to besides."""
        prefix = int((self.conversations[0] == 0).sum())
        binned = self.conversations[:, prefix:].reshape(len(self.tokens), -1, self.bin_size)
        return (binned[..., :, None] == binned[..., None, :]) & np.tri(self.bin_size, dtype=bool)


def words_of(text: str) -> list[str]:
    """The words of a prompt or answer, as the tokenizer splits them."""
    return text.replace("?", " ?").replace(",", " ,").split()


class Packer:
    """Packs conversations into rows of token ids, in the embedded LVLM's chat format."""

    bin_size = BIN

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab
        self.prefix = [vocab[word] for word in (BOS, USER, *[IMAGE] * NUM_IMAGE_TOKENS)]

    def prompt_ids(self, prompt: str, is_first: bool) -> list[int]:
        """Token ids of a question, up to and including `<assistant>`."""
        words = [USER] * (not is_first) + words_of(prompt) + [ASSISTANT]
        return [self._vocab[word] for word in words]

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer and its end token."""
        return [self._vocab[word] for word in (*answer.split(), EOS)]

    def pack(self, conversations: Sequence[Sequence[PocketQuestion]]) -> Row:
        """One row of independent conversations about one image.

        Raises:
            ValueError: a conversation is longer than a bin.
        """
        length, zeros = len(self.prefix), [0] * len(self.prefix)
        row = Row([*self.prefix], zeros[:], [*range(length)], [IGNORED] * length, [0.0] * length, zeros[:])
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
        """The row of one conversation; the end token of its last answer is only a label."""
        row = Row([], [], [], [], [], [])
        for index, question in enumerate(conversation):
            middle = index < len(conversation) - 1
            prompt, labels = self.prompt_ids(question.prompt, index == 0), self.answer_ids(question.answer)
            before = len(prompt) - 1
            row.tokens += prompt + labels[: None if middle else -1]
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
    return [_DESCRIPTION_WEIGHT if question.prompt.startswith("describe") else _LIST_WEIGHT] * num_tokens


def batch_rows(rows: Sequence[Row], bin_size: int = BIN) -> PackedBatch:
    """A batch of rows packed in bins of `bin_size`, padded to the longest."""
    length = max(len(row) for row in rows)
    arrays = {}
    for field in fields(Row):
        dtype = np.float32 if field.name == "weights" else np.int64
        array = np.full((len(rows), length), _FILL.get(field.name, 0), dtype)
        for index, row in enumerate(rows):
            array[index, : len(row)] = getattr(row, field.name)
        arrays[field.name] = array
    return PackedBatch(**arrays, bin_size=bin_size)
