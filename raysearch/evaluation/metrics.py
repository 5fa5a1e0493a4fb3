"""Metrics of published visual-question benchmarks, as pure functions of responses: one row each in `METRICS`.

Every metric gives one value per question; their mean is the benchmark's score, from 0 to 1. F1 gives the values of its
linearised ratio, so that the standard error of their mean is that of F1 by the delta method.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raysearch.config.benchmarks import MetricName
from raysearch.evaluation.captions import cider
from raysearch.evaluation.responses import (
    behind_thoughts,
    chosen_letter,
    folded,
    items_of,
    normalised,
    number_in,
    number_of,
    plain,
    said_yes_no,
)
from raysearch.evaluation.stored_answers import read_choice, read_relaxed, read_text, read_yes_no

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05
_NUM_CONSTANT_GUESSES = 20
_SHORT = "\nAnswer the question using a single word or phrase."
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_CAPTION = "Provide a one-sentence caption for the provided image."
_LIST = "\nAnswer the question with a list of words or phrases, separated by commas."
NUM_AGREEING = 3
"""Annotators that must agree with a response of a VQA benchmark for it to be right."""
_NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


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
        values: responses and questions -> (num_questions,) values whose mean is the score; thoughts in a response,
            up to `</think>`, don't count.
        prompt: default template that asks for an answer in the metric's form: {question}, {options}, and columns.
        read: an answer as stored in the data, and the options -> the answer as `values` expects it; raises ValueError
            if there is none.
        blind: score of a random guess of the right form.
        check: raises ValueError for questions that can't be scored together.
        teacher_forced: an answer is right only word for word, so one forward pass over the right answer decides it,
            and nothing is generated.
        takes_list: a list in the column `answer` is one answer of several items, not several acceptable answers.
    """

    values: Callable[[Sequence[str], Sequence[ScoredQuestion]], np.ndarray]
    prompt: str = "{question}" + _SHORT
    read: Callable[[Any, Sequence[str]], str] = read_text
    blind: Callable[[Sequence[ScoredQuestion]], float] = lambda questions: 0.0
    check: Callable[[Sequence[ScoredQuestion]], None] = lambda questions: None
    teacher_forced: bool = False
    takes_list: bool = False


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
    return float(any(_same(normalised, response, answer) for answer in question.answers))


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


def vqa_accuracy(response: str, question: ScoredQuestion) -> float:
    """Mean over the annotators of min(1, others that gave this answer / 3) (arXiv 1505.00468); of less than four
    answers any one is right."""
    said, answers = _vqa_form(response), [_vqa_form(answer) for answer in question.answers]
    if len(answers) <= NUM_AGREEING:
        return float(said in answers)
    num_same = answers.count(said)
    shares = [min(1.0, (num_same - (answer == said)) / NUM_AGREEING) for answer in answers]
    return float(np.mean(shares))


def list_f1(response: str, question: ScoredQuestion) -> float:
    """F1 of the response's items, a set, against those of the nearest answer: 2 common / (said + wanted)."""
    said = items_of(response)
    return max(2 * len(said & wanted) / max(len(said) + len(wanted), 1) for wanted in map(items_of, question.answers))


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
    said = np.array([said_yes_no(behind_thoughts(response)) == "yes" for response in responses])
    above, below = 2.0 * (gold & said), 1.0 * gold + said
    if not below.any():
        return np.zeros(len(gold))
    value = above.sum() / below.sum()
    return value + (above - value * below) / below.mean()


def caption_cider(responses: Sequence[str], questions: Sequence[ScoredQuestion]) -> np.ndarray:
    """CIDEr-D over 10 (arXiv 1411.5726), with all answers as references; see `captions.cider`."""
    return cider([*map(behind_thoughts, responses)], [question.answers for question in questions])


def _each(
    score: Callable[[str, ScoredQuestion], float],
) -> Callable[[Sequence[str], Sequence[ScoredQuestion]], np.ndarray]:
    def values(responses: Sequence[str], questions: Sequence[ScoredQuestion]) -> np.ndarray:
        pairs = zip(responses, questions, strict=True)
        return np.array([score(behind_thoughts(response), question) for response, question in pairs], float)

    return values


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(other) + 1))
    for index, letter in enumerate(one, 1):
        above, row[0] = row[:], index
        for at, its in enumerate(other, 1):
            row[at] = min(above[at] + 1, row[at - 1] + 1, above[at - 1] + (letter != its))
    return row[-1]


def _check_pairs(questions: Sequence[ScoredQuestion]) -> None:
    """MME scores pairs of questions about one image."""
    counts = Counter((question.category, question.image_id) for question in questions)
    wrong = next((key for key, num in counts.items() if num != 2), None)
    if wrong:
        raise ValueError(f"image {wrong[1]} has {counts[wrong]} questions, and mme needs two per image")


def _check_captions(questions: Sequence[ScoredQuestion]) -> None:
    """CIDEr weighs words by how few pictures have them."""
    if len({question.answers for question in questions}) < 2:
        raise ValueError("all questions have the same answers, and cider needs captions of several pictures")


def _is_near(response: str, answer: str) -> bool:
    wanted = number_of(answer)
    said = None if wanted is None else number_in(response)
    if wanted is None or said is None:
        return _same(folded, response, answer)
    return abs(said - wanted) <= RELATIVE_TOLERANCE * abs(wanted)


def _same(form: Callable[[str], str], response: str, answer: str) -> bool:
    """Whether two texts have the same form; without one, such as `+`, they must be equal."""
    return form(response) == form(answer) if form(answer) else response.strip() == answer.strip()


def _vqa_form(text: str) -> str:
    """Lower case, numbers up to ten as digits, without articles, apostrophes and punctuation.

    A sign between two words is a space, one at the end of a word nothing, and a full stop or comma in a number stays or
    goes: the rules of the VQA challenge, but for its list of contractions, for which apostrophes are left out.
    """
    text = plain(text).casefold().replace("'", "")
    has_comma_in_number = re.search(r"\d,\d", text) is not None
    for sign in ';/[]"{}()=+\\_-><@`,?!':
        is_at_an_end = f"{sign} " in text or f" {sign}" in text
        text = text.replace(sign, "" if is_at_an_end or has_comma_in_number else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBER_WORDS.get(word, word) for word in text.split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _one_in_options(questions: Sequence[ScoredQuestion]) -> float:
    return float(np.mean([1 / len(question.options) if question.options else 0.0 for question in questions]))


METRICS: dict[MetricName, Metric] = {
    "exact": Metric(_each(is_exact), prompt="{question}", teacher_forced=True),
    "normalised": Metric(_each(is_normalised_exact)),
    "choice": Metric(_each(is_choice), "{question}\n{options}" + _LETTER, read=read_choice, blind=_one_in_options),
    "yes_no": Metric(_each(is_yes_no), read=read_yes_no, blind=lambda questions: 0.5),
    "yes_no_f1": Metric(yes_no_f1, read=read_yes_no, blind=lambda questions: 0.5),
    "mme": Metric(mme, read=read_yes_no, blind=lambda questions: 0.375, check=_check_pairs),
    "anls": Metric(_each(anls)),
    "relaxed": Metric(_each(is_relaxed), read=read_relaxed, blind=_one_in_options),
    "vqa": Metric(_each(vqa_accuracy)),
    "list_f1": Metric(_each(list_f1), "{question}" + _LIST, takes_list=True),
    "cider": Metric(caption_cider, _CAPTION, check=_check_captions),
}
