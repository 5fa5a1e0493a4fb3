"""Options and answers as data sets store them; a shape that is not known is refused, never turned into text."""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysearch.evaluation.responses import LETTERS, chosen_letter, normalised, said_yes_no

_TEXT_KEYS = ("text", "value", "content", "choice", "answer", "option_text")
_LABEL_KEYS = ("label", "key", "letter", "id", "option", "index")
_OWN_LETTER = re.compile(r"\s*\(?([A-Z])[).:]\s+(\S.*)", re.S)


def options_of(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of the options, and the labels that the data give them: none if they give none.

    A list of texts or numbers, of `{text, label}` or of `{A: text}`; a mapping by letter or number; `{text, label}` of
    lists; lines; or any of these as the text of Python or JSON. Missing options may only be the last ones.

    Raises:
        ValueError: another shape, or more options than letters.
    """
    value = _read(value)
    if _is_missing(value) or value == "":
        return (), ()
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
        if len(value) < 2:
            raise ValueError(f"options {value[0][:80]!r} are one text; give a list")
    pairs = _pairs(value)
    while pairs and _is_missing(pairs[-1][1]):
        pairs.pop()
    texts = tuple(_text(text, "an option") for _, text in pairs)
    if len(texts) > len(LETTERS):
        raise ValueError(f"{len(texts)} options, and there are letters for {len(LETTERS)}")
    labels = tuple(str(label).strip() for label, _ in pairs if label is not None)
    own = [_OWN_LETTER.fullmatch(text) for text in texts]
    if texts and [found and found[1] for found in own] == list(LETTERS[: len(texts)]):
        texts = tuple(found[2] for found in own if found)
    return texts, labels


def answers_of(value: Any) -> list[Any]:
    """The acceptable answers in a cell, without empty ones: one value, a list, objects as of VQAv2 and SQuAD, or the
    text of a Python or JSON list of texts.

    Raises:
        ValueError: another shape.
    """
    if isinstance(value, str):
        listed = _read(value)  # a list of numbers is an answer itself
        value = listed if isinstance(listed, list) and listed and all(isinstance(i, str) for i in listed) else value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        keys = [key for key in ("answer", "text", "answers") if not _is_missing(value.get(key))]
        if len(keys) != 1:
            raise ValueError(f"an answer that is an object with {', '.join(map(str, value))}; one key must be answer")
        return answers_of(value[keys[0]])
    if isinstance(value, list | tuple):
        nested = [answer for item in value for answer in ([item] if _is_scalar(item) else answers_of(item))]
        return [answer for answer in nested if not _is_missing(answer) and str(answer).strip()]
    return [] if _is_missing(value) else [_scalar(value, "an answer")]


def read_text(value: Any, options: Sequence[str] = ()) -> str:
    """Any text but an empty one.

    Raises:
        ValueError: it is empty, or no text.
    """
    text = "" if _is_missing(value) else _text(value, "the answer")
    if not text:
        raise ValueError("the answer is empty")
    return text


def read_choice(value: Any, options: Sequence[str]) -> str:
    """The letter of the right option, given as its letter, its index from 0 or its text.

    Raises:
        ValueError: it is none of them, or may be two.
    """
    letters = LETTERS[: len(options)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if not letters:
        raise ValueError("no options to choose from")
    is_index = isinstance(value, int) and not isinstance(value, bool)
    if is_index or (text.isdecimal() and text not in options):
        if not 0 <= int(text) < len(letters):
            raise ValueError(f"answer {text[:80]} is not the number of an option; they go from 0 to {len(letters) - 1}")
        return letters[int(text)]
    if text.isdecimal() and options.index(text) != int(text):
        raise ValueError(
            f"answer {text!r} may be an option's number or its text; set answer_is_number, or give letters"
        )
    if text in tuple(letters):
        return text
    if list(options).count(text) == 1:
        return letters[list(options).index(text)]
    by_letter = re.fullmatch(rf"\(?([{letters}{letters.lower()}])[).:]?|\(?([{letters}])[).:]\s.*", text, re.S)
    found = chosen_letter(text, options) if by_letter else None
    if found is None:
        raise ValueError(f"answer {text[:80]!r} is none of the options {', '.join(options)}")
    return found


def read_yes_no(value: Any, options: Sequence[str]) -> str:
    """`yes` or `no`, from these words, from true and false, or from 1 and 0.

    Raises:
        ValueError: it is neither.
    """
    text = {"true": "yes", "false": "no", "1": "yes", "0": "no"}.get(str(value).strip().lower(), str(value))
    found = said_yes_no(text)
    if found is None or normalised(text) != found:
        raise ValueError(f"answer {value!r} is neither yes nor no")
    return found


def read_relaxed(value: Any, options: Sequence[str]) -> str:
    """As `read_choice` where there are options."""
    return read_choice(value, options) if options else read_text(value)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Label or None, and content, of each option, in their order."""
    if isinstance(value, Mapping):
        texts, labels = (next((value[k] for k in keys if k in value), None) for keys in (_TEXT_KEYS, _LABEL_KEYS))
        if isinstance(texts, list) and isinstance(labels, list | None):
            return list(zip(labels or [None] * len(texts), texts, strict=True))
        keys = [str(key).strip().upper() for key in value]
        named = list(zip(keys, value.values(), strict=True))
        if set(keys) == set(LETTERS[: len(keys)]):
            return sorted(named, key=lambda pair: pair[0])
        return sorted(named, key=lambda pair: int(pair[0])) if all(key.isdecimal() for key in keys) else named
    if not isinstance(value, list):
        raise ValueError(f"options that are {type(value).__name__}; give a list")
    pairs = [_pair(item) if isinstance(item, Mapping) else (None, item) for item in value]
    labels = [label for label, _ in pairs if label is not None]
    if labels and len(labels) < len(pairs):
        raise ValueError("options of which only some have a label")
    if set(map(str, labels)) == set(LETTERS[: len(pairs)]):
        return sorted(pairs, key=lambda pair: str(pair[0]))
    return pairs


def _pair(option: Mapping[str, Any]) -> tuple[Any, Any]:
    text_key = next((key for key in _TEXT_KEYS if key in option), None)
    if text_key is not None:
        return next((option[key] for key in _LABEL_KEYS if not _is_missing(option.get(key))), None), option[text_key]
    given = [(key, text) for key, text in option.items() if not _is_missing(text)]
    if len(given) != 1:
        raise ValueError(
            f"an option that is an object with {', '.join(map(str, option))}; give texts, or text and label"
        )
    return given[0]


def _read(value: Any) -> Any:
    """A list or mapping from the text of JSON or Python; arrays as lists; any other value as it is."""
    if isinstance(value, np.ndarray | tuple):
        return list(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] not in ("[", "{"):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int | float | np.generic | None)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _scalar(value: Any, name: str) -> Any:
    if not _is_scalar(value):
        raise ValueError(f"{name} that is {type(value).__name__}; give a text or a number")
    return value


def _text(value: Any, name: str) -> str:
    if _is_missing(value):
        raise ValueError(f"{name} that is missing between others")
    return str(_scalar(value, name)).strip()
