"""Proposes recipes whose sizes are known before any trial is run, and learns from what became of them.

Ray's own OptunaSearch tells the sampler that a stopped trial completed with the value it had when it stopped, and has
no conditional spaces with several objectives; so the driver holds this object, and Ray sees a thin `TuneSearcher`.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysearch.config.budget import Budget, Size
from raysearch.config.dimensions import choose
from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.search.samplers.ehvi import MAX_POINTS, Candidate, Candidates, EHVIRanker, Observation
from raysearch.search.samplers.encoding import Encoding
from raysearch.search.samplers.optuna_samplers import OptunaSuggester, RecipeSuggester, Solve, fit_to_space
from raysearch.search.samplers.optuna_study import OptunaStudy
from raysearch.search.samplers.published import PUBLISHED_RATIOS, published_recipes
from raysearch.search.samplers.size_targets import Sizing, bare
from raysearch.search.trial_history import End, Proposal, TrialHistory, model_identity
from raysearch.study.multi_objective import nondomination_layers

logger = logging.getLogger(__name__)
SCHEMA = 2  # of `Searcher.state`
MAX_ATTEMPTS = 200
SAMPLER_ATTEMPTS = 5  # then at random: a sampler may insist on what has been tried
FREE_EVERY = 4  # one proposal in this many goes its own way; the others aim at a size
NUM_STARTUP = 10  # trials with a value before the gain model is asked
CROWDED = 1 / 8  # largest share of the trials that proposals may aim at one size
PRIOR_RETENTION_DEVIATION = 0.1  # of a retention that was measured on another model, or in another study of this one
EXPLORE_EVERY = 8  # with the gain model, one proposal in this many is chosen for its size alone


class Searcher:
    """Suggests recipes that fit a budget, each once, and learns from what became of them.

    Args:
        space: where recipes come from.
        size_of: exact size of the whole model that a recipe makes; None if there is no such shape.
        dense: size of the whole dense model.
        budgets: sizes that answers are wanted for; a recipe over all of them is never proposed.
        num_trials: how many recipes to suggest in all; None for no end.
        sampler: ehvi, which knows the sizes; tpe, nsga2, random or quasirandom of Optuna's; or grid, which takes what
            is in line and no more.
        seed: of the sampler.
        steer: let three of Optuna's proposals in four aim at a size: just below a budget, or, without budgets, spread
            evenly.
    """

    def __init__(
        self,
        space: SearchSpace,
        size_of: Callable[[Recipe], Size | None],
        dense: Size,
        budgets: Iterable[Budget] = (),
        num_trials: int | None = None,
        sampler: str = "ehvi",
        seed: int = 0,
        steer: bool = True,
    ) -> None:
        self.space, self.budgets = space, list(budgets)
        self.num_trials, self.sampler, self.seed, self.steer = num_trials, sampler, seed, steer
        self.history = TrialHistory()
        self.exhausted = False
        self._sizing = Sizing(size_of, dense, self.budgets)
        self._queue: list[dict[str, Any]] = []
        self._study = None if sampler in ("ehvi", "grid") else OptunaStudy(sampler, seed)
        self._encoding = Encoding(space.search_params())
        self._candidates = self._draw_candidates()
        self._gain_model = EHVIRanker(self._encoding.groups)
        self._prior: list[Observation] = []

    def set_targets(self, budgets: Iterable[Budget], num_trials: int | None) -> None:
        """Search for these budgets, and suggest `num_trials` recipes in all, from now on."""
        self.budgets, self.num_trials = list(budgets), num_trials
        self._sizing.set_budgets(self.budgets)
        self._candidates = self._draw_candidates()

    def _draw_candidates(self) -> Candidates:
        solvers = [functools.partial(self._ratio_for, limit) for limit in self._limits]
        return Candidates(self.space, self._encoding, self._sizing.ratio_of, solvers, self.seed)

    @property
    def _limits(self) -> list[float]:
        return self._sizing.limits

    @property
    def proposals(self) -> dict[str, Proposal]:
        """The trials so far, by name."""
        return self.history.proposals

    def enqueue(self, recipes: Iterable[Recipe | Mapping[str, Any]]) -> int:
        """Put recipes first in line, each as the nearest recipe that the space has.

        Returns:
            How many were taken: those without a place in the space, too large or already there are passed over.
        """
        num_before = len(self._queue)
        taken = set(self.history.made)
        for values in self._queue:
            queued = Recipe(**values)
            taken.add(model_identity(queued, self._sizing.ratio_of(queued) or 0.0))
        for recipe in recipes:
            values = recipe.as_dict() if isinstance(recipe, Recipe) else dict(recipe)
            try:
                fitted, _ = fit_to_space(self.space, values)
            except ValidationError:
                continue
            ratio = self._sizing.ratio_of(fitted)
            if ratio is not None and model_identity(fitted, ratio) not in taken:
                taken.add(model_identity(fitted, ratio))
                self._queue.append(fitted.as_dict())
        return len(self._queue) - num_before

    def learn_from(self, earlier: Iterable[tuple[Recipe, float]]) -> int:
        """Let finished trials of earlier studies inform the first proposals; call it before the first of them.

        Sizes are those that their recipes have here; what this search finds overrides them: Optuna's samplers forget
        them after `PRIOR_UNTIL` trials, the gain model takes them for less certain by `PRIOR_RETENTION_DEVIATION`.

        Args:
            earlier: recipes and their final retention, of whatever model and space.

        Returns:
            How many have a place in the space.
        """
        num_before = len(self._prior)
        for recipe, retention in earlier:
            try:
                fitted, ask = fit_to_space(self.space, recipe.as_dict())
            except ValidationError:
                continue
            ratio = self._sizing.ratio_of(fitted)
            if ratio is not None:
                point = self._encoding.point(ask.params, ratio)
                self._prior.append(Observation(point, ratio, retention, PRIOR_RETENTION_DEVIATION))
                if self._study is not None:
                    self._study.add_prior(ask.params, ask.distributions, ratio, retention)
        return len(self._prior) - num_before

    def enqueue_published(self) -> int:
        """Put first in line what was published as best at the budgets, or at its own sizes where none are named.

        Returns:
            How many were taken; never more than a quarter of `num_trials`.
        """
        ratios = list(PUBLISHED_RATIOS)
        if self._limits:
            # Which recipe was published depends on the ratio; its mode then decides the ratio that meets the budget.
            ratios = [self._sizing.solve(limit, mode="layerwise") for limit in self._limits]
        recipes = published_recipes(ratios)
        for recipe, limit in zip(recipes, self._limits, strict=False):
            recipe["ratio"] = self._ratio_for(limit, recipe)
        most = len(recipes) if self.num_trials is None else max(1, self.num_trials // 4)
        return self.enqueue(recipes[:most])

    def suggest(self, trial: str) -> Recipe | None:
        """The recipe of the next trial; None when there are `num_trials` or nothing new is left.

        Raises:
            InputError: the space has no recipe that fits the budgets.
        """
        if self.exhausted or (self.num_trials is not None and len(self.history) >= self.num_trials):
            return None
        proposal = self._next_in_line()
        if proposal is None and self.sampler != "grid":
            proposal = self._by_gain() if self._study is None else self._by_optuna(self._study)
        if proposal is None:
            self._give_up()
            return None
        self.history.add(trial, proposal)
        return proposal.recipe

    def adopt(self, trial: str, recipe: Recipe) -> bool:
        """Take up a recipe that runs, or has run, as if it had been suggested; False if it has no place here."""
        ratio = self._sizing.ratio_of(recipe)
        try:
            _, ask = fit_to_space(self.space, recipe.as_dict())
        except ValidationError:
            return False
        if ratio is None or model_identity(recipe, ratio) in self.history.made:
            return False
        self.history.add(trial, self._register(self._as_candidate(recipe, ask, ratio)))
        return True

    def report(self, trial: str, samples_seen: float, retention: float) -> None:
        """Note a value on the way."""
        self.history.report(trial, samples_seen, retention)

    def finish(self, trial: str) -> None:
        """The trial came to its own end: its last value is its final one."""
        self._tell(trial, "finished")

    def stop(self, trial: str) -> None:
        """The trial was stopped early: the sampler is told the value that it would probably have come to."""
        self._tell(trial, "stopped")

    def fail(self, trial: str) -> None:
        """The trial failed: the sampler learns nothing from it."""
        self._tell(trial, "failed")

    def running(self) -> list[str]:
        """The trials that have not ended, in the order of their proposals."""
        return list(self.history.running)

    def rename(self, trial: str, name: str) -> None:
        """Go on with a trial under another name."""
        self.history.rename(trial, name)

    def state(self) -> dict[str, Any]:
        """All that later proposals depend on, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "queue": self._queue,
            "smallest": None if math.isinf(self._sizing.smallest) else self._sizing.smallest,
            "exhausted": self.exhausted,
            "prior": [[o.point.tolist(), o.size_ratio, o.retention, o.deviation] for o in self._prior],
            "gain_model": self._gain_model.state(),
            "study": self._study and self._study.state(),
            "history": self.history.state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of an earlier searcher made with the same arguments.

        Raises:
            ValueError: another version has written it.
        """
        if state["schema"] != SCHEMA:
            raise ValueError(f"state of proposals: schema {state['schema']} where {SCHEMA} is read")
        self._queue = [dict(values) for values in state["queue"]]
        self._sizing.smallest = math.inf if state["smallest"] is None else state["smallest"]
        self.exhausted = state["exhausted"]
        self._prior = [Observation(np.array(point), *known) for point, *known in state["prior"]]
        self._gain_model.set_state(state["gain_model"])
        if self._study is not None:
            self._study.set_state(state["study"])
        self.history = TrialHistory.from_state(state["history"], self._encoding)

    def _next_in_line(self) -> Proposal | None:
        while self._queue:
            recipe, ask = fit_to_space(self.space, self._queue.pop(0))
            ratio = self._sizing.ratio_of(recipe)
            if ratio is not None and model_identity(recipe, ratio) not in self.history.made:
                return self._register(self._as_candidate(recipe, ask, ratio))
        return None

    def _by_optuna(self, study: OptunaStudy) -> Proposal | None:
        """What the sampler proposes, steered in size; what does not fit or has been tried is told as failed."""
        target = self._target()
        for attempt in range(MAX_ATTEMPTS):
            steered = target if attempt < MAX_ATTEMPTS // 2 else None
            limit = steered if steered is not None else max(self._limits, default=None)
            number, asked = study.ask(
                None if limit is None else self._solver(limit, attempt),
                at_least=steered is None,
                at_random=attempt >= SAMPLER_ATTEMPTS,
            )
            try:
                recipe = self.space.suggest(OptunaSuggester(asked))
                ratio = self._sizing.ratio_of(recipe)
            except ValidationError:
                ratio = None
            if ratio is not None and model_identity(recipe, ratio) not in self.history.made:
                point = self._encoding.point(asked.params, ratio)
                return Proposal(number, recipe, ratio, asked.params, point)
            study.tell_failed(number)
        return None

    def _by_gain(self) -> Proposal | None:
        """Of random recipes and children of good ones, that which can be expected to add most to the front."""
        number = len(self.history)
        known = self._observations()
        measured = {name: o for name, o in known.items() if o.retention is not None}
        candidates = self._candidates.of_proposal(number, self._parents(measured))
        explores = number % EXPLORE_EVERY == EXPLORE_EVERY - 1
        if not candidates:
            return None
        if len(measured) < 2 or len(measured) + len(self._prior) < NUM_STARTUP or explores:
            candidates = self._by_size(candidates)
        else:
            observations = list(known.values())
            candidates = self._gain_model.ranked(candidates, observations, self._limits, number, self._prior)
        for candidate in itertools.chain(candidates, self._candidates.others(number)):
            if model_identity(candidate.recipe, candidate.size_ratio) not in self.history.made:
                return self._register(candidate)
        return None

    def _parents(self, measured: Mapping[str, Observation]) -> list[dict[str, Any]]:
        """The answers of the two best layers of what has been measured."""
        if not measured:
            return []
        points = np.array([(o.size_ratio, -(o.retention or 0.0)) for o in measured.values()])
        good = nondomination_layers(points) < 2
        return [self.proposals[name].params for name, is_good in zip(measured, good, strict=True) if is_good]

    def _register(self, candidate: Candidate) -> Proposal:
        number = len(self.history)
        if self._study is not None:
            number, asked = self._study.ask_for(candidate.params)
            self.space.suggest(OptunaSuggester(asked))
        return Proposal(number, candidate.recipe, candidate.size_ratio, candidate.params, candidate.point)

    def _as_candidate(self, recipe: Recipe, ask: RecipeSuggester, size_ratio: float) -> Candidate:
        return Candidate(recipe, ask.params, size_ratio, self._encoding.point(ask.params, size_ratio))

    def _by_size(self, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates by size alone: those just below a budget first, or near where the golden ratio's sequence
        falls."""
        number, sizes = len(self.history), [candidate.size_ratio for candidate in candidates]
        if self._limits:
            target = self._limits[number % len(self._limits)]
        else:
            target = min(sizes) + self._golden(number) * (max(sizes) - min(sizes))
        return sorted(candidates, key=lambda c: (c.size_ratio > target + 1e-9, abs(c.size_ratio - target)))

    def _target(self) -> float | None:
        """What the next proposal aims at: a size ratio where budgets are named, else a share of the way from the
        largest model to the smallest; None to let the sampler choose."""
        number = len(self.history)
        if not self.steer or number % FREE_EVERY == FREE_EVERY - 1:
            return None
        turn = number - number // FREE_EVERY
        return self._limits[turn % len(self._limits)] if self._limits else self._golden(turn)

    def _golden(self, turn: int) -> float:
        return (turn * 0.6180339887 + self.seed * 0.7548776662) % 1.0

    def _solver(self, target: float, attempt: int) -> Solve:
        """The ratio whose model is just within `target`, or now and then a little below it, for variety's sake."""
        draw = np.random.default_rng((self.seed, len(self.history), attempt))
        margin = abs(draw.normal(0, 0.02)) * (attempt > 0 or draw.random() < 0.5)

        def solve(values: Mapping[str, Any], low: float, high: float) -> float:
            if not self._limits:
                return low + (high - low) * target
            ratio = min(max(self._ratio_for(target, values), low), high)
            size = self._sizing.ratio_of(bare(ratio, **self._sized_by(values)))
            if size is not None and self._is_crowded(size):
                ratio = self._ratio_for(size - 1e-9, values)
            return ratio + margin

        return solve

    def _ratio_for(self, target: float, values: Mapping[str, Any], *bounds: float) -> float:
        """The ratio whose model is just within `target`, be it within the bounds or not."""
        return self._sizing.solve(target, **self._sized_by(values))

    def _is_crowded(self, size_ratio: float) -> bool:
        """Whether many trials have this very size: layers come in few sizes, and there is more to learn one below."""
        num = self.history.sizes[size_ratio]
        return num >= 2 and num > CROWDED * len(self.history)

    def _sized_by(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields beside the ratio that decide a recipe's size, as far as the space has them.

        Args:
            values: answers so far; a field that has one value only is never asked for.
        """
        ask, found = _Told(values), dict[str, Any]()
        for field in ("mode", "quantization"):
            value = choose(ask, field, self.space.recipe.get(field, []), found)
            if value is not None:
                found[field] = value
        return found

    def _observations(self) -> dict[str, Observation]:
        """The front, those that run, and of the newest trials as many as there is room for."""
        known = {}
        front = {name: self.proposals[name] for name in self.history.front}
        num_newest = max(MAX_POINTS - len(front), MAX_POINTS // 2)
        newest = itertools.islice(reversed(self.proposals.items()), num_newest)
        named = dict(newest) | self.history.running | front
        for name, proposal in sorted(named.items(), key=lambda item: item[1].number):
            if proposal.end != "failed":
                retention, deviation = self.history.final(name) or (None, 0.0)
                known[name] = Observation(proposal.point, proposal.size_ratio, retention, deviation)
        return known

    def _give_up(self) -> None:
        if len(self.history):
            self.exhausted = True
            logger.info("no new recipe in %d attempts: the space is used up", MAX_ATTEMPTS)
            return
        if math.isinf(self._sizing.smallest):
            raise InputError("recipe: no values drawn from the space make a model; widen its ranges")
        raise InputError(
            f"budgets {', '.join(budget.text for budget in self.budgets)}: no recipe of the space is small enough; "
            f"the smallest found has {self._sizing.smallest:.1%} of the dense size; raise the budget or recipe.ratio"
        )

    def _tell(self, trial: str, end: End) -> None:
        proposal = self.proposals[trial]
        if proposal.end is not None:
            return
        self.history.end(trial, end)
        final = self.history.final(trial)
        if self._study is None:
            return
        if final is None:
            self._study.tell_failed(proposal.number)
        else:
            measured_at = proposal.curve[-1][0] if proposal.end == "stopped" else None
            self._study.tell(proposal.number, proposal.size_ratio, final[0], measured_at)


class _Told:
    """An `Ask` that answers with what was asked before, or with a recipe's field of that name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The value of then if it is among `choices`, else the first of them."""
        told = self._values.get(name, self._values.get(name.partition("#")[0]))
        return told if told in choices else choices[0]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """Never: what is asked for here is chosen."""
        raise AssertionError(name)
