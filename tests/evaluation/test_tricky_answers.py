"""Responses and stored answers as they are found, with the value that is right."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.responses import LETTERS, chosen_letter, items_of, number_in, number_of, said_yes_no
from raysearch.evaluation.stored_answers import answers_of, options_of
from tests.support.gold import Gold


def score(metric: str, response: str, *answers: str, options: tuple[str, ...] = ()) -> float:
    return float(METRICS[metric].values([response], [Gold(answers, options)])[0])


ANIMALS = ("a dog", "a cat", "an owl", "a red car")
LETTER_OF = {
    "B": (
        "B", "b", "B.",
        "B)", "(B)", "[B]", "{B}", "<B>", "B:", "**B**", "__B__", "*B*", "`B`", '"B"', "'B'", "“B”", "B。",
        "（B）", "Ｂ", "【B】", " B \n", "B\n", "B\nBecause it has fur", "It has fur.\nB", "**B.** a cat", "B. a cat",
        "B) a cat", "(B) a cat", "B: a cat", "B - a cat", "B, a cat", "B because it has fur", "Answer: B", "Answer:B",
        "Answer: **B**", "**Answer: B**", "Answer is B", "The answer is B.", "The answer is (B).", "answer: (b)\n(B)",
        "The correct answer is B", "The correct option is B", "Option B", "Option: B", "the correct choice is (B)",
        "The answer should be B", "The answer is option B", "\\boxed{B}", "$\\boxed{B}$", "\\boxed{\\text{B}}",
        "So it is \\boxed{\\mathbf{B}}.", "<answer>B</answer>", "<answer> (B) </answer>", "<answer>a cat</answer>",
        "(A) is wrong, the answer is (B)", "Not A. The answer is B", "It looks like (B) to me", "a cat", "A cat",
        "A cat.", "a cat!", "I see a cat there", "The answer is A cat", "It is a cat, not a dog", "**a cat**",
        "ANSWER: b", "The answer is (b).", "答案是B", "答案：B。", "正确答案应为B", "选B", "选择B", "选项B",
    ),
    None: (
        "", " ", ".", "()", "E", "(E)", "bird", "A or B", "B or C", "B and C", "B, C", "(A) or (B)", "A\nB",
        "The answer is (B) or (C)", "The answer is B or C", "answer: B/C", "a dog and a cat", "В", "С", "(В)",
        "It is В.",
        "not a cat", "It isn't a cat", "The answer is not B", "<answer>A</answer><answer>B</answer>", "\\boxed{}",
        "Option A or option B", "β", "8", "Ⓑ", "cat", "none", "I can't say", "AB", "ABCD", "B2", "B+",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("letter", "response"), [(key, text) for key, texts in LETTER_OF.items() for text in texts])
def test_the_letter_that_a_response_names(letter: str | None, response: str) -> None:
    assert chosen_letter(response, ANIMALS) == letter


def test_options_that_differ_by_a_sign_and_those_in_one_another() -> None:
    numbers = ("-5", "5", "1.5", "15", "50%", "50")
    assert [chosen_letter(text, numbers) for text in numbers] == list("ABCDEF")
    assert [chosen_letter(f"It is {text}.", numbers) for text in numbers] == list("ABCDEF")
    assert chosen_letter("I see a hot dog here", ("dog", "hot dog")) == "B"
    assert chosen_letter("C++", ("C", "C++", "C#")) == "B"
    for num in (27, 40):
        options = tuple(f"o{index}" for index in range(num))
        assert [chosen_letter(text, options) for text in ("A", "hello", "o25", "o26")] == ["A", None, "Z", None]


THINKING = [
    ("choice", "<think>A? \\boxed{A}</think>\nB", "B"), ("yes_no", "<think>no, or</think> Yes", "yes"),
    ("relaxed", "<think>41 + 1</think>42", "42"), ("normalised", "<think>blue?</think>Red.", "red"),
    ("anls", "the glare</think>\n\nred", "red"), ("vqa", "<think>hm</think>two", "2"),
    ("list_f1", "<think>blue, or</think>red, green", "green, red"), ("exact", "<think></think>\n\nred", "red"),
    ("yes_no_f1", "<think>no</think>yes", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "response", "answer"), THINKING)
def test_thoughts_do_not_count(metric: str, response: str, answer: str) -> None:
    assert score(metric, response, answer, options=ANIMALS if metric == "choice" else ()) == 1
    assert score(metric, f"{answer}, I think</think>I can't say", answer, options=ANIMALS) == 0


SAID = {
    "yes": (
        "Yes", "YES!", "yes.", "Yes。", "“Yes”", "Yes—there is.", "yes，there is", "Answer:yes", "<answer>yes</answer>",
        "Yes…", "**Yes**", "`yes`", "Yes, there is no doubt", "I think yes", "（yes）", "ＹＥＳ", "'Yes'",
        "yes\nno idea why",
    ),
    "no": ("No", "no,", "No — none", "I'd say no.", "NO", "\\boxed{No}", "no-one is there"),
    None: ("", "yes or no", "Yes/No", "no or yes", "yes and no", "it is yes, not no", "nothing", "maybe", "уes",
    "yess"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "response"), [(key, text) for key, texts in SAID.items() for text in texts])
def test_yes_and_no(said: str | None, response: str) -> None:
    assert said_yes_no(response) == said


RELAXED = [
    ("34", "3-4", 0), ("3-4", "34", 0), ("3-4", "3-4", 1), ("10:30", "1030", 0), ("10:30", "10:30", 1),
    ("12", "1/2", 0),
    ("1/2", "1/2", 1), ("12", "[1,2]", 0), ("[1, 2]", "[1, 2]", 1), ("C++", "C", 0), ("C++", "c++", 1),
    ("1e3", "1000", 1),
    ("1000", "1e3", 1), ("1.2E-3", "0.0012", 1), ("5 %", "5%", 1), ("5%", "0.05", 1), ("5", "5%", 0), ("5%", "5", 0),
    ("105", "100", 1), ("105.1", "100", 0), ("95", "100", 1), ("94.9", "100", 0), ("-3", "3", 0), ("−3", "-3", 1),
    ("0", "0", 1), ("0.0", "0", 1), ("0.01", "0", 0), ("1,024", "1000", 1), ("1,000,000", "1e6", 1),
    ("$1000", "1000", 1),
    ("-$5", "-5", 1), ("€ 5", "5", 1), ("The value is 42.", "42", 1), ("42 of 43", "42", 0), ("42 kg", "42", 1),
    ("v42", "42", 0), ("３４", "34", 1), ("٣", "3", 0), ("²", "2", 0), ("Blue", "blue", 1), ("“Blue”", "blue", 1),
    ("blue.", "blue", 1), ("light blue", "blue", 0), ("+", "+", 1), ("-", "+", 0), ("", "+", 0), ("", "5", 0),
    ("nan", "5", 0), ("inf", "5", 0), ("9" * 400, "5", 0), ("yes", "1", 0), ("24/7", "24/7", 1), ("3.429", "3.429", 1),
    ("1.2.3", "1.2", 0), ("2023-01-05", "20230105", 0), ("5 to 6", "5", 0),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answer", "value"), RELAXED)
def test_relaxed(response: str, answer: str, value: int) -> None:
    assert score("relaxed", response, answer) == value


def _published_relaxed(response: str, answer: str) -> float:
    """The rule of arXiv 2203.10244 in ChartQA's evaluation: floats within 5%, else the same text in lower case."""

    def number(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    said, wanted = number(response), number(answer)
    if said is not None and wanted:
        return float(abs(said - wanted) <= 0.05 * abs(wanted))
    return float(response.lower() == answer.lower())


def test_relaxed_is_the_published_rule_on_short_answers() -> None:
    """On answers without units, quotes and full stops, whose reading is wider here."""
    random = np.random.default_rng(0)
    forms = ("{:.0f}", "{:.2f}", "{:.1f}%", "{:g}", "{:e}", "-{:g}")
    words = ("Blue", "blue", "red", "2019-20", "1/2", "C++")
    for _ in range(300):
        value = float(random.integers(1, 200)) / 4
        near = value * float(random.choice([1, 1.04, 0.96, 1.06, 2]))
        form = str(random.choice(forms))
        pair = form.format(near), form.format(value)
        if random.random() < 0.3:
            pair = str(random.choice(words)), str(random.choice(words))
        assert score("relaxed", *pair) == _published_relaxed(*pair), pair


NORMALISED = [
    ("On the left.", "on the left", 1), ("“on the left”", "on the left", 1), ("left", "on the left", 0),
    ("on   the\nleft", "on the left", 1), ("3-4", "34", 0), ("3-4", "3-4", 1), ("1.5", "15", 0), ("-5", "5", 0),
    ("1,000", "1000", 1), ("10:30", "1030", 0), ("t-shirt", "tshirt", 1), ("U.S.A.", "usa", 1), ("हिंदी", "हद", 0),
    ("🙂", "+", 0), ("", "+", 0), ("+", "+", 1), ("ＴＶ", "tv", 1), ("café", "cafe", 0),
    ("cafe\u0301", "café", 1),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answer", "value"), NORMALISED)
def test_normalised(response: str, answer: str, value: int) -> None:
    assert score("normalised", response, answer) == value


VQA = [
    ("red", ["red"] * 10, 1.0), ("red", ["red"] * 9 + ["blue"], 1.0), ("red", ["red"] + ["blue"] * 9, 0.3),
    ("red", ["red"] * 2 + ["blue"] * 8, 0.6), ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
    ("red", ["red"] * 4 + ["b"] * 6, 1.0),
    ("green", ["red"] * 10, 0.0), ("Two", ["2"] * 10, 1.0), ("the red car", ["red car"] * 10, 1.0),
    ("Red.", ["red"] * 10, 1.0), ("don't know", ["dont know"] * 10, 1.0), ("1,000", ["1000"] * 10, 1.0),
    ("2.5", ["2.5"] * 10, 1.0), ("25", ["2.5"] * 10, 0.0), ("t-shirt", ["t shirt"] * 10, 1.0),
    ("none", ["0"] * 10, 1.0),
    ("", ["red"] * 10, 0.0), ("red", ["red", "blue"], 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answers", "value"), VQA)
def test_vqa_accuracy(response: str, answers: list[str], value: float) -> None:
    """The values of the challenge's rule, mean over annotators of min(1, others who agree / 3), worked out by hand."""
    assert score("vqa", response, *answers) == pytest.approx(value)


LISTS = [
    ("red, green", "green, red", 1.0), ("red and green", "green; red", 1.0), ("- red\n- green", "red, green", 1.0),
    ("1. red\n2. green", "red, green", 1.0), ("[red, green]", "red, green", 1.0), ("red", "red, green", 2 / 3),
    ("red, green, blue", "red, green", 0.8), ("blue", "red, green", 0.0), ("", "red", 0.0),
    ("1,000 and 2", "2, 1,000", 1.0),
    ("sand, band", "band, sand", 1.0), ("red, red, red", "red", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answer", "value"), LISTS)
def test_f1_of_lists(response: str, answer: str, value: float) -> None:
    assert score("list_f1", response, answer) == pytest.approx(value)
    binarizer = MultiLabelBinarizer().fit([items_of(response) | items_of(answer) | {"neither", "nor"}])
    said, wanted = binarizer.transform([items_of(response), items_of(answer)])
    assert f1_score([wanted], [said], average="samples", zero_division=0.0) == pytest.approx(value)


OPTIONS: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = [
    (["x", "y"], ("x", "y"), ()), (["x", "y", None, None], ("x", "y"), ()), (["x", float("nan")], ("x",), ()),
    ([1, 2.5, True], ("1", "2.5", "True"), ()), (np.array(["x", "y"]), ("x", "y"), ()),
    ("['x', \"y's\"]", ("x", "y's"), ()),
    ('["x", "y"]', ("x", "y"), ()), ("x\ny", ("x", "y"), ()), ("A. x\nB. y", ("x", "y"), ()), ("[]", (), ()),
    (None, (), ()),
    ("", (), ()), (float("nan"), (), ()), ({"B": "y", "A": "x"}, ("x", "y"), ("A", "B")),
    ({"A": "x", "B": "y", "C": None}, ("x", "y"), ("A", "B")), ({"1": "y", "0": "x"}, ("x", "y"), ("0", "1")),
    ({"text": ["x", "y"], "label": ["A", "B"]}, ("x", "y"), ("A", "B")),
    ({"label": ["1", "2"], "text": ["x", "y"]}, ("x", "y"), ("1", "2")),
    ([{"text": "y", "label": "B"}, {"text": "x", "label": "A"}], ("x", "y"), ("A", "B")),
    ([{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], ("x", "y"), ("A", "B")),
    ([{"A": "x"}, {"B": "y"}], ("x", "y"), ("A", "B")),
    ([{"A": "x", "B": None}, {"A": None, "B": "y"}], ("x", "y"), ("A", "B")),
    ('{"A": "x", "B": "y"}', ("x", "y"), ("A", "B")), (["(A) x", "(B) y"], ("x", "y"), ()), (["A) x", "y"], ("A) x",
    "y"), ()),
    (["A. x", "B. y"], ("x", "y"), ()),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "texts", "labels"), OPTIONS)
def test_options_in_the_layouts_that_people_have(stored: Any, texts: tuple[str, ...], labels: tuple[str, ...]) -> None:
    assert options_of(stored) == (texts, labels)


@pytest.mark.parametrize(
    "stored",
    [
        "x, y", "xyz", [["x"], ["y"]], [{"x": 1, "y": 2}], [None, "y"], ["x", None, "z"], {"A": ["x"], "B": "y"}, 7,
        True,
        [b"x"], {"A": {"text": "x"}}, [{"text": "x", "label": "A"}, {"text": "y"}], [f"o{i}" for i in range(27)],
        "[broken",
        {"text": ["x", "y"], "label": ["A"]}, [{"text": None, "label": "A"}, {"text": "y", "label": "B"}],
    ],
)  # fmt: skip
def test_options_of_another_shape_are_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        options_of(stored)


ANSWERS: list[tuple[Any, list[Any]]] = [
    ("red", ["red"]), (["red"] * 9 + [""], ["red"] * 9), (["red", None], ["red"]), ([], []), (None, []),
    (float("nan"), []),
    ([{"answer": "red", "answer_confidence": "yes", "answer_id": 1}], ["red"]), ({"answer": "red", "id": 3}, ["red"]),
    ({"text": ["a", "b"], "answer_start": [0, 4]}, ["a", "b"]), ("['24/7', '3.429']", ["24/7", "3.429"]),
    ('["a", "b"]', ["a", "b"]), ("[1, 2]", ["[1, 2]"]), ("[0.5]", ["[0.5]"]), ("[a]", ["[a]"]), (3, [3]),
    (True, [True]),
    (np.array(["a", "b"]), ["a", "b"]), ("it's", ["it's"]),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "answers"), ANSWERS)
def test_answers_in_the_layouts_that_people_have(stored: Any, answers: list[Any]) -> None:
    assert answers_of(stored) == answers


@pytest.mark.parametrize(
    "stored", [{"x": 1}, {"answer": "a", "text": "b"}, b"red", [{"x": "red"}], {"answer": {"x": 1}}]
)
def test_answers_of_another_shape_are_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        answers_of(stored)


def test_numbers() -> None:
    assert [number_of(text) for text in ("12", "1,200", "-.5", "5.", "1e3", "12%", "$3")] == [
        12,
        1200,
        -0.5,
        5,
        1000,
        0.12,
        3,
    ]
    assert [number_of(text) for text in ("", ".", "-", "1,2", "1e", "e3", "1 2", "x", "1e999", "٣", "%")] == [None] * 11
    assert [number_in(text) for text in ("about 5", "5 or 6", "x5", "in 3-4", "no")] == [5, None, None, None, None]
    assert all(value is None or math.isfinite(value) for value in map(number_of, LETTERS))
