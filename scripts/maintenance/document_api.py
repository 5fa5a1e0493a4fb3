"""MkDocs hook: fills docs/reference/api.md with a mkdocstrings directive for every public name of `raysearch`."""

from typing import Any

import raysearch

DIRECTIVE = """
::: raysearch.{home}.{name}
    options:
      heading: "{name}"
      toc_label: "{name}"
"""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the directives to the API page, in alphabetical order; other pages stay as they are."""
    if page.file.src_uri != "reference/api.md":
        return markdown
    homes = sorted(raysearch._HOMES.items())
    return markdown + "".join(DIRECTIVE.format(name=name, home=home) for name, home in homes)
