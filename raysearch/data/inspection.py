"""Data as a model gets them: tokens with labels, token counts, and what is left out and why."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from raysearch.data.bad_rows import BadRow
from raysearch.data.encoding import Encoded, Encoder
from raysearch.data.labels import IGNORED, num_answer_labels
from raysearch.data.loading import Samples
from raysearch.data.samples import Sample

NUM_ROWS_ENCODED = 500
"""Most rows that are encoded, evenly spread."""
_LONG_RUN = 4
"""Least equal tokens in a row that are shown once, with their number."""


@dataclass
class Inspection:
    """What a model's processor makes of some rows.

    Attributes:
        num_rows: of the data.
        num_tokens, num_answer_tokens, num_images: of each usable row, the too long ones included.
        num_long: rows of more than `max_length` tokens.
        bad: reasons by row; those of long rows are not among them.
    """

    num_rows: int
    num_encoded: int = 0
    num_tokens: list[int] = field(default_factory=list)
    num_answer_tokens: list[int] = field(default_factory=list)
    num_images: list[int] = field(default_factory=list)
    num_long: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def reasons(self) -> list[tuple[int, str, str]]:
        """How many rows are bad for a reason, the first of them, and its reason; the commonest first."""
        kinds: dict[str, list[str]] = {}
        for row, reason in self.bad.items():
            kinds.setdefault(re.sub(r"\d+|image \S+|'.*'", "", reason), []).append(row)
        alike = sorted(kinds.values(), key=len, reverse=True)
        return [(len(rows), rows[0], self.bad[rows[0]]) for rows in alike]


def inspect_samples(samples: Samples, encoder: Encoder, max_length: int, most: int = NUM_ROWS_ENCODED) -> Inspection:
    """Encode at most `most` rows.

    Args:
        encoder: takes rows of any length.
        max_length: tokens above which a row counts as long.
    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), most)).astype(int))
    found = Inspection(len(samples), len(chosen))
    for index in chosen:
        sample = samples[int(index)]
        try:
            encoded = encoder.encode(sample)
        except BadRow as error:
            found.bad[sample.id] = str(error)
            continue
        found.num_tokens.append(len(encoded["input_ids"]))
        found.num_answer_tokens.append(num_answer_labels(encoded))
        found.num_images.append(len(sample.images))
        found.num_long += found.num_tokens[-1] > max_length
    return found


def shown_text(encoder: Encoder, sample: Sample) -> list[tuple[str, bool]]:
    """Parts of a row's text as the model gets it, and whether each is an answer; equal tokens in a row are shown once.

    Raises:
        BadRow: the row can't be used.
    """
    return list(_parts(encoder, encoder.encode(sample)))


def _parts(encoder: Encoder, encoded: Encoded) -> Iterator[tuple[str, bool]]:
    ids, labels = encoded["input_ids"].tolist(), encoded["labels"].tolist()
    for is_answer, places in groupby(range(len(ids)), key=lambda place: labels[place] != IGNORED):
        waiting: list[int] = []
        for token, run in groupby(ids[place] for place in places):
            num = len(list(run))
            if num < _LONG_RUN:
                waiting += [token] * num
                continue
            yield encoder.tokenizer.decode(waiting), is_answer
            waiting = []
            yield f" {encoder.tokenizer.decode([token])} x {num} ", is_answer
        yield encoder.tokenizer.decode(waiting), is_answer
