"""Questions about images from rows of data, and the division of rows into splits."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raysearch.config.benchmarks import BenchmarkConfig
from raysearch.config.dimensions import matches
from raysearch.data.bad_rows import BadRow, BadRows, only_bad_rows
from raysearch.data.samples import Sample, sample_from_row
from raysearch.data.tables import open_table
from raysearch.errors import InputError
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.responses import LETTERS
from raysearch.evaluation.stored_answers import answers_of, options_of

_NUMBERED = re.compile(r"<image (\d+)>")
MIN_EARLY_QUESTIONS = 20
"""Least questions of a benchmark at a rung below a trial's end."""
_SPLIT_SEED = 0  # not the seed of the study: studies of other seeds are compared on the same questions


@dataclass(frozen=True)
class Question:
    """One prompt about any number of images, with the acceptable answers."""

    id: str
    image_id: str
    """Standard errors are clustered by it, since questions about one image are not independent."""
    sample: Sample
    """The question and its first answer as a conversation of one turn."""
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    category: str = ""

    @property
    def answer(self) -> str:
        """The first acceptable answer."""
        return self.answers[0]

    @property
    def prompt(self) -> str:
        """The text of the prompt."""
        return "".join(part.get("text", "") for part in self.sample.messages[0]["content"])

    def without_images(self) -> "Question":
        """The same question with its text only."""
        user, assistant = self.sample.messages
        text = [part for part in user["content"] if part["type"] == "text"]
        return replace(self, sample=replace(self.sample, images=(), messages=[{**user, "content": text}, assistant]))


def read_questions(entry: BenchmarkConfig, split: str) -> tuple[Question, ...]:
    """The questions of one split of a custom benchmark, in the order of their rows.

    Raises:
        InputError: no such data or column, an empty split, or answers that the metric can't read.
    """
    has_heldout = entry.heldout_data is not None or entry.heldout_split is not None
    data, part = entry.data, entry.split
    if has_heldout and split == "heldout":
        data, part = entry.heldout_data or data, entry.heldout_split or (None if entry.heldout_data else part)
    table = open_table(data, part)
    where = f"benchmarks: {entry.name}: {data}"
    rows: Sequence[Any] = _Readable(table.rows)
    if entry.where:
        rows = [row for row in rows if isinstance(row, Mapping) and matches(row, entry.where)]
    if not len(rows):
        raise InputError(f"{where}: holds no rows" + (f" where {entry.where}" if entry.where else ""))
    groups = [_image_id(row, index, entry) for index, row in enumerate(rows)]
    limit = entry.num_search if split == "search" else entry.num_heldout
    if has_heldout:
        chosen = limit_by_image(groups, limit)
    else:
        chosen = split_by_image(groups, split, entry.num_search, entry.num_heldout)
    bad, questions = BadRows(where, len(chosen)), []
    for index in chosen:
        try:
            with only_bad_rows("can't be read"):
                questions.append(_question(rows[index], index, entry, table.folders, groups[index]))
        except BadRow as error:
            bad.add(f"row {index}", str(error))
    bad.report()
    if not questions:
        raise InputError(f"{where}: no question is left for split {split}; it has {len(rows)} rows")
    try:
        METRICS[entry.metric].check(questions)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return tuple(questions)


class _Readable(Sequence[Any]):
    """Rows, with what was wrong in place of one that can't be read."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        try:
            with only_bad_rows("can't be read"):
                return self._rows[index]
        except BadRow as error:
            return error


def split_by_image(groups: Sequence[str], split: str, num_search: int | None, num_heldout: int | None) -> list[int]:
    """Indices of the rows of a split, if both splits divide the same rows; no image is in both.

    Args:
        groups: (num_rows,) image ids.
        num_search: most rows of `search`; None for half of them.
        num_heldout: most rows of `heldout`; None for all others.
    """
    images = _shuffled(groups)
    search = _first(images, num_search or len(groups) // 2)
    return _rows_of(search if split == "search" else _first(images[len(search) :], num_heldout))


def early_rows(questions: Sequence[Question], share: float) -> list[int]:
    """Indices of a share of a benchmark's questions, at least `MIN_EARLY_QUESTIONS` or all of them, in their order.

    It consists of whole images, for metrics that join the questions of an image. A smaller share is a subset of a
    larger one.
    """
    images = _shuffled([question.image_id for question in questions])
    totals = np.cumsum([len(rows) for rows in images])
    wanted = max(MIN_EARLY_QUESTIONS, round(share * len(questions)))
    return _rows_of(images[: int(np.searchsorted(totals, wanted)) + 1])


def early_subset(questions: Sequence[Question], share: float) -> tuple[Question, ...]:
    """The questions of `early_rows`."""
    return tuple(questions[row] for row in early_rows(questions, share))


def limit_by_image(groups: Sequence[str], limit: int | None) -> list[int]:
    """Indices of at most `limit` rows, whole images; of all rows if None."""
    return _rows_of(_first(_shuffled(groups), limit))


def _shuffled(groups: Sequence[str]) -> list[list[int]]:
    """Indices of rows by image, the images in a fixed random order."""
    by_image: dict[str, list[int]] = {}
    for index, name in enumerate(groups):
        by_image.setdefault(name, []).append(index)
    images = list(by_image.values())
    return [images[at] for at in np.random.default_rng(_SPLIT_SEED).permutation(len(images))]


def _first(images: Sequence[list[int]], limit: int | None) -> Sequence[list[int]]:
    """The first images that have at most `limit` rows together, but at least one image."""
    if limit is None:
        return images
    totals = np.cumsum([len(rows) for rows in images])
    return images[: max(1, int(np.searchsorted(totals, limit, side="right")))]


def _rows_of(images: Sequence[list[int]]) -> list[int]:
    return sorted(index for rows in images for index in rows)


def _image_id(row: Any, index: int, entry: BenchmarkConfig) -> str:
    """The column `image_id`, else the paths of the images, else the hash of their bytes."""
    if not isinstance(row, Mapping):
        return f"row {index}"
    named = _cell(row, entry, "image_id")
    if named is not None:
        return str(named)
    names = []
    for image in _images(row, entry):
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        names.append(hashlib.sha1(image).hexdigest() if isinstance(image, bytes) else str(image))
    return " ".join(names) or f"row {index}"


def _question(row: Any, index: int, entry: BenchmarkConfig, folders: Sequence[Any], image_id: str) -> Question:
    """Read one row.

    Raises:
        BadRow: no question or image, or answers that the metric can't read.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("not an object with keys and values")
    metric = METRICS[entry.metric]
    try:
        options, labels = options_of(_cell(row, entry, "options"))
        answers = tuple(
            metric.read(_index_of(value, labels, entry.answer_is_number), options) for value in _answers(row, entry)
        )
    except (ValueError, SyntaxError, TypeError) as error:
        raise BadRow(str(error)) from None
    if not answers:
        raise BadRow(f"no answer in column {entry.columns.get('answer', 'answer')!r}")
    if metric.teacher_forced and len(set(answers)) > 1:
        raise BadRow(f"several answers, and {entry.metric} takes one; choose metric normalised")
    text, images = _with_placeholders(_prompt(row, options, entry), _images(row, entry))
    name = str(_cell(row, entry, "id") or index)
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answers[0]}]
    sample = sample_from_row({"messages": turns, "images": images}, name, folders)
    return Question(name, image_id, sample, answers, options, str(_cell(row, entry, "category") or ""))


def _answers(row: Mapping[str, Any], entry: BenchmarkConfig) -> list[Any]:
    """The acceptable answers as they are stored; the empty one of a row without any, for the metric to refuse."""
    several, one = _cell(row, entry, "answers"), _cell(row, entry, "answer")
    if several is None and METRICS[entry.metric].takes_list and isinstance(one, list | tuple):
        return [", ".join(map(str, answers_of(one)))]
    given = one if several is None else several
    found = answers_of(given)
    return found if found or isinstance(given, list | tuple) else [None]


def _index_of(value: Any, labels: Sequence[str], is_number: bool) -> Any:
    """An answer's index if it is one of the labels that the data give the options; else the answer."""
    if is_number:
        return int(value)
    return labels.index(str(value).strip()) if str(value).strip() in labels else value


def _prompt(row: Mapping[str, Any], options: Sequence[str], entry: BenchmarkConfig) -> str:
    question = _cell(row, entry, "question")
    template = entry.prompt or METRICS[entry.metric].prompt
    if question is None and "{question" in template:
        raise BadRow(f"no column {entry.columns.get('question', 'question')!r}; name it under columns")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    values = {**row, "question": str(question), "options": listed}
    if not options:
        template = template.replace("\n{options}", "")
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise BadRow(f"prompt {template!r} can't be filled in ({error})") from None


def _with_placeholders(text: str, images: list[Any]) -> tuple[str, list[Any]]:
    """The prompt with one placeholder per image: where it has them, by number (`<image 2>`, MMMU), else in front."""
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    if numbers:
        if max(numbers) > len(images) or min(numbers) < 1:
            raise BadRow(f"<image {max(numbers)}> in the question, and the row has {len(images)} images")
        return _NUMBERED.sub("<image>", text), [images[number - 1] for number in numbers]
    if "<image>" not in text:
        text = "<image>" * len(images) + text
    return text, images


def _images(row: Mapping[str, Any], entry: BenchmarkConfig) -> list[Any]:
    """The row's images, from column `images`, `image`, or `image_1`, `image_2` and so on."""
    for field in ("images", "image"):
        found = _cell(row, entry, field)
        if found is not None and found != "":
            return list(found) if isinstance(found, list | tuple) else [found]
    numbered = sorted((int(name[6:]), name) for name in row if re.fullmatch(r"image_\d+", str(name)))
    return [row[name] for _, name in numbered if row[name] is not None]


def _cell(row: Mapping[str, Any], entry: BenchmarkConfig, field: str) -> Any:
    """The value of a field; `id` may be in column `question_id`."""
    name = entry.columns.get(field, field)
    if field == "id" and name not in row:
        name = "question_id"
    return row.get(name)
