"""Retention: the score of a pruned model relative to the dense model's, with its paired standard error.

Retention is a ratio of means over the same questions, so its standard error is that of the linearised ratio (the delta
method) of paired scores, clustered by image, since questions about one image are not independent.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, get_args

import numpy as np

from raysearch.config.benchmarks import RetentionForm

FORMS: tuple[str, ...] = get_args(RetentionForm)
_Z_TWO_SIDED = NormalDist().inv_cdf(0.975)
_Z_ONE_SIDED = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Results:
    """Scores of one model on every question of the benchmarks.

    Attributes:
        scores: per benchmark, (num_questions,) scores from 0 to 1.
        images: per benchmark, (num_questions,) image ids.
        chance: per benchmark, the score of guessing.
    """

    scores: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]
    chance: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """Mean score per benchmark."""
        return {name: float(np.mean(values)) for name, values in self.scores.items()}


def save_results(path: Path, results: Results) -> None:
    """Write the results to `path`, an .npz file, atomically."""
    columns = {"score": results.scores, "image": results.images, "chance": results.chance}
    arrays = {f"{kind} {name}": value for kind, values in columns.items() for name, value in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    os.replace(unfinished, path)


def load_results(path: Path) -> Results:
    """Read what `save_results` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        found: dict[str, dict[str, Any]] = {"score": {}, "image": {}, "chance": {}}
        for key in stored:
            kind, _, name = key.partition(" ")
            found[kind][name] = stored[key]
    chance = {name: float(value) for name, value in found["chance"].items()}
    return Results(found["score"], found["image"], chance)


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error."""

    value: float
    se: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval by the normal approximation."""
        return self.value - _Z_TWO_SIDED * self.se, self.value + _Z_TWO_SIDED * self.se


def retention(pruned: Results, dense: Results, form: str = "ratio_of_averages") -> Estimate:
    """Quality kept by a pruned model, on the questions that the dense model answered too.

    Args:
        pruned: the pruned model's results.
        dense: the dense model's, on the same questions in the same order.
        form: `ratio_of_averages`, the paper's AVG-% (arXiv 2604.24380, Table 2); `mean_of_ratios` over benchmarks;
            `chance_corrected`, the ratio of averages of scores above guessing.

    Raises:
        ValueError: the form is unknown, the questions differ, or the dense model has nothing to keep.
    """
    value, influences = _influences(pruned, dense, form)
    return Estimate(value, _standard_error(influences, dense))


def score_intervals(results: Results) -> dict[str, tuple[float, float]]:
    """The 95% interval of each benchmark's mean score, within 0 to 1, over questions clustered by image."""
    intervals = {}
    for name, values in results.scores.items():
        mean, reach = float(np.mean(values)), _Z_TWO_SIDED * _clustered_se(values, results.images[name])
        intervals[name] = max(0.0, mean - reach), min(1.0, mean + reach)
    return intervals


def score_differences(first: Results, second: Results) -> dict[str, Estimate]:
    """Each benchmark's mean score of `first` minus that of `second`, paired by question and clustered by image."""
    gaps = {name: values - second.scores[name] for name, values in first.scores.items()}
    return {n: Estimate(float(gap.mean()), _clustered_se(gap, first.images[n])) for n, gap in gaps.items()}


def difference(first: Results, second: Results, dense: Results, form: str = "ratio_of_averages") -> Estimate:
    """Retention of `first` minus that of `second`, with the paired standard error of the difference.

    Raises:
        ValueError: as `retention`.
    """
    ours, theirs = _influences(first, dense, form), _influences(second, dense, form)
    gaps = {name: ours[1][name] - theirs[1][name] for name in ours[1]}
    return Estimate(ours[0] - theirs[0], _standard_error(gaps, dense))


def at_chance(dense: Results) -> list[str]:
    """The benchmarks on which the dense model isn't better than chance, by a one-sided test at 5%."""
    return [
        name
        for name, values in dense.scores.items()
        if float(np.mean(values)) - _Z_ONE_SIDED * _clustered_se(values, dense.images[name]) <= dense.chance[name]
    ]


def _influences(pruned: Results, dense: Results, form: str) -> tuple[float, dict[str, np.ndarray]]:
    """Retention, and per benchmark (num_questions,) each question's influence on it, times the number of questions."""
    if form not in FORMS:
        raise ValueError(f"retention {form!r} is not known; known are {', '.join(FORMS)}")
    if {n: len(v) for n, v in pruned.scores.items()} != {n: len(v) for n, v in dense.scores.items()}:
        raise ValueError("the pruned and the dense model answered different questions")
    names = list(dense.scores)
    ours = np.array([np.mean(pruned.scores[name], dtype=np.float64) for name in names])
    theirs = np.array([np.mean(dense.scores[name], dtype=np.float64) for name in names])
    if form == "chance_corrected":
        guess = np.array([dense.chance[name] for name in names])
        ours, theirs = ours - guess, theirs - guess
    if (theirs.sum() if form != "mean_of_ratios" else theirs.min()) <= 0:
        raise ValueError(f"the dense model scores 0 or chance on {', '.join(names)}: nothing to keep")
    if form == "mean_of_ratios":
        ratios, weights = ours / theirs, 1 / (theirs * len(names))
        value = float(ratios.mean())
    else:
        value = float(ours.sum() / theirs.sum())
        ratios, weights = np.full(len(names), value), np.full(len(names), 1 / theirs.sum())
    return value, {
        name: weight * (pruned.scores[name] - ratio * dense.scores[name])
        for name, ratio, weight in zip(names, ratios, weights, strict=True)
    }


def _standard_error(influences: Mapping[str, np.ndarray], dense: Results) -> float:
    errors = [_clustered_se(values, dense.images[name]) for name, values in influences.items()]
    return float(np.sqrt(np.sum(np.square(errors))))


def _clustered_se(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> float:
    """Standard error of the mean of `values`, (n,), clustered by `clusters`, (n,)."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=values - values.mean())
    num = len(sums)
    return float(np.sqrt(num / (num - 1) * np.sum(sums**2)) / len(values)) if num > 1 else 0.0
