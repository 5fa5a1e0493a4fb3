"""Samples as tensors: rendered by the model's chat template, with labels for answer tokens, padded into batches."""

import itertools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from raysearch.data.answers import Messages, answer_spans, shared_start
from raysearch.data.bad_rows import BadRow, only_bad_rows
from raysearch.data.labels import IGNORED
from raysearch.data.pictures import open_image
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.models import Family

CACHE_BYTES = 2 * 2**30
TOKEN_KEYS = ("input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids")
_ONE_ENTRY_PER_ROW = ("idefics2", "idefics3", "smolvlm")
"""Families whose `pixel_values` are (rows, images of the row, ...), text-only rows included."""

_MOST_JOINED = 2
"""Tokens at an end of a text that a tokenizer may join with what a processor puts around an image."""
_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")

Encoded = Mapping[str, torch.Tensor]
Batch = dict[str, torch.Tensor]


class Encoder:
    """Turns samples into tensors, with an LRU cache of `cache_bytes`.

    A row's tokens are the processor's for the chat template's text. Answers are what the template marks as such, where
    it does, else found by `answer_spans`, with the token that ends the turn. If the template ends the last answer
    without such a token, the tokenizer's end of sequence is added.
    """

    def __init__(self, processor: Any, family: Family, max_length: int, cache_bytes: int = CACHE_BYTES) -> None:
        """Use `processor`, or a tokenizer for text-only rows, for rows of at most `max_length` tokens.

        Raises:
            InputError: there is no processor or tokenizer, or it has no chat template.
        """
        if processor is None:
            raise InputError(f"{family.model_type}: the model folder has no tokenizer or processor; copy them into it")
        self.processor, self.family, self.max_length = processor, family, max_length
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if getattr(processor, "chat_template", None) is None:
            raise InputError(
                f"{family.model_type}: the processor has no chat template; put a chat_template.jinja into its folder"
            )
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = int(self.tokenizer.eos_token_id if pad_id is None else pad_id)
        self._cache: OrderedDict[tuple[int, bool], tuple[Sample, Encoded]] = OrderedDict()
        self._free_bytes = cache_bytes

    def encode(self, sample: Sample) -> Encoded:
        """One row: `input_ids`, `attention_mask`, `labels`, each (seq,), and the processor's image tensors.

        A label is the token's own id (not the next one's) in an answer, else `IGNORED`.

        Raises:
            BadRow: the row can't be read, has more than `max_length` tokens, or an answer that isn't found whole; or
                whatever the template, the tokenizer or the processor raises.
        """
        return self._cached(sample, False, self._encode)

    def encode_prompt(self, sample: Sample) -> Encoded:
        """The row up to the cue for its last answer, without labels, of any length; `BadRow` as for `encode`."""
        return self._cached(sample, True, self._encode_prompt)

    def prompt_text(self, sample: Sample) -> str:
        """The text of the row up to the cue for its last answer, before the processor expands its images."""
        last = max(index for index, turn in enumerate(sample.messages) if turn["role"] == "user")
        return self._render(sample, sample.messages[: last + 1], cue=True)

    def collate(self, rows: Sequence[Encoded], padding_side: str = "right", multiple: int = 1) -> Batch:
        """`collate` with this tokenizer's padding token."""
        one_entry_per_row = self.family.model_type in _ONE_ENTRY_PER_ROW
        return collate(rows, self.pad_id, padding_side, one_entry_per_row, multiple)

    def _cached(self, sample: Sample, is_prompt: bool, encode: Callable[[Sample], Encoded]) -> Encoded:
        key = id(sample), is_prompt
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key][1]
        if sample.problem:
            raise BadRow(sample.problem)
        with only_bad_rows("can't be encoded"):
            encoded = encode(sample)
        self._cache[key] = (sample, encoded)  # the reference keeps its id() unique
        self._free_bytes -= sum(tensor.nbytes for tensor in encoded.values())
        while self._free_bytes < 0 and self._cache:
            _, (_, oldest) = self._cache.popitem(last=False)
            self._free_bytes += sum(tensor.nbytes for tensor in oldest.values())
        return encoded

    def _encode_prompt(self, sample: Sample) -> Encoded:
        return self._processed(self.prompt_text(sample), sample)

    def _encode(self, sample: Sample) -> Encoded:
        text = self._render(sample, sample.messages)
        encoded = self._processed(text, sample)
        if len(encoded["input_ids"]) > self.max_length:
            raise BadRow(f"{len(encoded['input_ids'])} tokens, more than max_length {self.max_length}")
        encoded["labels"] = self._labels(sample, text, encoded["input_ids"])
        self._end_answer(encoded)
        return encoded

    def _render(self, sample: Sample, messages: Messages, cue: bool = False) -> str:
        return self.processor.apply_chat_template(
            self._conversation(messages), tools=list(sample.tools) or None, tokenize=False, add_generation_prompt=cue
        )

    def _conversation(self, messages: Messages) -> list[Any]:
        if self.processor is not self.tokenizer:
            return list(messages)
        return [  # templates of language models take plain text
            {**turn, "content": "".join(part.get("text", "") for part in turn["content"])} for turn in messages
        ]

    def _processed(self, text: str, sample: Sample) -> Batch:
        special = not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))
        if self.processor is self.tokenizer:
            if sample.images:
                raise BadRow("has an image, and the model takes none")
            made = self.tokenizer(text, return_tensors="pt", add_special_tokens=special)
        else:
            images = [open_image(image) for image in sample.images]
            with only_bad_rows("the processor refuses it"):
                made = self.processor(
                    text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=special
                )
        return {
            key: value[0] if key in TOKEN_KEYS else value
            for key, value in made.items()
            if isinstance(value, torch.Tensor)
        }

    def _labels(self, sample: Sample, text: str, input_ids: torch.Tensor) -> torch.Tensor:
        """(seq,) labels; every answer has some, or the row is bad."""
        plain, answers = self._marked_answers(sample) or self._found_answers(sample, text)
        places = aligned(plain, input_ids.tolist(), self._placeholders(plain, len(sample.images)))
        labels = torch.full_like(input_ids, IGNORED)
        for tokens in answers:
            chosen = [places[token] for token in tokens]
            if None in chosen or not chosen:
                raise BadRow("the processor changes the text of an answer")
            labels[chosen] = input_ids[chosen]
        return labels

    def _placeholders(self, plain: Sequence[int], num_images: int) -> list[int]:
        """Tokens that may stand for an image: the processor's own and added ones, first those as many as images."""
        counts = Counter(plain)
        own = getattr(self.processor, "image_token_id", None)
        added = [token for token in counts if token in self.tokenizer.added_tokens_decoder]
        known = [token for token in (own, *added, self.pad_id) if token is not None]
        return sorted(known, key=lambda token: counts[token] != num_images)

    def _marked_answers(self, sample: Sample) -> tuple[list[int], list[np.ndarray]] | None:
        """The text's tokens, and which of them each answer has by the template's own marks; None if it lacks some."""
        template = self.processor.chat_template
        if not isinstance(template, str) or not _MARKS_ANSWERS.search(template):
            return None
        made = self.tokenizer.apply_chat_template(
            self._conversation(sample.messages),
            tools=list(sample.tools) or None,
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        marked = np.flatnonzero(made["assistant_masks"])
        answers = np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1)
        num_answers = sum(turn["role"] == "assistant" for turn in sample.messages)
        return (made["input_ids"], answers) if len(marked) and len(answers) == num_answers else None

    def _found_answers(self, sample: Sample, text: str) -> tuple[list[int], list[np.ndarray]]:
        """The text's tokens, and which of them each answer has."""
        spans = answer_spans(sample.messages, text, lambda messages, cue: self._render(sample, messages, cue))
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts, ends = np.array(made["offset_mapping"]).reshape(-1, 2).T
        return made["input_ids"], [np.flatnonzero((starts < end) & (ends > start)) for start, end in spans]

    def _end_answer(self, encoded: Batch) -> None:
        """End the last answer with the end of sequence if no special token ends it."""
        ids, labels = encoded["input_ids"], encoded["labels"]
        last = int((labels != IGNORED).nonzero()[-1])
        added, eos = self.tokenizer.added_tokens_decoder, self.tokenizer.eos_token_id
        if int(ids[last]) in added or eos is None:
            return
        if last + 1 < len(ids) and int(ids[last + 1]) in added:  # the template's marks stop before it
            labels[last + 1] = ids[last + 1]
            return
        for key in TOKEN_KEYS:
            if key in encoded:
                value = eos if key in ("input_ids", "labels") else int(encoded[key][last])
                encoded[key] = torch.cat([encoded[key][: last + 1], encoded[key].new_tensor([value])])


def aligned(plain: Sequence[int], expanded: Sequence[int], placeholders: Iterable[int]) -> list[int | None]:
    """Position of each token of a text in the row whose image placeholders the processor has expanded.

    The text between two images is in the row as it is, but for tokens at its ends that may join what an image becomes.

    Args:
        plain: tokens of the text.
        expanded: tokens of the row; equal but for its images' tokens, and special tokens before it.
        placeholders: tokens of which one may stand in `plain` for each image; the first that explains the row counts.

    Returns:
        One position in `expanded` per token of `plain`; None where there is none.
    """
    for placeholder, num_joined in itertools.product(dict.fromkeys(placeholders), range(_MOST_JOINED + 1)):
        places = _aligned_between(plain, expanded, placeholder, num_joined)
        if places is not None:
            return places
    tail = shared_start(plain[::-1], expanded[::-1])
    return [None] * (len(plain) - tail) + list(range(len(expanded) - tail, len(expanded)))


def _aligned_between(
    plain: Sequence[int], expanded: Sequence[int], placeholder: int, num_joined: int
) -> list[int | None] | None:
    """As `aligned`; None if a text between placeholders, less `num_joined` tokens at its ends, isn't in the row."""
    cuts = [-1, *(place for place, token in enumerate(plain) if token == placeholder), len(plain)]
    places: list[int | None] = [None] * len(plain)
    at = 0
    for before, behind in itertools.pairwise(cuts):
        start = before + 1 + (num_joined if before >= 0 else 0)
        end = behind - (num_joined if behind < len(plain) else 0)
        part = list(plain[start:end])
        if not part:
            continue
        fits = (place for place in range(at, len(expanded) - len(part) + 1) if expanded[place] == part[0])
        found = [place for place in fits if list(expanded[place : place + len(part)]) == part]
        if not found:
            return None
        first = found[-1] if behind == len(plain) else found[0]
        places[start:end] = range(first, first + len(part))
        at = first + len(part)
    return places


def collate(
    rows: Sequence[Encoded],
    pad_id: int,
    padding_side: str = "right",
    one_entry_per_row: bool = False,
    multiple: int = 1,
) -> Batch:
    """Pad rows to the longest and stack them; images of all rows one after another.

    Args:
        rows: of `Encoder.encode`.
        pad_id: token that pads `input_ids`; masks are padded with 0 and labels with `IGNORED`.
        padding_side: right to train, left to generate.
        one_entry_per_row: image tensors have a first axis of rows, so that rows without images get zeros.
        multiple: the padded length is rounded up to it; few different lengths save the hardware's libraries work.

    Returns:
        `input_ids`, `attention_mask`, `labels` ..., each (batch, longest), and image tensors.
    """
    longest = -max(len(row["input_ids"]) for row in rows) // multiple * -multiple
    fill = {"input_ids": pad_id, "labels": IGNORED}
    batch: Batch = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        present = [row[key] for row in rows if key in row]
        if key in TOKEN_KEYS:
            batch[key] = torch.stack([_padded(row, longest, fill.get(key, 0), padding_side) for row in present])
            continue
        shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in present), strict=True)]
        if one_entry_per_row:
            present = [row[key] if key in row else present[0].new_zeros((1, *shape)) for row in rows]
        batch[key] = torch.cat([_grown(value, shape) for value in present])
    return batch


def to_model(batch: Mapping[str, torch.Tensor], model: PreTrainedModel) -> Batch:
    """The batch on the model's device, its floats in the model's precision."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in batch.items()
    }


def _padded(row: torch.Tensor, length: int, fill: int, side: str) -> torch.Tensor:
    missing = length - len(row)
    return pad(row, (0, missing) if side == "right" else (missing, 0), value=fill)


def _grown(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`value` padded with zeros to `shape` on every axis but the first."""
    widths = [(0, wanted - size) for size, wanted in zip(value.shape[1:], shape, strict=True)]
    return pad(value, [width for pair in reversed(widths) for width in pair]) if any(map(any, widths)) else value
