"""MkDocs hook: fills docs/reference/api.md with a mkdocstrings directive for every public name of `raysearch`."""

from typing import Any

import raysearch


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the directives to the API page; other pages stay as they are."""
    if page.file.src_uri != "reference/api.md":
        return markdown
    return "\n\n".join([markdown, *(f"::: raysearch.{home}.{name}" for name, home in homes().items())])


def homes() -> dict[str, str]:
    """The module below `raysearch` that defines each public name, in alphabetical order of the names."""
    return dict(sorted(raysearch._HOMES.items()))
