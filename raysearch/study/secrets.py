"""Mask secrets in what is sent to a tracker or written into a report."""

import re
from typing import Any

MASK = "***"
_SECRET_KEYS = re.compile(
    r"(?i)(secret|passw|passphrase|credential|api_?key|access_?key|private_?key|auth|(^|_)token$)"
)
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_KNOWN_TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|dapi[0-9a-f]{32})\b"
    r"|(?<=[?&])((?:access_)?token|sig|signature|key|password)=[^&\s]+"
)


def mask(value: Any) -> Any:
    """`value` with every secret in it replaced: values under keys like `password`, logins in URLs, known tokens."""
    if isinstance(value, dict):
        return {
            key: MASK if _SECRET_KEYS.search(str(key)) and not isinstance(item, dict | list | bool) else mask(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask(item) for item in value]
    if isinstance(value, str):
        return _KNOWN_TOKENS.sub(MASK, _LOGIN.sub(MASK, value))
    return value
