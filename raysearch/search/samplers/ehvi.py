"""Proposals by expected hypervolume: of many candidates of known size, the one that can be expected to add most."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError
from threadpoolctl import ThreadpoolController

from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.search.samplers.encoding import Encoding, scaled
from raysearch.search.samplers.gaussian_process import RetentionModel, expected_hypervolume_improvement
from raysearch.search.samplers.optuna_samplers import Solve, is_ratio, to_smaller_step

NUM_RANDOM = 48  # candidates drawn over the whole space, for RENEWED_EVERY proposals
RENEWED_EVERY = 12
NUM_CHILDREN = 24  # candidates near good recipes, drawn for each proposal
NUM_OTHERS = 200  # random ones, where all these have been tried
MAX_POINTS = 200  # values that the model holds, unless the front has more than half of them
NUM_FIT_POINTS = 100  # the latest values, from which length scales are found
GROWTH = 1 / 10  # of the number of trials, after which they are found anew
CHANGE = 0.25  # share of a parent's answers that its child draws anew


@dataclass
class Candidate:
    """A recipe with the answers that made it and its exact size."""

    recipe: Recipe
    params: dict[str, Any]
    """The answers as the space was given them."""
    size_ratio: float
    point: np.ndarray
    """Of the answers and the size (`Encoding`)."""


@dataclass
class Observation:
    """What is known of a trial: its point, its size and its retention, give or take `deviation`; None while nothing
    has been measured."""

    point: np.ndarray
    size_ratio: float
    retention: float | None
    deviation: float


class DrawAsk:
    """An `Ask` that draws at random, or keeps most of a parent's answers.

    Args:
        draw: source of randomness.
        parent: answers to keep.
        solve: decides the ratio, if given.
    """

    def __init__(
        self, draw: np.random.Generator, parent: Mapping[str, Any] | None = None, solve: Solve | None = None
    ) -> None:
        self._draw, self._parent, self._solve = draw, parent or {}, solve
        self.params: dict[str, Any] = {}

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices`."""
        kept: Scalar = choices[int(self._draw.integers(len(choices)))]
        if self._parent.get(name) in choices and self._draw.random() >= CHANGE:
            kept = self._parent[name]
        self.params[name] = kept
        return kept

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`; a child's is often near its parent's."""
        if self._solve is not None and is_ratio(name):
            value = to_smaller_step(self._solve(self.params, low, high), low, high, step)
        else:
            at = float(self._draw.random())
            if name in self._parent and self._draw.random() >= CHANGE:
                at = scaled(self._parent[name], low, high, log) + 0.4 * CHANGE * self._draw.normal()
                at = min(max(at, 0.0), 1.0)
            value = low * (high / low) ** at if log else low + (high - low) * at
            if step:
                value = low + step * round((value - low) / step)
        value = float(min(max(value, low), high))
        self.params[name] = value
        return value


class Candidates:
    """Draws recipes of a space that have a size within the budgets.

    What is drawn depends on the seed, the number of the proposal and the parents alone.

    Args:
        space: where recipes come from.
        encoding: of that space.
        size_ratio: share of the dense model's size that a recipe keeps; None if it has no shape or fits no budget.
        solvers: each decides the ratio so that the model is just within a size that an answer is wanted for; if there
            are any, half of the candidates are drawn so.
        seed: of the draws.
    """

    def __init__(
        self,
        space: SearchSpace,
        encoding: Encoding,
        size_ratio: Callable[[Recipe], float | None],
        solvers: Sequence[Solve],
        seed: int,
    ) -> None:
        self._space, self._encoding, self._size_ratio = space, encoding, size_ratio
        self._solvers, self._seed = solvers, seed
        self._block, self._random = -1, list[Candidate]()

    def of_proposal(self, number: int, parents: Sequence[Mapping[str, Any]]) -> list[Candidate]:
        """Random recipes, most of them candidates of the proposals before, and new children of `parents`."""
        block = number // RENEWED_EVERY
        if block != self._block:
            draw = np.random.default_rng((self._seed, 1, block))
            self._block, self._random = block, self._draw(draw, NUM_RANDOM)
        children = self._draw(np.random.default_rng((self._seed, 0, number)), NUM_CHILDREN, parents)
        return [*self._random, *children]

    def others(self, number: int) -> Iterator[Candidate]:
        """Where those of the proposal have all been tried: random recipes of its own."""
        yield from self._draw(np.random.default_rng((self._seed, 2, number)), NUM_OTHERS)

    def _draw(self, draw: np.random.Generator, num: int, parents: Sequence[Mapping[str, Any]] = ()) -> list[Candidate]:
        found: list[Candidate] = []
        for attempt in range(4 * num):
            parent = parents[int(draw.integers(len(parents)))] if parents else None
            solve = None
            if self._solvers and attempt % 2:
                solve = self._solvers[int(draw.integers(len(self._solvers)))]
            ask = DrawAsk(draw, parent, solve)
            try:
                recipe = self._space.suggest(ask)
            except ValidationError:
                continue
            ratio = self._size_ratio(recipe)
            if ratio is not None:
                found.append(Candidate(recipe, ask.params, ratio, self._encoding.point(ask.params, ratio)))
            if len(found) == num:
                break
        return found


class EHVIRanker:
    """Says which of several candidates can be expected to add most to the hypervolume.

    The length scales are searched for anew whenever the number of trials has grown by a tenth; in between they stay.

    Args:
        groups: of the points' columns (`Encoding.groups`).
    """

    def __init__(self, groups: np.ndarray) -> None:
        self._groups = groups
        self._weights: np.ndarray | None = None  # inverse squared length scales, by group
        self._jitter, self._next_fit = 0.0, 0

    def state(self) -> dict[str, Any]:
        """All that later gains depend on, as plain JSON values."""
        weights = None if self._weights is None else self._weights.tolist()
        return {"weights": weights, "jitter": self._jitter, "next_fit": self._next_fit}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._weights = None if state["weights"] is None else np.array(state["weights"])
        self._jitter, self._next_fit = state["jitter"], state["next_fit"]

    def ranked(
        self,
        candidates: Sequence[Candidate],
        known: Sequence[Observation],
        limits: Sequence[float],
        num_trials: int,
        prior: Sequence[Observation] = (),
    ) -> list[Candidate]:
        """The candidates, largest expected gain first, trials under way taken at their expected value.

        Args:
            candidates: at least one.
            known: trials so far, at least two of them with a retention.
            limits: size ratios that answers are wanted for.
            num_trials: how many trials there are, those that `known` leaves out included.
            prior: trials of earlier studies; they inform the model while it has room, and are on no front.
        """
        measured = [o for o in known if o.retention is not None]
        running = [o for o in known if o.retention is None]
        used = [*prior, *measured][-max(MAX_POINTS, len(measured)) :]
        # On several threads matrices this small take longer, and the processor from the slots of this machine.
        with _blas().limit(limits=1):
            model = self._model(used, num_trials)
            points = [candidate.point for candidate in candidates] + [o.point for o in running]
            mean, deviation = model.predict(np.stack(points))
        front = [(o.size_ratio, float(o.retention or 0.0)) for o in measured]
        expected = mean[len(candidates) :].tolist()
        front += [(o.size_ratio, value) for o, value in zip(running, expected, strict=True)]
        sizes, here = np.array([c.size_ratio for c in candidates]), slice(len(candidates))
        gain = expected_hypervolume_improvement(sizes, mean[here], deviation[here], _front_of(front), limits)
        return [candidates[at] for at in np.argsort(-gain, kind="stable")]

    def _model(self, used: Sequence[Observation], num_trials: int) -> RetentionModel:
        points = np.stack([o.point for o in used])
        values = np.array([o.retention for o in used], float)
        noise = np.array([o.deviation for o in used])
        if self._weights is None or num_trials >= self._next_fit:
            last = slice(-NUM_FIT_POINTS, None)
            fitted = RetentionModel(points[last], self._groups, values[last], noise[last])
            self._weights, self._jitter = fitted.weights, fitted.jitter
            self._next_fit = num_trials + max(3, int(num_trials * GROWTH))
        return RetentionModel(points, self._groups, values, noise, (self._weights, self._jitter))


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    best, front = -math.inf, []
    for size, retention in sorted(points, key=lambda point: (point[0], -point[1])):
        if retention > best:
            best = retention
            front.append((size, retention))
    return front
