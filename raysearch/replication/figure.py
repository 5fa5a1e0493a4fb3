"""The paper's Figures 3, 5 and 6 as one plot: retention over the ratio, with intervals."""

import os
from collections.abc import Callable
from pathlib import Path

from raysearch.evaluation.retention import Estimate
from raysearch.replication.claims import LAYER, WIDTH, joint, projector, untrained
from raysearch.replication.table import Cell, Table

FIGURE = "study.png"
Curve = list[tuple[float, Estimate]]
_MIXES = ("sft", "sft+kl", "sft+rkl", "sft+l2", "sft+kl+l2", "sft+rkl+l2", "kl", "rkl", "l2")


def curves(table: Table) -> dict[str, dict[str, Curve]]:
    """Measured ratios, ascending, and the retention there, by panel and curve; empty ones are left out."""
    ratios = table.ratios
    regimes: dict[str, Callable[[str, float], Cell]] = {"none": untrained, "projector": projector, "joint": joint}
    panels: dict[str, dict[str, list[Cell]]] = {
        "What is trained, by SFT": {
            f"{mode}, {name}": [cell(mode, ratio) for ratio in ratios]
            for name, cell in regimes.items()
            for mode in (WIDTH, LAYER)
        },
        "Losses, widthwise, joint": {mix: [joint(WIDTH, ratio, mix) for ratio in ratios] for mix in _MIXES},
        "Share of the data, widthwise, SFT with hidden states": {
            f"{fraction:.0%}": [joint(WIDTH, ratio, "sft+l2", fraction) for ratio in ratios]
            for fraction in sorted({cell.fraction for cell in table.cells})
        },
    }
    found: dict[str, dict[str, Curve]] = {}
    for title, rows in panels.items():
        for name, cells in rows.items():
            curve = [(cell.ratio, table.retention(cell)) for cell in cells if cell in table]
            if curve:
                found.setdefault(title, {})[name] = curve
    return found


def write_figure(table: Table, path: Path) -> None:
    """Replace `path`, a PNG, by the plot of `curves`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = curves(table)
    size = (5.2 * len(panels), 4.2)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, constrained_layout=True, squeeze=False)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for name, curve in rows.items():
            ratios, retentions = [100 * ratio for ratio, _ in curve], [100 * value.value for _, value in curve]
            half_widths = [100 * (value.value - value.interval[0]) for _, value in curve]
            style = {"marker": "o", "markersize": 3, "linestyle": "--" if name.startswith(LAYER) else "-"}
            axis.errorbar(ratios, retentions, half_widths, label=name, capsize=2, **style)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("% of the decoder's parameters removed")
        axis.set_ylabel("retention, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    unfinished = path.with_suffix(f".{os.getpid()}.png")
    figure.savefig(unfinished, dpi=110)
    pyplot.close(figure)
    os.replace(unfinished, path)
