"""Tables and a picture from the lines that bench_search.py wrote with --out.

python scripts/report_search.py docs/data/search-replay.jsonl --picture docs/images/search-replay.png
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

SHOWN = {
    "ours": ("#0072B2", "o"),
    "ours, random proposals": ("#56B4E9", "^"),
    "random": ("#8a8a8a", "s"),
    "optuna-nsga2": ("#009E73", "D"),
    "synetune-moasha": ("#CC79A7", "v"),
    "ray-asha": ("#E69F00", "<"),
    "ray-optuna-asha": ("#D55E00", ">"),
}
NAMES = {
    "random": "random, no stopping",
    "ray-asha": "Ray's ASHA on retention",
    "ray-optuna-asha": "Ray's OptunaSearch + ASHA",
    "synetune-moasha": "Syne Tune's MOASHA",
    "optuna-nsga2": "Optuna's NSGA-II",
    "optuna-tpe": "Optuna's TPE",
}
Results = dict[tuple[str, str], dict[float, dict[str, list[float]]]]


def read(paths: list[Path]) -> Results:
    """By (curves, method): by cost, the values of all tables and seeds."""
    results: Results = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in paths:
        for line in map(json.loads, path.read_text().splitlines()):
            for cost, area, regret in zip(
                line["costs"],
                line["hypervolume"],
                line["regret"] or [np.nan] * len(line["costs"]),
                strict=True,
            ):
                entry = results[line["curves"], line["method"]][cost]
                entry["hypervolume"].append(area)
                entry["regret"].append(regret)
    return results


def summary(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95% interval."""
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(half)


def tables(results: Results) -> str:
    """Markdown: per kind of curves, a row per method and a column per cost."""
    lines = []
    for curves in dict.fromkeys(curves for curves, _ in results):
        chosen = {method: costs for (kind, method), costs in results.items() if kind == curves}
        at = sorted({cost for costs in chosen.values() for cost in costs})
        lines += ["", f"Curves `{curves}`:", ""]
        lines += [
            "| method | replays | " + " | ".join(f"{cost:g} full runs" for cost in at) + " | regret at 20 |"
        ]
        lines += ["|---" * (len(at) + 3) + "|"]
        for method, costs in chosen.items():
            cells = [
                "{:.3f} ± {:.3f}".format(*summary(costs[c]["hypervolume"])) if c in costs else "" for c in at
            ]
            num = len(next(iter(costs.values()))["hypervolume"])
            known = 20 in costs and np.isfinite(costs[20]["regret"]).all()
            regret = f"{summary(costs[20]['regret'])[0]:.3f}" if known else ""
            lines.append(f"| {NAMES.get(method, method)} | {num} | {' | '.join(cells)} | {regret} |")
    return "\n".join(lines)


def draw(results: Results, picture: Path) -> None:
    """One panel per kind of curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(curves for curves, _ in results))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(5.2 * len(kinds), 4.2), sharey=True, squeeze=False)
    for axis, curves in zip(axes[0], kinds, strict=True):
        for method, (colour, mark) in SHOWN.items():
            costs = results.get((curves, method), {})
            if not costs:
                continue
            at = sorted(costs)
            means = np.array([summary(costs[cost]["hypervolume"]) for cost in at]).reshape(-1, 2)
            axis.errorbar(
                at,
                means[:, 0],
                means[:, 1],
                color=colour,
                marker=mark,
                capsize=2,
                lw=1.6,
                ms=5,
                label=NAMES.get(method, method),
            )
        axis.set(title=f"curves: {curves}", xlabel="cost, in full runs", xscale="log", xticks=[5, 10, 20, 50])
        axis.set_xticklabels(["5", "10", "20", "50"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("hypervolume, 1 = optimum")
    for axis in axes[0]:
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(picture, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    results = read(options.results)
    print(tables(results))
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
