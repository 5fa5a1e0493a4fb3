"""Durations as people write them: 90s, 20m, 2h, 1h30m, 1d."""

import re

from raysearch.errors import InputError

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"[0-9]*\.?[0-9]+"
_FORM = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _SECONDS))


def parse_duration(text: str) -> float:
    """Seconds of a duration, above 0; larger units come first.

    Raises:
        InputError: any other text, e.g. a number without a unit or with an unknown one, or 0.
    """
    match = _FORM.fullmatch(text.replace(" ", "").lower())
    parts = match.groups() if match else ()
    seconds = sum(float(part) * size for part, size in zip(parts, _SECONDS.values(), strict=bool(parts)) if part)
    if not any(parts):
        raise InputError(f"{text!r} is no duration; write 90s, 20m, 2h, 1h30m or 1d")
    if not 0 < seconds < 1e9:
        raise InputError(f"{text!r} is no time to search in; write 90s, 20m, 2h, 1h30m or 1d")
    return float(seconds)
