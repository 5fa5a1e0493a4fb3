"""A model card as the hub shows it: what stands in it is text, wherever the study comes from."""

from raysearch.export.card import front_card
from tests.support import synthetic_study


def test_names_from_elsewhere_are_no_markup(tmp_path):
    evil = "<script>alert(1)</script> ![x](http://h/x.png) `rm` a|b \x1b[2J\n# head"
    front = synthetic_study.make(tmp_path / "study", num_trials=8).front
    point = front.points[0].model_copy(update={"scores": {evil: 0.5}, "heldout": None})
    card = front_card(front.model_copy(update={"study": evil, "model": evil}), point, True)
    for markup in ("<script", "](http", " `rm", "a|b", "\x1b", "\n# head"):
        assert markup not in card, markup
    assert card.count("&lt;script&gt;alert(1)") == 2  # names of the study and of the benchmark
    assert f"[95%] | {point.retention:.1%} [" in card
