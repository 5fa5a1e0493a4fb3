"""Proposals by expected hypervolume: of many candidates of known size, the one that can be expected to add most."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from pydantic import ValidationError

from raysearch.recipe import Recipe
from raysearch.search.history import Made, made_by
from raysearch.search.surrogate import MAX_POINTS, Encoding, RetentionModel, expected_gain
from raysearch.settings import Scalar
from raysearch.space import SearchSpace

NUM_CANDIDATES = 96
NUM_FIT_POINTS = 100  # the latest values, from which length scales are found
CHANGE = 0.25  # share of a parent's answers that its child draws anew


@dataclass
class Candidate:
    """A recipe with the answers that made it and its exact size."""

    recipe: Recipe
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    size_ratio: float


@dataclass
class Observation:
    """What is known of a trial: its answers, its size and its retention, give or take `deviation`; None while nothing
    has been measured."""

    answers: dict[str, Any]
    size_ratio: float
    retention: float | None
    deviation: float


class DrawAsk:
    """An `Ask` that draws at random, or keeps most of a parent's answers."""

    def __init__(
        self, draw: np.random.Generator, parent: Mapping[str, Any] | None = None, change: float = CHANGE
    ) -> None:
        self._draw, self._parent, self._change = draw, parent or {}, change
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices`."""
        kept: Scalar = choices[int(self._draw.integers(len(choices)))]
        if self._parent.get(name) in choices and self._draw.random() >= self._change:
            kept = self._parent[name]
        self.params[name], self.distributions[name] = kept, CategoricalDistribution(list(choices))
        return kept

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`; a child's is often near its parent's."""
        at = float(self._draw.random())
        if name in self._parent and self._draw.random() >= self._change:
            at = _scaled(self._parent[name], low, high, log) + 0.4 * self._change * self._draw.normal()
            at = float(np.clip(at, 0, 1))
        value = low * (high / low) ** at if log else low + (high - low) * at
        if step:
            value = min(low + step * round((value - low) / step), high)
        value = float(min(max(value, low), high))
        self.params[name] = value
        self.distributions[name] = FloatDistribution(low, high, log=log, step=None if log else step)
        return value


def answers_of(
    params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], size_ratio: float
) -> dict[str, Any]:
    """Numbers scaled to [0, 1] and categories, by name, with the logarithm of the size among them."""
    answers: dict[str, Any] = {"size": 1 + math.log(size_ratio) / 5}
    for name, value in params.items():
        asked = distributions[name]
        if isinstance(asked, CategoricalDistribution):
            numeric = all(isinstance(c, int | float) and not isinstance(c, bool) for c in asked.choices)
            if numeric and len(asked.choices) > 1:
                answers[name] = sorted(asked.choices).index(value) / (len(asked.choices) - 1)
            else:
                answers[name] = str(value)
        else:
            answers[name] = _scaled(value, asked.low, asked.high, getattr(asked, "log", False))  # type: ignore[attr-defined]
    return answers


class Candidates:
    """Draws recipes of a space that have a size within the budgets.

    Args:
        space: where recipes come from.
        size_ratio: share of the dense model's size that a recipe keeps; None if it has no shape or fits no budget.
        limits: size ratios that answers are wanted for.
        draw: source of randomness.
    """

    def __init__(
        self,
        space: SearchSpace,
        size_ratio: Callable[[Recipe], float | None],
        limits: Sequence[float],
        draw: np.random.Generator,
    ) -> None:
        self._space, self._size_ratio, self._limits, self._draw = space, size_ratio, limits, draw

    def many(self, parents: Sequence[Mapping[str, Any]], taken: Container[Made]) -> list[Candidate]:
        """New recipes, about half of them children of `parents`; every other one just below a limit, if there are."""
        found: dict[Made, Candidate] = {}
        for attempt in range(4 * NUM_CANDIDATES):
            parent = parents[int(self._draw.integers(len(parents)))] if parents and attempt % 2 else None
            ask = DrawAsk(self._draw, parent)
            candidate = self._make(ask)
            if self._limits and ask.params and (candidate is None or attempt % 4 < 2):
                limit = self._limits[int(self._draw.integers(len(self._limits)))]
                candidate = self._just_below(ask.params, limit) or candidate
            if candidate is not None:
                made = made_by(candidate.recipe, candidate.size_ratio)
                if made not in taken:
                    found.setdefault(made, candidate)
            if len(found) == NUM_CANDIDATES:
                break
        return list(found.values())

    def _make(self, ask: DrawAsk) -> Candidate | None:
        try:
            recipe = self._space.suggest(ask)
        except ValidationError:
            return None
        ratio = self._size_ratio(recipe)
        return None if ratio is None else Candidate(recipe, ask.params, ask.distributions, ratio)

    def _just_below(self, params: Mapping[str, Any], limit: float) -> Candidate | None:
        """The recipe with the smallest removed ratio that is within `limit`, its other answers kept."""
        name = next((name for name in params if name.partition("#")[0] == "ratio"), None)
        if name is None:
            return None
        best, low, high = None, 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            made = self._make(DrawAsk(self._draw, {**params, name: middle}, change=0.0))
            if made is not None and made.size_ratio <= limit:
                best, high = made, middle
            else:
                low = middle
        return best


class GainModel:
    """Says which of several candidates can be expected to add most to the hypervolume.

    The length scales are searched for anew whenever the number of values has grown by a third; in between they stay.
    """

    def __init__(self) -> None:
        self.scales: dict[str, float] = {}
        """Inverse squared length scale by asked name."""
        self.jitter = 0.03
        self.next_fit = 0

    def best(
        self,
        candidates: Sequence[Candidate],
        known: Sequence[Observation],
        limits: Sequence[float],
        prior: Sequence[Observation] = (),
    ) -> Candidate:
        """The candidate with the largest expected gain, trials under way taken at their expected value.

        Args:
            candidates: at least one.
            known: trials so far, at least two of them with a retention.
            limits: size ratios that answers are wanted for.
            prior: trials of earlier studies; they inform the model, and are on no front.
        """
        measured = [o for o in known if o.retention is not None]
        running = [o for o in known if o.retention is None]
        answers = [answers_of(c.params, c.distributions, c.size_ratio) for c in candidates]
        encoding = Encoding([o.answers for o in (*prior, *known)] + answers)
        model = self._model(encoding, [*prior, *measured])
        front = [(o.size_ratio, float(o.retention or 0.0)) for o in measured]
        if running:
            expected, _ = model.predict(encoding.encode([o.answers for o in running]))
            front += [(o.size_ratio, float(v)) for o, v in zip(running, expected, strict=True)]
        mean, deviation = model.predict(encoding.encode(answers))
        sizes = np.array([c.size_ratio for c in candidates])
        return candidates[int(np.argmax(expected_gain(sizes, mean, deviation, _front_of(front), limits)))]

    def _model(self, encoding: Encoding, measured: Sequence[Observation]) -> RetentionModel:
        used = measured[-MAX_POINTS:]
        values = np.array([o.retention for o in used], float)
        noise = np.array([o.deviation for o in used])
        points = encoding.encode([o.answers for o in used])
        if len(measured) >= self.next_fit or set(encoding.names) - set(self.scales):
            last = slice(-NUM_FIT_POINTS, None)
            fitted = RetentionModel(points[last], encoding.groups, values[last], noise[last])
            self.scales = dict(zip(encoding.names, fitted.weights.tolist(), strict=True))
            self.jitter, self.next_fit = fitted.jitter, len(measured) + max(3, len(measured) // 3)
        scales = np.array([self.scales[name] for name in encoding.names])
        return RetentionModel(points, encoding.groups, values, noise, (scales, self.jitter))


def _front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    best, front = -math.inf, []
    for size, retention in sorted(points, key=lambda point: (point[0], -point[1])):
        if retention > best:
            best = retention
            front.append((size, retention))
    return front


def _scaled(value: float, low: float, high: float, log: bool) -> float:
    if high <= low:
        return 0.5
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
