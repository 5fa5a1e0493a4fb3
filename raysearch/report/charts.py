"""The charts of a report, as plotly figures."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from raysearch.report.dimensions import Axis, Line, Slice
from raysearch.report.findings import retention_per_benchmark
from raysearch.report.front_info import thinned
from raysearch.report.palette import BLUE, COLOURS, ENDS, FAINT, INK, LINES, PAGE, VERMILLION
from raysearch.report.param_importance import Importances
from raysearch.report.plots import SIZE_LABEL, error_bars, new_figure
from raysearch.study.front import Front
from raysearch.study.multi_objective import dominates, hypervolume
from raysearch.study.records import TrialRecord, seconds_text

MAX_CURVES = 300
MAX_BARS = 1000
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def learning_curves(records: Sequence[TrialRecord]) -> Any:
    """Retention over samples seen, one line per trial, MAX_CURVES at most; the legend has groups of mode and end.

    The scores before a finished trial's end, and all of a stopped one, are from the early questions.
    """
    figure, named = new_figure("recovery samples seen", "retention", height=430), set()
    for record in thinned(records, MAX_CURVES):
        rungs = [score for score in record.rungs if score.retention == score.retention]
        if not rungs:
            continue
        group = f"{record.recipe.mode}, {record.end}"
        colour, is_whole = COLOURS[record.recipe.mode], record.end == "finished"
        figure.add_scatter(
            x=[max(score.samples_seen, 1) for score in rungs],
            y=[round(score.retention, 4) for score in rungs],
            mode="lines+markers",
            name=group,
            legendgroup=group,
            showlegend=group not in named,
            line={"color": colour, "dash": "solid" if is_whole else "dot", "width": 1.2},
            marker={
                "size": 6,
                "symbol": ["circle-open"] * (len(rungs) - 1) + ["circle" if is_whole else "x-thin-open"],
            },
            hovertemplate=f"<b>{record.key}</b><br>{html.escape(record.recipe.describe())}"
            "<br>%{x:,} samples: %{y:.1%}<extra></extra>",
        )
        named.add(group)
    ticks: list[int] = []  # as many as there is room for on a phone
    for level in sorted({score.samples_seen for record in records for score in record.rungs}, reverse=True):
        if not ticks or max(level, 1) * 2.5 <= ticks[-1]:
            ticks.append(level)
    labels = [f"{level:,}" for level in ticks]
    figure.update_xaxes(type="log", tickvals=[max(level, 1) for level in ticks], ticktext=labels)
    return figure


def benchmark_lines(front: Front) -> Any:
    """Score of each front point relative to the dense model over size, one line per benchmark."""
    figure = new_figure(SIZE_LABEL, "share of the dense score", height=430)
    for number, name in enumerate(front.baseline.scores):
        pairs = [(point, retention_per_benchmark(point, front.baseline).get(name)) for point in front.points]
        scored = [(point, share) for point, share in pairs if share is not None]
        figure.add_scatter(
            x=[point.size_ratio for point, _ in scored],
            y=[share for _, share in scored],
            mode="lines+markers",
            name=html.escape(name),
            text=[f"<b>{point.key}</b>: {html.escape(name)} {point.scores[name]:.3f}" for point, _ in scored],
            hovertemplate="%{text}, %{y:.1%} of the dense score<extra></extra>",
            line={"color": LINES[number % 5], "dash": _DASHES[number // 5 % 5]},
            marker={"symbol": SYMBOLS[number % 5], "size": 8},
        )
    sizes, retentions = [point.size_ratio for point in front.points], [point.retention for point in front.points]
    line = {"color": INK, "width": 3}
    figure.add_scatter(x=sizes, y=retentions, mode="lines", name="retention, all together", line=line)
    figure.update_xaxes(tickformat=".0%")
    return figure


def importance_bars(found: Importances) -> Any:
    """Importance of each dimension, the largest on top, and what chance gives."""
    ranked = list(reversed(found.dimensions))
    figure = new_figure("share of the importance", "", height=130 + 26 * len(ranked))
    shares = [dimension.share for dimension in ranked]
    figure.add_bar(
        x=shares,
        y=[dimension.name for dimension in ranked],
        orientation="h",
        marker={"color": BLUE},
        name="share, with 95% interval",
        error_x=error_bars(shares, [(dimension.low, dimension.high) for dimension in ranked], INK),
        hovertemplate="%{y}: %{x:.0%}<extra></extra>",
    )
    figure.add_vline(found.chance, line={"dash": "dash", "color": INK, "width": 1.5})
    figure.add_annotation(x=found.chance, y=1, yref="paper", yanchor="bottom", text="chance", showarrow=False)
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(tickformat=None)
    return figure


def layer_lines(by_criterion: Mapping[str, Sequence[float]]) -> Any:
    """Importance over the decoder layers, one line per criterion, as a share of its highest score."""
    figure = new_figure("decoder layer, from the input", "share of the highest score", height=360)
    for number, (name, scores) in enumerate(by_criterion.items()):
        highest = max(map(abs, scores)) or 1.0
        layers, shares = list(range(len(scores))), [score / highest for score in scores]
        style = {"line": {"color": LINES[number % 5], "dash": _DASHES[number // 5 % 5]}}
        marker = {"symbol": SYMBOLS[number % 5], "size": 7}
        figure.add_scatter(x=layers, y=shares, mode="lines+markers", name=html.escape(name), marker=marker, **style)
    figure.update_xaxes(dtick=1 if all(len(scores) <= 16 for scores in by_criterion.values()) else None)
    return figure


def hypervolume_history(front: Front, records: Sequence[TrialRecord]) -> Any:
    """Hypervolume over the number of ended trials, with a point for each trial that changes it."""
    best: list[tuple[float, float]] = []  # (size ratio, -retention), mutually non-dominated
    steps = [(1, 0.0)]
    for number, record in enumerate(records, 1):
        if record.end == "finished" and record.rungs:
            point = (record.size_bytes / front.baseline.size_bytes, -record.rungs[-1].retention)
            if not any(other == point or dominates(other, point) for other in best):
                best = [*(other for other in best if not dominates(point, other)), point]
                steps.append((number, hypervolume([size for size, _ in best], [-lost for _, lost in best])))
    steps.append((max(1, len(records)), steps[-1][1]))
    figure = new_figure("trials ended", "hypervolume", height=360)
    numbers, areas = zip(*steps, strict=True)
    line = {"color": BLUE, "shape": "hv"}
    figure.add_scatter(x=numbers, y=areas, mode="lines", line=line, name="hypervolume")
    figure.update_yaxes(tickformat=".2f", rangemode="tozero")
    return figure


def parallel_coordinates(axes: Sequence[Axis], lines: Sequence[Line]) -> Any:
    """A line per finished trial through its place on each axis; an axis that doesn't apply to it is a gap."""
    figure = new_figure("", "", height=440)
    across = list(range(len(axes)))
    for is_on_front, name, style in (
        (False, "other finished trials", {"color": FAINT, "width": 0.7}),
        (True, "recipes on the front", {"color": BLUE, "width": 2}),
    ):
        chosen = [line for line in lines if line.is_on_front == is_on_front]
        figure.add_scatter(
            x=[x for _ in chosen for x in (*across, None)],
            y=[y if y is None else round(y, 3) for line in chosen for y in (*line.places, None)],
            mode="lines+markers" if is_on_front else "lines",
            name=f"{name} ({len(chosen)})",
            line=style,
            text=[line.key for line in chosen for _ in range(len(axes) + 1)],
            hovertemplate="%{text}<extra></extra>",
        )
    for x, axis in enumerate(axes):
        figure.add_vline(x, line={"color": FAINT, "width": 1})
        for place, text in _ticks(axis):
            label = {"text": html.escape(text), "showarrow": False, "font": {"size": 11}, "bgcolor": PAGE}
            figure.add_annotation(x=x, y=place, yshift=9, **label)
    figure.update_xaxes(tickvals=across, ticktext=[axis.name for axis in axes], showgrid=False, tickangle=-30)
    figure.update_yaxes(visible=False, range=[-0.06, 1.12])
    return figure


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.levels:
        return [(number / max(1, len(axis.levels) - 1), level[:18]) for number, level in enumerate(axis.levels)]
    form = "{:.1%}" if axis.name in ("size", "retention") else "{:.2g}"
    return [(0.0, form.format(axis.low)), (1.0, form.format(axis.high))]


def slice_plot(found: Slice) -> Any:
    """Finished trials by one dimension: how much more or less than others of their size they retain."""
    figure = new_figure("", "", height=240)
    marker = {"color": BLUE, "symbol": "circle-open", "size": 6}
    points = [round(100 * value, 2) for value in found.differences]
    figure.add_scatter(x=found.values, y=points, mode="markers", marker=marker, name="finished trials")
    if found.means:
        means = [100 * mean for mean, _, _ in found.means.values()]
        bounds = [(100 * low, 100 * high) for _, low, high in found.means.values()]
        marker = {"color": VERMILLION, "symbol": "diamond", "size": 9}
        error = error_bars(means, bounds, VERMILLION)
        figure.add_scatter(
            x=list(found.means), y=means, mode="markers", marker=marker, error_y=error, name="mean, 95% interval"
        )
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(found.axis.levels))
    elif found.axis.levels:
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(found.axis.levels))
    elif found.axis.log:
        figure.update_xaxes(type="log", dtick=1)
    elif found.axis.high < 0.01:
        figure.update_xaxes(tickformat=".1e", nticks=4)
    figure.add_hline(0, line={"color": FAINT, "width": 1})
    figure.update_yaxes(tickformat="+.0f")
    return figure


def timeline(records: Sequence[TrialRecord]) -> Any:
    """When each trial ran, in as many rows as ran at a time; the newest MAX_BARS trials."""
    timed = sorted((r for r in records if r.started is not None), key=lambda r: r.started or 0.0)[-MAX_BARS:]
    first = timed[0].started or 0.0
    longest = max((r.started or 0.0) + r.seconds for r in timed) - first
    unit, seconds = next(
        (n, s) for n, s in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if longest > 2 * s or s == 1
    )
    rows: list[float] = []  # by row, when it is free
    bars: dict[str, list[tuple[int, float, float, str]]] = {}
    for record in timed:
        began = record.started or 0.0
        row = next((number for number, free in enumerate(rows) if free <= began + 0.5), len(rows))
        rows[row : row + 1] = [began + record.seconds]
        text = f"<b>{record.key}</b> {record.end}, {seconds_text(record.seconds)}<br>{record.recipe.describe()}"
        bars.setdefault(record.end, []).append((row + 1, (began - first) / seconds, record.seconds / seconds, text))
    figure = new_figure(f"{unit} since the first trial", "slot", height=150 + 26 * len(rows), barmode="overlay")
    patterns = {"finished": "", "stopped": "/", "failed": "x"}
    for end, found in bars.items():
        slots, starts, lengths, texts = zip(*found, strict=True)
        figure.add_bar(
            base=[round(start, 4) for start in starts],
            x=[round(length, 4) for length in lengths],
            y=slots,
            orientation="h",
            name=f"{end} ({len(found)})",
            text=texts,
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": ENDS[end],
                "pattern": {"shape": patterns[end], "fillmode": "overlay", "fgcolor": PAGE, "size": 6},
                "line": {"color": PAGE, "width": 0.5},
            },
        )
    figure.update_yaxes(tickformat="d", dtick=1 if len(rows) <= 12 else None, autorange="reversed", showgrid=False)
    return figure
