"""The charts of a report, as plotly figures and as parts of a page."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from raysearch.report.findings import retention_per_benchmark
from raysearch.report.front_info import thinned
from raysearch.report.param_importance import ParamImportance
from raysearch.report.plots import COLOURS, FAINT, INK, PLOTLY_CONFIG, SIZE_LABEL, error_bars, new_figure
from raysearch.study.front import Front
from raysearch.study.multi_objective import dominates, hypervolume
from raysearch.study.records import TrialRecord

MAX_TICKS = 9
MAX_CURVES = 300
_LAYOUT: dict[str, Any] = {"height": 430, "margin": {"t": 40, "r": 20}}


def learning_curves(records: Sequence[TrialRecord]) -> Any:
    """Retention over samples seen, one line per trial, MAX_CURVES at most; the legend has groups of mode and end."""
    figure, named = new_figure("recovery samples seen", "retention", **_LAYOUT), set()
    for record in thinned(records, MAX_CURVES):
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
    """Score of each front point relative to the dense model over size, one line per benchmark."""
    figure = new_figure(SIZE_LABEL, "share of the dense score", **_LAYOUT)
    for name in front.baseline.scores:
        pairs = [(point, retention_per_benchmark(point, front.baseline).get(name)) for point in front.points]
        scored = [(point, share) for point, share in pairs if share is not None]
        figure.add_scatter(
            x=[point.size_ratio for point, _ in scored],
            y=[share for _, share in scored],
            mode="lines+markers",
            name=name,
            text=[f"<b>{point.key}</b>: {point.scores[name]:.3f}" for point, _ in scored],
            hovertemplate="%{text}, %{y:.1%} of the dense score<extra></extra>",
        )
    sizes, retentions = [point.size_ratio for point in front.points], [point.retention for point in front.points]
    figure.add_scatter(x=sizes, y=retentions, mode="lines", name="retention", line={"color": INK, "dash": "dash"})
    figure.update_xaxes(tickformat=".0%")
    return figure


def importance_bars(title: str, found: Sequence[ParamImportance]) -> Any:
    """Importance of each dimension, the largest on top."""
    ranked = list(reversed(found))
    layout = _LAYOUT | {"height": 130 + 26 * len(ranked), "margin": _LAYOUT["margin"] | {"l": 120}}
    figure = new_figure("share", "", title={"text": title, "font": {"size": 14}}, **layout)
    shares = [dimension.share for dimension in ranked]
    figure.add_bar(
        x=shares,
        y=[dimension.name for dimension in ranked],
        orientation="h",
        marker={"color": COLOURS["widthwise"]},
        error_x=error_bars(shares, [(dimension.low, dimension.high) for dimension in ranked], FAINT),
        hovertemplate="%{y}: %{x:.0%}<extra></extra>",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(tickformat=None)
    return figure


def layer_lines(by_criterion: Mapping[str, Sequence[float]]) -> Any:
    """Importance over the decoder layers, one line per criterion, as a share of its highest score."""
    figure = new_figure("decoder layer, from the input", "share of the highest score", **_LAYOUT | {"height": 330})
    for name, scores in by_criterion.items():
        highest = max(map(abs, scores)) or 1.0
        layers, shares = list(range(len(scores))), [score / highest for score in scores]
        figure.add_scatter(x=layers, y=shares, mode="lines+markers", name=name)
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
    figure = new_figure("trials ended", "hypervolume", **_LAYOUT)
    numbers, areas = zip(*steps, strict=True)
    line = {"color": INK, "shape": "hv"}
    figure.add_scatter(x=numbers, y=areas, mode="lines", line=line, name="hypervolume")
    figure.update_yaxes(tickformat=".2f", rangemode="tozero")
    return figure


def figure_part(figure: Any, name: str) -> str:
    """A figure as a part of a page that includes plotly already."""
    part: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=PLOTLY_CONFIG)
    return part
