"""Optuna's samplers as samplers of recipes, steered in size: most proposals aim just below a budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler

from raysearch.config.dimensions import Choices, Dimension
from raysearch.config.settings import Scalar
from raysearch.searching.samplers.base import Sampler
from raysearch.searching.samplers.optuna_study import OptunaStudy
from raysearch.searching.samplers.sized_space import Candidate, SizedSpace, golden_ratio_sequence
from raysearch.searching.samplers.suggesters import Solve
from raysearch.searching.trial_history import Proposal, TrialHistory

MAX_ATTEMPTS = 200  # to propose something new
SAMPLER_ATTEMPTS = 5  # then at random: a sampler may insist on what has been tried
UNSTEERED_EVERY = 4  # one proposal in this many is not steered in size
CROWDED = 1 / 8  # largest share of the trials that steered proposals may give one size


class OptunaSampler(Sampler):
    """One of Optuna's samplers.

    Args:
        steer: let three proposals in four aim at a size: just below a budget, or, without budgets, spread evenly.
    """

    optuna_class: ClassVar[Callable[..., BaseSampler]]
    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, space: SizedSpace, seed: int = 0, steer: bool = True) -> None:
        super().__init__(space, seed)
        self._steer = steer
        self._study = OptunaStudy(self.optuna_sampler, seed)
        self._distributions = {name: _distribution(d) for name, d in space.search_space.search_params().items()}

    def optuna_sampler(self, seed: int) -> BaseSampler:
        """Optuna's sampler for one proposal."""
        return self.optuna_class(seed=seed, **self.options)

    def candidates(self, history: TrialHistory) -> Iterator[Candidate]:
        """What Optuna's sampler proposes, steered in size; Optuna is told of refused ones as failed."""
        number, target = len(history), self._target(len(history))
        for attempt in range(MAX_ATTEMPTS):
            steered = target if attempt < MAX_ATTEMPTS // 2 else None
            limit = steered if steered is not None else max(self.space.limits, default=None)
            trial = self._study.ask(
                number,
                None if limit is None else self._solver(limit, attempt, history),
                at_least=steered is None,
                at_random=attempt >= SAMPLER_ATTEMPTS,
            )
            candidate = self.space.candidate(OptunaSuggester(trial))
            if candidate is not None:
                yield candidate
            self._study.tell_failed(number)

    def add_prior(self, candidate: Candidate, retention: float) -> None:
        """Tell Optuna of an earlier study's trial, for a while (see `OptunaStudy`)."""
        distributions = {name: self._distributions[name] for name in candidate.params}
        self._study.add_prior(candidate.params, distributions, candidate.size_ratio, retention)

    def adopt(self, proposal: Proposal) -> None:
        """Let Optuna ask for the proposal's values."""
        trial = self._study.ask_for(proposal.number, proposal.params)
        self.space.search_space.suggest(OptunaSuggester(trial))

    def tell(self, proposal: Proposal, retention: float | None) -> None:
        """Tell Optuna of a trial's end; a stopped trial is marked as extrapolated."""
        if retention is None:
            self._study.tell_failed(proposal.number)
        else:
            extrapolated_from = proposal.curve[-1][0] if proposal.end == "stopped" else None
            self._study.tell(proposal.number, proposal.size_ratio, retention, extrapolated_from)

    def state(self) -> dict[str, Any]:
        """The Optuna study."""
        return self._study.state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._study.set_state(state)

    def _target(self, number: int) -> float | None:
        """What a proposal aims at: a size ratio where there are budgets, else a share of the ratio's range; None to
        let the sampler choose."""
        if not self._steer or number % UNSTEERED_EVERY == UNSTEERED_EVERY - 1:
            return None
        turn, limits = number - number // UNSTEERED_EVERY, self.space.limits
        return limits[turn % len(limits)] if limits else golden_ratio_sequence(turn, self.seed)

    def _solver(self, target: float, attempt: int, history: TrialHistory) -> Solve:
        """The ratio whose model is just within `target`, or sometimes a little below it, for variety."""
        draw = np.random.default_rng((self.seed, len(history), attempt))
        margin = abs(draw.normal(0, 0.02)) * (attempt > 0 or draw.random() < 0.5)

        def is_crowded(size_ratio: float) -> bool:
            """Whether many trials have this very size: decoder layers come in few sizes."""
            num = history.num_by_size[size_ratio]
            return num >= 2 and num > CROWDED * len(history)

        def solve(params: Mapping[str, Any], low: float, high: float) -> float:
            if not self.space.limits:
                return low + (high - low) * target
            ratio = min(max(self.space.ratio_for(target, params), low), high)
            size_ratio = self.space.size_ratio_at(ratio, params)
            if size_ratio is not None and is_crowded(size_ratio):
                ratio = self.space.ratio_for(size_ratio - 1e-9, params)
            return ratio + margin

        return solve


class TPESampler(OptunaSampler):
    """Tree-structured Parzen estimator; jointly, since otherwise it sorts all trials for every value that it draws."""

    optuna_class = optuna.samplers.TPESampler
    options = {"n_startup_trials": 10, "multivariate": True, "group": True}


class NSGA2Sampler(OptunaSampler):
    """The genetic algorithm NSGA-II."""

    optuna_class = optuna.samplers.NSGAIISampler
    options = {"population_size": 20}


class RandomSampler(OptunaSampler):
    """Independent random values."""

    optuna_class = optuna.samplers.RandomSampler


class QuasiRandomSampler(OptunaSampler):
    """A scrambled Sobol sequence, the same for all proposals."""

    optuna_class = optuna.samplers.QMCSampler
    options = {"scramble": True, "warn_independent_sampling": False}

    def optuna_sampler(self, seed: int) -> BaseSampler:
        """With the search's own seed."""
        return super().optuna_sampler(self.seed)


class OptunaSuggester:
    """Lets an Optuna trial choose the values of a recipe."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices`."""
        return self._trial.suggest_categorical(name, list(choices))

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`."""
        return self._trial.suggest_float(name, low, high, log=log, step=None if log else step)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(list(dimension.choices))
    step = None if dimension.log else dimension.step
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=step)
