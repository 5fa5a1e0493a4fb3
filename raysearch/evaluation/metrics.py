"""Metrics of published visual-question benchmarks, as pure functions of responses: one row each in `METRICS`.

Every metric gives one value per question; their mean is the benchmark's score, from 0 to 1. F1 gives the values of its
linearised ratio, so that the standard error of their mean is that of F1 by the delta method.
"""

import ast
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raysearch.config.benchmarks import MetricName

LETTERS = string.ascii_uppercase
ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05
_NUM_CONSTANT_GUESSES = 20
_SHORT = "\nAnswer the question using a single word or phrase."
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)%?"


class ScoredQuestion(Protocol):
    """What a metric reads of a question."""

    @property
    def answers(self) -> Sequence[str]:
        """Acceptable answers, as `Metric.read` returns them; any one is right."""

    @property
    def options(self) -> Sequence[str]:
        """Options of a multiple-choice question, else empty."""

    @property
    def image_id(self) -> str:
        """The same for all questions about one image."""

    @property
    def category(self) -> str:
        """Part of the benchmark that is scored separately."""


@dataclass(frozen=True)
class Metric:
    """How a benchmark is prompted and scored.

    Attributes:
        values: responses and questions -> (num_questions,) values whose mean is the score.
        prompt: default template that asks for an answer in the metric's form: {question}, {options}, and columns.
        read: an answer as stored in the data, and the options -> the answer as `values` expects it; raises ValueError
            if there is none.
        blind: score of a random guess of the right form.
        check: raises ValueError for questions that can't be scored together.
        teacher_forced: an answer is right only word for word, so one forward pass over the right answer decides it,
            and nothing is generated.
    """

    values: Callable[[Sequence[str], Sequence[ScoredQuestion]], np.ndarray]
    prompt: str = "{question}" + _SHORT
    read: Callable[[Any, Sequence[str]], str] = lambda value, options: _text_of(value)
    blind: Callable[[Sequence[ScoredQuestion]], float] = lambda questions: 0.0
    check: Callable[[Sequence[ScoredQuestion]], None] = lambda questions: None
    teacher_forced: bool = False


def chance(name: MetricName, questions: Sequence[ScoredQuestion]) -> float:
    """Score of the better of two guesses: one of the commonest answers to every question, and a random one."""
    metric = METRICS[name]
    commonest = Counter(question.answers[0] for question in questions).most_common(_NUM_CONSTANT_GUESSES)
    constant = [float(metric.values([guess] * len(questions), questions).mean()) for guess, _ in commonest]
    return max([metric.blind(questions), *constant])


def is_exact(response: str, question: ScoredQuestion) -> float:
    """1 for an answer word for word."""
    return float(response.strip() in question.answers)


def is_normalised_exact(response: str, question: ScoredQuestion) -> float:
    """1 for an answer up to case, punctuation and spaces, as GQA is scored."""
    return float(normalised(response) in map(normalised, question.answers))


def is_choice(response: str, question: ScoredQuestion) -> float:
    """1 for the right option, by letter or text; 0 for a response that names none, or several."""
    letter = chosen_letter(response, question.options)
    return float(letter is not None and letter in question.answers)


def is_yes_no(response: str, question: ScoredQuestion) -> float:
    """1 for the right one of yes and no, else 0."""
    return float(said_yes_no(response) in question.answers)


def anls(response: str, question: ScoredQuestion) -> float:
    """Normalised Levenshtein similarity to the nearest answer, 0 below one half (arXiv 1907.00490, equation 1).

    A similarity of exactly one half counts, as in the challenge's own code; by the equation it is 0.
    """

    def similarity(answer: str) -> float:
        one, other = (" ".join(text.lower().split()) for text in (answer, response))
        distance = edit_distance(one, other) / max(len(one), len(other), 1)
        return 1 - distance if distance <= ANLS_THRESHOLD else 0.0

    return max(map(similarity, question.answers))


def is_relaxed(response: str, question: ScoredQuestion) -> float:
    """1 for a number within 5% of an answer (arXiv 2203.10244) or the same text; with options, `is_choice`."""
    if question.options:
        return is_choice(response, question)
    return float(any(_is_near(response, answer) for answer in question.answers))


def mme(responses: Sequence[str], questions: Sequence[ScoredQuestion]) -> np.ndarray:
    """MME (arXiv 2306.13394): mean of accuracy and share of images with both answers right; equal category weights.

    The published score is 200 times the mean per category: times 2000 for perception, times 800 for cognition.
    """
    right = _each(is_yes_no)(responses, questions)
    keys = [f"{question.category}\0{question.image_id}" for question in questions]
    _, image = np.unique(keys, return_inverse=True)
    num_questions = np.bincount(image)
    both = (np.bincount(image, weights=right) == num_questions)[image]
    _, category, sizes = np.unique(
        [question.category for question in questions], return_inverse=True, return_counts=True
    )
    return (right + both) / 2 * len(right) / (len(sizes) * sizes[category])


def yes_no_f1(responses: Sequence[str], questions: Sequence[ScoredQuestion]) -> np.ndarray:
    """F1 of the answer yes, 2 TP / (2 TP + FP + FN), linearised per question."""
    gold = np.array([question.answers[0] == "yes" for question in questions])
    said = np.array([said_yes_no(response) == "yes" for response in responses])
    above, below = 2.0 * (gold & said), 1.0 * gold + said
    if not below.any():
        return np.zeros(len(gold))
    value = above.sum() / below.sum()
    return value + (above - value * below) / below.mean()


def _each(
    score: Callable[[str, ScoredQuestion], float],
) -> Callable[[Sequence[str], Sequence[ScoredQuestion]], np.ndarray]:
    def values(responses: Sequence[str], questions: Sequence[ScoredQuestion]) -> np.ndarray:
        pairs = zip(responses, questions, strict=True)
        return np.array([score(response, question) for response, question in pairs], float)

    return values


def normalised(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def chosen_letter(response: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response names; None if it names none or several.

    By the first of: a lone letter (`B`, `(b)`, `B.`), a letter before the rest (`B. a dog`), `answer is B`, an option's
    text, the only bracketed letter, the only option whose text is in the response.
    """
    letters, text = LETTERS[: len(options)], response.strip()
    bracketed = set(re.findall(rf"\(([{letters}])\)", text))
    if len(bracketed) > 1:
        return None
    alone = re.fullmatch(rf"\(?([{letters}{letters.lower()}])[).:]*", text)
    first = re.match(rf"\(?([{letters}])[).:]", text)
    said = re.search(rf"(?i:answer(?: is)?:?)\s*\(?([{letters}])\b(?!')", text)
    for found in (alone, first, said):
        if found:
            return found[1].upper()
    plain = [normalised(option) for option in options[: len(letters)]]
    if plain.count(normalised(text)) == 1:
        return letters[plain.index(normalised(text))]
    padded = f" {normalised(text)} "
    mentioned = [letter for letter, option in zip(letters, plain, strict=True) if f" {option} " in padded]
    for candidates in (bracketed, mentioned):
        if len(candidates) == 1:
            return next(iter(candidates))
    return None


def said_yes_no(response: str) -> str | None:
    """`yes` or `no`: the first word, else the only one of the two in the response; else None."""
    words = normalised(response).split()
    found = {"yes", "no"} & set(words[:1]) or {"yes", "no"} & set(words)
    return found.pop() if len(found) == 1 else None


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(other) + 1))
    for index, letter in enumerate(one, 1):
        above, row[0] = row[:], index
        for at, its in enumerate(other, 1):
            row[at] = min(above[at] + 1, row[at - 1] + 1, above[at - 1] + (letter != its))
    return row[-1]


def options_of(value: Any) -> tuple[str, ...]:
    """Options from a list, a mapping by letter, or the text of a Python list (MMMU)."""
    if isinstance(value, str) and value.strip().startswith("["):
        value = ast.literal_eval(value)
    if isinstance(value, dict):
        value = list(value.values())
    return tuple(map(str, value)) if value is not None else ()


def _read_choice(value: Any, options: Sequence[str]) -> str:
    """The letter of the right option, given as its letter, its index from 0 or its text."""
    letters = LETTERS[: len(options)]
    text = str(value).strip()
    if not letters:
        raise ValueError("no options to choose from")
    if isinstance(value, int) or (text.isdigit() and text not in options):
        if not 0 <= int(text) < len(letters):
            raise ValueError(f"answer {text} is not the number of an option; they go from 0 to {len(letters) - 1}")
        return letters[int(text)]
    if text.isdigit() and text in options and options.index(text) != int(text):
        raise ValueError(
            f"answer {text!r} may be an option's number or its text; set answer_is_number, or give letters"
        )
    if text in tuple(letters):
        return text
    if list(options).count(text) == 1:
        return letters[options.index(text)]
    raise ValueError(f"answer {text!r} is none of the options {', '.join(options)}")


def _read_yes_no(value: Any, options: Sequence[str]) -> str:
    text = {"true": "yes", "false": "no", "1": "yes", "0": "no"}.get(str(value).strip().lower(), str(value))
    found = said_yes_no(text)
    if found is None or normalised(text) != found:
        raise ValueError(f"answer {value!r} is neither yes nor no")
    return found


def _read_relaxed(value: Any, options: Sequence[str]) -> str:
    return _read_choice(value, options) if options else _text_of(value)


def _text_of(value: Any) -> str:
    text = str(value).strip() if value is not None else ""
    if not text:
        raise ValueError("the answer is empty")
    return text


def _check_pairs(questions: Sequence[ScoredQuestion]) -> None:
    """MME scores pairs of questions about one image."""
    counts = Counter((question.category, question.image_id) for question in questions)
    wrong = next((key for key, num in counts.items() if num != 2), None)
    if wrong:
        raise ValueError(f"image {wrong[1]} has {counts[wrong]} questions, and mme needs two per image")


def _is_near(response: str, answer: str) -> bool:
    wanted = _number(answer)
    numbers = re.findall(_NUMBER, response)
    said = _number(response) if _number(response) is not None or len(numbers) != 1 else _number(numbers[0])
    if wanted is None or said is None:
        return normalised(response) == normalised(answer)
    return abs(said - wanted) <= RELATIVE_TOLERANCE * abs(wanted)


def _number(text: str) -> float | None:
    stripped = text.strip().strip("$").rstrip(".").replace(",", "")
    if not re.fullmatch(_NUMBER, stripped):
        return None
    return float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)


def _one_in_options(questions: Sequence[ScoredQuestion]) -> float:
    return float(np.mean([1 / len(question.options) if question.options else 0.0 for question in questions]))


METRICS: dict[MetricName, Metric] = {
    "exact": Metric(_each(is_exact), prompt="{question}", teacher_forced=True),
    "normalised": Metric(_each(is_normalised_exact)),
    "choice": Metric(_each(is_choice), "{question}\n{options}" + _LETTER, read=_read_choice, blind=_one_in_options),
    "yes_no": Metric(_each(is_yes_no), read=_read_yes_no, blind=lambda questions: 0.5),
    "yes_no_f1": Metric(yes_no_f1, read=_read_yes_no, blind=lambda questions: 0.5),
    "mme": Metric(mme, read=_read_yes_no, blind=lambda questions: 0.375, check=_check_pairs),
    "anls": Metric(_each(anls)),
    "relaxed": Metric(_each(is_relaxed), read=_read_relaxed, blind=_one_in_options),
}
