"""Importance of each dimension of a recipe, by Optuna's evaluators over the trials of a study."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysearch.report.front_info import thinned
from raysearch.study.front import Baseline
from raysearch.study.records import TrialRecord

MIN_TRIALS = 10
MAX_TRIALS = 500
"""Scored trials that an importance is estimated from: fANOVA's time grows faster than their number."""
NUM_RESAMPLES = 12


@dataclass(frozen=True)
class ParamImportance:
    """A dimension's share of the total importance, with the middle 80% (`low`, `high`) over resampled trials."""

    name: str
    share: float
    low: float
    high: float


def for_front(records: Sequence[TrialRecord], baseline: Baseline) -> list[ParamImportance]:
    """Importance for reaching the front: PED-ANOVA (arXiv 2304.10255; conditional form arXiv 2601.20800).

    Returns:
        The dimensions that varied, the most important first; empty with fewer than MIN_TRIALS scored trials.
    """
    from optuna.importance import PedAnovaImportanceEvaluator

    quantile = max(0.1, 5 / max(len(records), 1))
    return _resampled(records, baseline, lambda: PedAnovaImportanceEvaluator(target_quantile=quantile), None)


def for_retention(records: Sequence[TrialRecord], baseline: Baseline) -> list[ParamImportance]:
    """Importance for retention: fANOVA, over the dimensions that every trial has; returned as by `for_front`."""
    from optuna.importance import FanovaImportanceEvaluator

    return _resampled(  # at 500 trials, trees of any depth take eight times as long for shares that differ by 0.006
        records,
        baseline,
        lambda: FanovaImportanceEvaluator(n_trees=24, max_depth=6, seed=0),
        lambda trial: trial.values[1],
    )


def scored_trials(records: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    """The trials that an importance can rest on."""
    return [r for r in records if r.rungs and r.end != "failed" and math.isfinite(r.rungs[-1].retention)]


def _resampled(
    records: Sequence[TrialRecord], baseline: Baseline, evaluator: Any, target: Any
) -> list[ParamImportance]:
    scored = scored_trials(records)
    if len(scored) < MIN_TRIALS:
        return []
    scored = thinned(scored, MAX_TRIALS)
    random = np.random.default_rng(0)
    shares = _shares(scored, baseline, evaluator(), target)
    draws: dict[str, list[float]] = {name: [] for name in shares}
    for _ in range(NUM_RESAMPLES):
        sample = [scored[i] for i in random.integers(len(scored), size=len(scored))]
        found = _shares(sample, baseline, evaluator(), target)
        for name, values in draws.items():
            values.append(found.get(name, 0.0))
    bounds = {name: np.quantile(values, (0.1, 0.9)) for name, values in draws.items()}
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return [ParamImportance(name, share, *map(float, bounds[name])) for name, share in ranked]


def _shares(records: Sequence[TrialRecord], baseline: Baseline, evaluator: Any, target: Any) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"])
    distributions = _distributions(records)
    for record in records:
        values = record.recipe.as_dict()
        params = {name: values[name] for name in distributions if name in values}
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={name: distributions[name] for name in params},
                values=[record.size_bytes / baseline.size_bytes, -record.rungs[-1].retention],
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target, normalize=False)
    total = sum(value for value in found.values() if np.isfinite(value))
    return {name: float(value / total) for name, value in found.items()} if total > 0 else dict.fromkeys(found, 0.0)


def _distributions(records: Sequence[TrialRecord]) -> dict[str, Any]:
    """One distribution per field that varies: a range for numbers with many values, else the values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {}
    for name in type(records[0].recipe).model_fields:
        values = {record.recipe.as_dict().get(name) for record in records} - {None}
        if name == "seed" or len(values) < 2:
            continue
        if all(isinstance(value, int | float) for value in values) and len(values) > 5:
            low, high = min(values), max(values)  # type: ignore[type-var]
            found[name] = FloatDistribution(low, high, log=low > 0 and high / low > 20)  # type: ignore[operator,arg-type]
        else:
            found[name] = CategoricalDistribution(sorted(values))  # type: ignore[type-var]
    return found
