"""The front in words and tables, for a terminal: what was found, and the answer to a budget."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from raysearch.front import Front, FrontPoint
from raysearch.recipe import LOSS_FIELDS, Recipe

_Z95 = 1.959964
FILE_COLUMNS = 150  # one line per row where no terminal tells its width
_SHORT = {"sft": "sft", "logits_kd": "logits", "hidden_kd": "hidden"}


def standard_error(point: FrontPoint) -> float:
    """Standard error of the retention, from its 95% interval."""
    low, high = point.retention_ci
    return (high - low) / (2 * _Z95)


def not_told_apart(point: FrontPoint, others: Iterable[FrontPoint]) -> list[FrontPoint]:
    """The `others` whose retention differs from the point's by less than its 95% interval would need.

    The two retentions are taken as independent. Both were measured on the same questions, which makes their
    difference less noisy than that: who is told apart here is told apart for certain, not the other way round.
    """

    def differs(other: FrontPoint) -> bool:
        noise = math.hypot(standard_error(point), standard_error(other))
        return abs(point.retention - other.retention) > _Z95 * noise

    return [other for other in others if other.key != point.key and not differs(other)]


def better_than_dense(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Points whose whole 95% interval of retention lies above 1."""
    return [point for point in points if point.retention_ci[0] > 1]


def size_text(size_bytes: int) -> str:
    """Bytes as people read them, e.g. `3.2 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes} B"


def params_text(num_params: int) -> str:
    """A count of parameters as people read it, e.g. `2.9B`."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if num_params >= factor:
            return f"{num_params / factor:.3g}{unit}"
    return str(num_params)


def seconds_text(seconds: float) -> str:
    """A duration as people read it, e.g. `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def losses_text(recipe: Recipe) -> str:
    """The recovery losses and their weights, e.g. `sft 1, logits 0.5`."""
    weights = [(name, getattr(recipe, name)) for name in LOSS_FIELDS]
    return ", ".join(f"{_SHORT[name]} {weight:.3g}" for name, weight in weights if weight) or "none"


def retention_text(point: FrontPoint) -> str:
    """Retention with its 95% interval, in percent of the dense model."""
    low, high = point.retention_ci
    return f"{point.retention:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def front_table(points: Sequence[FrontPoint], title: str | None = None) -> Any:
    """A rich table of front points, one row each."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("size", "of dense", "retention [95%]", "held out"):
        table.add_column(name, justify="right", no_wrap=name != "held out")
    for name in ("mode", "trained", "losses", "data", "key"):
        table.add_column(name, no_wrap=name in ("data", "key"))
    for point in points:
        recipe = point.recipe
        table.add_row(
            size_text(point.size_bytes),
            f"{point.size_ratio:.1%}",
            retention_text(point),
            f"{point.heldout.retention:.1%}" if point.heldout else "",
            f"{recipe.mode} {recipe.ratio:.0%}",
            recipe.trained,
            losses_text(recipe),
            f"{recipe.data_fraction:.0%}" if recipe.data_fraction else "",
            point.key,
        )
    return table


def budget_lines(front: Front) -> list[str]:
    """One line per budget asked for: the recipe that answers it, or that none does."""
    points = {point.key: point for point in front.points}
    lines = []
    for budget, key in front.budgets.items():
        if key is None:
            lines.append(f"{budget}: no finished recipe is that small")
            continue
        point = points[key]
        lines.append(
            f"{budget}: {key} keeps {retention_text(point)} at {size_text(point.size_bytes)} "
            f"({point.size_ratio:.1%} of the dense model): {point.recipe.describe()}"
        )
    return lines


def print_result(front: Front, folder: str) -> None:
    """What a search says when it is done: the front, the answer to every budget, and what to do next."""
    print_rich(front_table(front.points, f"Front of {front.study}: hypervolume {front.hypervolume:.3f}"))
    for line in budget_lines(front):
        print(line)
    for point in better_than_dense(front.points):
        print(
            f"Warning: {point.key} keeps {retention_text(point)}, more than the dense model has beyond noise. Unless "
            "recovery taught these very questions, the dense model isn't asked as it was trained: compare its scores "
            "with published ones, and mend the chat template or the benchmarks' prompt."
        )
    budget = next((text for text, key in front.budgets.items() if key), "60%")
    print(f"\nFront      {folder}/front.json, front.png, front.html")
    print(f"Report     raysearch report {folder}")
    print(f"Checkpoint raysearch export {folder} --budget {budget} --to FOLDER")


def print_rich(renderable: Any) -> None:
    """Print a table; wide enough for one line per row when the output is a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=max(console.width, FILE_COLUMNS), highlight=False)
    console.print(renderable)
