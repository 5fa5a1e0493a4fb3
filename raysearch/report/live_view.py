"""Progress of a running search: a live view on a terminal, plain lines elsewhere."""

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.report.front_info import staircase
from raysearch.report.narrator import Narrator
from raysearch.report.terminal import budget_lines, front_table, own_command, print_rich, rich_table, shell_path
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Front
from raysearch.study.plan import StudyPlan
from raysearch.study.records import Score, TrialRecord, seconds_text

MIN_TRIALS_TO_FORECAST = 3
MAX_STAGES = 4  # lines about what slots do
SYMBOLS = {"stopped": "×", "finished": "·", "staircase": "─", "front": "●"}


@dataclass
class _Running:
    recipe: Recipe
    size_ratio: float
    latest: Score | None = None


class LiveView:
    """Shows a search on the terminal; a search callback and a context manager.

    Prints one line per ended trial and per change of the front when stdout is no terminal or CI is set. After Ctrl-C
    it prints the front so far and the command to resume.

    Args:
        outlook: what further trials are expected to add, in a line; asked for whenever a trial has ended.
        seconds: time from now on to the end of the search, if the time ends it.
        narrator: prints the lines, and knows what the slots do.
    """

    def __init__(
        self,
        plan: StudyPlan,
        study: StudyFolder,
        outlook: Callable[[], str] = lambda: "",
        seconds: float | None = None,
        narrator: Narrator | None = None,
    ) -> None:
        self._plan, self._study = plan, study
        self._narrator = narrator or Narrator("searching")
        self._outlook, self._outlook_text, self._seconds = outlook, "", seconds
        self._num_samples_before = _num_samples(study.records)
        self._running: dict[str, _Running] = {}
        self._num_ended = 0
        self._started = time.monotonic()
        self._live: Any = None
        self._front = study.front
        self._is_scoring = False

    def __enter__(self) -> "LiveView":
        space = self._plan.space
        num_trials = space.search.num_trials
        left = f"{num_trials - len(self._study.records)} trials" if num_trials else space.search.limits_text()
        self._narrator.say(f"{space.name}: {left} on {space.model}, into {self._study.folder}")
        if is_interactive():
            self._narrator.is_silent = True
            from rich.live import Live

            self._live = Live(get_renderable=self.render, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._narrator.is_silent = False
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._print_interrupted()

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None:
        """Add a running trial."""
        self._running[trial] = _Running(recipe, size.size_bytes / self._plan.dense.size_bytes)

    def rung(self, trial: str, score: Score) -> None:
        """Note a running trial's score."""
        if trial in self._running:
            self._running[trial].latest = score

    def trial_ended(self, record: TrialRecord) -> None:
        """Remove a trial that ended; `study.records` holds it already."""
        self._running.pop(record.trial, None)
        self._num_ended += 1
        self._outlook_text = self._outlook()
        if self._live is None:
            number = f"{len(self._study.records):>3}{self._of_trials()}"
            self._narrator.say(f"{number}  {self._clock():>6}  {ended_line(record, self._plan.dense)}")

    def front_changed(self, front: Front) -> None:
        """Print the new front, or how many of its points have been scored on held-out questions, unless the view is
        live."""
        known, self._front = self._front, front
        self._is_scoring = known is not None and _differ_by_heldout(known, front)
        if self._live is None and self._is_scoring:
            self._narrator.say(f"  {self._heldout_text(front)}")
        elif self._live is None:
            retentions = {point.key: f"{point.retention:.1%}" for point in front.points}
            answers = [f"{budget} {retentions.get(key or '', 'none yet')}" for budget, key in front.budgets.items()]
            area = f"hypervolume {front.hypervolume:.3f}"
            self._narrator.say("; ".join([f"  front of {len(front.points)}, {area}", *answers]))

    def _heldout_text(self, front: Front) -> str:
        num, num_points = len(front.points) - len(front.unscored()), len(front.points)
        return f"held-out questions asked of {num} of {num_points} points"

    def seconds_left(self) -> float | None:
        """Seconds to the end of the search: what is left of its time, or to the last trial or sample at this pace.

        None while nothing tells: the pace does so once MIN_TRIALS_TO_FORECAST have ended.
        """
        settings, records = self._plan.space.search, self._study.records
        passed = time.monotonic() - self._started
        left = [] if self._seconds is None else [max(0.0, self._seconds - passed)]
        if self._num_ended >= MIN_TRIALS_TO_FORECAST:
            if settings.num_trials is not None:
                left.append(passed / self._num_ended * (settings.num_trials - len(records)))
            num_samples = _num_samples(records)
            if settings.runs is not None and num_samples > self._num_samples_before:
                missing = max(0.0, settings.runs * self._plan.max_samples - num_samples)
                left.append(passed / (num_samples - self._num_samples_before) * missing)
        return min(left, default=None)

    def _of_trials(self) -> str:
        num_trials = self._plan.space.search.num_trials
        return "" if num_trials is None else f"/{num_trials}"

    def _print_interrupted(self) -> None:
        front, num_ended = self._study.front, len(self._study.records)
        num_points = len(front.points) if front else 0
        print(f"\nInterrupted; {num_ended} ended trials are saved, the front has {num_points} points.")
        if front and front.points:
            print_rich(front_table(front.points))
        print(f"Resume with: {own_command()} search --resume {shell_path(self._study.folder)}", flush=True)

    def _clock(self) -> str:
        return seconds_text(time.monotonic() - self._started)

    def render(self) -> Any:
        """The live view as it is now, for rich."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        front = self._study.front
        drawing = sketch_study(front, self._study.records) if front else ["no trial has finished yet"]
        parts: list[Any] = [
            Text(self._counts()),
            *(Text(line, no_wrap=True, overflow="ellipsis") for line in self._narrator.status().lines()[:MAX_STAGES]),
            Columns([Panel("\n".join(drawing), title="retention over size", width=66), self._running_table()]),
        ]
        if front:
            parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in budget_lines(front)]
            if self._is_scoring:
                parts.append(Text(self._heldout_text(front)))
        if self._outlook_text:
            parts.append(Text(self._outlook_text, no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _counts(self) -> str:
        records, runs = list(self._study.records), self._plan.space.search.runs
        ends = [record.end for record in records]
        left = self.seconds_left()
        front = self._study.front
        return "   ".join(
            [
                f"{len(ends)}{self._of_trials()} ended",
                *([] if runs is None else [f"{_num_samples(records) / self._plan.max_samples:.1f}/{runs:g} full runs"]),
                *(f"{ends.count(end)} {end}" for end in ("finished", "stopped", "failed")),
                f"hypervolume {front.hypervolume:.3f}" if front else "no front yet",
                f"{self._clock()} so far" + (f", {seconds_text(left)} left" if left is not None else ""),
            ]
        )

    def _running_table(self) -> Any:
        table = rich_table("running", "of dense", "samples", "retention")
        for run in list(self._running.values()):
            latest = run.latest
            table.add_row(
                f"{run.recipe.mode} {run.recipe.ratio:.0%}, {run.recipe.trained}",
                f"{run.size_ratio:.0%}",
                f"{latest.samples_seen:,}" if latest else "-",
                f"{latest.retention:.1%}" if latest else "-",
            )
        return table


def _differ_by_heldout(before: Front, after: Front) -> bool:
    keys = [[point.key for point in front.points] for front in (before, after)]
    return keys[0] == keys[1] and len(after.unscored()) < len(before.unscored())


def _num_samples(records: Sequence[TrialRecord]) -> int:
    return sum(record.rungs[-1].samples_seen for record in records if record.rungs)


def is_interactive() -> bool:
    """Whether stdout is a terminal that can redraw, outside CI."""
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
    """The front and the scored trials, drawn in characters by `sketch`."""
    tried: dict[str, list[tuple[float, float]]] = {"stopped": [], "finished": []}
    for record in list(records):
        if record.rungs and record.end in tried:
            tried[record.end].append((record.size_bytes / front.baseline.size_bytes, record.rungs[-1].retention))
    points = [(point.size_ratio, point.retention) for point in front.points]
    return sketch({**tried, "front": points}, width, height)


def sketch(groups: dict[str, list[tuple[float, float]]], width: int, height: int) -> list[str]:
    """Draw retention over size (up to 1) in `height` lines of `width` characters, axes included.

    Args:
        groups: (size, retention) pairs by a key of SYMBOLS; later groups cover earlier ones, the front its staircase.
    """
    every = [point for points in groups.values() for point in points]
    if not every:
        return []
    left = max(0.0, min(size for size, _ in every) - 0.02)
    low, high = min(retention for _, retention in every), max(1.0, *(retention for _, retention in every))
    low = min(low, high - 0.01)
    columns, rows = width - 6, height - 1
    cells = [[" "] * columns for _ in range(rows)]

    def place(size: float, retention: float, symbol: str) -> None:
        column = round((size - left) / (1 - left) * (columns - 1)) if left < 1 else 0
        row = round((high - retention) / (high - low) * (rows - 1))
        cells[min(max(row, 0), rows - 1)][min(max(column, 0), columns - 1)] = symbol

    for name, points in groups.items():
        if name == "front":
            for (start, retention), (end, next_retention) in itertools.pairwise(staircase(points)):
                for step in range(columns + 1 if retention == next_retention else 0):
                    place(start + (end - start) * step / columns, retention, SYMBOLS["staircase"])
        for size, retention in points:
            place(size, retention, SYMBOLS[name])
    labels = [f"{high:5.0%} ", *["      "] * (rows - 2), f"{low:5.0%} "]
    axis = f"      {left:<.0%}{'100%':>{columns - len(f'{left:.0%}')}}"
    return [label + "".join(row) for label, row in zip(labels, cells, strict=True)] + [axis]
