"""What early stopping decisions cost and are worth on the recorded trials: docs/measurements/search.md.

    python scripts/benchmarks/early_stopping.py                  # correlations, then replays: ten minutes on one core
    python scripts/benchmarks/early_stopping.py --seeds 10       # a minute
    python scripts/benchmarks/early_stopping.py --sampler ehvi --seeds 20

A verdict below a trial's end may rest on a share of the search questions. First: how well the retention on a share
orders trials as the retention at their end on all questions does. Then: searches replayed with the real rule, at equal
cost, by share and first rung. Both ways of stopping are paid for what they measure: a verdict costs its share of an
evaluation, and every result what keeping a checkpoint takes.
"""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas

from raysearch.config.space import SearchSpace
from raysearch.study.multi_objective import hypervolume
from scripts.replays.methods import Ours
from scripts.replays.questions import Questions
from scripts.replays.report_table import agreement, read
from scripts.replays.run import TABLE_SPACE
from scripts.replays.simulator import simulate
from scripts.replays.tables import Early, EndsOnly, RecordedTable, RecordedWorld, load_recorded_table

SHARES = (1.0, 1 / 2, 1 / 3, 1 / 5, 1 / 10)
FIRST_RUNGS = (37, 111)  # samples: 1/27 and 1/9 of the longest trial
COSTS = (2, 5, 10, 20, 30)  # in full runs, scored once
SLOTS = 2


def replayed(policy: Ours, world: RecordedWorld) -> list[float]:
    """Share of the table's hypervolume that the trials that ended have, at each of COSTS."""
    table, full = world.table, world.cost_of_full_run
    results = simulate(policy, world if policy.stops else EndsOnly(world), SLOTS, max(COSTS) * full)
    ended = [result for result in results if result.samples_seen == world.checkpoints(result.config)[-1]]
    areas = []
    for cost in COSTS:
        rows = [result.config for result in ended if result.cost <= cost * full]
        truths = [list(table.truths[row].values())[-1] for row in rows]
        areas.append(hypervolume(table.sizes[rows], truths) / table.optimum)
    return areas


def correlations(trials: pandas.DataFrame, questions: Questions) -> Iterable[str]:
    """Rank correlation of a rung's value with the end, by share."""
    yield "| samples seen | trials | questions | Spearman with the end | within a tenth of size | standard error |"
    yield "|---|---|---|---|---|---|"
    for level in sorted({seen for values in trials["samples_seen"] for seen in values[:-1] if seen < 999}):
        rows = [row for _, row in trials.iterrows() if level in row["samples_seen"][:-1]]
        end = np.array([row["final_retention"] for row in rows])
        size_ratios = np.array([row["size_ratio"] for row in rows])
        right = [row["right"][list(row["samples_seen"]).index(level)] for row in rows]
        for share in SHARES:
            now, errors = np.array([questions.retention(values, share) for values in right]).T
            asked = sum(int(part.sum()) for part in questions.part(share).values())
            overall, within = agreement(now, end, size_ratios)
            yield f"| {level} | {len(now)} | {asked} | {overall} | {within} | {errors.mean():.3f} |"


def replays(
    table: RecordedTable, trials: pandas.DataFrame, questions: Questions, sampler: str, num_seeds: int
) -> Iterable[str]:
    """Hypervolume after equal cost, by share and first rung."""
    by_key = {row["key"]: row for _, row in trials.iterrows()}
    rows = [by_key[recipe.key] for recipe in table.recipes]
    yield f"| {sampler} | " + " | ".join(f"{cost} full runs" for cost in COSTS) + " |"
    yield "|---" * (len(COSTS) + 1) + "|"
    for share, first_rung in [(1.0, None), *itertools.product(SHARES, FIRST_RUNGS)]:
        early = Early(share, questions.early_values(rows, share))
        parts = {"sampler": sampler, "stopping": first_rung is not None}
        areas = np.array(
            [
                replayed(
                    Ours(parts, table, seed, table.full, first_rung),
                    RecordedWorld(table, first_rung or table.full, early),
                )
                for seed in range(num_seeds)
            ]
        )
        half = 1.96 * areas.std(0, ddof=1) / np.sqrt(num_seeds)
        cells = [f"{mean:.3f} ± {reach:.3f}" for mean, reach in zip(areas.mean(0), half, strict=True)]
        name = f"first rung {first_rung}, share {share:.2g}" if first_rung else "no stopping"
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("docs/data/pocket-trials.parquet"))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--sampler", default="random")
    options = parser.parse_args()
    trials, questions = read(options.table), Questions()
    for line in correlations(trials[trials["seed"] == 0], questions):
        print(line, flush=True)
    print()
    table = load_recorded_table(options.table, SearchSpace.load(TABLE_SPACE))
    for line in replays(table, trials, questions, options.sampler, options.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
