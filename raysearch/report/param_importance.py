"""Importance of each dimension of a recipe, by Optuna's evaluators over the trials of a study."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysearch.report.effects import finished, left_at_equal_size
from raysearch.report.front_info import thinned
from raysearch.study.front import Baseline
from raysearch.study.records import TrialRecord

MIN_TRIALS = 10
MAX_TRIALS = 300
"""Trials that an importance is estimated from: fANOVA's time grows faster than their number."""
NUM_RESAMPLES, NUM_SHUFFLES = 20, 10


@dataclass(frozen=True)
class ParamImportance:
    """A dimension's share of the total importance, with its 95% interval (`low`, `high`)."""

    name: str
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Importances:
    """The dimensions that varied, the most important first.

    Attributes:
        chance: the share that a dimension without any influence exceeds once in twenty times.
        num_trials: that they are estimated from.
    """

    dimensions: tuple[ParamImportance, ...]
    chance: float
    num_trials: int


def for_front(records: Sequence[TrialRecord], baseline: Baseline) -> Importances | None:
    """Importance for reaching the front: PED-ANOVA (arXiv 2304.10255; conditional form arXiv 2601.20800).

    A stopped trial counts as one that does not reach it, whatever its preliminary score.

    Returns:
        None with fewer than MIN_TRIALS scored trials.
    """
    from optuna.importance import PedAnovaImportanceEvaluator

    scored = [r for r in records if r.rungs and r.end != "failed" and math.isfinite(r.rungs[-1].retention)]
    quantile = max(0.1, 5 / max(len(scored), 1))
    chosen = list(thinned(scored, MAX_TRIALS))
    outcomes = [_outcome(record, baseline) for record in chosen]
    return _estimated(chosen, outcomes, lambda: PedAnovaImportanceEvaluator(target_quantile=quantile), None)


def for_retention(records: Sequence[TrialRecord], baseline: Baseline) -> Importances | None:
    """Importance for retention at equal size: fANOVA over the finished trials and the dimensions that all of them have,
    without the ratio; returned as by `for_front`."""
    from optuna.importance import FanovaImportanceEvaluator

    # Trees of any depth take eight times as long for shares that differ by 0.006.
    chosen = list(thinned(finished(records), MAX_TRIALS))
    outcomes = (
        [(0.0, -float(left)) for left in left_at_equal_size(chosen, baseline, within_modes=False)] if chosen else []
    )
    evaluator = lambda: FanovaImportanceEvaluator(n_trees=24, max_depth=6, seed=0)  # noqa: E731
    return _estimated(chosen, outcomes, evaluator, lambda trial: trial.values[1], without="ratio")


def _estimated(
    chosen: Sequence[TrialRecord],
    outcomes: Sequence[tuple[float, float]],
    evaluator: Any,
    target: Any,
    without: str | None = None,
) -> Importances | None:
    """Shares, their intervals (of Student's form, over resampled trials), and those of shuffled outcomes.

    Args:
        outcomes: size and loss of retention of each trial, to be minimised.
        without: a field that is left out.
    """
    if len(chosen) < MIN_TRIALS:
        return None
    recipes = [{name: v for name, v in r.recipe.as_dict().items() if name not in ("seed", without)} for r in chosen]
    random = np.random.default_rng(0)

    def estimate(rows: Sequence[int], outcome_rows: Sequence[int]) -> dict[str, float]:
        return _shares([recipes[i] for i in rows], [outcomes[i] for i in outcome_rows], evaluator(), target)

    every = range(len(chosen))
    shares = estimate(every, every)
    draws = random.integers(len(chosen), size=(NUM_RESAMPLES, len(chosen))).tolist()
    resampled = [estimate(rows, rows) for rows in draws]
    reach = {name: 2.09 * float(np.std([found.get(name, 0.0) for found in resampled], ddof=1)) for name in shares}
    shuffled = [estimate(every, random.permutation(len(chosen)).tolist()) for _ in range(NUM_SHUFFLES)]
    chance = float(np.quantile([share for found in shuffled for share in found.values()] or [0.0], 0.95))
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    bounds = {name: (max(0.0, share - reach[name]), min(1.0, share + reach[name])) for name, share in ranked}
    return Importances(
        tuple(ParamImportance(name, share, *bounds[name]) for name, share in ranked), chance, len(chosen)
    )


def _outcome(record: TrialRecord, baseline: Baseline) -> tuple[float, float]:
    """Size and loss of retention, to be minimised; a stopped trial is worse than all finished ones."""
    if record.end != "finished":
        return 2.0, 0.0
    return record.size_bytes / baseline.size_bytes, -record.rungs[-1].retention


def _shares(
    recipes: Sequence[Mapping[str, Any]], outcomes: Sequence[tuple[float, float]], evaluator: Any, target: Any
) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"])
    distributions = _distributions(recipes)
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        params = {name: recipe[name] for name in distributions if name in recipe}
        kinds = {name: distributions[name] for name in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, values=list(outcome)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target, normalize=False)
    total = sum(value for value in found.values() if np.isfinite(value))
    return {name: float(value / total) for name, value in found.items()} if total > 0 else dict.fromkeys(found, 0.0)


def _distributions(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One distribution per field that varies: a range for numbers with many values, else the values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        values = {recipe[name] for recipe in recipes if name in recipe}
        if len(values) < 2:
            continue
        if all(isinstance(value, int | float) for value in values) and len(values) > 5:
            low, high = min(values), max(values)
            found[name] = FloatDistribution(low, high, log=low > 0 and high / low > 20)
        else:
            found[name] = CategoricalDistribution(sorted(values))
    return found
