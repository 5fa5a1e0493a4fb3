"""An Optuna study whose sampler is seeded anew for each proposal, saved and resumed as JSON."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysearch.searching.samplers.suggesters import Solve, is_ratio, to_smaller_step
from raysearch.study.multi_objective import nondomination_ranks

PRIOR_UNTIL = 20
MAX_TRIALS = 300


class SteeredSampler(BaseSampler):
    """A sampler whose choice of the removed ratio is replaced by the one that meets a size.

    Args:
        base: chooses everything else.
        solve: decides the ratio.
        at_least: keep the base sampler's ratio where it makes the model smaller still.
    """

    def __init__(self, base: BaseSampler, solve: Solve, at_least: bool) -> None:
        self._base, self._solve, self._at_least = base, solve, at_least

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What the base sampler chooses jointly, without the ratio."""
        space = self._base.infer_relative_search_space(study, trial)
        return {name: distribution for name, distribution in space.items() if not is_ratio(name)}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The base sampler's joint choice."""
        values = self._base.sample_relative(study, trial, search_space)
        return {name: value for name, value in values.items() if not is_ratio(name)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The ratio that meets the size; the base sampler's choice for everything else."""
        if is_ratio(param_name) and isinstance(param_distribution, FloatDistribution):
            low, high = param_distribution.low, param_distribution.high
            ratio = self._solve(trial.params, low, high)
            if self._at_least:
                ratio = max(ratio, self._base.sample_independent(study, trial, param_name, param_distribution))
            return to_smaller_step(ratio, low, high, param_distribution.step)
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """The base sampler's preparations."""
        self._base.before_trial(study, trial)


class OptunaStudy:
    """Two objectives: the size ratio, minimised, and retention, maximised. Its trials go by the search's numbers.

    A sampler made anew for each proposal, from the seed and the number of proposals, has no hidden state: a resumed
    search proposes what an unbroken one would.

    Samplers read every trial of a study at each proposal. So trials are left out: those of earlier studies when
    PRIOR_UNTIL of its own have values, and above MAX_TRIALS all but the best half and the newest quarter.

    Args:
        make_sampler: Optuna's sampler for one proposal, by its seed.
        seed: of the search.
    """

    def __init__(self, make_sampler: Callable[[int], BaseSampler], seed: int) -> None:
        self._make_sampler, self._seed, self._num_asks, self._num_told = make_sampler, seed, 0, 0
        self._study = _new_study()
        self._at: dict[int, int] = {}  # where a running trial is in Optuna's study

    def add_prior(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        size_ratio: float,
        retention: float,
    ) -> None:
        """Add a finished trial of an earlier study."""
        trial = create_trial(
            values=[size_ratio, retention],
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"prior": True},
        )
        self._study.add_trial(trial)

    def ask(
        self, number: int, solve: Solve | None = None, at_least: bool = False, at_random: bool = False
    ) -> optuna.Trial:
        """Begin trial `number`; `solve` decides its ratio (see `SteeredSampler`)."""
        seed = (self._seed * 1_000_003 + self._num_asks * 7919) % (2**31)
        base = RandomSampler(seed=seed) if at_random else self._make_sampler(seed)
        self._num_asks += 1
        self._study.sampler = base if solve is None else SteeredSampler(base, solve, at_least)
        trial = self._study.ask()
        self._at[number] = trial.number
        return trial

    def ask_for(self, number: int, params: Mapping[str, Any]) -> optuna.Trial:
        """Begin trial `number` with given values."""
        self._study.enqueue_trial(dict(params))
        return self.ask(number, at_random=True)

    def tell(self, number: int, size_ratio: float, retention: float, extrapolated_from: float | None = None) -> None:
        """End a trial; `extrapolated_from`, in samples seen, marks a retention that was not measured but expected."""
        at = self._at.pop(number)
        if extrapolated_from is not None:  # in memory, ids are numbers
            self._study._storage.set_trial_user_attr(at, "extrapolated_from", extrapolated_from)
        self._study.tell(at, [size_ratio, retention])
        self._num_told += 1
        trials = self._study.get_trials(deepcopy=False)
        if len(trials) > MAX_TRIALS:
            self._keep(_worth_keeping(trials))
        elif self._num_told == PRIOR_UNTIL and "prior" in trials[0].user_attrs:
            self._keep({trial.number for trial in trials if "prior" not in trial.user_attrs})

    def tell_failed(self, number: int) -> None:
        """End a trial without values; the sampler ignores it."""
        self._study.tell(self._at.pop(number), state=TrialState.FAIL)

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {
            "num_asks": self._num_asks,
            "num_told": self._num_told,
            "at": list(self._at.items()),
            "attrs": self._study._storage.get_study_system_attrs(self._study._study_id),
            "trials": [_as_json(trial) for trial in self._study.get_trials(deepcopy=False)],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a study with the same sampler and seed."""
        self._num_asks, self._num_told, self._at = state["num_asks"], state["num_told"], dict(state["at"])
        self._replace(state["attrs"], [_from_json(saved) for saved in state["trials"]])

    def _keep(self, kept: Collection[int]) -> None:
        """Keep some trials, and those that run."""
        numbers = sorted({*kept, *self._at.values()})
        now_at = {before: now for now, before in enumerate(numbers)}
        self._at = {number: now_at[at] for number, at in self._at.items()}
        trials = self._study.get_trials(deepcopy=False)
        attrs = self._study._storage.get_study_system_attrs(self._study._study_id)
        attrs = {key: value for key, value in attrs.items() if "parent" not in key}
        self._replace(attrs, [trials[number] for number in numbers])

    def _replace(self, attrs: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> None:
        self._study = _new_study()
        for key, value in attrs.items():
            self._study._storage.set_study_system_attr(self._study._study_id, key, value)
        self._study.add_trials(trials)


def _worth_keeping(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the best trials by non-domination rank, and of the newest."""
    told = [trial for trial in trials if trial.values is not None and "prior" not in trial.user_attrs]
    ranks = nondomination_ranks(np.array([(trial.values[0], -trial.values[1]) for trial in told]))
    best = np.argsort(ranks, kind="stable")[: MAX_TRIALS // 2]
    return {told[row].number for row in best} | {trial.number for trial in told[-MAX_TRIALS // 4 :]}


def _new_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna.create_study(directions=["minimize", "maximize"])


def _as_json(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(d) for name, d in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
    }


def _from_json(saved: Mapping[str, Any]) -> FrozenTrial:
    return create_trial(
        state=TrialState[saved["state"]],
        values=saved["values"],
        params=saved["params"],
        distributions={name: json_to_distribution(d) for name, d in saved["distributions"].items()},
        user_attrs=saved["user_attrs"],
        system_attrs=saved["system_attrs"],
    )
