"""Every public function says which exceptions its own body raises."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysearch

PACKAGE = Path(raysearch.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "published" not in path.parts)


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a module and methods of its classes whose names don't begin with an underscore."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                yield member.name, member


def raised(function: ast.AST) -> set[str]:
    """Names of the exceptions that the function's own body raises; those of functions inside it don't count."""
    found = set()
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(called, ast.Name) and called.id[:1].isupper():
                found.add(called.id)
        found |= raised(node)
    return found


def undocumented(source: str) -> list[str]:
    """`function: exception` for each that the docstring leaves out."""
    lacking = []
    for name, function in public_functions(ast.parse(source)):
        _, _, section = (ast.get_docstring(function) or "").partition("Raises:")
        lacking += [f"{name}: {error}" for error in sorted(raised(function)) if error not in section]
    return lacking


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_exceptions_are_documented(path):
    assert undocumented(path.read_text(encoding="utf-8")) == []


def test_an_exception_that_is_left_out_is_found():
    source = 'def f(x):\n    """Do it."""\n    if x:\n        raise ValueError(x)\n'
    assert undocumented(source) == ["f: ValueError"]
    assert undocumented(source.replace("Do it.", "Do it.\n\n    Raises:\n        ValueError: `x` is set.\n    ")) == []
    assert undocumented("def f():\n    def g():\n        raise ValueError\n    return g\n") == []
