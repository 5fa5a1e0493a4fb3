"""Write docs/reference/space.md from the schema of a search space: python scripts/maintenance/document_space.py"""

import ast
import inspect
import itertools
import textwrap
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raysearch.config.benchmarks import BenchmarkConfig, LmmsEvalConfig
from raysearch.config.criteria import LAYER_CRITERIA, WIDTH_CRITERIA
from raysearch.config.recipe import _CONDITIONS, LOSS_FIELDS, Recipe
from raysearch.config.space import SearchSpace

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "space.md"
HEAD = """# Search space: every key

Written by `python scripts/maintenance/document_space.py` from the schema; a test checks that it is up to date. A space
is a YAML file: `search_spaces/pocket.yaml` is a commented one to start from. An unknown key is an error that lists the
known ones. `raysearch search SPACE.yaml --dry-run` checks a space and estimates the cost of its search.
"""
DIMENSIONS = """A dimension is written in one of four ways:

```yaml
recipe:
  mode: widthwise                             # one value: fixed
  trained: [projector, projector+lora]        # one of several
  ratio: {low: 0.1, high: 0.6}                # a number between two, both included; log: true, or a step
  lr:                                         # cases: the first whose conditions hold applies
    - {when: {trained: projector}, low: 3.0e-4, high: 3.0e-3, log: true}
    - {low: 1.0e-5, high: 3.0e-4, log: true}
```

`mode`, `ratio` and `criterion` are required; other fields have defaults. `when` names earlier fields of the
table. A field that does not apply to a recipe is not sampled, so that no two recipes differ in a field without
effect.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, table(SearchSpace, "")]
    for name, field in SearchSpace.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            parts.append(f"## {name}\n\n{section.__doc__}\n\n{table(section, f'{name}.')}")
    for entry in (BenchmarkConfig, LmmsEvalConfig):
        parts.append(f"## benchmarks\n\n{entry.__doc__}\n\n{table(entry, 'benchmarks[].')}")
    parts.append(f"## recipe\n\nThe dimensions that are searched.\n\n{DIMENSIONS}\n{recipe_table()}")
    return "\n".join(parts)


def table(model: type[BaseModel], prefix: str) -> str:
    """A row per field: its key, its type, its default and its docstring."""
    docstrings = docstrings_of(model)
    rows = [
        f"| `{prefix}{name}` | {kind_of(field)} | {default_of(field)} | {words(docstrings[name])} |"
        for name, field in model.model_fields.items()
        if not is_section(field)
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def docstrings_of(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field; a field without one is a KeyError to whoever asks for it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef), tree
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def recipe_table() -> str:
    """A row per dimension, with what it needs to apply."""
    rows, docstrings = [], docstrings_of(Recipe)
    for name, field in Recipe.model_fields.items():
        needs = _CONDITIONS[name][1] if name in _CONDITIONS else ""
        kind = criteria() if name == "criterion" else kind_of(field)
        rows.append(f"| `recipe.{name}` | {kind} | {needs} | {words(docstrings[name])} |")
    losses = ", ".join(f"`{name}`" for name in LOSS_FIELDS)
    note = f"\nAt least one of {losses} must be above 0 wherever something is trained.\n"
    return "\n".join(["| key | value | applies with | meaning |", "|---|---|---|---|", *rows, note])


def criteria() -> str:
    """The names that a criterion may have."""
    layers, widths = (", ".join(f"`{name}`" for name in names) for names in (LAYER_CRITERIA, WIDTH_CRITERIA))
    return f"for layers {layers}; for widths {widths}"


def is_section(field: FieldInfo) -> bool:
    """Whether a field has a table of its own."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def kind_of(field: FieldInfo) -> str:
    """A type and its bounds in words."""
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{words_for} {getattr(part, sign):g}"
        for part in field.metadata
        for sign, words_for in signs.items()
        if getattr(part, sign, None) is not None
    ]
    return ", ".join([type_words(field.annotation), *limits])


def type_words(kind: Any) -> str:
    """A type as a person would say it."""
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    simple = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): ""}
    if kind in simple:
        return simple[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_words(arguments[0])
    if origin is list:
        return f"list of {type_words(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(kind, type):
        return f"mapping ({kind.__name__})"
    return " or ".join(filter(None, (type_words(part) for part in arguments)))


def default_of(field: FieldInfo) -> str:
    """The default; what must be given says so."""
    if field.default is PydanticUndefined:
        return "must be given"
    if field.default is None:
        return ""
    value = field.default
    return (
        f"`{value:.3g}`"
        if isinstance(value, float)
        else f"`{str(value).lower() if isinstance(value, bool) else value}`"
    )


def words(text: str) -> str:
    """A docstring in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
