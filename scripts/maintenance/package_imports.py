"""Read the imports between the packages of raysearch, and draw them: docs/images/packages.svg.

    python scripts/maintenance/package_imports.py            # writes the drawing anew, and prints upward imports

The drawing leaves out an arrow where a longer way leads to the same package.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "raysearch"
DRAWING = PACKAGE.parent / "docs" / "images" / "packages.svg"
ORDER = [
    *(
        "errors",
        "files",
        "logging",
        "progress",
        "config",
        "pocket",
        "models",
        "data",
        "evaluation",
        "study",
        "export",
        "runtimes",
    ),
    *(
        "pruning",
        "recovery",
        "trials",
        "searching",
        "tracking",
        "report",
        "backend",
        "replication",
        "api",
        "cli",
        "pareto",
    ),
]
"""Lowest first: imports run from right to left. docs/architecture.md says what each is for."""


def find_modules() -> dict[str, Path]:
    """Path of every module by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["raysearch", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = find_modules()


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, wherever in the file; names imported from a package count as its modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
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
    """The nodes from which there is no way out of a cycle."""
    remaining = {node: set(targets) for node, targets in edges.items()}
    while leaves := [node for node, targets in remaining.items() if not targets & remaining.keys()]:
        for node in leaves:
            del remaining[node]
    return sorted(remaining)


def package_edges() -> dict[str, set[str]]:
    """The packages that each package imports."""
    edges: dict[str, set[str]] = {name: set() for name in ORDER}
    for module, path in MODULES.items():
        here = package_of(module)
        if here in edges:
            names = (name for name in imported(path.read_text(encoding="utf-8")) if name.startswith("raysearch."))
            edges[here] |= {package_of(name) for name in names} - {here}
    return edges


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The edges of an acyclic graph without those to where a longer way leads."""

    def reach(node: str) -> set[str]:
        return edges[node].union(*(reach(target) for target in edges[node]))

    return {node: targets - set().union(*(reach(target) for target in targets)) for node, targets in edges.items()}


def heights(edges: dict[str, set[str]]) -> dict[str, int]:
    """Longest way down from each node."""
    found: dict[str, int] = {}
    for node in ORDER:
        found[node] = 1 + max((found[target] for target in edges[node]), default=-1)
    return found


def draw(edges: dict[str, set[str]], path: Path) -> None:
    """Write the packages as an SVG: a row per height, arrows downward."""
    rows: dict[int, list[str]] = {}
    for node, height in heights(edges).items():
        rows.setdefault(height, []).append(node)
    step_x, step_y, width, height = 150, 64, 112, 30
    at = {
        node: (70 + step_x * (place + (4 - len(row)) / 2), 30 + step_y * (max(rows) - level))
        for level, row in rows.items()
        for place, node in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 {60 + step_y * max(rows)}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#78909c"/></marker></defs>',
    ]
    for node, targets in reduced(edges).items():
        for target in sorted(targets):
            (x1, y1), (x2, y2) = at[node], at[target]
            ends = f'x1="{x1:g}" y1="{y1 + height / 2:g}" x2="{x2:g}" y2="{y2 - height / 2:g}"'
            lines.append(f'<line {ends} stroke="#78909c" marker-end="url(#a)"/>')
    for node, (x, y) in at.items():
        box = f'x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width}" height="{height}" rx="5"'
        lines.append(f'<rect {box} fill="#e8eaf6" stroke="#3f51b5"/><text x="{x:g}" y="{y + 5:g}">{node}</text>')
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw(package_edges(), DRAWING)
    for module, path in MODULES.items():
        print(*upward(module, path.read_text(encoding="utf-8")), sep="\n", end="")
