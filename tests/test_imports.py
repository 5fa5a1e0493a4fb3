"""Imports between packages run downward, lazy ones included; only backend/ imports ray."""

import ast

import pytest

from scripts.maintenance.package_imports import (
    DRAWING,
    MODULES,
    ORDER,
    cycles,
    draw,
    imported,
    package_edges,
    package_of,
    reduced,
    upward,
)


def test_every_package_has_its_place_in_the_order():
    assert {package_of(name) for name in MODULES} - {"", "__main__"} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert upward(module, source) == []
    if package_of(module) != "backend":
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


def test_the_drawing_is_that_of_the_imports(tmp_path):
    draw(package_edges(), tmp_path / "packages.svg")
    again = "write it anew: python scripts/maintenance/package_imports.py"
    assert (tmp_path / "packages.svg").read_text() == DRAWING.read_text(), again


def test_an_arrow_with_a_longer_way_beside_it_is_left_out():
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
