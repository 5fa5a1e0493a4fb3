"""What run.py compares: the search of raysearch, part by part, and those of other libraries as they are."""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from pydantic import ValidationError

from raysearch.config.budget import Budget, Size
from raysearch.config.dimensions import Choices, Dimension, Suggester
from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar
from raysearch.searching.early_stopping.asha import AshaBracket, Rule
from raysearch.searching.early_stopping.rung import Rung
from raysearch.searching.samplers.optuna_samplers import SAMPLER_ATTEMPTS, OptunaSuggester, TPESampler
from raysearch.searching.samplers.suggesters import RandomSuggester
from raysearch.searching.searcher import Searcher
from raysearch.study.multi_objective import exclusive_hypervolume
from scripts.replays.simulator import Result
from scripts.replays.tables import RecordedTable, Table


class NoStopping:
    """What all policies share: every trial goes on. Proposals are random.

    Attributes:
        stops: whether trials are measured at rungs, and may be stopped there.
        hands_over: what counts as found: every checkpoint there has been, or those of finished trials alone.
    """

    stops = False
    hands_over: Literal["all", "finished"] = "all"

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
                return self.row_of(RandomSuggester(self.draw))
            except ValidationError:  # all loss weights 0, say
                continue

    def row_of(self, ask: Suggester) -> int:
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
        return self.scheduler.on_trial_result(None, fake, {"seen": seen, "retention": retention}) == "CONTINUE"


class RayOptunaASHA(RayASHA):
    """Ray's OptunaSearch with both objectives and Ray's ASHA on retention."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._row, self._names = 0, {}
        self.search = OptunaSearch(self._define, metric=["size", "retention"], mode=["min", "max"], seed=self.seed)

    def _define(self, trial: optuna.Trial) -> None:
        self._row = self.row_of(OptunaSuggester(trial))

    def propose(self, trial: str) -> int | None:
        for attempt in range(SAMPLER_ATTEMPTS):  # as in `Optuna`
            name = f"{trial}.{attempt}" if attempt else trial
            try:
                self.search.suggest(name)
                self._names[trial] = name
                return self._row
            except ValidationError:
                self.search.on_trial_complete(name, error=True)
        return super().propose(trial)

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        if trial not in self._names:
            return
        last = {"size": result.size, "retention": result.retention, "training_iteration": result.samples_seen}
        self.search.on_trial_complete(self._names[trial], last)


class SyneTuneMOASHA(NoStopping):
    """Syne Tune's MOASHA as shipped, random recipes of its own from the space made flat."""

    stops = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        np.random.seed(self.seed)  # noqa: NPY002  Syne Tune draws from it
        space = {name: syne_tune_domain(asked) for name, asked in sorted(self.table.search_params().items())}
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
    """An `Suggester` that answers from a flat configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._config[name]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        return float(self._config[name])


def syne_tune_domain(asked: Dimension) -> object:
    from syne_tune.config_space import choice, loguniform, randint, uniform

    if isinstance(asked, Choices):
        return choice(list(asked.choices))
    if asked.step:
        return randint(int(asked.low), int(asked.high))
    return (loguniform if asked.log else uniform)(asked.low, asked.high)


OPTUNA_SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "tpe": optuna.samplers.TPESampler,
    # It models the parameters that every trial has had, and draws the conditional ones at random.
    "gp": functools.partial(optuna.samplers.GPSampler, warn_independent_sampling=False),
}


class Optuna(NoStopping):
    """Optuna by ask and tell, both objectives, no stopping.

    It learns nothing from failed trials, and may propose the same excluded recipe for ever: after `SAMPLER_ATTEMPTS` of
    them one at random comes in its place, of which it is not told.
    """

    def __init__(self, sampler: str, *args: Any) -> None:
        super().__init__(*args)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = OPTUNA_SAMPLERS[sampler](seed=self.seed)
        self.study = optuna.create_study(directions=["minimize", "maximize"], sampler=made)
        self._asked: dict[str, optuna.Trial] = {}

    def propose(self, trial: str) -> int | None:
        for _ in range(SAMPLER_ATTEMPTS):
            asked = self.study.ask()
            try:
                row = self.row_of(OptunaSuggester(asked))
            except ValidationError:
                self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
                continue
            self._asked[trial] = asked
            return row
        return super().propose(trial)

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        if trial in self._asked:
            self.study.tell(self._asked[trial], [result.size, result.retention])


class ExpertSweep(NoStopping):
    """No search: one sensible recipe at nine sizes, on recorded trials alone.

    The recipe is EXPERT: layers and widths go together, decoder and projector are trained on all data by cross-entropy
    and both distillations. The nine sizes lie evenly between the table's smallest and largest, and come in the order
    0, 8, 4, 2, 6, 1, 3, 5, 7, so that those that came are spread over the range at any time. At each the row runs that
    is nearest to the recipe in all other fields, of the rows that have not been run and whose size is at most half a
    step away; without any, the one nearest in size. After the ninth nothing more runs.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert isinstance(self.table, RecordedTable), "an expert's sweep is on recorded trials"
        self._targets = np.linspace(self.table.sizes.min(), self.table.sizes.max(), 9)[[0, 8, 4, 2, 6, 1, 3, 5, 7]]
        self._half_step = abs(self._targets[1] - self._targets[0]) / 16
        self._distances = self.table.distances(EXPERT, without_ratio=True)

    def propose(self, trial: str) -> int | None:
        if int(trial) >= len(self._targets):
            return None
        away = np.abs(self.table.sizes - self._targets[int(trial)])
        away[list(self.taken)] = np.inf
        near = np.flatnonzero(away <= self._half_step)
        return int(near[np.argmin(self._distances[near])]) if len(near) else int(np.argmin(away))


EXPERT = Recipe(
    mode="both",
    ratio=0.5,
    depth_share=0.75,
    attention_share=0.0,
    criterion="greedy_loss+taylor",
    trained="projector+decoder",
    sft=1.0,
    logits_kd=0.5,
    hidden_kd=0.5,
    temperature=2.0,
    lr=5e-4,
)
"""What a user would run without this tool; the search of 2026-11-29 was behind it (docs/measurements/log.md)."""


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

    def __init__(self, table: Table, row_of: Callable[[Suggester], int]) -> None:
        self._table, self._row_of = table, row_of
        self.recipe = table.space.recipe if isinstance(table, RecordedTable) else {}

    def search_params(self) -> dict[str, Dimension]:
        return self._table.search_params()

    def values_of(self, field: str) -> list[Any]:
        """None: rows are not trained longer, they are what they are."""
        return []

    def suggest(self, ask: Suggester) -> Row:
        return Row(self._row_of(ask))


class RandomTies(Rung):
    """A rung where places in a non-domination rank are drawn by lot."""

    def place(self, members: np.ndarray, newcomer: int) -> int:
        return zlib.crc32(members[newcomer].tobytes()) % len(members) + 1


class RangeScaled(Rung):
    """A rung where areas begin just below its lowest retention, not at 0."""

    def place(self, members: np.ndarray, newcomer: int) -> int:
        points = np.stack([np.log(members[:, 0]), -members[:, 1]], 1)
        low, high = np.minimum(self._low, points[newcomer]), np.maximum(self._high, points[newcomer])
        points = (points - low) / np.where(high > low, high - low, 1.0)
        areas = exclusive_hypervolume(points, np.array([1.1, 1.1]))
        return int(np.sum(areas >= areas[newcomer]))


class Ours(NoStopping):
    """raysearch's searcher and rungs, both as the search uses them; `parts` switches some off or over.

    Args:
        parts: `sampler`; `stopping`; `num_spared`, of `AshaBracket`; `budgets`, to name those that the regret is
            measured at; `rung`, a class in the place of `Rung`; `truncated`, to tell the sampler a stopped trial's last
            value as its final one; and the fields of `Rule`.
    """

    hands_over = "finished"

    def __init__(self, parts: dict, *args: Any) -> None:
        super().__init__(*args)
        parts = dict(parts)
        self.rungs = None
        num_spared = int(parts.pop("num_spared", 0))
        self.truncated, self.stops = parts.pop("truncated", False), parts.pop("stopping", True)
        sampler = parts.pop("sampler", "ehvi")
        rung = parts.pop("rung", Rung)
        budgets = self.table.budgets if parts.pop("budgets", False) else ()
        if self.stops:
            order = np.argsort(self.table.shares)
            at_budgets = np.interp(budgets, self.table.shares[order], self.table.sizes[order])
            self.rungs = AshaBracket(self.max_t, self.grace, 3, at_budgets, Rule(**parts))
            self.rungs.num_spared = num_spared
            if rung is not Rung:
                self.rungs.rungs = [rung(level, at_budgets, 1 / 3) for level in self.rungs.levels]
        self.searcher = Searcher(
            TableSpace(self.table, self.row_of),
            self._size_of,
            Size(10**9, 10**9),
            [Budget.parse(f"{budget:.0%}") for budget in budgets],
            sampler=sampler,
            seed=self.seed,
        )

    def _size_of(self, made: Row | Recipe) -> Size:
        """On the axis of the hypervolume, as in a real search."""
        share = self.table.shares[made.number] if isinstance(made, Row) else self.table.count(made)
        return Size(*(int(1e9 * max(0.005, share)),) * 2)

    def propose(self, trial: str) -> int | None:
        row = self.searcher.suggest(trial)
        if row is None:
            return None
        if self.rungs is not None:
            self.rungs.revive(trial)
        return row.number

    def on_result(self, trial: str, size: float, retention: float, se: float, seen: float) -> bool:
        self.searcher.report(trial, seen, retention)
        return self.rungs is None or self.rungs.decide(trial, size, retention, se, seen).go_on

    def on_end(self, trial: str, result: Result, finished: bool) -> None:
        if not finished:
            (self.searcher.finish if self.truncated else self.searcher.stop)(trial)
            return
        self.searcher.report(trial, result.samples_seen, result.retention)
        self.searcher.finish(trial)
        if self.rungs is not None:
            self.rungs.finish(trial, result.size, result.retention, result.se, result.samples_seen)


def ours(**parts: object) -> Callable[..., NoStopping]:
    return lambda *args: Ours(parts, *args)


RECORDED_ONLY = ("expert-sweep",)
"""Methods that need recipes, which the other tables don't have."""
METHODS: dict[str, Callable[..., NoStopping]] = {
    "random": NoStopping,
    "ray-asha": RayASHA,
    "ray-optuna-asha": RayOptunaASHA,
    "synetune-moasha": SyneTuneMOASHA,
    "optuna-nsga2": lambda *args: Optuna("nsga2", *args),
    "optuna-tpe": lambda *args: Optuna("tpe", *args),
    "optuna-gp": lambda *args: Optuna("gp", *args),
    "expert-sweep": ExpertSweep,
    "ours": ours(),
    "ours, tpe": ours(sampler="tpe"),
    "ours, nsga2": ours(sampler="nsga2"),
    "ours, random": ours(sampler="random"),
    "ours without stopping": ours(stopping=False),
    "ours, truncated values told": ours(truncated=True),
    "ours, random ties": ours(rung=RandomTies),
    "ours, areas from the lowest retention": ours(rung=RangeScaled),
    "ours, short trials not counted": ours(count_finished=False),
    "ours, tpe, not steered": ours(sampler=functools.partial(TPESampler, steer=False)),
    "ours, budgets named": ours(budgets=True),
    "ours, budgets named, leaders stopped": ours(budgets=True, keep_budget_leaders=False),
    "ours, tpe, budgets named": ours(sampler="tpe", budgets=True),
}
