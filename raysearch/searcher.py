"""Proposes recipes: Optuna's samplers by ask and tell, with sizes known before any trial is run.

Ray's own OptunaSearch tells the sampler that a stopped trial completed with the value it had when it stopped, and has
no conditional spaces with several objectives; so the driver holds this object, and Ray sees the thin `RecipeSearch`.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState, create_trial
from pydantic import ValidationError
from ray.tune.search import Searcher as RaySearcher

from raysearch.errors import InputError
from raysearch.files import write_text
from raysearch.front import nondomination_layers
from raysearch.proposing import Candidate, Candidates, GainModel, Observation, answers_of
from raysearch.recipe import Recipe
from raysearch.sampling import OptunaAsk, SteeredSampler, fit_to_space, make_sampler
from raysearch.scheduler import ParetoASHA
from raysearch.size import Budget, Size
from raysearch.space import SearchSpace

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 200
NUM_STARTUP = 10  # trials with a value before the model is asked
EXPLORE_EVERY = 8  # one proposal in this many is chosen for its size alone
FREE_EVERY = 4  # one proposal in this many goes its own way; the others aim at a size


@dataclass
class Proposal:
    """A trial as the searcher sees it: the recipe, its size, and the values reported so far."""

    number: int
    """The trial's number in the Optuna study."""
    recipe: Recipe
    size_ratio: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(samples seen, retention) per rung, rising."""
    end: str | None = None
    """None while it runs; finished, stopped or failed."""


class Searcher:
    """Suggests recipes that fit a budget, each once, and learns from what became of them.

    Args:
        space: where recipes come from.
        size_of: exact size of the whole model that a recipe makes; None if there is no such shape.
        dense: size of the whole dense model.
        budgets: sizes that answers are wanted for; a recipe over all of them is never proposed.
        num_trials: how many recipes to suggest in all; None for no end.
        sampler: tpe, nsga2, gp, random or quasirandom.
        seed: of the sampler.
        steer: let three proposals in four aim at a size: just below a budget, or, without budgets, spread evenly.
    """

    def __init__(
        self,
        space: SearchSpace,
        size_of: Callable[[Recipe], Size | None],
        dense: Size,
        budgets: Iterable[Budget] = (),
        num_trials: int | None = None,
        sampler: str = "tpe",
        seed: int = 0,
        steer: bool = True,
    ) -> None:
        if sampler != "ehvi":
            make_sampler(sampler, seed, 0)  # refuses an unknown name at once
        self.space, self.size_of, self.dense = space, size_of, dense
        self.budgets = list(budgets)
        self.num_trials, self.sampler, self.seed, self.steer = num_trials, sampler, seed, steer
        self.proposals: dict[str, Proposal] = {}
        self.exhausted = False
        self._keys: set[str] = set()
        self._queue: list[dict[str, Any]] = []
        self._num_asks = 0
        self._gains: dict[
            float, list[float]
        ] = {}  # of finished trials, from each number of samples seen to the end
        self._gain_model = GainModel()
        self._params: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._smallest = math.inf  # smallest size ratio met among the rejected
        self._study = _new_study()

    def enqueue(self, recipes: Iterable[Recipe | Mapping[str, Any]]) -> int:
        """Put recipes first in line, each as the nearest recipe that the space has.

        Returns:
            How many were taken: those without a place in the space, too large or already there are passed over.
        """
        num_taken = 0
        for recipe in recipes:
            values = recipe.as_dict() if isinstance(recipe, Recipe) else dict(recipe)
            try:
                fitted, _ = fit_to_space(self.space, values)
            except ValidationError:
                continue
            if fitted.key in self._keys or self._size_ratio(fitted) is None:
                continue
            if fitted.key not in {Recipe(**queued).key for queued in self._queue}:
                self._queue.append(fitted.as_dict())
                num_taken += 1
        return num_taken

    def suggest(self, trial: str) -> Recipe | None:
        """The recipe of the next trial; None when there are `num_trials` or nothing new is left.

        Raises:
            InputError: the space has no recipe that fits the budgets.
        """
        if self.exhausted or (self.num_trials is not None and len(self.proposals) >= self.num_trials):
            return None
        while self._queue:
            recipe, ask = fit_to_space(self.space, self._queue.pop(0))
            ratio = self._size_ratio(recipe)
            if ratio is not None and recipe.key not in self._keys:
                self._study.enqueue_trial(ask.params)
                asked = self._ask(None, 0)
                self.space.suggest(OptunaAsk(asked))
                return self._accept(trial, asked.number, recipe, ratio)
        if self.sampler == "ehvi":
            return self._suggest_by_gain(trial)
        target = self._target(len(self.proposals))
        for attempt in range(MAX_ATTEMPTS):
            asked = self._ask(target if attempt < MAX_ATTEMPTS // 2 else None, attempt)
            try:
                recipe = self.space.suggest(OptunaAsk(asked))
                ratio = self._size_ratio(recipe)
            except ValidationError:
                ratio = None
            if ratio is not None and recipe.key not in self._keys:
                return self._accept(trial, asked.number, recipe, ratio)
            self._study.tell(asked.number, state=TrialState.FAIL)
        self._give_up()
        return None

    def _suggest_by_gain(self, trial: str) -> Recipe | None:
        """Of many random recipes and children of good ones, that which can be expected to add most to the front."""
        draw = np.random.default_rng((self.seed, self._num_asks))
        self._num_asks += 1
        limits = [budget.size_ratio(self.dense) for budget in self.budgets]
        known = self._observations()
        measured = [(name, o) for name, o in known.items() if o.retention is not None]
        parents: list[Mapping[str, Any]] = []
        if measured:
            points = np.array([(o.size_ratio, -(o.retention or 0.0)) for _, o in measured])
            good = nondomination_layers(points) < 2
            parents = [
                self._params[name] for (name, _), is_good in zip(measured, good, strict=True) if is_good
            ]
        candidates = Candidates(self.space, self._size_ratio, limits, draw).many(parents, self._keys)
        if not candidates:
            self._give_up()
            return None
        if len(measured) < NUM_STARTUP or len(self.proposals) % EXPLORE_EVERY == EXPLORE_EVERY - 1:
            chosen = self._spread(candidates)
        else:
            chosen = self._gain_model.best(candidates, list(known.values()), limits)
        self._study.enqueue_trial(chosen.params)
        asked = self._ask(None, 0)
        self.space.suggest(OptunaAsk(asked))
        return self._accept(trial, asked.number, chosen.recipe, chosen.size_ratio)

    def _spread(self, candidates: list[Candidate]) -> Candidate:
        """A candidate for its size alone: just below a budget, or where the golden ratio's sequence falls."""
        turn = len(self.proposals)
        sizes = [candidate.size_ratio for candidate in candidates]
        if self.budgets:
            target = self.budgets[turn % len(self.budgets)].size_ratio(self.dense)
        else:
            share = (turn * 0.6180339887 + self.seed * 0.7548776662) % 1.0
            target = min(sizes) + share * (max(sizes) - min(sizes))
        return min(candidates, key=lambda c: (c.size_ratio > target + 1e-9, abs(c.size_ratio - target)))

    def _observations(self) -> dict[str, Observation]:
        """What is known of each trial; for stopped and running ones the extrapolated value, less surely known."""
        known = {}
        for name, proposal in self.proposals.items():
            if proposal.end == "failed":
                continue
            answers, retention, deviation = self._answers[name], None, 0.0
            if proposal.end == "finished":
                retention = proposal.curve[-1][1]
            elif proposal.curve:
                retention, deviation = self._extrapolated(name)
            known[name] = Observation(answers, proposal.size_ratio, retention, deviation)
        return known

    def report(self, trial: str, samples_seen: float, retention: float) -> None:
        """Note a value on the way."""
        if math.isfinite(retention):
            curve = self.proposals[trial].curve
            if not curve or samples_seen > curve[-1][0]:
                curve.append((float(samples_seen), float(retention)))

    def finish(self, trial: str) -> None:
        """The trial came to its own end: its last value is its final one."""
        self._tell(trial, "finished")

    def stop(self, trial: str) -> None:
        """The trial was stopped early: the sampler is told the value that it would probably have come to."""
        self._tell(trial, "stopped")

    def fail(self, trial: str) -> None:
        """The trial failed: the sampler learns nothing from it."""
        self._tell(trial, "failed")

    def extrapolate(self, trial: str) -> float:
        """A stopped trial's probable final value: its last one plus the median gain of finished trials from there."""
        return self._extrapolated(trial)[0]

    def _extrapolated(self, trial: str) -> tuple[float, float]:
        """The probable final value and the standard deviation of the gains that it was taken from."""
        seen, value = self.proposals[trial].curve[-1]
        gains = self._gains.get(seen, [])
        if not gains:
            return value, 0.1 * abs(value)
        return value + max(0.0, float(np.median(gains))), float(np.std(gains)) + 0.05 * abs(value) / len(
            gains
        )

    def state(self) -> dict[str, Any]:
        """All that later proposals depend on, as plain JSON values."""
        return {
            "schema": 1,
            "num_asks": self._num_asks,
            "queue": self._queue,
            "smallest": None if math.isinf(self._smallest) else self._smallest,
            "exhausted": self.exhausted,
            "gain_model": vars(self._gain_model),
            "study_attrs": self._study._storage.get_study_system_attrs(self._study._study_id),
            "trials": [_trial_as_json(trial) for trial in self._study.get_trials(deepcopy=False)],
            "proposals": {
                name: [p.number, p.recipe.as_dict(), p.size_ratio, p.curve, p.end]
                for name, p in self.proposals.items()
            },
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of an earlier searcher made with the same arguments."""
        self._num_asks, self._queue = state["num_asks"], [dict(values) for values in state["queue"]]
        self._smallest = math.inf if state["smallest"] is None else state["smallest"]
        self.exhausted = state["exhausted"]
        self._gain_model = GainModel()
        vars(self._gain_model).update(state["gain_model"])
        self._study = _new_study()
        for key, value in state["study_attrs"].items():
            self._study._storage.set_study_system_attr(self._study._study_id, key, value)
        for saved in state["trials"]:
            self._study.add_trial(_trial_from_json(saved))
        self.proposals = {
            name: Proposal(number, Recipe(**recipe), ratio, [(s, r) for s, r in curve], end)
            for name, (number, recipe, ratio, curve, end) in state["proposals"].items()
        }
        self._keys = {proposal.recipe.key for proposal in self.proposals.values()}
        self._gains, self._params, self._answers = {}, {}, {}
        for name, proposal in self.proposals.items():
            self._note_answers(name)
            if proposal.end == "finished":
                self._note_gains(proposal)

    def _size_ratio(self, recipe: Recipe) -> float | None:
        """Share of the dense model's bytes, or None if there is no such shape or it fits no budget."""
        size = self.size_of(recipe)
        if size is None:
            return None
        ratio = size.size_bytes / self.dense.size_bytes
        if self.budgets and not any(budget.admits(size, self.dense) for budget in self.budgets):
            self._smallest = min(self._smallest, ratio)
            return None
        return ratio

    def _target(self, number: int) -> float | None:
        """The size ratio that proposal `number` aims at; None to let the sampler choose."""
        if not self.steer or number % FREE_EVERY == FREE_EVERY - 1:
            return None
        turn = number - number // FREE_EVERY
        if self.budgets:
            return self.budgets[turn % len(self.budgets)].size_ratio(self.dense)
        return (turn * 0.6180339887 + self.seed * 0.7548776662) % 1.0  # spread by the golden ratio

    def _ask(self, target: float | None, attempt: int) -> optuna.Trial:
        name = self.sampler if attempt < 5 and self.sampler != "ehvi" else "random"
        base = make_sampler(name, self.seed, self._num_asks)
        self._num_asks += 1
        self._study.sampler = base if target is None else SteeredSampler(base, self._solver(target, attempt))
        return self._study.ask()

    def _solver(self, target: float, attempt: int) -> Callable[[Mapping[str, Any], float, float], float]:
        """The smallest ratio whose model is within `target`; a little beyond it after duplicates."""

        def within(values: Mapping[str, Any], ratio: float) -> bool:
            probe = {**values, "ratio": ratio, "criterion": _any_criterion(values["mode"])}
            size = self.size_of(Recipe(mode=probe["mode"], ratio=ratio, criterion=probe["criterion"]))
            return size is not None and size.size_bytes <= target * self.dense.size_bytes

        def solve(values: Mapping[str, Any], low: float, high: float) -> float:
            rng = np.random.default_rng((self.seed, self._num_asks))
            if "mode" not in values:  # the space has one mode only, which is then never asked for
                values = {"mode": self.space.recipe["mode"][0].choices[0]}  # type: ignore[union-attr]
            if not self.budgets:  # the wanted share is one of the sizes that the space can reach
                return low + (high - low) * target
            start = low
            for _ in range(12):
                middle = (start + high) / 2
                start, high = (start, middle) if within(values, middle) else (middle, high)
            return high + abs(rng.normal(0, 0.02)) * (attempt > 0 or rng.random() < 0.5)

        return solve

    def _accept(self, trial: str, number: int, recipe: Recipe, ratio: float) -> Recipe:
        self._keys.add(recipe.key)
        self.proposals[trial] = Proposal(number, recipe, ratio)
        self._note_answers(trial)
        return recipe

    def _note_answers(self, trial: str) -> None:
        asked = self._study.get_trials(deepcopy=False)[self.proposals[trial].number]
        self._params[trial] = dict(asked.params)
        self._answers[trial] = answers_of(asked.params, asked.distributions, self.proposals[trial].size_ratio)

    def _give_up(self) -> None:
        if not self.proposals:
            if math.isinf(self._smallest):
                raise InputError("recipe: no values drawn from the space make a model; widen its ranges")
            raise InputError(
                f"budgets {', '.join(budget.text for budget in self.budgets)}: no recipe of the space is small enough; "
                f"the smallest found has {self._smallest:.1%} of the dense size; raise the budget or recipe.ratio"
            )
        self.exhausted = True
        logger.info("no new recipe in %d attempts: the space is used up", MAX_ATTEMPTS)

    def _note_gains(self, proposal: Proposal) -> None:
        for seen, value in proposal.curve[:-1]:
            self._gains.setdefault(seen, []).append(proposal.curve[-1][1] - value)

    def _tell(self, trial: str, end: str) -> None:
        proposal = self.proposals[trial]
        if proposal.end is not None:
            return
        if not proposal.curve:
            end = "failed"
        proposal.end = end
        if end == "finished":
            self._note_gains(proposal)
        if end == "failed":
            self._study.tell(proposal.number, state=TrialState.FAIL)
            return
        value = proposal.curve[-1][1] if end == "finished" else self.extrapolate(trial)
        if end == "stopped":
            stored = self._study._storage.get_trial_id_from_study_id_trial_number(
                self._study._study_id, proposal.number
            )
            self._study._storage.set_trial_user_attr(stored, "extrapolated_from", proposal.curve[-1][0])
        self._study.tell(proposal.number, [proposal.size_ratio, value])


class RecipeSearch(RaySearcher):
    """What Ray Tune sees of a `Searcher`: each suggestion is `{"recipe": {...}}` over `config`.

    Args:
        searcher: does the work.
        scheduler: tells stopped trials from finished ones, and is saved and restored together with the searcher.
        config: further entries of every trial's configuration.
        retention, time_attr: result keys, as in `ParetoASHA`.
    """

    def __init__(
        self,
        searcher: Searcher,
        scheduler: ParetoASHA | None = None,
        config: Mapping[str, Any] | None = None,
        retention: str = "retention",
        time_attr: str = "samples_seen",
    ) -> None:
        super().__init__()
        # Not `searcher`: Ray takes whatever has that attribute for a wrapper of its own.
        self.recipes, self.scheduler, self._config = searcher, scheduler, dict(config or {})
        self._retention, self._time_attr = retention, time_attr

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Nothing to take over: the space and the objectives were given at construction."""
        return metric is None and mode is None

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's configuration, or Ray's word for the end."""
        recipe = self.recipes.suggest(trial_id)
        return self.FINISHED if recipe is None else {**self._config, "recipe": recipe.as_dict()}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note a value on the way."""
        if self._retention in result and self._time_attr in result:
            self.recipes.report(trial_id, result[self._time_attr], result[self._retention])

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial finished, was stopped, or failed."""
        if trial_id not in self.recipes.proposals:
            return
        if result:
            self.on_trial_result(trial_id, result)
        value = (result or {}).get(self._retention, math.nan)
        if error or value is None or not math.isfinite(value):
            self.recipes.fail(trial_id)
        elif self.scheduler is not None and self.scheduler.was_stopped(trial_id):
            self.recipes.stop(trial_id)
        else:
            self.recipes.finish(trial_id)

    def get_state(self) -> dict[str, Any]:
        """The searcher's state and the scheduler's, as plain JSON values."""
        state = {"searcher": self.recipes.state()}
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.rungs.state()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `get_state`."""
        self.recipes.set_state(state["searcher"])
        if self.scheduler is not None and "scheduler" in state:
            self.scheduler.set_state(state["scheduler"])

    def save(self, checkpoint_path: str) -> None:
        """Write the state as JSON."""
        write_text(Path(checkpoint_path), json.dumps(self.get_state()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a saved state."""
        self.set_state(json.loads(Path(checkpoint_path).read_text()))


def _new_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=["minimize", "maximize"])


def _any_criterion(mode: str) -> str:
    return {"layerwise": "deepest", "widthwise": "magnitude"}.get(mode, "deepest+magnitude")


def _trial_as_json(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(d) for name, d in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
    }


def _trial_from_json(saved: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=TrialState[saved["state"]],
        values=saved["values"],
        params=saved["params"],
        distributions={name: json_to_distribution(d) for name, d in saved["distributions"].items()},
        user_attrs=saved["user_attrs"],
        system_attrs=saved["system_attrs"],
    )
