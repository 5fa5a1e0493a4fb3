"""The front in words and tables, for a terminal: what was found, and the answer to a budget."""

import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raysearch.config.budget import rate_text, size_text
from raysearch.config.recipe import Recipe
from raysearch.study.front import Front, FrontPoint, Speed, retention_text

_Z95 = 1.959964
POINT_HEAD = ("size", "of dense", "retention [95%]", "held out", "mode", "trained", "losses", "data", "key")
FILE_COLUMNS = 150  # one line per row where no terminal tells its width


def standard_error(point: FrontPoint) -> float:
    """Standard error of the retention, from its 95% interval."""
    low, high = point.retention_ci
    return (high - low) / (2 * _Z95)


def statistically_tied(point: FrontPoint, others: Iterable[FrontPoint]) -> list[FrontPoint]:
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


def losses_text(recipe: Recipe) -> str:
    """The recovery losses and their weights, e.g. `sft 1, logits 0.5`."""
    weights = recipe.loss_weights.items()
    return ", ".join(f"{name.removesuffix('_kd')} {weight:.3g}" for name, weight in weights) or "none"


def speed_text(speed: Speed) -> str:
    """A measurement in one line."""
    return (
        f"prefill {1000 * speed.prefill_seconds:.3g} ms for {speed.num_prompt_tokens} tokens, "
        f"{rate_text(speed.decode_tokens_per_second)}, peak {size_text(speed.peak_memory_bytes)}, "
        f"KV cache {size_text(speed.kv_cache_bytes_per_1000_tokens)} per 1,000 tokens; {speed.device}, {speed.dtype}"
    )


SPEED_HEAD = ("key", "of dense", "retention [95%]", "prefill", "decoding", "peak memory", "files", "KV cache")


def speed_cells(front: Front) -> list[list[str]]:
    """Rows under `SPEED_HEAD`: the dense model and each point that was measured; the KV cache is of 1,000 tokens."""
    dense = [("dense model", 1.0, "", front.baseline.measured)]
    points = [(p.key, p.size_ratio, retention_text(p), p.measured) for p in front.points]
    return [
        [
            name,
            f"{ratio:.1%}",
            retention,
            f"{1000 * speed.prefill_seconds:.3g} ms",
            rate_text(speed.decode_tokens_per_second),
            size_text(speed.peak_memory_bytes),
            size_text(speed.checkpoint_bytes),
            size_text(speed.kv_cache_bytes_per_1000_tokens),
        ]
        for name, ratio, retention, speed in [*dense, *points]
        if speed
    ]


def speed_table(front: Front) -> Any:
    """A rich table of what was measured."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    machines = {p.measured.device: p.measured.dtype for p in front.points if p.measured}
    title = "; ".join(f"{device}, {dtype}" for device, dtype in machines.items())
    table = Table(*SPEED_HEAD, title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for cells in speed_cells(front):
        table.add_row(*cells)
    return table


def front_table(points: Sequence[FrontPoint], title: str | None = None) -> Any:
    """A rich table of front points, one row each."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in POINT_HEAD[:4]:
        table.add_column(name, justify="right", no_wrap=name != "held out")
    for name in POINT_HEAD[4:]:
        table.add_column(name, no_wrap=name in ("data", "key"))
    for point in points:
        table.add_row(*point_cells(point))
    return table


def point_cells(point: FrontPoint, criterion: bool = False) -> list[str]:
    """A row of `POINT_HEAD`; with the criterion behind the mode if wanted."""
    recipe = point.recipe
    by = f" by {recipe.criterion}" if criterion else ""
    by += f", {recipe.quantization}" if recipe.quantization != "none" else ""
    return [
        size_text(point.size_bytes),
        f"{point.size_ratio:.1%}",
        retention_text(point),
        f"{point.heldout.retention:.1%}" if point.heldout else "",
        f"{recipe.mode} {recipe.ratio:.0%}{by}",
        recipe.trained,
        losses_text(recipe),
        f"{recipe.data_fraction:.0%}" if recipe.data_fraction else "",
        point.key,
    ]


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


def print_result(front: Front, folder: Path) -> None:
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
    where, command = shell_path(folder), own_command()
    print(f"\nFront      {where}/front.json, front.png, front.html")
    print(f"Report     {command} report {where}")
    if front.points:
        budget = next((text for text, key in front.budgets.items() if key), "100%")
        print(f"Checkpoint {command} export {where} --budget {budget} --to FOLDER")


def own_command() -> str:
    """The command line as whoever started this can type it."""
    beside = Path(sys.executable).with_name("raysearch")
    return "raysearch" if shutil.which("raysearch") or not beside.exists() else shell_path(beside)


def shell_path(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def print_rich(renderable: Any) -> None:
    """Print a table; wide enough for one line per row when the output is a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=max(console.width, FILE_COLUMNS), highlight=False)
    console.print(renderable)
