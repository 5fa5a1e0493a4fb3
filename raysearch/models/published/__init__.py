"""Conversion of published checkpoints that need code of their own to stock classes of transformers."""

import re
from collections.abc import Iterable


def renamed(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    """A tensor's name after every substitution (regular expression, replacement) in turn."""
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
