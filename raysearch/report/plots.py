"""Pictures of a front, by matplotlib (PNG) and plotly (HTML); what they show is worked out in `marks`."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raysearch.files import write_text
from raysearch.report.front_info import (
    FrontInfo,
    Mark,
    front_info,
    off_front,
    retention_range,
    smallest_size,
    trial_marks,
)
from raysearch.study.front import Front
from raysearch.study.records import TrialRecord

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
COLOURS = {"layerwise": "#D55E00", "widthwise": "#0072B2", "both": "#009E73"}
INK, FAINT = "#222222", "#8a8a8a"
# No button that uploads the data to a server.
PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
_MARKS = {"finished": "o", "stopped": "x"}


def write_pictures(folder: Path, front: Front, records: Iterable[TrialRecord]) -> None:
    """Replace `front.png` and `front.html` in a study's folder."""
    info, trials = front_info(front), trial_marks(records, front.baseline)
    draw_front(info, folder / "front.png", trials)
    write_text(folder / "front.html", front_html(info, trials))


def draw_front(info: FrontInfo, path: Path, trials: Sequence[Mark] = ()) -> None:
    """Write a PNG: every trial faintly, the front as a staircase with intervals, the budgets as vertical lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    trials = off_front(info, trials)
    figure = Figure(figsize=(9, 5.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_trials(axes, trials)
    _draw_points(axes, info)
    bottom, top = retention_range(info, trials)
    axes.set(xlim=(smallest_size(info, trials), 1.03), ylim=(bottom, top))
    _draw_budgets(axes, info)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("size of the whole model, share of the dense model's bytes")
    axes.set_ylabel("retention of the dense model's scores")
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=True, framealpha=0.92, edgecolor="none", fontsize=8.5)
    figure.suptitle(_title(info), x=0.01, ha="left", fontsize=11.5, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    sibling = path.with_name(f".{path.name}.part")
    figure.savefig(sibling, format="png")
    sibling.replace(path)


def front_html(info: FrontInfo, trials: Sequence[Mark] = ()) -> str:
    """A page that needs no network: the front with each point's recipe on hover."""
    figure = front_figure(info, trials)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, config=PLOTLY_CONFIG)
    return page.replace("<head>", f"<head><title>{html.escape(info.study)}: front</title>", 1)


def front_figure(info: FrontInfo, trials: Sequence[Mark] = ()) -> Any:
    """The front as a plotly figure."""
    from plotly import graph_objects

    figure, trials = graph_objects.Figure(), off_front(info, trials)
    for end in _MARKS:
        for mode, colour in COLOURS.items():
            group = [mark for mark in trials if (mark.mode, mark.end) == (mode, end)]
            if group:
                outline = {"color": colour, "width": 1.4 * (end == "stopped")}
                symbol = "circle" if end == "finished" else "x-thin"
                marker = {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.45, "line": outline}
                figure.add_scatter(**_spots(group, f"{mode}, {end}"), mode="markers", marker=marker)
    if info.points:
        xs, ys = zip(*info.stairs, strict=True)
        stairs = {"line": {"color": INK, "width": 2}, "name": "front", "hoverinfo": "skip"}
        figure.add_scatter(x=xs, y=ys, mode="lines", **stairs)
        colours = [COLOURS[mark.mode] for mark in info.points]
        spots = {
            **_spots(info.points, "recipes on the front"),
            "marker": {"size": 12, "color": colours, "line": {"color": INK, "width": 1.5}},
        }
        figure.add_scatter(**spots, mode="markers", error_y=_whiskers(info))
    figure.add_scatter(
        x=[1.0],
        y=[1.0],
        mode="markers",
        name="dense model",
        marker={"symbol": "star", "size": 14, "color": INK},
        hovertemplate=f"dense model<br>{info.dense.num_params:,} parameters<extra></extra>",
    )
    for line in info.budgets:
        figure.add_vline(line.size_ratio, line={"dash": "dot", "color": FAINT, "width": 1})
        figure.add_annotation(x=line.size_ratio, y=1, yref="paper", yanchor="bottom", text=line.text, showarrow=False)
    figure.update_layout(
        template="plotly_white",
        title={"text": html.escape(_title(info)), "font": {"size": 16}},
        xaxis={
            "title": "size of the whole model, share of the dense model's bytes",
            "tickformat": ".0%",
            "range": [smallest_size(info, trials), 1.03],
        },
        yaxis={
            "title": "retention of the dense model's scores",
            "tickformat": ".0%",
            "range": list(retention_range(info, trials)),
        },
        hoverlabel={"bgcolor": "white", "align": "left", "font": {"size": 12}},
        legend={"x": 1.01, "y": 1},
        height=620,
    )
    return figure


def _title(info: FrontInfo) -> str:
    of_model = "" if info.model == info.study else f" of {info.model}"
    return f"{info.study}: size against quality kept{of_model}, hypervolume {info.hypervolume:.3f}"


def _draw_trials(axes: Any, trials: Sequence[Mark]) -> None:
    for end, symbol in _MARKS.items():
        for mode, colour in COLOURS.items():
            group = [mark for mark in trials if (mark.mode, mark.end) == (mode, end)]
            if group:
                xs, ys = [mark.size_ratio for mark in group], [mark.retention for mark in group]
                style = {"linewidths": 1.1} if symbol == "x" else {"edgecolors": "none"}
                label = f"{mode}, {end} ({len(group)})"
                axes.scatter(xs, ys, s=24, marker=symbol, c=colour, alpha=0.38, label=label, **style)


def _draw_points(axes: Any, info: FrontInfo) -> None:
    axes.scatter([1], [1], marker="*", s=130, color=INK, zorder=4, label="dense model")
    if not info.points:
        return
    xs, ys = zip(*info.stairs, strict=True)
    axes.plot(xs, ys, color=INK, linewidth=1.6, zorder=3, label="front, with 95% intervals")
    for mark in info.points:
        assert mark.interval is not None, mark
        axes.vlines(mark.size_ratio, *mark.interval, color=COLOURS[mark.mode], linewidth=1.8, zorder=4)
    sizes, kept = [mark.size_ratio for mark in info.points], [mark.retention for mark in info.points]
    colours = [COLOURS[mark.mode] for mark in info.points]
    axes.scatter(sizes, kept, s=62, c=colours, edgecolors=INK, linewidths=1.1, zorder=5)


def _draw_budgets(axes: Any, info: FrontInfo) -> None:
    """A line per budget, its name on top and the retention of its answer below that."""
    answers = {mark.key: mark for mark in info.points}
    for line in info.budgets:
        axes.axvline(line.size_ratio, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        mark = answers.get(line.answer or "")
        text = f"{line.text}\n{mark.retention:.1%}" if mark else f"{line.text}\nnone"
        axes.annotate(
            text,
            (line.size_ratio, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=INK,
        )


def _spots(marks: Sequence[Mark], name: str) -> dict[str, Any]:
    lines = ["<br>".join(f"{html.escape(fact)}: {html.escape(str(value))}" for fact, value in m.facts) for m in marks]
    return {
        "x": [mark.size_ratio for mark in marks],
        "y": [mark.retention for mark in marks],
        "name": f"{name} ({len(marks)})",
        "text": [f"<b>{mark.key}</b><br>{line}" for mark, line in zip(marks, lines, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _whiskers(info: FrontInfo) -> dict[str, Any]:
    bounds = [mark.interval or (mark.retention, mark.retention) for mark in info.points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - mark.retention for mark, (_, high) in zip(info.points, bounds, strict=True)],
        "arrayminus": [mark.retention - low for mark, (low, _) in zip(info.points, bounds, strict=True)],
        "thickness": 1.5,
        "width": 4,
        "color": INK,
    }
