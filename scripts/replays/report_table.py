"""What the recorded trials say about rungs, seeds and recipes, as Markdown for docs/measurements/table.md.

    python scripts/replays/report_table.py                       # docs/data/pocket-trials.parquet
    python scripts/replays/report_table.py --table other.parquet

Intervals are 95% bootstrap ones over recipes.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas
from scipy.stats import spearmanr

from raysearch.config.recipe import Recipe
from raysearch.study.multi_objective import hypervolume, nondomination_ranks

NUM_RESAMPLES = 1000
SIZE_BANDS = ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0))


def read(path: Path) -> pandas.DataFrame:
    """Finished trials, with the final retention and its error as columns of their own."""
    trials = pandas.read_parquet(path)
    trials = trials[trials["end"] == "finished"].reset_index(drop=True)
    for name in ("retention", "retention_se", "samples_seen"):
        trials[f"final_{name}"] = [values[-1] for values in trials[name]]
    return trials


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("docs/data/pocket-trials.parquet"))
    trials = read(parser.parse_args().table)
    first_seed = trials[trials["seed"] == 0]
    print("\n\n".join(["\n".join(part) for part in (overview(trials), rungs(first_seed), seeds(trials))]))
    print("\n" + "\n".join(bands(first_seed)))


def overview(trials: pandas.DataFrame) -> list[str]:
    """How many trials, how long, and the front."""
    points = np.column_stack([trials["size_ratio"], -trials["final_retention"]])
    front = trials[nondomination_ranks(points) == 0].sort_values("size_ratio")
    area = hypervolume(trials["size_ratio"], trials["final_retention"])
    lines = [
        f"{len(trials)} finished trials, {trials['seconds'].sum() / 3600:.1f} core-hours; hypervolume {area:.3f}.",
        "",
        "| size | retention | recipe |",
        "|---|---|---|",
    ]
    fields = [name for name in Recipe.model_fields if name in trials]
    for _, row in front.iterrows():
        recipe = Recipe(**{name: _plain(row[name]) for name in fields if not pandas.isna(row[name])})
        lines.append(f"| {row['size_ratio']:.1%} | {row['final_retention']:.3f} | {recipe.describe()} |")
    return lines


def rungs(trials: pandas.DataFrame) -> list[str]:
    """Rank correlation between the retention at a rung and at the end, over trials that go on from it.

    The correlation is also taken within narrow bands of size, since size alone orders most of the trials.
    """
    lines = [
        "| samples seen | trials | Spearman with the end | the same within a tenth of size | median gain to the end |",
        "|---|---|---|---|---|",
    ]
    for level in sorted({seen for values in trials["samples_seen"] for seen in values}):
        going_on = trials[[level in values and level < values[-1] for values in trials["samples_seen"].map(list)]]
        if len(going_on) < 10:
            continue
        now = np.array([row["retention"][list(row["samples_seen"]).index(level)] for _, row in going_on.iterrows()])
        end = going_on["final_retention"].to_numpy()
        overall, within = agreement(now, end, going_on["size_ratio"].to_numpy())
        lines.append(f"| {level} | {len(now)} | {overall} | {within} | {np.median(end - now):+.3f} |")
    return lines


def agreement(now: np.ndarray, end: np.ndarray, size_ratios: np.ndarray) -> tuple[str, str]:
    """Rank correlation of values on the way with those at the end, over all trials and within a tenth of size."""
    band = np.floor(size_ratios * 10)
    overall = with_interval(lambda at: spearmanr(now[at], end[at])[0], len(now))
    within = with_interval(lambda at: spearmanr(centred(now[at], band[at]), centred(end[at], band[at]))[0], len(now))
    return overall, within


def seeds(trials: pandas.DataFrame) -> list[str]:
    """How far two runs of one recipe lie apart, beside the error over questions."""
    fields = [name for name in Recipe.model_fields if name != "seed" and name in trials]
    gaps, errors = [], []
    for _, pair in trials.groupby(fields, dropna=False):
        if len(pair) == 2:
            gaps.append(pair["final_retention"].iloc[0] - pair["final_retention"].iloc[1])
            errors.append(pair["final_retention_se"].iloc[0])
    if not gaps:
        return []
    deviation = float(np.sqrt(np.mean(np.square(gaps)) / 2))
    return [
        f"{len(gaps)} recipes were run under two seeds: standard deviation between seeds {deviation:.4f}; mean "
        f"standard error over questions {np.mean(errors):.4f}."
    ]


def bands(trials: pandas.DataFrame) -> list[str]:
    """The best retention by mode and by what is trained, in bands of size."""
    lines = []
    for field in ("mode", "trained"):
        values = sorted(trials[field].unique())
        lines += [f"| best retention, size | {' | '.join(values)} |", "|---" * (len(values) + 1) + "|"]
        for low, high in SIZE_BANDS:
            inside = trials[(trials["size_ratio"] > low) & (trials["size_ratio"] <= high)]
            cells = [_best(inside[inside[field] == value]["final_retention"]) for value in values]
            lines.append(f"| {low:.0%} to {high:.0%} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _best(values: "pandas.Series[float]") -> str:
    return f"{values.max():.3f} (of {len(values)})" if len(values) else "none"


def centred(values: np.ndarray, groups: Iterable[float]) -> np.ndarray:
    """Values less the mean of their group."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    return values - (np.bincount(index, values) / np.bincount(index))[index]


def with_interval(statistic: Callable[[np.ndarray], float], num: int) -> str:
    draw = np.random.default_rng(0)
    resampled = [statistic(draw.integers(num, size=num)) for _ in range(NUM_RESAMPLES)]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return f"{statistic(np.arange(num)):.2f} [{low:.2f}, {high:.2f}]"


def _plain(value: object) -> object:
    """A value of pandas as Python's own; whole numbers come back from a nullable column as floats."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() and plain > 1 else plain


if __name__ == "__main__":
    main()
