"""The paper's Figures 3, 5 and 6 as one picture: retention over the ratio, with intervals."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from raysearch.evaluation.retention import Estimate
from raysearch.replication.claims import LAYER, WIDTH, joint, projector, untrained
from raysearch.replication.table import Cell, Table

FIGURE = "study.png"
Curve = list[tuple[float, Estimate]]
_MIXES = ("sft", "sft+kl", "sft+rkl", "sft+l2", "sft+kl+l2", "sft+rkl+l2", "kl", "rkl", "l2")


def curves(table: Table) -> dict[str, dict[str, Curve]]:
    """Per panel and curve, the ratios that were measured, ascending, and the retention there; empty ones left out."""
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
    found = {title: {name: _curve(table, cells) for name, cells in made.items()} for title, made in panels.items()}
    filled = {title: {name: curve for name, curve in made.items() if curve} for title, made in found.items()}
    return {title: made for title, made in filled.items() if made}


def _curve(table: Table, cells: Sequence[Cell]) -> Curve:
    return [(cell.ratio, table.kept(cell)) for cell in cells if cell in table]


def write_figure(table: Table, path: Path) -> None:
    """Replace `path`, a PNG, by the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = curves(table)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), constrained_layout=True, squeeze=False
    )
    for axis, (title, made) in zip(axes[0], panels.items(), strict=True):
        for name, curve in made.items():
            ratios, kept = [100 * ratio for ratio, _ in curve], [value for _, value in curve]
            reach = [[100 * (value.value - value.interval[0]) for value in kept]] * 2
            style = "--" if name.startswith(LAYER) else "-"
            axis.errorbar(
                ratios,
                [100 * value.value for value in kept],
                reach,
                label=name,
                marker="o",
                markersize=3,
                linestyle=style,
                capsize=2,
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("% of the decoder's parameters removed")
        axis.set_ylabel("retention, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    unfinished = path.with_suffix(f".{os.getpid()}.png")
    figure.savefig(unfinished, dpi=110)
    pyplot.close(figure)
    os.replace(unfinished, path)
