"""Results of a grid by cell of the paper's design, each value with its interval.

Comparisons are paired: both models answer the same questions. A standard error combines two sources: questions (the
linearised ratio, clustered by image, on scores averaged over seeds) and seeds. Two or three seeds estimate their own
variance badly, so a table pools it over all recipes of one ratio.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.evaluation.retention import Estimate, Results, difference, load_results, retention
from raysearch.study.records import TrialRecord

SCORES = "scores"
_REGIMES = {"nothing": "none", "projector": "projector"}


@dataclass(frozen=True)
class Cell:
    """One entry of the paper's tables.

    Attributes:
        regime: what is trained: none, projector, or joint (the decoder too, with LoRA or whole).
        losses: sft, kl, rkl, l2 and other losses by their field, those with a weight, in this order, joined by `+`.
        fraction: share of the recovery data; 1 where nothing is trained.
        quantization: of the decoder's weights after recovery.
    """

    mode: str
    ratio: float
    regime: str = "none"
    losses: str = ""
    fraction: float = 1.0
    quantization: str = "none"


def cell_of(recipe: Recipe) -> Cell:
    """The cell that a recipe belongs to; seeds share it."""
    published = {"logits_kd": "rkl" if recipe.kl == "reverse" else "kl", "hidden_kd": "l2"}
    losses = "+".join(published.get(name, name) for name in recipe.loss_weights)
    fraction = 1.0 if recipe.data_fraction is None else recipe.data_fraction
    regime = _REGIMES.get(recipe.trained, "joint")
    return Cell(recipe.mode, recipe.ratio, regime, losses, fraction, recipe.quantization)


class Table:
    """Results by cell, a list over seeds each; the first recipe of a cell counts where a grid has several."""

    def __init__(
        self, dense: Results, results: Mapping[Cell, Sequence[Results]], sizes: Mapping[Cell, Size] | None = None
    ) -> None:
        self.dense, self._results, self.sizes = dense, dict(results), dict(sizes or {})
        self._seed_sd = {ratio: self._pooled_sd(ratio) for ratio in {cell.ratio for cell in results}}

    @classmethod
    def load(cls, folder: Path, records: Iterable[TrialRecord]) -> "Table":
        """The finished trials of a study with `search.keep_scores`."""
        first: dict[Cell, str] = {}
        results: dict[Cell, list[Results]] = {}
        sizes: dict[Cell, Size] = {}
        for record in records:
            path = folder / SCORES / f"{record.key}.npz"
            if record.end != "finished" or not path.exists():
                continue
            cell, unseeded = cell_of(record.recipe), record.recipe.model_copy(update={"seed": 0}).key
            if first.setdefault(cell, unseeded) == unseeded:
                results.setdefault(cell, []).append(load_results(path))
                sizes[cell] = record.size
        return cls(load_results(folder / SCORES / "dense.npz"), results, sizes)

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._results

    @property
    def cells(self) -> list[Cell]:
        """All measured cells."""
        return list(self._results)

    @property
    def ratios(self) -> list[float]:
        """The measured ratios above 0, ascending."""
        return sorted({cell.ratio for cell in self._results if cell.ratio})

    def scores(self, cell: Cell) -> dict[str, float]:
        """Mean score per benchmark, averaged over seeds."""
        return _mean(self._results[cell]).means()

    def retention(self, cell: Cell) -> Estimate:
        """Retention relative to the dense model."""
        runs = self._results[cell]
        overall = retention(_mean(runs), self.dense)
        return Estimate(overall.value, float(np.hypot(overall.se, self._seed_error(cell))))

    def gap(self, first: Cell, second: Cell, benchmarks: Sequence[str] | None = None) -> Estimate:
        """Retention of `first` minus that of `second`, on all benchmarks or some of them."""
        ours, theirs = (_only(_mean(self._results[cell]), benchmarks) for cell in (first, second))
        overall = difference(ours, theirs, _only(self.dense, benchmarks))
        errors = (overall.se, self._seed_error(first), self._seed_error(second))
        return Estimate(overall.value, float(np.linalg.norm(errors)))

    def gap_to(self, other: Results, cell: Cell) -> Estimate:
        """Retention of one model of another study, without an error for its seed, minus that of a cell."""
        overall = difference(other, _mean(self._results[cell]), self.dense)
        return Estimate(overall.value, float(np.hypot(overall.se, self._seed_error(cell))))

    def relative(self, first: Cell, second: Cell) -> Estimate:
        """Retention of `first` relative to `second`."""
        overall = retention(_mean(self._results[first]), _mean(self._results[second]))
        base = self.retention(second).value
        errors = (self._seed_error(first) / base, overall.value * self._seed_error(second) / base)
        return Estimate(overall.value, float(np.linalg.norm((overall.se, *errors))))

    def _seed_error(self, cell: Cell) -> float:
        """Standard error of a mean over seeds; 0 without recovery, which is deterministic."""
        return 0.0 if cell.regime == "none" else self._seed_sd[cell.ratio] / np.sqrt(len(self._results[cell]))

    def _pooled_sd(self, ratio: float) -> float:
        """Standard deviation of retention between seeds, pooled over the recipes of a ratio with several seeds."""
        variances, weights = [0.0], [0]
        for cell, runs in self._results.items():
            if cell.ratio == ratio and cell.regime != "none" and len(runs) > 1:
                values = [retention(run, self.dense).value for run in runs]
                variances.append(float(np.var(values, ddof=1)))
                weights.append(len(runs) - 1)
        return float(np.sqrt(np.dot(variances, weights) / max(sum(weights), 1)))


def retention_over_seeds(runs: Sequence[Results], dense: Results) -> Estimate:
    """Retention of one recipe over several seeds; the error includes their own variance."""
    overall = retention(_mean(runs), dense)
    each = [retention(run, dense).value for run in runs]
    return Estimate(overall.value, float(np.hypot(overall.se, _seed_error(each))))


def gap_over_seeds(first: Sequence[Results], second: Sequence[Results], dense: Results) -> Estimate:
    """Retention of one recipe minus that of another, paired by question and seed."""
    overall = difference(_mean(first), _mean(second), dense)
    each = [difference(a, b, dense).value for a, b in zip(*_paired(first, second), strict=True)]
    return Estimate(overall.value, float(np.hypot(overall.se, _seed_error(each))))


def percent(value: Estimate, signed: bool = False) -> str:
    """A retention, or a difference of two in points, with its 95% interval."""
    low, high = value.interval
    sign = "+" if signed else ""
    return f"{100 * value.value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _mean(runs: Sequence[Results]) -> Results:
    first = runs[0]
    means = {name: np.mean([run.scores[name] for run in runs], axis=0) for name in first.scores}
    return Results(means, first.images, first.chance)


def _paired(first: Sequence[Results], second: Sequence[Results]) -> tuple[list[Results], list[Results]]:
    """Runs in pairs; the side with one run, which is deterministic, is repeated."""
    num = max(len(first), len(second)) if 1 in (len(first), len(second)) else min(len(first), len(second))
    return (list(first) * num)[:num], (list(second) * num)[:num]


def _only(results: Results, benchmarks: Sequence[str] | None) -> Results:
    if benchmarks is None:
        return results
    scores = {name: results.scores[name] for name in benchmarks}
    return Results(scores, results.images, results.chance)


def _seed_error(values: Sequence[float]) -> float:
    """Standard error of the mean of few values, widened so that the normal 95% interval equals Student's."""
    num = len(values)
    if num < 2:
        return 0.0
    widening = stats.t.ppf(0.975, num - 1) / stats.norm.ppf(0.975)
    return float(widening * np.std(values, ddof=1) / np.sqrt(num))
