"""CIDEr-D by hand, and the words of a caption as Stanford's Treebank tokenizer finds them."""

import json
import math

import pytest
from PIL import Image

from raysearch.config.benchmarks import BenchmarkConfig
from raysearch.errors import InputError
from raysearch.evaluation.captions import cider, words
from raysearch.evaluation.questions import read_questions


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Two dogs, a cat and a bird - all asleep.", "two dogs a cat and a bird all asleep"),
        ("The red-haired girl's hat isn't blue", "the red-haired girl 's hat is n't blue"),
        ("She'll go; he'd stay: I'm here", "she 'll go he 'd stay i 'm here"),
        ("the dogs' bowls are full... of water", "the dogs bowls are full of water"),
        ("We cannot see it, they're gonna leave", "we can not see it they 're gon na leave"),
        ("Costs $5.50, or 20% off, 1,000 (maybe)", "costs $ 5.50 or 20 % off 1,000 ( maybe )"),
        ("the U.S. flag at 5 p.m. on 5th St. and Main", "the u.s. flag at 5 p.m. on 5th st. and main"),
        ("Mr. Smith, 12-year-old, at 3:30 o'clock", "mr. smith 12-year-old at 3:30 o'clock"),
        ("“Stop” — it’s 50-50, black/white", "stop it 's 50-50 black/white"),
        ("a #5 jersey & a hat w/ dots?!", "a # 5 jersey & a hat w / dots ?!"),
        ("line one.\nline two", "line one line two"),
        ("café 🙂 日本語", "café 日本語"),
        ("-5 and +3, .5 wait--what", "-5 and +3 .5 wait what"),
        ("", ""),
    ],
)
def test_words(text, found):
    assert words(text) == found.split()


def test_cider_by_hand():
    """In a corpus of "a dog" and "a cat", "a" is in every picture and weighs nothing; all else weighs log 2."""
    references = [["a dog"], ["a cat"]]
    assert cider(["a dog", ""], references) == pytest.approx([2 / 4, 0]), "there are n-grams of two lengths of four"
    assert cider(["dog", "a"], references) == pytest.approx([math.exp(-1 / 72) / 4, 0])
    # "dog" twice, of which one counts: 1/2; "a dog" twice and "dog a": 1 / sqrt(5); three bigrams against one
    expected = (1 / 2 + 1 / math.sqrt(5)) / 4 * math.exp(-4 / 72)
    assert cider(["a dog a dog", "a dog"], references) == pytest.approx([expected, 0])


def test_cider_is_a_mean_over_references():
    one = cider(["a dog runs here", "x"], [["a dog runs here"], ["a cat"]])[0]
    both = cider(["a dog runs here", "x"], [["a dog runs here", "it sleeps"], ["a cat"]])[0]
    assert one == pytest.approx(1.0)
    assert both == pytest.approx(one / 2)


def test_captions_need_no_question_and_several_pictures(tmp_path):
    for index in range(4):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    rows = [{"answers": [f"picture {index}", "it"], "image": f"{index}.png"} for index in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = BenchmarkConfig(name="own", data=str(tmp_path / "captions.jsonl"), metric="cider")
    questions = read_questions(entry, "search")
    assert {question.prompt for question in questions} == {"Provide a one-sentence caption for the provided image."}
    assert all(len(question.answers) == 2 for question in questions)
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps({**row, "answers": ["a dog"]}) for row in rows))
    with pytest.raises(InputError, match="all questions have the same answers, and cider needs captions of several"):
        read_questions(entry, "search")
