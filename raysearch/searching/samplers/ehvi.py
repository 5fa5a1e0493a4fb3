"""Proposals by expected hypervolume improvement: of many candidates of known size, the one expected to add most."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from raysearch.config.dimensions import RecipeSuggester
from raysearch.config.recipe import Recipe
from raysearch.searching.judged_shapes import NEAR, JudgedShape
from raysearch.searching.samplers.base import Sampler
from raysearch.searching.samplers.encoding import Encoding
from raysearch.searching.samplers.gaussian_process import GaussianProcess, expected_hypervolume_improvement
from raysearch.searching.samplers.sized_space import Candidate, SizedSpace, golden_ratio_sequence
from raysearch.searching.samplers.suggesters import RandomSuggester
from raysearch.searching.shape_study import ShapeModel
from raysearch.searching.trial_history import TrialHistory
from raysearch.study.multi_objective import nondomination_ranks

NUM_STARTUP = 10  # trials with a value before the model is used
EXPLORE_EVERY = 8  # one proposal in this many is chosen for its size alone
NUM_RANDOM = 48  # candidates drawn over the whole space, for RENEWED_EVERY proposals
RENEWED_EVERY = 12
NUM_CHILDREN = 24  # candidates near good recipes, drawn for each proposal
SHARE_NEAR_SHAPES = 0.75  # of the random ones, drawn near shapes that were judged, where there are such
MIN_SHAPES = 8  # judged, from which the divergence of others is predicted
LENGTHENS_EVERY = 2  # one proposal in this many trains longer what leads
REGAINED = 1 / 3  # of what is missing to the dense model, that longer training is hoped to bring
NUM_OTHERS = 200  # random ones, where all these have been tried
MAX_POINTS = 200  # values that the model holds, unless the front has more than half of them
NUM_FIT_POINTS = 100  # the latest values, from which length scales are found
GROWTH = 1 / 10  # of the number of trials, after which they are found again
PRIOR_RETENTION_DEVIATION = 0.1  # of a retention that was measured on another model, or in another study of this one


@dataclass
class Observation:
    """What is known of a trial.

    Attributes:
        point: of its recipe and size (`Encoding`).
        retention: None while nothing has been measured.
        deviation: standard deviation of `retention`.
    """

    point: np.ndarray
    size_ratio: float
    retention: float | None
    deviation: float


class EHVISampler(Sampler):
    """Expected hypervolume improvement over random recipes and children of good ones."""

    lengthens_gradually = True

    def __init__(self, space: SizedSpace, seed: int = 0) -> None:
        super().__init__(space, seed)
        self._dimensions = space.search_space.search_params()
        self._encoding = Encoding(self._dimensions)
        self._shape_model: ShapeModel | None = None
        self._pool = CandidatePool(space, seed)
        self._ranker = EHVIRanker(self._encoding.groups)
        self._prior: list[tuple[dict[str, Any], float, float]] = []  # params, size ratio, retention

    def candidates(self, history: TrialHistory) -> Iterator[Candidate]:
        """By expected improvement; the first ones, and one in EXPLORE_EVERY, by size alone. One in LENGTHENS_EVERY
        begins with longer training of what leads."""
        number = len(history)
        explores = number % EXPLORE_EVERY == EXPLORE_EVERY - 1
        if number % LENGTHENS_EVERY == LENGTHENS_EVERY - 1 and not explores:
            yield from self._longer(history)
        observations = self._observations(history)
        measured = {name: o for name, o in observations.items() if o.retention is not None}
        drawn = self._pool.of_proposal(number, _parents(history, measured))
        if not drawn:
            return
        if len(measured) < 2 or len(measured) + len(self._prior) < NUM_STARTUP or explores:
            ordered = self._by_size(drawn, number)
        else:
            points = self._points([(c.params, c.size_ratio) for c in drawn])
            sizes = np.array([c.size_ratio for c in drawn])
            gain = self._ranker.improvements(
                points, sizes, list(observations.values()), self.space.limits, number, self._prior_observations()
            )
            ordered = [drawn[at] for at in np.argsort(-gain, kind="stable")]
        yield from ordered
        yield from self._pool.others(number)

    def _longer(self, history: TrialHistory) -> Iterator[Candidate]:
        """Recipes of the front with the next larger share of the data or number of epochs; first what would gain most
        per sample if it regained `REGAINED` of what is missing."""
        leaders = sorted((history.proposals[name] for name in history.front), key=lambda proposal: proposal.number)
        if not leaders:
            return
        sizes, retentions = np.array([(proposal.size_ratio, proposal.curve[-1][1]) for proposal in leaders]).T
        hoped = retentions + REGAINED * np.maximum(0.0, 1 - retentions)
        front = list(zip(sizes, retentions, strict=True))
        gains = expected_hypervolume_improvement(sizes, hoped, np.full(len(sizes), 1e-9), front, self.space.limits)
        longer = []
        for proposal, gain in zip(leaders, gains.tolist(), strict=True):
            for field, at_least in self._next_longer(proposal.recipe):
                changed = {**proposal.recipe.as_dict(), field: at_least}
                num_passes = float(changed["data_fraction"]) * float(changed["epochs"])  # type: ignore[arg-type]
                longer.append((gain / num_passes, proposal.recipe, changed))
        for gain, recipe, changed in sorted(longer, key=lambda entry: -entry[0]):
            candidate = self.space.candidate(RecipeSuggester(changed)) if gain > 0 else None
            if candidate is not None and recipe.trains_less_than(candidate.recipe):
                yield candidate

    def _next_longer(self, recipe: Recipe) -> Iterator[tuple[str, float]]:
        for field in ("data_fraction", "epochs"):
            values = list(map(float, self.space.search_space.values_of(field)))
            now = getattr(recipe, field) if values else None
            larger = [value for value in values if now is not None and value > now]
            if larger:
                yield field, min(larger)

    def add_prior(self, candidate: Candidate, retention: float) -> None:
        """Inform the model, with less certainty than a trial of this search."""
        self._prior.append((candidate.params, candidate.size_ratio, retention))

    def learn_shapes(self, shapes: Sequence[JudgedShape]) -> None:
        """Draw candidates near shapes that diverge little, and predict retention from the divergence, too."""
        self._shape_model = ShapeModel(self._dimensions, shapes) if len(shapes) >= MIN_SHAPES else None
        self._pool.set_shapes(shapes)
        groups = self._encoding.groups
        if self._shape_model:
            groups = np.append(groups, groups.max() + 1)
        self._ranker = EHVIRanker(groups)

    def _points(self, recipes: Sequence[tuple[Mapping[str, Any], float]]) -> np.ndarray:
        """(n, columns) of recipes by params and size ratio; the last column is the divergence, where it is known."""
        points = np.stack([self._encoding.point(*one) for one in recipes])
        if self._shape_model is None:
            return points
        return np.column_stack([points, self._shape_model.scaled(*zip(*recipes, strict=True))])

    def _prior_observations(self) -> list[Observation]:
        if not self._prior:
            return []
        points = self._points([(params, size) for params, size, _ in self._prior[-MAX_POINTS:]])
        return [
            Observation(point, size, retention, PRIOR_RETENTION_DEVIATION)
            for point, (_, size, retention) in zip(points, self._prior[-MAX_POINTS:], strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """The priors, and the model's length scales."""
        return {"prior": [list(one) for one in self._prior], "ranker": self._ranker.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._prior = [tuple(one) for one in state["prior"]]
        self._ranker.set_state(state["ranker"])

    def _observations(self, history: TrialHistory) -> dict[str, Observation]:
        """The front, running trials, and as many of the newest as there is room for, in the order of proposals."""
        front = {name: history.proposals[name] for name in history.front}
        num_newest = max(MAX_POINTS - len(front), MAX_POINTS // 2)
        newest = itertools.islice(reversed(history.proposals.items()), num_newest)
        chosen = dict(newest) | history.running | front
        ordered = sorted(chosen.items(), key=lambda item: item[1].number)
        used = [(name, proposal) for name, proposal in ordered if proposal.end != "failed"]
        if not used:
            return {}
        points, known = self._points([(p.params, p.size_ratio) for _, p in used]), {}
        for point, (name, proposal) in zip(points, used, strict=True):
            retention, deviation = history.final(name) or (None, 0.0)
            known[name] = Observation(point, proposal.size_ratio, retention, deviation)
        return known

    def _by_size(self, candidates: Sequence[Candidate], number: int) -> list[Candidate]:
        """Those just below a budget first; without budgets, those nearest to an even spread over the sizes."""
        limits, sizes = self.space.limits, [candidate.size_ratio for candidate in candidates]
        share = golden_ratio_sequence(number, self.seed)
        target = limits[number % len(limits)] if limits else min(sizes) + share * (max(sizes) - min(sizes))
        return sorted(candidates, key=lambda c: (c.size_ratio > target + 1e-9, abs(c.size_ratio - target)))


def _parents(history: TrialHistory, measured: Mapping[str, Observation]) -> list[dict[str, Any]]:
    """The values of the trials in the two best non-domination ranks."""
    if not measured:
        return []
    ranks = nondomination_ranks(np.array([(o.size_ratio, -(o.retention or 0.0)) for o in measured.values()]))
    return [history.proposals[name].params for name, rank in zip(measured, ranks, strict=True) if rank < 2]


class CandidatePool:
    """Draws recipes within the budgets; what it draws depends on seed, number of the proposal and parents alone.

    Where there are budgets, half of the candidates get the ratio that makes their model just small enough for one.
    """

    def __init__(self, space: SizedSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self._shapes: list[JudgedShape] = []
        self._drawn_for, self._random = (-1, space.limits), list[Candidate]()

    def set_shapes(self, shapes: Sequence[JudgedShape]) -> None:
        """Draw every other random candidate near a shape that diverges little for its size."""
        self._shapes, self._drawn_for = list(shapes), (-1, self._space.limits)

    def of_proposal(self, number: int, parents: Sequence[Mapping[str, Any]]) -> list[Candidate]:
        """Random recipes, most of them candidates of the proposals before, and new children of `parents`."""
        block = number // RENEWED_EVERY
        if self._drawn_for != (block, self._space.limits):
            self._drawn_for = block, self._space.limits
            self._random = self._draw(np.random.default_rng((self._seed, 1, block)), NUM_RANDOM)
        children = self._draw(np.random.default_rng((self._seed, 0, number)), NUM_CHILDREN, parents)
        return [*self._random, *children]

    def others(self, number: int) -> Iterator[Candidate]:
        """More random recipes, where all candidates of the proposal have been tried."""
        yield from self._draw(np.random.default_rng((self._seed, 2, number)), NUM_OTHERS)

    def _draw(self, draw: np.random.Generator, num: int, parents: Sequence[Mapping[str, Any]] = ()) -> list[Candidate]:
        found: list[Candidate] = []
        for attempt in range(4 * num):
            limit = None
            if self._space.limits and attempt % 2:
                limit = self._space.limits[int(draw.integers(len(self._space.limits)))]
            parent = parents[int(draw.integers(len(parents)))] if parents else None
            if parent is None and self._shapes and draw.random() < SHARE_NEAR_SHAPES:
                parent, limit = self._near_shape(draw, limit)
            candidate = self._space.candidate(RandomSuggester(draw, parent), limit)
            if candidate is not None:
                found.append(candidate)
            if len(found) == num:
                break
        return found

    def _near_shape(self, draw: np.random.Generator, limit: float | None) -> tuple[Mapping[str, Any], float]:
        """A shape of those least divergent for their size, and the size ratio to bring it to."""
        if limit is None:
            limit = self._shapes[int(draw.integers(len(self._shapes)))].size_ratio
        near = sorted((s for s in self._shapes if abs(s.size_ratio - limit) < NEAR), key=lambda s: s.divergence)
        if not near:
            near = sorted(self._shapes, key=lambda s: abs(s.size_ratio - limit))
        return near[min(int(draw.geometric(0.5)) - 1, len(near) - 1)].params, limit


class EHVIRanker:
    """Rates candidates by their expected hypervolume improvement.

    The length scales are fitted again whenever the number of trials has grown by a tenth.

    Args:
        groups: of the points' columns (`Encoding.groups`).
    """

    def __init__(self, groups: np.ndarray) -> None:
        self._groups = groups
        self._weights: np.ndarray | None = None  # inverse squared length scales, by group
        self._jitter, self._next_fit = 0.0, 0

    def state(self) -> dict[str, Any]:
        """The fitted length scales, as plain JSON values."""
        weights = None if self._weights is None else self._weights.tolist()
        return {"weights": weights, "jitter": self._jitter, "next_fit": self._next_fit}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._weights = None if state["weights"] is None else np.array(state["weights"])
        self._jitter, self._next_fit = state["jitter"], state["next_fit"]

    def improvements(
        self,
        points: np.ndarray,
        size_ratios: np.ndarray,
        known: Sequence[Observation],
        limits: Sequence[float],
        num_trials: int,
        prior: Sequence[Observation] = (),
    ) -> np.ndarray:
        """The candidates' expected improvements; running trials count with their expected value.

        Args:
            points: (m, columns) of the candidates, at least one.
            size_ratios: (m,) of the candidates.
            known: trials so far, at least two of them with a retention.
            limits: size ratios that answers are wanted for.
            num_trials: how many trials there are, those that `known` leaves out included.
            prior: trials of earlier studies; they inform the model while it has room, and are on no front.

        Returns:
            (m,) values >= 0.
        """
        measured = [o for o in known if o.retention is not None]
        running = [o for o in known if o.retention is None]
        used = [*prior, *measured][-max(MAX_POINTS, len(measured)) :]
        # On several threads matrices this small take longer, and the processor from the slots of this machine.
        with _blas().limit(limits=1):
            model = self._model(used, num_trials)
            mean, deviation = model.predict(np.stack([*points, *(o.point for o in running)]))
        found = [(o.size_ratio, float(o.retention or 0.0)) for o in measured]
        found += zip((o.size_ratio for o in running), mean[len(points) :].tolist(), strict=True)
        ranks = nondomination_ranks(np.array(found) * [1, -1])
        front = {point for point, rank in zip(found, ranks, strict=True) if rank == 0}
        here = slice(len(points))
        return expected_hypervolume_improvement(size_ratios, mean[here], deviation[here], sorted(front), limits)

    def _model(self, used: Sequence[Observation], num_trials: int) -> GaussianProcess:
        points = np.stack([o.point for o in used])
        values = np.array([o.retention for o in used], float)
        noise = np.array([o.deviation for o in used])
        if self._weights is None or num_trials >= self._next_fit:
            last = slice(-NUM_FIT_POINTS, None)
            fitted = GaussianProcess(points[last], self._groups, values[last], noise[last])
            self._weights, self._jitter = fitted.weights, fitted.jitter
            self._next_fit = num_trials + max(3, int(num_trials * GROWTH))
        return GaussianProcess(points, self._groups, values, noise, (self._weights, self._jitter))


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
