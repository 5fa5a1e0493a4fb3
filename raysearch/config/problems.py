"""What a file or an option got wrong, in one line: the key, what its value must be, and the nearest known name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN = 80
"""Characters of a refused value that are shown."""
_WORDS = {
    "missing": "missing; give it",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be finite",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} entries at most",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} characters at most",
    "string_pattern_mismatch": "must match {pattern}",
    "int_from_float": "must be a whole number",
    "model_attributes_type": "must map keys to values",
}
"""By the type of a problem (pydantic.dev/errors)."""
_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}
"""By the beginning of a type that ends in `_type` or `_parsing`."""


def first_problem(error: ValidationError, content: Any = None, model: Any = None) -> str:
    """One line about the first problem: the path of the key, what is wrong, and the known names.

    Args:
        content: what was validated; None where no field takes one of several types.
        model: the class that it isn't an object of, whose keys are named where one is unknown.
    """
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "missing":  # a misspelt key is one too many and one missing: its name says more
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden" or len(problem["loc"]) > 1)
    field = problems[0]["loc"][:1]
    # A union has problems for each of its types: the deepest is of the one that was meant.
    alike = [(_path(problem, content), problem) for problem in problems if problem["loc"][:1] == field]
    deepest = max(len(path) for path, _ in alike)
    path, first = next((path, problem) for path, problem in alike if len(path) == deepest)
    kinds = [_kind(problem) for where, problem in alike if where == path]
    if len(kinds) > 1 and all(kinds):
        text = f"must be {' or '.join(dict.fromkeys(map(str, kinds)))}, not {_shown(first['input'])}"
    else:
        text = _text(first, _keys_at(model, path[:-1]))
    return ": ".join(filter(None, (".".join(map(str, path)), text)))


def _path(problem: ErrorDetails, content: Any) -> list[str | int]:
    """The keys and indices to the value; pydantic's path also names the types that it tried."""
    if content is None:
        return list(problem["loc"])
    path: list[str | int] = []
    for part in problem["loc"]:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    if problem["type"] == "missing":
        path.append(problem["loc"][-1])
    return path


def _kind(problem: ErrorDetails) -> str | None:
    """What the value must be, if it is of a wrong type."""
    name, _, end = problem["type"].partition("_")
    return _KINDS.get(name) if end in ("type", "parsing") else None


def _text(problem: ErrorDetails, known: Sequence[str]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind in ("value_error", "json_invalid"):
        return problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown key; {known_names(problem['loc'][-1], known)}" if known else "unknown key; remove it"
    if kind == "missing":
        return _WORDS[kind]
    of_kind = _kind(problem)
    words = f"must be {of_kind}" if of_kind else _WORDS.get(kind, problem["msg"][:1].lower() + problem["msg"][1:])
    end = ""
    if kind == "literal_error":
        expected = problem["ctx"]["expected"]
        words, end = f"must be {expected}", _did_you_mean(value, re.findall("'([^']*)'", expected))
    limits = {name: _number(limit) for name, limit in problem.get("ctx", {}).items()}
    return f"{words.format(**limits)}, not {_shown(value)}{end}"


def known_names(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known ones, and the one that is most like it, if one is."""
    return f"known are {', '.join(known)}{_did_you_mean(name, known)}"


def _did_you_mean(name: Any, known: Iterable[str]) -> str:
    return "".join(f"; did you mean {close}?" for close in get_close_matches(str(name), list(known), 1))


def _number(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _keys_at(model: Any, path: Sequence[str | int]) -> list[str]:
    """Keys that the object at `path` may have; none where that isn't one class."""
    for part in path:
        if isinstance(part, int) or isinstance(model, Mapping):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else _model_in(field.annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The one class of settings that a field's type has: itself, in a list, or beside other types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_model_in, get_args(annotation)) if found), None)
