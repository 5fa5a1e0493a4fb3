"""A front on the terminal: tables, the answer to each budget, and the summary of a search."""

import math
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raysearch.config.budget import rate_text, size_text
from raysearch.config.recipe import Recipe
from raysearch.study.front import Front, FrontPoint, Speed, retention_text

POINT_COLUMNS = ("size", "of dense", "retention [95%]", "held out", "mode", "trained", "losses", "data", "key")
SPEED_COLUMNS = ("key", "of dense", "retention [95%]", "prefill", "decoding", "peak memory", "files", "KV cache")
CHECK_PROMPTS = (
    "Unless recovery trained on these very questions, the dense model is not prompted as it was trained: compare its "
    "scores with published ones, and correct the chat template or the benchmarks' prompt."
)
_PIPE_WIDTH = 150  # characters; in a file or a pipe, each row stays on one line


def half_width(point: FrontPoint) -> float:
    """Half the width of the 95% interval of the retention."""
    low, high = point.retention_ci
    return (high - low) / 2


def statistically_tied(point: FrontPoint, others: Iterable[FrontPoint]) -> list[FrontPoint]:
    """The `others` whose retention does not differ significantly from the point's, at 5%.

    The two retentions are treated as independent. Both were measured on the same questions, which makes the error of
    their difference smaller: a difference that is significant here is so in a paired test, not the other way round.
    """
    return [
        other
        for other in others
        if other.key != point.key
        and abs(point.retention - other.retention) <= math.hypot(half_width(point), half_width(other))
    ]


def losses_text(recipe: Recipe) -> str:
    """The recovery losses and their weights, e.g. `sft 1, logits 0.5`."""
    weights = recipe.loss_weights.items()
    return ", ".join(f"{name.removesuffix('_kd')} {weight:.3g}" for name, weight in weights) or "none"


def speed_text(speed: Speed) -> str:
    """Speed and memory in one line."""
    prefill, decoding, peak, _, cache = _speed_texts(speed)
    return (
        f"prefill {prefill} for {speed.num_prompt_tokens} tokens, {decoding}, peak {peak}, "
        f"KV cache {cache} per 1,000 tokens; {speed.device}, {speed.dtype}"
    )


def _speed_texts(speed: Speed) -> list[str]:
    """Prefill, decoding, peak memory, files with weights, KV cache of 1,000 tokens."""
    sizes = (speed.peak_memory_bytes, speed.checkpoint_bytes, speed.kv_cache_bytes_per_1000_tokens)
    prefill = f"{1000 * speed.prefill_seconds:.3g} ms"
    return [prefill, rate_text(speed.decode_tokens_per_second), *map(size_text, sizes)]


def speed_rows(front: Front) -> list[list[str]]:
    """Rows under `SPEED_COLUMNS`: the dense model and each measured point; the KV cache is of 1,000 tokens."""
    dense = [("dense model", 1.0, "", front.baseline.measured)]
    points = [(p.key, p.size_ratio, retention_text(p), p.measured) for p in front.points]
    return [
        [name, f"{ratio:.1%}", retention, *_speed_texts(speed)]
        for name, ratio, retention, speed in [*dense, *points]
        if speed
    ]


def speed_table(front: Front) -> Any:
    """A rich table of `speed_rows`."""
    machines = {p.measured.device: p.measured.dtype for p in front.points if p.measured}
    title = "; ".join(f"{device}, {dtype}" for device, dtype in machines.items())
    return fitting_table(SPEED_COLUMNS, speed_rows(front), ("files", "KV cache", "peak memory", "of dense"), title)


def front_table(points: Sequence[FrontPoint], title: str | None = None) -> Any:
    """A rich table of front points, one row each."""
    rows = [point_row(point) for point in points]
    return fitting_table(POINT_COLUMNS, rows, ("data", "losses", "trained", "size", "mode", "held out"), title)


def fitting_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], drop_first: Sequence[str], title: str | None = None
) -> Any:
    """A rich table in which every row stays on one line, for the terminal's width.

    Args:
        drop_first: columns that may be left out where there is no room, in this order.
    """
    from rich.measure import Measurement

    console = _console()
    for num_dropped in range(len(drop_first) + 1):
        kept = [i for i, name in enumerate(columns) if name not in drop_first[:num_dropped]]
        table = rich_table(title=title)
        for i in kept:
            is_number = all(row[i][:1].isdigit() or not row[i] for row in rows)
            table.add_column(columns[i], justify="right" if is_number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(row[i] for i in kept))
        unbounded = console.options.update(max_width=10_000)
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
    return table


def rich_table(*columns: str, title: str | None = None) -> Any:
    """An empty rich table in the style of all tables here."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)


def point_row(point: FrontPoint, criterion: bool = False) -> list[str]:
    """A row under `POINT_COLUMNS`; `criterion` adds the criterion to the mode."""
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
    """One line per budget: the recipe that answers it, or that none does."""
    points = {point.key: point for point in front.points}
    lines = []
    for budget, key in front.budgets.items():
        if key is None:
            lines.append(f"{budget}: no finished recipe is that small")
            continue
        point = points[key]
        lines.append(
            f"{budget}: {key} retains {retention_text(point)} at {size_text(point.size_bytes)} "
            f"({point.size_ratio:.1%} of the dense model): {point.recipe.describe()}{state_text(point.best_at)}"
        )
    return lines


def state_text(best_at: int | None) -> str:
    """Which state of a trial was handed over, to be added to its recipe; empty for the final one."""
    if best_at is None:
        return ""
    return f", as it was after {best_at:,} samples" if best_at else ", as it was before recovery, which harmed it"


def unscored_text(front: Front, folder: Path) -> str:
    """How to have the points scored on held-out questions that aren't yet; empty if all are."""
    num = len(front.unscored())
    if not num:
        return ""
    points = "1 point was" if num == 1 else f"{num} points were"
    return (
        f"{points} not asked held-out questions yet; finish with {own_command()} search --resume {shell_path(folder)}"
    )


def print_result(front: Front, folder: Path) -> None:
    """Print the summary of a search: the front, the answer to every budget, and the commands to use it."""
    print_rich(front_table(front.points, f"Front of {front.study}: hypervolume {front.hypervolume:.3f}"))
    for line in budget_lines(front):
        print(line)
    for point in front.points:
        if point.retention_ci[0] > 1:
            print(f"Warning: {point.key} retains {retention_text(point)}, significantly above 100%. {CHECK_PROMPTS}")
    if unscored := unscored_text(front, folder):
        print(f"Warning: {unscored}")
    where, command = shell_path(folder), own_command()
    print(f"\nFront      {where}/front.json, front.png, front.html")
    print(f"Report     {command} report {where}")
    if front.points:
        budget = next((text for text, key in front.budgets.items() if key), "100%")
        print(f"Checkpoint {command} export {where} --budget {budget} --to FOLDER")


def own_command() -> str:
    """The `raysearch` command as the person's shell finds it."""
    script = Path(sys.executable).with_name("raysearch")
    return "raysearch" if shutil.which("raysearch") or not script.exists() else shell_path(script)


def shell_path(path: Path) -> str:
    """A path as typed in the working folder: relative if it lies inside, quoted where a shell needs it."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def print_rich(renderable: Any) -> None:
    """Print a rich table; wide enough for one line per row when the output is a file or a pipe."""
    _console().print(renderable)


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=max(console.width, _PIPE_WIDTH), highlight=False)
