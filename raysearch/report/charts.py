"""The charts of a report, as plotly figures and as parts of a page."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from raysearch.report.findings import kept_per_benchmark
from raysearch.report.param_importance import ParamImportance
from raysearch.report.plots import COLOURS, FAINT, INK, PLOTLY_CONFIG
from raysearch.study.front import Front
from raysearch.study.multi_objective import hypervolume
from raysearch.study.records import TrialRecord

MAX_TICKS = 9


def curves(records: Sequence[TrialRecord]) -> Any:
    """One line per trial; names in the legend are groups of mode and end."""
    figure, named = _new_figure("recovery samples seen", "retention"), set()
    for record in records:
        rungs = [score for score in record.rungs if score.retention == score.retention]
        if not rungs:
            continue
        group = f"{record.recipe.mode}, {record.end}"
        stopped = record.end == "stopped"
        figure.add_scatter(
            x=[max(score.samples_seen, 1) for score in rungs],
            y=[score.retention for score in rungs],
            mode="lines+markers",
            name=group,
            legendgroup=group,
            showlegend=group not in named,
            opacity=0.55 if stopped else 0.9,
            line={"color": COLOURS[record.recipe.mode], "dash": "dot" if stopped else "solid", "width": 1.4},
            marker={"size": 5},
            hovertemplate=f"<b>{record.key}</b><br>{html.escape(record.recipe.describe())}"
            "<br>%{x:,} samples: %{y:.1%}<extra></extra>",
        )
        named.add(group)
    figure.update_xaxes(type="log")
    levels = sorted({max(score.samples_seen, 1) for record in records for score in record.rungs})
    if len(levels) <= MAX_TICKS:
        figure.update_xaxes(tickvals=levels, ticktext=[f"{level:,}" for level in levels])
    return figure


def benchmark_lines(front: Front) -> Any:
    figure = _new_figure("size of the whole model, share of the dense model's bytes", "share of the dense score")
    for name in front.baseline.scores:
        pairs = [(point, kept_per_benchmark(point, front.baseline).get(name)) for point in front.points]
        kept = [(point, share) for point, share in pairs if share is not None]
        figure.add_scatter(
            x=[point.size_ratio for point, _ in kept],
            y=[share for _, share in kept],
            mode="lines+markers",
            name=name,
            text=[f"<b>{point.key}</b>: {point.scores[name]:.3f}" for point, _ in kept],
            hovertemplate="%{text}, %{y:.1%} of the dense score<extra></extra>",
        )
    figure.add_scatter(
        x=[point.size_ratio for point in front.points],
        y=[point.retention for point in front.points],
        mode="lines",
        name="retention",
        line={"color": INK, "dash": "dash"},
    )
    figure.update_xaxes(tickformat=".0%")
    return figure


def importance_bars(title: str, found: Sequence[ParamImportance]) -> Any:
    """Importance of each dimension, the largest on top."""
    figure = _new_figure("share", "")
    ranked = list(reversed(found))
    figure.add_bar(
        x=[dimension.share for dimension in ranked],
        y=[dimension.name for dimension in ranked],
        orientation="h",
        marker={"color": COLOURS["widthwise"]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, dimension.high - dimension.share) for dimension in ranked],
            "arrayminus": [max(0.0, dimension.share - dimension.low) for dimension in ranked],
            "color": FAINT,
        },
        hovertemplate="%{y}: %{x:.0%}<extra></extra>",
    )
    figure.update_layout(title={"text": title, "font": {"size": 14}}, height=130 + 26 * len(ranked))
    figure.update_layout(margin={"l": 120})
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(tickformat=None)
    return figure


def layer_lines(by_criterion: Mapping[str, Sequence[float]]) -> Any:
    """A line per criterion over the decoder layers, each as a share of its highest score."""
    figure = _new_figure("decoder layer, from the input", "share of the highest score")
    for name, scores in by_criterion.items():
        highest = max(map(abs, scores)) or 1.0
        layers, shares = list(range(len(scores))), [score / highest for score in scores]
        figure.add_scatter(x=layers, y=shares, mode="lines+markers", name=name)
    figure.update_layout(height=330)
    figure.update_xaxes(dtick=1 if all(len(scores) <= 16 for scores in by_criterion.values()) else None)
    return figure


def progress(front: Front, records: Sequence[TrialRecord]) -> Any:
    """Hypervolume over the number of ended trials."""
    sizes, kept, areas = [], [], []
    for record in records:
        if record.end == "finished" and record.rungs:
            sizes.append(record.size_bytes / front.baseline.size_bytes)
            kept.append(record.rungs[-1].retention)
        areas.append(hypervolume(sizes, kept))
    figure = _new_figure("trials ended", "hypervolume")
    figure.add_scatter(
        x=list(range(1, len(areas) + 1)), y=areas, mode="lines", line={"color": INK, "shape": "hv"}, name="hypervolume"
    )
    figure.update_yaxes(tickformat=".2f", rangemode="tozero")
    return figure


def figure_part(figure: Any, name: str) -> str:
    """A figure as a part of a page that holds plotly already."""
    part: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=PLOTLY_CONFIG)
    return part


def _new_figure(x: str, y: str) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    figure.update_layout(
        template="plotly_white",
        height=430,
        margin={"t": 40, "r": 20},
        hoverlabel={"bgcolor": "white", "align": "left"},
        xaxis={"title": x},
        yaxis={"title": y, "tickformat": ".0%"},
    )
    return figure
