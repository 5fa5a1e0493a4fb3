"""Imports between packages run downward, lazy ones included; only backend/ (and testing/) imports ray."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysearch

PACKAGE = Path(raysearch.__file__).parent
ORDER = (
    "errors files logging config pocket models data evaluation study export pruning recovery trials search tracking "
    "report backend replication cli pareto testing"
).split()
"""Lowest first; docs/architecture.md says what each is for."""
ENTRIES = ("__init__", "__main__")


def modules() -> dict[str, Path]:
    """Dotted name and path of every module."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["raysearch", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, wherever in the file; names imported from a package count as its modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def package_of(module: str) -> str:
    """The package or loose module directly below raysearch; empty for raysearch itself."""
    return module.split(".")[1] if "." in module else ""


def upward(module: str, source: str) -> list[str]:
    """The imports of a module that don't run downward."""
    here = package_of(module)
    found = []
    for name in imported(source):
        there = package_of(name) if name.split(".")[0] == "raysearch" else here
        if there != here and here in ORDER and (there not in ORDER or ORDER.index(there) > ORDER.index(here)):
            found.append(f"{module} imports {name}")
    return found


def cycles(edges: dict[str, set[str]]) -> list[str]:
    """The nodes that lie on a cycle."""
    remaining = {node: set(targets) for node, targets in edges.items()}
    while leaves := [node for node, targets in remaining.items() if not targets & remaining.keys()]:
        for node in leaves:
            del remaining[node]
    return sorted(remaining)


def test_every_package_has_its_place_in_the_order():
    assert {package_of(name) for name in MODULES} - {"", "__main__"} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert upward(module, source) == []
    if package_of(module) not in ("backend", "testing"):
        assert [name for name in imported(source) if name.split(".")[0] == "ray"] == []


def test_no_modules_import_each_other_when_they_are_loaded():
    """Imports at the top of files; a cycle would depend on which module is imported first."""
    edges = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        edges[module] = {name for name in imported(ast.unparse(top)) if name in MODULES and name != module}
    assert cycles(edges) == []


def test_an_upward_import_is_found_wherever_it_stands():
    assert upward("raysearch.config.space", "from raysearch.errors import InputError") == []
    assert upward("raysearch.config.space", "def f():\n    from raysearch.cli import app\n") == [
        "raysearch.config.space imports raysearch.cli.app"
    ]
    assert upward("raysearch.study.front", "import raysearch.backend.tuner") == [
        "raysearch.study.front imports raysearch.backend.tuner"
    ]


def test_a_cycle_is_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert cycles({"a": {"b"}, "b": set()}) == []
