"""Metrics of published benchmarks, by hand."""

import numpy as np
import pytest

from raysearch.evaluation import metrics
from raysearch.evaluation.metrics import METRICS
from raysearch.evaluation.retention import Results, retention
from raysearch.evaluation.stored_answers import options_of
from tests.support.gold import Gold

ANIMALS = ("a dog", "a cat", "an owl", "hot dog")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (C) ", "C"),
        ("B.", "B"),
        ("B. a cat", "B"),
        ("(D) hot dog", "D"),
        ("The answer is (A).", "A"),
        ("the correct answer: C", "C"),
        ("A cat", "B"),  # an article, not the letter
        ("an owl.", "C"),
        ("It looks like (B) to me", "B"),
        ("I see a cat there", "B"),
        ("a dog and a cat", None),
        ("(A) or (B)", None),
        ("E", None),  # no such option
        ("bird", None),
        ("", None),
    ],
)
def test_the_option_that_a_response_names(response, letter):
    assert metrics.chosen_letter(response, ANIMALS) == letter
    right = Gold(("B",), ANIMALS)
    assert METRICS["choice"].values([response], [right]).tolist() == [float(letter == "B")]


def test_options_after_the_26th_have_no_letter():
    numbers = tuple(f"number {index}" for index in range(30))
    assert metrics.chosen_letter("number 25", numbers) == "Z"
    assert metrics.chosen_letter("number 26", numbers) is None


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, there is no doubt", "yes"),
        ("I think no", "no"),
        ("yes or no", None),
        ("it is yes, not no", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_yes_and_no(response, said):
    assert metrics.said_yes_no(response) == said
    assert METRICS["yes_no"].values([response], [Gold(("no",))]).tolist() == [float(said == "no")]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_edit_distance(one, other, distance):
    assert metrics.edit_distance(one, other) == metrics.edit_distance(other, one) == distance


def test_anls_takes_the_nearest_answer_and_nothing_below_a_half():
    asked = Gold(("Coca Cola", "cola"))
    cases = {"coca  cola": 1.0, "coca colas": 0.9, "kola": 0.75, "pepsi": 0.0, "": 0.0}
    assert METRICS["anls"].values(list(cases), [asked] * len(cases)) == pytest.approx(list(cases.values()))
    assert METRICS["anls"].values(["abxy", "axyz"], [Gold(("abcd",))] * 2).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("105", "100", 1.0),
        ("105.1", "100", 0.0),
        ("95", "100", 1.0),
        ("-3", "3", 0.0),
        ("0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("1,024", "1000", 1.0),
        ("$1000", "1000", 1.0),
        ("12%", "0.12", 1.0),
        ("The value is 42.", "42", 1.0),
        ("42 of 43", "42", 0.0),
        ("Blue", "blue", 1.0),
        ("light blue", "blue", 0.0),
    ],
)
def test_relaxed_match(response, answer, score):
    assert METRICS["relaxed"].values([response], [Gold((answer,))]).tolist() == [score]


def test_relaxed_match_with_options_is_choice():
    assert METRICS["relaxed"].values(["B"], [Gold(("B",), ("3", "4"))]).tolist() == [1.0]


def test_exact_and_normalised():
    asked = Gold(("on the left",))
    said = ["on the left", "On the left.", " on the left ", "left"]
    assert METRICS["exact"].values(said, [asked] * 4).tolist() == [1, 0, 1, 0]
    assert METRICS["normalised"].values(said, [asked] * 4).tolist() == [1, 1, 1, 0]


def mme_case():
    """Category p: image 1 has both right, image 2 one of two. Category q: its one image has one right."""
    asked = [Gold((answer,), (), image, category) for answer, image, category in [
        ("yes", "1", "p"), ("yes", "3", "q"), ("no", "1", "p"), ("yes", "2", "p"), ("no", "2", "p"), ("no", "3", "q"),
    ]]  # fmt: skip
    return ["Yes", "yes", "No", "Yes", "Yes", "maybe"], asked


def test_mme_is_accuracy_plus_both_right_by_category():
    responses, asked = mme_case()
    values = METRICS["mme"].values(responses, asked)
    published = (75 + 50) + (50 + 0)  # p: 3 of 4 and 1 image of 2; q: 1 of 2 and no image
    assert values.mean() * 200 * 2 == pytest.approx(published)
    order = [3, 0, 5, 1, 4, 2]
    again = METRICS["mme"].values([responses[at] for at in order], [asked[at] for at in order])
    assert again == pytest.approx(values[order])


def test_mme_wants_two_questions_about_each_image():
    _, asked = mme_case()
    METRICS["mme"].check(asked)
    with pytest.raises(ValueError, match="image 3 has 1 questions"):
        METRICS["mme"].check(asked[:-1])


def f1_case(num=400, seed=0):
    random = np.random.default_rng(seed)
    gold = random.random(num) < 0.5
    said = np.where(random.random(num) < 0.8, gold, ~gold)
    word = np.where(said, "yes", "no").tolist()
    return word, [Gold(("yes" if is_yes else "no",)) for is_yes in gold], gold, said


def test_f1_is_the_mean_of_its_values():
    responses = ["yes", "yes", "no", "no", "what"]
    asked = [Gold((answer,)) for answer in ("yes", "no", "yes", "no", "yes")]
    values = METRICS["yes_no_f1"].values(responses, asked)
    assert values.mean() == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))  # TP 1, FP 1, FN 2
    assert METRICS["yes_no_f1"].values(["no"], [Gold(("no",))]).tolist() == [0.0]


def test_the_values_of_f1_have_its_standard_error():
    scores = []
    for seed in range(400):
        *_, gold, said = f1_case(seed=seed)
        scores.append(2 * (gold & said).sum() / (gold.sum() + said.sum()))
    responses, asked, _, _ = f1_case()
    values = METRICS["yes_no_f1"].values(responses, asked)
    assert values.std() / np.sqrt(len(values)) == pytest.approx(np.std(scores), rel=0.12)


def test_retention_of_f1_is_the_ratio_of_f1s():
    dense, asked, _, _ = f1_case()
    pruned = ["no" if index % 3 == 0 else said for index, said in enumerate(dense)]
    f1 = METRICS["yes_no_f1"].values
    made = [
        Results({"pope": f1(said, asked)}, {"pope": np.arange(len(asked))}, {"pope": 0.0}) for said in (pruned, dense)
    ]
    assert retention(*made).value == pytest.approx(f1(pruned, asked).mean() / f1(dense, asked).mean())


@pytest.mark.parametrize(
    ("metric", "value", "options", "read"),
    [
        ("choice", "B", ANIMALS, "B"),
        ("choice", 2, ANIMALS, "C"),
        ("choice", "3", ANIMALS, "D"),
        ("choice", "an owl", ANIMALS, "C"),
        ("choice", "0", ("0", "1"), "A"),  # number and text agree
        ("yes_no", True, (), "yes"),
        ("yes_no", "No", (), "no"),
        ("yes_no", 0, (), "no"),
        ("anls", 7, (), "7"),
        ("relaxed", "cat", ("dog", "cat"), "B"),
    ],
)
def test_answers_as_data_hold_them(metric, value, options, read):
    assert METRICS[metric].read(value, options) == read


@pytest.mark.parametrize(
    ("metric", "value", "options", "said"),
    [
        ("choice", "B", (), "no options"),
        ("choice", "bird", ANIMALS, "none of the options"),
        ("choice", "", ANIMALS, "none of the options"),
        ("choice", "AB", ANIMALS, "none of the options"),
        ("choice", 4, ANIMALS, "go from 0 to 3"),
        ("choice", "1", ("1", "2"), "may be an option's number or its text"),
        ("choice", "dog", ("dog", "dog"), "none of the options"),
        ("yes_no", "yes and no", (), "neither yes nor no"),
        ("yes_no", None, (), "neither yes nor no"),
        ("exact", None, (), "empty"),
        ("anls", "  ", (), "empty"),
    ],
)
def test_answers_that_cannot_be_read(metric, value, options, said):
    with pytest.raises(ValueError, match=said):
        METRICS[metric].read(value, options)


def test_options_as_data_hold_them():
    assert options_of("['a', 'b\\'s']") == (("a", "b's"), ())
    assert options_of({"B": 1, "A": 2}) == (("2", "1"), ("A", "B"))
    assert options_of(["x"]) == (("x",), ())
    assert options_of(None) == ((), ())


def test_chance_is_the_better_guess():
    yes_no = [Gold((answer,)) for answer in ("yes", "yes", "yes", "no")]
    assert metrics.chance("yes_no", yes_no) == 0.75
    assert metrics.chance("yes_no_f1", yes_no) == pytest.approx(6 / 7)
    choice = [Gold((letter,), ANIMALS) for letter in "ABCD"]
    assert metrics.chance("choice", choice) == 0.25
    assert metrics.chance("mme", mme_case()[1]) == pytest.approx(0.375)
    assert metrics.chance("normalised", [Gold((word,)) for word in ("a", "b", "A", "c")]) == 0.5
