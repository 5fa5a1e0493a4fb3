"""What a person sees while a search runs: one live view on a terminal, plain lines everywhere else."""

import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.report.front_info import staircase
from raysearch.report.terminal import budget_lines, front_table, own_command, print_rich, shell_path
from raysearch.study.folder import Study
from raysearch.study.front import Front
from raysearch.study.records import Score, TrialRecord, seconds_text

if TYPE_CHECKING:
    from raysearch.study.plan import StudyPlan

TRIALS_BEFORE_A_FORECAST = 3
SYMBOLS = {"stopped": "×", "finished": "·", "stairs": "─", "front": "●"}


@dataclass
class _Running:
    recipe: Recipe
    size_ratio: float
    started: float = field(default_factory=time.monotonic)
    latest: Score | None = None


class LiveView:
    """Follows a search on the terminal; use it as a context manager.

    Quiet and line-based when stdout is no terminal or CI is set: one line per ended trial and per change of the
    front. After Ctrl-C it says what was kept and how to go on.
    """

    def __init__(self, plan: "StudyPlan", study: Study) -> None:
        self._plan, self._study = plan, study
        self._running: dict[str, _Running] = {}
        self._ended_here = 0
        self._started = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> "LiveView":
        space = self._plan.space
        left = space.search.trials - len(self._study.records)
        print(f"{space.name}: {left} trials on {space.model}, into {self._study.folder}", flush=True)
        if is_interactive():
            from rich.live import Live

            self._live = Live(get_renderable=self._render, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._say_goodbye()

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None:
        """A trial runs."""
        self._running[trial] = _Running(recipe, size.size_bytes / self._plan.dense.size_bytes)

    def rung(self, trial: str, score: Score) -> None:
        """A running trial was scored."""
        if trial in self._running:
            self._running[trial].latest = score

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial has ended; `study.records` holds it already."""
        self._running.pop(record.trial, None)
        self._ended_here += 1
        if self._live is None:
            number = f"{len(self._study.records):>3}/{self._plan.space.search.trials}"
            print(f"{number}  {self._clock():>6}  {ended_line(record, self._plan.dense)}", flush=True)

    def front_changed(self, front: Front) -> None:
        """There is a new front."""
        if self._live is None:
            answers = "; ".join(f"{budget} {_kept(front, key)}" for budget, key in front.budgets.items())
            print(f"  front of {len(front.points)}, hypervolume {front.hypervolume:.3f}; {answers}", flush=True)

    def seconds_left(self) -> float | None:
        """Forecast from the pace so far; None before there is one."""
        if self._ended_here < TRIALS_BEFORE_A_FORECAST:
            return None
        left = self._plan.space.search.trials - len(self._study.records)
        return (time.monotonic() - self._started) / self._ended_here * left

    def _say_goodbye(self) -> None:
        front, folder = self._study.front, self._study.folder
        kept = f"{len(self._study.records)} ended trials are kept"
        print(f"\nInterrupted; {kept}, the front has {len(front.points) if front else 0} points.")
        if front and front.points:
            print_rich(front_table(front.points))
        print(f"Go on with: {own_command()} search --resume {shell_path(folder)}", flush=True)

    def _clock(self) -> str:
        return seconds_text(time.monotonic() - self._started)

    def _render(self) -> Any:
        from rich.columns import Columns
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        front = self._study.front
        drawing = sketch_study(front, self._study.records) if front else ["nothing has finished yet"]
        parts: list[Any] = [
            Text(self._counts()),
            Columns([Panel("\n".join(drawing), title="retention over size", width=66), self._running_table()]),
        ]
        if front:
            parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in budget_lines(front)]
        return Group(*parts)

    def _counts(self) -> str:
        ends = [record.end for record in list(self._study.records)]
        left = self.seconds_left()
        front = self._study.front
        return "   ".join(
            [
                f"{len(ends)}/{self._plan.space.search.trials} ended",
                *(f"{ends.count(end)} {end}" for end in ("finished", "stopped", "failed")),
                f"hypervolume {front.hypervolume:.3f}" if front else "no front yet",
                f"{self._clock()} so far" + (f", {seconds_text(left)} left" if left is not None else ""),
            ]
        )

    def _running_table(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table("running", "of dense", "samples", "retention", box=SIMPLE_HEAD, pad_edge=False)
        for run in list(self._running.values()):
            latest = run.latest
            table.add_row(
                f"{run.recipe.mode} {run.recipe.ratio:.0%}, {run.recipe.trained}",
                f"{run.size_ratio:.0%}",
                f"{latest.samples_seen:,}" if latest else "-",
                f"{latest.retention:.1%}" if latest else "-",
            )
        return table


def is_interactive() -> bool:
    """Whether a person watches: stdout is a terminal, and this is no build server."""
    return sys.stdout.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def ended_line(record: TrialRecord, dense: Size) -> str:
    """One line about an ended trial."""
    if not record.rungs:
        return f"{record.end:<8}  {record.recipe.describe()}: {record.reason or 'no score'}"
    last = record.rungs[-1]
    line = (
        f"{record.end:<8}  {record.size_bytes / dense.size_bytes:>5.1%} of the size, retention "
        f"{last.retention:.1%} ± {1.96 * last.retention_se:.1%}  {record.recipe.describe()}"
    )
    return f"{line}: {record.reason}" if record.end == "failed" else line


def sketch_study(front: Front, records: Sequence[TrialRecord], width: int = 60, height: int = 14) -> list[str]:
    """A front and its trials in characters."""
    tried: dict[str, list[tuple[float, float]]] = {"stopped": [], "finished": []}
    for record in list(records):
        if record.rungs and record.end in tried:
            tried[record.end].append((record.size_bytes / front.baseline.size_bytes, record.rungs[-1].retention))
    points = [(point.size_ratio, point.retention) for point in front.points]
    return sketch({**tried, "front": points}, width, height)


def sketch(groups: dict[str, list[tuple[float, float]]], width: int, height: int) -> list[str]:
    """Points in the plane of size (to 1) and retention, as `height` lines of `width` characters.

    Args:
        groups: points by name, a key of SYMBOLS; later ones are drawn over earlier ones, the front on top of its
            staircase.
        width: characters per line, the axis included.
        height: lines, the axis included.
    """
    every = [point for points in groups.values() for point in points]
    if not every:
        return []
    left = max(0.0, min(size for size, _ in every) - 0.02)
    low, high = min(kept for _, kept in every), max(1.0, *(kept for _, kept in every))
    low = min(low, high - 0.01)
    columns, rows = width - 6, height - 1
    cells = [[" "] * columns for _ in range(rows)]

    def place(size: float, kept: float, symbol: str) -> None:
        column = round((size - left) / (1 - left) * (columns - 1)) if left < 1 else 0
        row = round((high - kept) / (high - low) * (rows - 1))
        cells[min(max(row, 0), rows - 1)][min(max(column, 0), columns - 1)] = symbol

    for name, points in groups.items():
        if name == "front":
            for (start, kept), (end, next_kept) in itertools.pairwise(staircase(points)):
                for step in range(columns + 1 if kept == next_kept else 0):
                    place(start + (end - start) * step / columns, kept, SYMBOLS["stairs"])
        for size, kept in points:
            place(size, kept, SYMBOLS[name])
    labels = [f"{high:5.0%} ", *["      "] * (rows - 2), f"{low:5.0%} "]
    axis = f"      {left:<.0%}{'100%':>{columns - len(f'{left:.0%}')}}"
    return [label + "".join(row) for label, row in zip(labels, cells, strict=True)] + [axis]


def _kept(front: Front, key: str | None) -> str:
    found = next((point for point in front.points if point.key == key), None)
    return f"keeps {found.retention:.1%}" if found else "has no recipe yet"
