"""Templates of questions about images: short answers, lists and descriptions.

One template per kind of question. It returns None where the image has no such question (e.g. no unique red thing), and
the caller draws again. Answers of yes and no are balanced for every wording.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raysearch.pocket.drawing import (
    ATTRIBUTES,
    COLORS,
    COLUMNS,
    DIGITS,
    ROWS,
    SHAPES,
    SIZES,
    Draw,
    Thing,
    easy_vqa_questions,
)


class PocketQuestion(NamedTuple):
    """The kind of a question, the question, and its only right answer."""

    kind: str
    prompt: str
    answer: str


PromptAnswer = tuple[str, str] | None
Template = Callable[[list[Thing], Draw], PromptAnswer]

SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
_ENDS = {"leftmost": ("row", 0), "rightmost": ("row", -1), "topmost": ("column", 0), "bottommost": ("column", -1)}
_MAX_TRIES = 12
_THING_WORDINGS = (("color",), ("shape",), ("color", "shape"), ("size", "shape"), ("size", "color"))
_DIGIT_WORDINGS = (("digit",), ("color",), ("color", "digit"))

# --- helpers


def _reference(things: list[Thing], thing: Thing, draw: Draw, wordings: Sequence[tuple[str, ...]]) -> str | None:
    """A description of `thing` by some of its attributes that fits no other thing, or None."""
    fitting = []
    for names in wordings:
        wanted = [thing[name] for name in names]
        if sum([other[name] for name in names] == wanted for other in things) == 1:
            fitting.append(names)
    if not fitting:
        return None
    names = draw.pick(fitting)
    text = " ".join(thing[name] for name in names)
    return text if names[-1] in ("shape", "digit") else f"{text} {'thing' if 'shape' in thing else 'digit'}"


def _beside(things: list[Thing], thing: Thing, side: str) -> Thing | None:
    down, right = SIDES[side]
    row, column = ROWS.index(thing["row"]) + down, COLUMNS.index(thing["column"]) + right
    for other in things:
        if ROWS.index(other["row"]) == row and COLUMNS.index(other["column"]) == column:
            return other
    return None


def _position(thing: Thing) -> str:
    return f"{thing['row']} {thing['column']}"


def _line(things: list[Thing], draw: Draw, fewest: int) -> tuple[str, list[Thing]] | None:
    """A row or column that holds at least `fewest` things, and those in order."""
    way, names = draw.pick((("row", ROWS), ("column", COLUMNS)))
    name = draw.pick(names)
    inside = [thing for thing in things if thing[way] == name]
    return (f"{name} {way}", inside) if len(inside) >= fewest else None


def _referred(things: list[Thing], draw: Draw) -> tuple[Thing, str | None]:
    thing = draw.pick(things)
    return thing, _reference(things, thing, draw, _THING_WORDINGS if "shape" in thing else _DIGIT_WORDINGS)


def _where(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing, reference = _referred(things, draw)
    return _place(thing, reference, draw) if reference else None


def _place(thing: Thing, reference: str, draw: Draw) -> PromptAnswer:
    way = draw.pick(("row", "column"))
    return f"which {way} is the {reference} in?", thing[way]


def _even_count(things: list[Thing], attribute: str, values: Sequence[str], draw: Draw) -> tuple[str, int]:
    """A value of the attribute and its count; every count that occurs is equally likely."""
    counts = Counter(thing[attribute] for thing in things)
    number = draw.pick(sorted({counts[value] for value in values}))
    return draw.pick([value for value in values if counts[value] == number]), number


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


# --- scenes of drawn things


def _scene_at(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing, attribute = draw.pick(things), draw.pick(("color", "shape", "size"))
    return f"what {attribute} is the {_position(thing)} thing?", thing[attribute]


def _scene_query(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing, attribute = draw.pick(things), draw.pick(("color", "shape", "size"))
    reference = _reference(things, thing, draw, [names for names in _THING_WORDINGS if attribute not in names])
    return (f"what {attribute} is the {reference}?", thing[attribute]) if reference else None


def _exists(things: list[Thing], draw: Draw, names: tuple[str, str], noun: str) -> PromptAnswer:
    """Half the answers are yes; for no, both attributes occur if possible, but not together."""
    first, second = names
    wanted = draw.below(2) == 1
    for number in range(2 * _MAX_TRIES):
        one, other = draw.pick(things), draw.pick(things)
        if number >= _MAX_TRIES:
            other = {second: draw.pick(ATTRIBUTES[second])}
        pair = (one[first], one[second] if wanted else other[second])
        if any((thing[first], thing[second]) == pair for thing in things) == wanted:
            return f"is there a {pair[0]} {pair[1]}{noun}?", _yes_no(wanted)
    return None


def _scene_exists(things: list[Thing], draw: Draw) -> PromptAnswer:
    if draw.below(3) == 0:
        wanted = draw.below(2) == 1
        present = {thing["color"] for thing in things}
        color = draw.pick([color for color in COLORS if (color in present) == wanted])
        return f"is there a {color} thing?", _yes_no(wanted)
    names, noun = draw.pick(((("color", "shape"), ""), (("size", "shape"), ""), (("size", "color"), " thing")))
    return _exists(things, draw, names, noun)


def _scene_count(things: list[Thing], draw: Draw) -> PromptAnswer:
    attribute, values = draw.pick((("color", COLORS), ("shape", SHAPES), ("size", SIZES)))
    value, number = _even_count(things, attribute, values, draw)
    return f"how many {value} things are there?", str(number)


def _scene_compare(things: list[Thing], draw: Draw) -> PromptAnswer:
    if draw.below(2):
        attribute, values = draw.pick((("color", COLORS), ("shape", SHAPES)))
        value, less = draw.shuffled(values)[:2]
        counts = Counter(thing[attribute] for thing in things)
        more = counts[value] - counts[less]
        return (f"are there more {value} than {less} things?", _yes_no(more > 0)) if more else None
    attribute, same = draw.pick(("color", "shape")), draw.below(2) == 1
    for _ in range(_MAX_TRIES):
        one, other = draw.shuffled(things)[:2]
        if (one[attribute] == other[attribute]) == same:
            prompt = f"do the {_position(one)} and {_position(other)} things share a {attribute}?"
            return prompt, _yes_no(same)
    return None


def _scene_neighbour(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing, side, attribute = draw.pick(things), draw.pick(tuple(SIDES)), draw.pick(("color", "shape"))
    reference, other = _reference(things, thing, draw, _THING_WORDINGS), _beside(things, thing, side)
    return (f"what {attribute} is {side} the {reference}?", other[attribute]) if reference and other else None


def _scene_extreme(things: list[Thing], draw: Draw) -> PromptAnswer:
    end, attribute = draw.pick(tuple(_ENDS)), draw.pick(("color", "shape"))
    line = _line(things, draw, 2)
    way, index = _ENDS[end]
    if line is None or not line[0].endswith(way):
        return None
    return f"what {attribute} is the {end} thing in the {line[0]}?", line[1][index][attribute]


# --- scenes of digits


def _digit_at(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing = draw.pick(things)
    if draw.below(3):
        return f"what is the {_position(thing)} digit?", thing["digit"]
    return f"what color is the {_position(thing)} digit?", thing["color"]


def _digit_query(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing = draw.pick(things)
    attribute, wording = draw.pick((("color", ("digit",)), ("digit", ("color",))))
    reference = _reference(things, thing, draw, [wording])
    return (f"what {attribute} is the {reference}?", thing[attribute]) if reference else None


def _digit_exists(things: list[Thing], draw: Draw) -> PromptAnswer:
    if draw.below(2):
        return _exists(things, draw, ("color", "digit"), "")
    wanted = draw.below(2) == 1
    present = {thing["digit"] for thing in things}
    value = draw.pick([digit for digit in DIGITS if (digit in present) == wanted])
    return f"is there a {value}?", _yes_no(wanted)


def _digit_count(things: list[Thing], draw: Draw) -> PromptAnswer:
    what = draw.below(3)
    if what == 0:
        return "how many digits are there?", str(len(things))
    if what == 1:
        value, number = _even_count(things, "color", COLORS, draw)
        return f"how many {value} digits are there?", str(number)
    line = _line(things, draw, 0)
    return (f"how many digits are in the {line[0]}?", str(len(line[1]))) if line else None


def _digit_extreme(things: list[Thing], draw: Draw) -> PromptAnswer:
    end = draw.pick(("largest", "smallest"))
    values = [thing["digit"] for thing in things]
    value = max(values) if end == "largest" else min(values)
    if draw.below(3):
        return f"what is the {end} digit?", value
    return _place(things[values.index(value)], f"{end} digit", draw) if values.count(value) == 1 else None


def _digit_compare(things: list[Thing], draw: Draw) -> PromptAnswer:
    one, other = draw.shuffled(things)[:2]
    if one["digit"] == other["digit"]:
        return None
    prompt = f"is the {_position(one)} digit larger than the {_position(other)} digit?"
    return prompt, _yes_no(one["digit"] > other["digit"])


def _digit_neighbour(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing, side = draw.pick(things), draw.pick(tuple(SIDES))
    reference, other = _reference(things, thing, draw, _DIGIT_WORDINGS), _beside(things, thing, side)
    return (f"what digit is {side} the {reference}?", other["digit"]) if reference and other else None


# --- lists: answers of several words


def _words(things: list[Thing], attribute: str) -> str:
    return " ".join(thing[attribute] for thing in things)


def _list_place(things: list[Thing], draw: Draw) -> PromptAnswer:
    thing, reference = _referred(things, draw)
    return (f"where is the {reference}?", _position(thing)) if reference else None


def _scene_list_all(things: list[Thing], draw: Draw) -> PromptAnswer:
    attribute = draw.pick(("color", "shape", "size"))
    return f"list the {attribute} of all things", _words(things, attribute)


def _scene_list_line(things: list[Thing], draw: Draw) -> PromptAnswer:
    attribute, line = draw.pick(("color", "shape")), _line(things, draw, 2)
    return (f"list the {attribute} of the things in the {line[0]}", _words(line[1], attribute)) if line else None


def _scene_list_filter(things: list[Thing], draw: Draw) -> PromptAnswer:
    attribute, by = draw.pick((("color", "shape"), ("shape", "color"), ("color", "size"), ("shape", "size")))
    value = draw.pick(things)[by]
    chosen = [thing for thing in things if thing[by] == value]
    return (f"list the {attribute} of the {value} things", _words(chosen, attribute)) if len(chosen) > 1 else None


def _digit_list_all(things: list[Thing], draw: Draw) -> PromptAnswer:
    if draw.below(2):
        return "list all digits", _words(things, "digit")
    return "list the color of all digits", _words(things, "color")


def _digit_list_sort(things: list[Thing], draw: Draw) -> PromptAnswer:
    end = draw.pick(("smallest", "largest"))
    values = sorted((thing["digit"] for thing in things), reverse=end == "largest")
    return f"list all digits, {end} first", " ".join(values)


def _digit_list_line(things: list[Thing], draw: Draw) -> PromptAnswer:
    line = _line(things, draw, 2)
    return (f"list the digits in the {line[0]}", _words(line[1], "digit")) if line else None


def _digit_list_filter(things: list[Thing], draw: Draw) -> PromptAnswer:
    if draw.below(2):
        color = draw.pick(things)["color"]
        prompt = f"list the {color} digits"
        chosen = [thing for thing in things if thing["color"] == color]
    else:
        limit = draw.pick(DIGITS[2:7])
        prompt = f"list the digits larger than {limit}"
        chosen = [thing for thing in things if thing["digit"] > limit]
    return (prompt, _words(chosen, "digit")) if len(chosen) > 1 else None


SHORT: dict[str, dict[str, Template]] = {
    "scenes": {
        "at": _scene_at, "query": _scene_query, "where": _where, "exists": _scene_exists, "count": _scene_count,
        "compare": _scene_compare, "neighbour": _scene_neighbour, "extreme": _scene_extreme,
    },
    "digits": {
        "at": _digit_at, "query": _digit_query, "where": _where, "exists": _digit_exists, "count": _digit_count,
        "compare": _digit_compare, "neighbour": _digit_neighbour, "extreme": _digit_extreme,
    },
}  # fmt: skip
LISTS: dict[str, dict[str, Template]] = {
    "scenes": {"all": _scene_list_all, "line": _scene_list_line, "filter": _scene_list_filter, "place": _list_place},
    "digits": {
        "all": _digit_list_all, "sort": _digit_list_sort, "line": _digit_list_line, "filter": _digit_list_filter,
        "place": _list_place,
    },
}  # fmt: skip


def make_questions(
    things: list[Thing], kinds: Sequence[str], templates: dict[str, Template], draw: Draw
) -> list[PocketQuestion]:
    """One question of each of `kinds`, in order; a kind that has none for the image is replaced by another.

    No prompt occurs twice, so there may be fewer questions than kinds.
    """
    by_prompt: dict[str, PocketQuestion] = {}
    for kind in kinds:
        for number in range(4 * _MAX_TRIES):
            tried = kind if number < _MAX_TRIES else draw.pick(tuple(templates))
            made = templates[tried](things, draw)
            if made and made[0] not in by_prompt:
                by_prompt[made[0]] = PocketQuestion(tried, *made)
                break
    return list(by_prompt.values())


def describe(domain: str, things: list[Thing]) -> PocketQuestion:
    """The description of a whole image, row by row."""
    if domain == "digits":
        words = [f"{_position(thing)} {thing['digit']}" for thing in things]
        return PocketQuestion("digits", "describe the digits", " ".join(words))
    words = [f"{thing['size']} {thing['color']} {thing['shape']}" for thing in things]
    return PocketQuestion("scenes", "describe the scene", " ".join(words))


@functools.cache
def published_questions(part: str, image_id: int) -> tuple[PocketQuestion, ...]:
    """All easy-VQA questions of one image; the kinds are color, shape, color-check and shape-check."""
    questions = []
    for prompt, answer in easy_vqa_questions(part)[image_id]:
        about = "color" if "color" in prompt or any(color in prompt for color in COLORS) else "shape"
        if answer in ("yes", "no"):
            questions.append(PocketQuestion(f"{about}-check", prompt, answer))
        else:
            questions.append(PocketQuestion("color" if answer in COLORS else "shape", prompt, answer))
    return tuple(questions)


def balanced_easy_vqa(part: str, image_id: int, num_pairs: int, draw: Draw) -> list[PocketQuestion]:
    """Questions of one image in random order, with yes-or-no questions in at most `num_pairs` pairs.

    A pair is one question that names the image's colour or shape, and one of the same kind that names another: so
    neither the words nor the number of negations predict the answer.
    """
    published = published_questions(part, image_id)
    chosen = [question for question in published if not question.kind.endswith("check")]
    checks = draw.shuffled([question for question in published if question.kind.endswith("check")])
    for kind in draw.shuffled(("color-check", "shape-check")):
        right = [q for q in checks if q.kind == kind and names_the_image(q)]
        wrong = [q for q in checks if q.kind == kind and not names_the_image(q)]
        for pair in list(zip(right, wrong, strict=False))[:num_pairs]:
            chosen.extend(pair)
            num_pairs -= 1
    return draw.shuffled(chosen)


def names_the_image(question: PocketQuestion) -> bool:
    """Whether the colour or shape that an easy-VQA check names is the image's."""
    words = question.prompt.rstrip("?").split()
    return (question.answer == "yes") != ("not" in words or "no" in words)


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the prompts and answers, sorted."""
    easy = """a color contain does image in is no not of present shape the there what yes"""
    frames = """above all and are below bottommost describe digit digits do first how largest larger leftmost
        list many more of rightmost right left row column scene share size smallest than thing things topmost where
        which , ?"""
    values = (*COLORS, *SHAPES, *SIZES, *ROWS, *COLUMNS, *DIGITS)
    return tuple(sorted({*easy.split(), *frames.split(), *values}))
