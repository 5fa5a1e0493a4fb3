"""Mask secrets in what is sent to a tracker or written into a report."""

import re
from typing import Any
from urllib.parse import unquote

MASK = "***"
_SECRET_KEYS = re.compile(
    r"(?i)(secret|passw|passphrase|credential|api_?key|access_?key|private_?key|auth|(^|_)token$)"
)
_LOGIN = re.compile(r"(?<=://)\S*(?=@)")
"""Up to the last @: a password may hold `/`, `:` and `@`, so that a path with an @ loses its host, too."""
_QUERY = re.compile(r"(?<=[?&;])([^?&;=\s]+)=([^&\s]+)")
_QUERY_SECRETS = re.compile(r"(?i)^(sig|signature|key|pwd)$")
_KNOWN_TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|dapi[0-9a-f]{32})\b"
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
        return _KNOWN_TOKENS.sub(MASK, _QUERY.sub(_masked_query, _LOGIN.sub(MASK, value)))
    return value


def _masked_query(found: re.Match[str]) -> str:
    name = unquote(found[1])
    return f"{found[1]}={MASK}" if _SECRET_KEYS.search(name) or _QUERY_SECRETS.search(name) else found[0]
