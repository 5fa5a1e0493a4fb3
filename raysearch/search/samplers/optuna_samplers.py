"""Who chooses the values of a recipe: Optuna's samplers steered towards wanted sizes, or a recipe given beforehand."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler

from raysearch.config.recipe import Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError

SAMPLERS = ("tpe", "nsga2", "random", "quasirandom")
Solve = Callable[[Mapping[str, Any], float, float], float]


def make_sampler(name: str, seed: int, ask: int) -> BaseSampler:
    """Optuna's sampler of that name, freshly seeded for one proposal.

    A sampler that is made anew for each proposal, from the seed and the number of the proposal, leaves no hidden state:
    a resumed search proposes what an unbroken one would.

    Raises:
        InputError: no such sampler.
    """
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    fresh = (seed * 1_000_003 + ask * 7919) % (2**31)
    samplers = optuna.samplers
    match name:
        case "tpe":
            # Jointly: apart, it would sort out the best trials once for every value that it draws.
            return samplers.TPESampler(seed=fresh, n_startup_trials=10, multivariate=True, group=True)
        case "nsga2":
            return samplers.NSGAIISampler(seed=fresh, population_size=20)
        case "random":
            return samplers.RandomSampler(seed=fresh)
        case "quasirandom":
            return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    raise InputError(f"search.sampler {name!r}: no such sampler; choose of {', '.join(SAMPLERS)}")


class SteeredSampler(BaseSampler):
    """A sampler whose proposals for the ratio give way to a wanted size.

    Args:
        base: proposes everything else.
        solve: (values chosen so far, low, high) -> the ratio between low and high that meets the size.
        at_least: keep the base sampler's ratio where it makes the model smaller still.
    """

    def __init__(self, base: BaseSampler, solve: Solve, at_least: bool) -> None:
        self._base, self._solve, self._at_least = base, solve, at_least

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What the base sampler would choose jointly, the ratio apart."""
        space = self._base.infer_relative_search_space(study, trial)
        return {name: distribution for name, distribution in space.items() if not is_ratio(name)}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The base sampler's joint choice."""
        values = self._base.sample_relative(study, trial, search_space)
        return {name: value for name, value in values.items() if not is_ratio(name)}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The ratio that meets the wanted size; the base sampler's choice for everything else."""
        if is_ratio(param_name) and isinstance(param_distribution, FloatDistribution):
            low, high = param_distribution.low, param_distribution.high
            ratio = self._solve(trial.params, low, high)
            if self._at_least:
                free = self._base.sample_independent(study, trial, param_name, param_distribution)
                ratio = max(ratio, free)
            return to_smaller_step(ratio, low, high, param_distribution.step)
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Hand on to the base sampler."""
        self._base.before_trial(study, trial)


def is_ratio(name: str) -> bool:
    """Whether a sampler is asked for the ratio, by whatever case of it."""
    return name.partition("#")[0] == "ratio"


def to_smaller_step(ratio: float, low: float, high: float, step: float | None) -> float:
    """A ratio within its bounds and on its steps, rounded to the smaller model, so that a budget still holds."""
    if step:
        ratio = low + step * -(-(ratio - low - 1e-9) // step)
    return min(max(ratio, low), high)


class OptunaSuggester:
    """An `Ask` over an Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """One of `choices`, by the study's sampler."""
        return self._trial.suggest_categorical(name, list(choices))

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """A number from `low` to `high`, by the study's sampler."""
        return self._trial.suggest_float(name, low, high, log=log, step=None if log else step)


class RecipeSuggester:
    """An `Ask` that answers with the values of a recipe, or with what the space has nearest to them.

    A value may be a list: the first that the space has is taken.

    Attributes:
        params: the answers given so far, by name.
        distributions: what was asked, by name, as Optuna describes it.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._values = dict(recipe)
        layer, _, width = str(recipe["criterion"]).partition("+")
        self._values["layer_criterion"], self._values["width_criterion"] = layer, width or layer
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The recipe's value if it is among `choices`, else the nearest number or the first of them."""
        preferred = self._values.get(name.partition("#")[0])
        listed = preferred if isinstance(preferred, list) else [preferred]
        wanted = next((value for value in listed if value in choices), listed[0])
        numbers = [value for value in choices if _is_number(value)]
        if wanted in choices:
            answer = next(value for value in choices if value == wanted)
        elif _is_number(wanted) and numbers:
            answer = min(numbers, key=lambda value: abs(value - wanted))  # type: ignore[operator]
        else:
            answer = choices[0]
        self.params[name], self.distributions[name] = answer, CategoricalDistribution(list(choices))
        return answer

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """The recipe's value, brought within the bounds and onto the steps; the middle if it has none."""
        wanted = self._values.get(name.partition("#")[0])
        middle = (low * high) ** 0.5 if log else (low + high) / 2
        start = float(wanted) if isinstance(wanted, int | float) else middle
        value = min(max(start, low), high)
        if step:
            value = min(low + step * round((value - low) / step), high)
        self.params[name] = value
        self.distributions[name] = FloatDistribution(low, high, log=log, step=None if log else step)
        return value


def fit_to_space(space: SearchSpace, recipe: Mapping[str, Any]) -> tuple[Recipe, RecipeSuggester]:
    """The recipe of `space` that is nearest to the values of `recipe`, and the answers that make it.

    Raises:
        pydantic.ValidationError: the nearest values exclude each other.
    """
    ask = RecipeSuggester(recipe)
    return space.suggest(ask), ask


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
