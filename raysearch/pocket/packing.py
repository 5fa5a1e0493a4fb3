"""Training rows: several conversations about one picture behind a single copy of its image tokens.

A row is the shared prefix `<bos><user><image> x 36` and then conversations. A token of a conversation sees the prefix
and what comes before it in the same conversation, and its position counts on from the prefix, so that every
conversation is computed exactly as if it stood alone in the chat format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from raysearch.pocket.asking import Question
from raysearch.pocket.model import ASSISTANT, BOS, EOS, IMAGE, NUM_IMAGE_TOKENS, USER

IGNORED = -100
PREFIX = 2 + NUM_IMAGE_TOKENS
BIN = 72
"""Tokens of a bin: the longest conversation of four turns fits."""
_SHORT_WEIGHTS = (2.0, 0.2)  # the answer's one word, and <eos> after it
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
    """Rows padded on the right to the same number of bins; every array is (batch, seq)."""

    tokens: np.ndarray
    conversations: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    turns: np.ndarray

    def visible(self) -> np.ndarray:
        """What each token sees, (batch, seq, seq) bool, query by key."""
        same = self.conversations[:, :, None] == self.conversations[:, None, :]
        return (same | (self.conversations == 0)[:, None, :]) & np.tri(same.shape[1], dtype=bool)

    def visible_in_bins(self) -> np.ndarray:
        """What a token behind the prefix sees of its bin, (batch, bins, BIN, BIN) bool; it sees the whole prefix."""
        binned = self.conversations[:, PREFIX:].reshape(len(self.tokens), -1, BIN)
        return (binned[..., :, None] == binned[..., None, :]) & np.tri(BIN, dtype=bool)


def words_of(text: str) -> list[str]:
    """The words of a prompt or answer as the tokenizer splits them."""
    return text.replace("?", " ?").replace(",", " ,").split()


class Packer:
    """Turns conversations into rows of token ids."""

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab

    def pack(self, conversations: Sequence[Sequence[Question]]) -> Row:
        """One row of independent conversations about one picture.

        Raises:
            ValueError: a conversation is longer than a bin.
        """
        tokens = [self._vocab[word] for word in (BOS, USER, *[IMAGE] * NUM_IMAGE_TOKENS)]
        row = Row(tokens, [0] * PREFIX, list(range(PREFIX)), [IGNORED] * PREFIX, [0.0] * PREFIX, [0] * PREFIX)
        bins: list[Row] = []
        turn = 1
        for number, conversation in enumerate(conversations, 1):
            piece = self._conversation(conversation, number, turn)
            turn += len(conversation)
            if len(piece) > BIN:
                raise ValueError(f"a conversation of {len(piece)} tokens does not fit in a bin of {BIN}")
            for each in bins:
                if len(each) + len(piece) <= BIN:
                    each.append(piece)
                    break
            else:
                bins.append(piece)
        for each in bins:
            each.pad(BIN)
            row.append(each)
        return row

    def _conversation(self, conversation: Sequence[Question], number: int, first_turn: int) -> Row:
        """The tokens of one conversation; its last answer's <eos> is a label only."""
        vocab = self._vocab
        row = Row([], [], [], [], [], [])
        for index, question in enumerate(conversation):
            middle = index < len(conversation) - 1
            asked = [USER] * (index > 0) + words_of(question.prompt) + [ASSISTANT]
            labels = [vocab[word] for word in question.answer.split()] + [vocab[EOS]]
            before = len(asked) - 1
            row.tokens += [vocab[word] for word in asked] + labels[: None if middle else -1]
            row.labels += [IGNORED] * before + labels + [IGNORED] * middle
            row.weights += [0.0] * before + _weights(question) + [0.0] * middle
            row.turns += [0] * before + [first_turn + index] * len(labels) + [0] * middle
        row.conversations += [number] * len(row)
        row.positions += range(PREFIX, PREFIX + len(row))
        return row


def _weights(question: Question) -> list[float]:
    num_words = len(question.answer.split())
    if num_words == 1:
        return list(_SHORT_WEIGHTS)
    described = question.prompt.startswith(_DESCRIPTION_PROMPT)
    return [_DESCRIPTION_WEIGHT if described else _LIST_WEIGHT] * (num_words + 1)


def batch_rows(rows: Sequence[Row]) -> PackedBatch:
    """Pad rows to the longest."""
    length = max(len(row) for row in rows)
    arrays = {}
    for field in fields(Row):
        dtype = np.float32 if field.name == "weights" else np.int64
        array = np.full((len(rows), length), _FILL.get(field.name, 0), dtype)
        for index, row in enumerate(rows):
            array[index, : len(row)] = getattr(row, field.name)
        arrays[field.name] = array
    return PackedBatch(**arrays)
