"""Plots of a front, by matplotlib (PNG) and plotly (HTML), from the values of `front_info`."""

import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raysearch.files import cache_folder, write_text
from raysearch.report.front_info import FrontInfo, PlotPoint, axis_ranges, front_info, off_front, trial_points
from raysearch.report.palette import COLOURS, FAINT, GRID, INK, PAGE
from raysearch.study.front import Front
from raysearch.study.records import TrialRecord

SIZE_LABEL = "size, share of the dense model's bytes"
RETENTION_LABEL = "retention"
# No button that uploads the data to a server.
PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
_MARKERS = {"finished": "o", "stopped": "x"}


def write_pictures(folder: Path, front: Front, records: Iterable[TrialRecord]) -> None:
    """Replace `front.png` and `front.html` in a study's folder."""
    info, trials = front_info(front), trial_points(records, front.baseline)
    draw_front(info, folder / "front.png", trials)
    write_text(folder / "front.html", front_html(info, trials))


def draw_front(info: FrontInfo, path: Path, trials: Sequence[PlotPoint] = ()) -> None:
    """Write a PNG: the front as a staircase with intervals, the finished trials, the budgets as vertical lines; beside
    it the last, preliminary scores of stopped trials."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder("matplotlib")))  # the home folder may be read-only
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    trials = off_front(info, trials)
    stopped = [trial for trial in trials if trial.end == "stopped"]
    figure = Figure(figsize=(9, 5.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    widths = [3, 1] if stopped else [1]
    both = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    for mode, end, group in _groups(trials):
        xs, ys = [trial.size_ratio for trial in group], [trial.retention for trial in group]
        is_ring = end == "finished"
        style: dict[str, Any] = {"facecolors": "none", "edgecolors": COLOURS[mode]} if is_ring else {"c": COLOURS[mode]}
        both[int(end == "stopped")].scatter(
            xs, ys, s=22, marker=_MARKERS[end], linewidths=1.1, label=f"{mode}, {end} ({len(group)})", **style
        )
    _draw_points(both[0], info)
    sizes, retentions = axis_ranges(info, trials)
    both[0].set(xlim=sizes, ylim=retentions, xlabel=SIZE_LABEL, ylabel=RETENTION_LABEL)
    _draw_budgets(both[0], info)
    for axes in both:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            loc="lower right" if axes is both[0] else "upper right",
            frameon=True,
            framealpha=0.92,
            edgecolor="none",
            fontsize=8.5,
        )
    if stopped:
        both[1].set_xlim(sizes)
        both[1].xaxis.set_major_locator(MaxNLocator(3))
        both[1].set_xlabel("size; stopped early:\npreliminary scores")
    figure.suptitle(_title(info), x=0.01, ha="left", fontsize=11.5, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def front_html(info: FrontInfo, trials: Sequence[PlotPoint] = ()) -> str:
    """A page that needs no network: the front with each point's recipe on hover."""
    figure = front_figure(info, trials)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, config=PLOTLY_CONFIG)
    return page.replace("<head>", f"<head><title>{html.escape(info.study)}: front</title>", 1)


def front_figure(info: FrontInfo, trials: Sequence[PlotPoint] = ()) -> Any:
    """The front, the finished trials and the budgets as a plotly figure."""
    title = {"text": html.escape(_title(info)), "font": {"size": 16}}
    figure = new_figure(SIZE_LABEL, RETENTION_LABEL, title=title, height=520)
    finished = [trial for trial in off_front(info, trials) if trial.end == "finished"]
    sizes, retentions = axis_ranges(info, finished)
    figure.update_xaxes(tickformat=".0%", range=sizes)
    figure.update_yaxes(range=retentions)
    _add_trials(figure, finished)
    if info.points:
        xs, ys = zip(*info.staircase, strict=True)
        line = {"color": INK, "width": 2}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="front", hoverinfo="skip")
        colours = [COLOURS[point.mode] for point in info.points]
        marker = {"size": 12, "color": colours, "line": {"color": INK, "width": 1.5}}
        bounds = [point.interval or (point.retention, point.retention) for point in info.points]
        error = error_bars([point.retention for point in info.points], bounds, INK)
        figure.add_scatter(
            **_scatter(info.points, "recipes on the front"),
            marker=marker,
            error_y=error | {"thickness": 1.5, "width": 4},
        )
    marker = {"symbol": "star", "size": 14, "color": INK}
    hover = f"dense model<br>{info.dense.num_params:,} parameters<extra></extra>"
    figure.add_scatter(x=[1.0], y=[1.0], mode="markers", name="dense model", marker=marker, hovertemplate=hover)
    for budget in info.budgets:
        x, text = budget.size_ratio, html.escape(_short(budget.text))
        figure.add_vline(x, line={"dash": "dot", "color": FAINT, "width": 1})
        figure.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=text, showarrow=False)
    return figure


def stopped_figure(info: FrontInfo, trials: Sequence[PlotPoint]) -> Any:
    """The last scores of the stopped trials, which are preliminary, by size."""
    stopped = [trial for trial in trials if trial.end == "stopped"]
    figure = new_figure(SIZE_LABEL, "retention when stopped, preliminary", height=360)
    figure.update_xaxes(tickformat=".0%", range=axis_ranges(info, stopped)[0])
    _add_trials(figure, stopped)
    return figure


def _add_trials(figure: Any, trials: Sequence[PlotPoint]) -> None:
    for mode, end, group in _groups(trials):
        symbol = {"finished": "circle-open", "stopped": "x-thin"}[end]
        marker = {"color": COLOURS[mode], "symbol": symbol, "size": 7, "line": {"color": COLOURS[mode], "width": 1.3}}
        figure.add_scatter(**_scatter(group, f"{mode}, {end}"), marker=marker)


def new_figure(x: str, y: str, **layout: Any) -> Any:
    """An empty plotly figure with these axis titles, and percentages along y."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    axis = {"gridcolor": GRID, "linecolor": FAINT, "zeroline": False, "automargin": True}
    figure.update_layout(
        template="none",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor=PAGE,
        plot_bgcolor=PAGE,
        hoverlabel={"bgcolor": PAGE, "bordercolor": FAINT, "align": "left", "font": {"size": 12, "color": INK}},
        margin={"l": 12, "r": 12, "t": 36, "b": 12},
        xaxis=axis | {"title": {"text": x}},
        yaxis=axis | {"title": {"text": y}, "tickformat": ".0%"},
    )
    figure.update_layout(**layout)
    return figure


def error_bars(values: Sequence[float], bounds: Sequence[tuple[float, float]], colour: str) -> dict[str, Any]:
    """Plotly's error bars of `values` from their (low, high) bounds."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)],
        "color": colour,
    }


def _title(info: FrontInfo) -> str:
    of_model = "" if info.model == info.study else f" of {info.model}"
    return f"{info.study}{of_model}: retention over size, hypervolume {info.hypervolume:.3f}"


def _groups(trials: Sequence[PlotPoint]) -> Iterator[tuple[str, str, list[PlotPoint]]]:
    """The trials by mode and end, without empty groups."""
    for end in _MARKERS:
        for mode in COLOURS:
            group = [trial for trial in trials if (trial.mode, trial.end) == (mode, end)]
            if group:
                yield mode, end, group


def _draw_points(axes: Any, info: FrontInfo) -> None:
    axes.scatter([1], [1], marker="*", s=130, color=INK, zorder=4, label="dense model")
    if not info.points:
        return
    xs, ys = zip(*info.staircase, strict=True)
    axes.plot(xs, ys, color=INK, linewidth=1.6, zorder=3, label="front, with 95% intervals")
    for point in info.points:
        assert point.interval is not None, point
        axes.vlines(point.size_ratio, *point.interval, color=COLOURS[point.mode], linewidth=1.8, zorder=4)
    sizes, retentions = [point.size_ratio for point in info.points], [point.retention for point in info.points]
    colours = [COLOURS[point.mode] for point in info.points]
    axes.scatter(sizes, retentions, s=62, c=colours, edgecolors=INK, linewidths=1.1, zorder=5)


def _draw_budgets(axes: Any, info: FrontInfo) -> None:
    """A line per budget, its name on top and the retention of its answer below that."""
    answers = {point.key: point for point in info.points}
    for budget in info.budgets:
        axes.axvline(budget.size_ratio, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        answer = answers.get(budget.answer or "")
        axes.annotate(
            f"{_short(budget.text)}\n{answer.retention:.1%}" if answer else f"{_short(budget.text)}\nnone",
            (budget.size_ratio, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=INK,
        )


def _short(budget: str) -> str:
    """The name of a budget that has one, else its limits without what they are for."""
    return re.split(r"[:@]", budget)[0].strip()


def _scatter(points: Sequence[PlotPoint], name: str) -> dict[str, Any]:
    """Arguments of a plotly scatter with tooltips."""
    tooltips = ["<br>".join(html.escape(f"{key}: {value}") for key, value in point.tooltip) for point in points]
    return {
        "x": [point.size_ratio for point in points],
        "y": [point.retention for point in points],
        "mode": "markers",
        "name": f"{name} ({len(points)})",
        "text": [f"<b>{point.key}</b><br>{tooltip}" for point, tooltip in zip(points, tooltips, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }
