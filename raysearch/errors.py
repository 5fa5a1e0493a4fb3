"""User-input errors; the CLI prints them as one line and exits with status 2."""

import re

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks of writing direction, and halves of surrogate pairs."""


class InputError(ValueError):
    """A wrong file, key, value or command. The message names file, key and value, and the way out."""


class Refused(InputError):
    """A mistake that only shows once the dense model is measured; no trial of the study can run."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next one if it ends in a colon, at most 300 characters; without a
    message, its class."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    if first.endswith(":") and others:  # a heading
        first += " " + others[0].strip()
    return first[:300]


def printable(text: str) -> str:
    """`text` with every character escaped that would steer a terminal, hide text there, or can't be encoded."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)
