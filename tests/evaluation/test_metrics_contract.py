"""The contract of every metric: a row in `METRICS`, a name in `MetricName`, and a row in `CASES`."""

import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raysearch.config.benchmarks import BenchmarkConfig, MetricName
from raysearch.evaluation.benchmarks import load_benchmarks
from raysearch.evaluation.metrics import METRICS, chance
from tests.support.gold import Gold

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Case:
    """An answer as stored in the data, and responses that are right and wrong for sure."""

    stored: Any
    right: str
    wrong: str
    options: tuple[str, ...] = ()
    also: Any = None
    """A second acceptable answer; None for metrics that have only one."""
    beside: tuple[str, ...] = ()
    """Answers to other questions of the benchmark, where they matter."""


CASES: dict[str, Case] = {
    "exact": Case("on the left", "on the left", "left", also="at left"),
    "normalised": Case("a red kite", "A red kite.", "kite", also="bird"),
    "choice": Case(1, "B", "A", options=("a dog", "a cat", "an owl"), also="C"),
    "yes_no": Case("Yes", "yes", "no"),
    "yes_no_f1": Case(True, "Yes.", "No."),
    "mme": Case("Yes", "Yes", "No"),
    "anls": Case("Coca Cola", "coca cola", "pepsi", also="water"),
    "relaxed": Case(100, "105", "106", also="12%"),
    "vqa": Case("two dogs", "2 dogs", "3 dogs", also="a cat"),
    "list_f1": Case("red, green", "Green and red.", "blue", also="white"),
    "cider": Case(
        "a dog runs on grass", "A dog runs on grass.", "two cats", beside=("a red bus at a stop", "a man with a kite")
    ),
}
RESPONSES = (
    "",
    " ",
    "\n\t",
    ".",
    "()",
    "é",
    "日本語",
    "🙂",
    "İ",
    "٣",
    "²",
    "-",
    "$",
    "%",
    "1,,2",
    "9" * 400,
    "yes\0no",
)


def gold(name: str, *stored: Any) -> Gold:
    """A question with these answers, as the metric reads them from the data."""
    case = CASES[name]
    return Gold(tuple(METRICS[name].read(value, case.options) for value in stored or (case.stored,)), case.options)


def score(name: str, responses: list[str], question: Gold) -> float:
    others = [gold(name, answer) for answer in CASES[name].beside]
    values = METRICS[name].values([*responses, *[""] * len(others)], [question] * len(responses) + others)
    assert values.shape == (len(responses) + len(others),)
    assert values.dtype == float
    return float(values[: len(responses)].mean())


def test_every_metric_has_a_name_and_a_case():
    assert tuple(METRICS) == typing.get_args(MetricName) == tuple(CASES)


def test_every_metric_is_in_the_table_of_the_documentation():
    pages = [path.read_text() for path in DOCS.rglob("*.md")]
    (page,) = [page for page in pages if "| `metric` |" in page]
    for name in METRICS:
        assert f"\n| `{name}` |" in page


@pytest.mark.parametrize("name", METRICS)
def test_a_right_answer_scores_1_and_a_wrong_one_0(name):
    case = CASES[name]
    assert score(name, [case.right] * 2, gold(name)) == 1.0
    assert score(name, [case.wrong] * 2, gold(name)) == 0.0
    assert 0 < score(name, [case.right, case.wrong], gold(name)) < 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.also is not None])
def test_any_acceptable_answer_is_right(name):
    case = CASES[name]
    for stored in ((case.stored, case.also), (case.also, case.stored)):
        assert score(name, [case.right] * 2, gold(name, *stored)) == 1.0
        assert score(name, [case.wrong] * 2, gold(name, *stored)) == 0.0


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("response", RESPONSES)
def test_no_response_raises(name, response):
    assert 0 <= score(name, [response] * 2, gold(name)) < 1
    assert 0 <= score(name, [CASES[name].right, response], gold(name)) < 1


@pytest.mark.parametrize("name", METRICS)
def test_values_are_deterministic_and_follow_their_questions(name):
    case = CASES[name]
    responses = [case.right, case.wrong, case.right, "", case.right, case.wrong]
    first, second = gold(name), Gold(gold(name, *case.beside[:1]).answers, case.options, "2", "c")
    questions = [
        first,
        first,
        second,
        second,
        Gold(first.answers, case.options, "3"),
        Gold(first.answers, case.options, "3"),
    ]
    values = METRICS[name].values(responses, questions)
    assert np.array_equal(values, METRICS[name].values(responses, questions))
    assert 0 < values.mean() < 1
    order = [3, 0, 5, 1, 4, 2]
    again = METRICS[name].values([responses[at] for at in order], [questions[at] for at in order])
    assert again == pytest.approx(values[order])


@pytest.mark.parametrize("name", METRICS)
def test_an_answer_that_cannot_be_read_is_a_value_error(name):
    for stored in (None, "", "  "):
        with pytest.raises(ValueError, match=r"empty|neither|none of"):
            METRICS[name].read(stored, CASES[name].options)


@pytest.mark.parametrize("name", METRICS)
def test_chance_is_the_better_of_two_guesses(name):
    others = [gold(name, answer) for answer in CASES[name].beside]
    questions = [gold(name)] * 4 + others
    assert 0 <= METRICS[name].blind(questions) < 1
    right = pytest.approx(4 / len(questions), abs=0.05)  # the others share the word "a"
    assert chance(name, questions) == right, "the commonest answer is right wherever it is the answer"


@pytest.mark.parametrize("name", METRICS)
def test_questions_from_a_file_get_the_prompt_and_the_answers_of_the_metric(name, tmp_path):
    case = CASES[name]
    for index in range(4):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    row = {"question": "what?", "options": list(case.options) or None}
    stored = [case.stored, *case.beside]
    rows = [{**row, "answer": stored[index % len(stored)], "image": f"{index // 2}.png"} for index in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    entry = BenchmarkConfig(name="own", data=str(tmp_path / "rows.json"), metric=name)
    for split in ("search", "heldout"):
        (benchmark,) = load_benchmarks([entry], split)
        assert len(benchmark.questions) == 4
        assert benchmark.scorer is METRICS[name]
        assert (benchmark.chance == 1.0) == (not case.beside)
        responses = []
        for question in benchmark.questions:
            assert question.prompt == METRICS[name].prompt.format(
                question="what?", options="A. a dog\nB. a cat\nC. an owl"
            )
            assert question.answers in [gold(name, answer).answers for answer in stored]
            responses.append(case.right if question.answers == gold(name).answers else question.answer)
        assert benchmark.scorer.values(responses, benchmark.questions).mean() == pytest.approx(1.0)
