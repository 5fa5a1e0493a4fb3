"""Tables and a picture from the lines that run.py wrote with --out.

python scripts/replays/report.py docs/data/search-replays.parquet --picture docs/images/search-replay.png
python scripts/replays/report.py docs/data/search-replays.parquet --against ours    # differences, seed by seed
python scripts/replays/report.py results.jsonl --keep docs/data/search-replays.parquet    # all lines in one file
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t as student

SHOWN = {
    "ours": ("#0072B2", "o"),
    "random": ("#8a8a8a", "s"),
    "optuna-nsga2": ("#009E73", "D"),
    "optuna-tpe": ("#56B4E9", "^"),
    "optuna-gp": ("#F0E442", "p"),
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
    "optuna-gp": "Optuna's GPSampler",
    "expert-sweep": "an expert's sweep",
}
OTHERS = [method for method in SHOWN if method != "ours"]
REGRET_AT = (5, 20, 50)
ALL = "all tables"

Run = tuple[str, int]
"""A table and a seed."""
Values = dict[Run, float]
Results = dict[tuple[str, str], dict[str, dict[float, Values]]]
"""By (problem, method), then by "hypervolume" or "regret", then by cost. A problem is curves and a first rung."""


def read_lines(paths: Sequence[Path]) -> list[dict]:
    """All lines of all files, JSONL or Parquet."""
    lines = []
    for path in paths:
        if path.suffix == ".parquet":
            lines += pq.read_table(path).to_pylist()
        else:
            lines += map(json.loads, path.read_text().splitlines())
    return lines


def by_problem(lines: Sequence[dict]) -> Results:
    """The lines by problem, and, where these are several, those of all tables as one more."""
    results: Results = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for line in lines:
        problem = f"{line['curves']}, first rung at 1/{line['first_rung']}"
        for what in ("hypervolume", "regret"):
            for cost, value in zip(line["costs"], line[what], strict=True):
                results[problem, line["method"]][what][cost][line["table"], line["seed"]] = value
    if len({problem for problem, _ in results}) > 1:
        results.update(_over_all(results))
    return results


def _over_all(results: Results) -> Results:
    """Per method and run the mean over the problems that the run's table is in, where the method has it in all."""
    problems: dict[str, set[str]] = defaultdict(set)  # by table
    for (problem, _), found in results.items():
        for values in found["hypervolume"].values():
            for table, _ in values:
                problems[table].add(problem)
    pooled: Results = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for method in dict.fromkeys(method for _, method in results):
        gathered: dict[tuple[str, float, Run], list[float]] = defaultdict(list)
        for (_, name), found in results.items():
            for what, costs in found.items() if name == method else ():
                for cost, values in costs.items():
                    for run, value in values.items():
                        gathered[what, cost, run].append(value)
        whole = {key: values for key, values in gathered.items() if len(values) == len(problems[key[2][0]])}
        if {run[0] for _, _, run in whole} == set(problems):
            for (what, cost, run), values in whole.items():
                pooled[ALL, method][what][cost][run] = float(np.mean(values))
    return pooled


def summary(values: Mapping[Run, float]) -> tuple[float, float]:
    """Mean, and half of its 95% interval by Student's t: over the means of tables, or over the seeds of one table."""
    by_table = defaultdict(list)
    for (table, _), value in values.items():
        by_table[table].append(value)
    means = [np.mean(group) for group in by_table.values()]
    sample = means if len(means) > 1 else list(values.values())
    num = len(sample)
    half = student.ppf(0.975, num - 1) * np.std(sample, ddof=1) / np.sqrt(num) if num > 1 else 0.0
    return float(np.mean(means)), float(half)


def paired(values: Mapping[Run, float], other: Mapping[Run, float]) -> Values:
    """Differences, run by run."""
    return {run: values[run] - other[run] for run in values if run in other}


def tables(results: Results, against: str | None = None) -> str:
    """Markdown: per problem, a row per method and a column per cost; differences to a method, if it is named."""
    lines = []
    for problem in dict.fromkeys(problem for problem, _ in results):
        chosen = {method: found for (name, method), found in results.items() if name == problem}
        chosen = {method: chosen[method] for method in sorted(chosen, key=_place)}
        if against not in chosen and against is not None:
            continue
        costs = sorted({cost for found in chosen.values() for cost in found["hypervolume"]})
        columns = [("hypervolume", cost) for cost in costs]
        columns += [("regret", cost) for cost in costs if cost in REGRET_AT]
        heads = [f"{cost:g}" if what == "hypervolume" else f"regret at {cost:g}" for what, cost in columns]
        title = f"{problem}{f', less that of {against}' if against else ''}"
        lines += ["", title, "", f"| method | runs | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
        for method, found in chosen.items():
            if method == against:
                continue
            cells = []
            for what, cost in columns:
                values = found[what][cost]
                if against:
                    values = paired(values, chosen[against][what][cost])
                mean, half = summary(values)
                interval = f" ± {half:.3f}" if len(values) > 1 else ""
                cells.append(f"{mean:{'+' if against else ''}.3f}{interval}")
            num = len(found["hypervolume"][costs[0]])
            lines.append(f"| {NAMES.get(method, method)} | {num} | {' | '.join(cells)} |")
        if "ours" in chosen and not against:
            lines += ["", reach(chosen)]
    return "\n".join(lines)


def _place(method: str) -> tuple[int, str]:
    """Other libraries' methods first, then ours, then ours in part."""
    known = [*OTHERS, "ours"]
    return (known.index(method) if method in known else len(known)), method


def reach(chosen: Mapping[str, Mapping[str, Mapping[float, Values]]]) -> str:
    """When ours has what the best of the others has in the end."""
    last = max(chosen["ours"]["hypervolume"])
    ends = {name: summary(chosen[name]["hypervolume"][last])[0] for name in OTHERS if name in chosen}
    if not ends:
        return ""
    best = max(ends, key=ends.__getitem__)
    has = f"Of the others, {NAMES[best]} has {ends[best]:.3f} after {last:g} full runs; ours has as much"
    for cost, values in sorted(chosen["ours"]["hypervolume"].items()):
        mean, half = summary(paired(values, chosen[best]["hypervolume"][last]))
        if mean >= 0:
            return f"{has} after {cost:g} ({mean:+.3f} ± {half:.3f}, run by run)."
    return f"{has} at no cost measured."


def draw(results: Results, picture: Path) -> None:
    """One panel per problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    problems = list(dict.fromkeys(problem for problem, _ in results))
    figure, axes = pyplot.subplots(1, len(problems), figsize=(4.6 * len(problems), 4.2), sharey=True, squeeze=False)
    for axis, problem in zip(axes[0], problems, strict=True):
        for number, (method, (colour, mark)) in enumerate(SHOWN.items()):
            found = results.get((problem, method), {}).get("hypervolume", {})
            if not found:
                continue
            at = sorted(found)
            means, halves = zip(*(summary(found[cost]) for cost in at), strict=True)
            label = NAMES.get(method, method)
            beside = [cost * 1.012 ** (number - len(SHOWN) / 2) for cost in at]  # so that no bar hides another
            axis.errorbar(beside, means, halves, color=colour, marker=mark, capsize=2, lw=1.6, ms=5, label=label)
        axis.set(title=problem, xlabel="cost, in full runs", xscale="log", xticks=[5, 10, 20, 50])
        axis.set_xticklabels(["5", "10", "20", "50"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("hypervolume, 1 = optimum")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, loc="lower center", ncols=len(SHOWN))
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--against", help="a method: print differences to it, seed by seed")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--keep", type=Path, help="a Parquet file to write")
    options = parser.parse_args()
    lines = read_lines(options.results)
    results = by_problem(lines)
    print(tables(results, options.against))
    if options.picture:
        draw(results, options.picture)
    if options.keep:
        lines.sort(key=lambda line: [line[name] for name in ("curves", "first_rung", "method", "table", "seed")])
        pq.write_table(pa.Table.from_pylist(lines), options.keep, compression="zstd")


if __name__ == "__main__":
    main()
