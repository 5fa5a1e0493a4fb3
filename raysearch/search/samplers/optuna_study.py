"""The Optuna study behind a search: asked with a freshly seeded sampler each time, saved and resumed as JSON."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysearch.search.samplers.optuna_samplers import Solve, SteeredSampler, make_sampler
from raysearch.study.multi_objective import nondomination_layers

PRIOR_UNTIL = 20
MAX_TRIALS = 300


class OptunaStudy:
    """Two objectives: the size ratio, minimised, and retention, maximised. Its trials are known by their own numbers.

    Samplers look at every trial of a study at each proposal. So this one forgets: trials of earlier studies when
    PRIOR_UNTIL of its own have values, and when MAX_TRIALS have gathered all but the best half and the newest quarter.
    """

    def __init__(self, sampler: str, seed: int) -> None:
        make_sampler(sampler, seed, 0)  # refuses an unknown name at once
        self._sampler, self._seed, self._num_asks, self._num_told = sampler, seed, 0, 0
        self._study = _new_study()
        self._at: dict[int, int] = {}  # where a trial that runs stands in the study of Optuna's

    def add_prior(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        size_ratio: float,
        retention: float,
    ) -> None:
        """What an earlier study has found."""
        trial = create_trial(
            values=[size_ratio, retention],
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"prior": True},
        )
        self._study.add_trial(trial)

    def ask(
        self, solve: Solve | None = None, at_least: bool = False, at_random: bool = False
    ) -> tuple[int, optuna.Trial]:
        """The number of a new trial, and the trial, whose ratio `solve` decides (see `SteeredSampler`)."""
        base = make_sampler("random" if at_random else self._sampler, self._seed, self._num_asks)
        number = self._num_asks
        self._num_asks += 1
        self._study.sampler = base if solve is None else SteeredSampler(base, solve, at_least)
        trial = self._study.ask()
        self._at[number] = trial.number
        return number, trial

    def ask_for(self, params: Mapping[str, Any]) -> tuple[int, optuna.Trial]:
        """A new trial with these values."""
        self._study.enqueue_trial(dict(params))
        return self.ask(at_random=True)

    def tell(self, number: int, size_ratio: float, retention: float, extrapolated_from: float | None = None) -> None:
        """The trial is over; `extrapolated_from` marks a retention that was not measured but foreseen."""
        at = self._at.pop(number)
        if extrapolated_from is not None:  # in memory, ids are numbers
            self._study._storage.set_trial_user_attr(at, "extrapolated_from", extrapolated_from)
        self._study.tell(at, [size_ratio, retention])
        self._num_told += 1
        trials = self._study.get_trials(deepcopy=False)
        if len(trials) > MAX_TRIALS:
            self._forget(_worth_keeping(trials))
        elif self._num_told == PRIOR_UNTIL and "prior" in trials[0].user_attrs:
            self._forget({trial.number for trial in trials if "prior" not in trial.user_attrs})

    def tell_failed(self, number: int) -> None:
        """The trial has no values; the sampler passes over it."""
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
        """Go on from the state of a study with the same sampler and seed."""
        self._num_asks, self._num_told, self._at = state["num_asks"], state["num_told"], dict(state["at"])
        self._begin_anew(state["attrs"], [_from_json(saved) for saved in state["trials"]])

    def _forget(self, kept: Collection[int]) -> None:
        """Make the study anew with some of its trials, and with those that run."""
        numbers = sorted({*kept, *self._at.values()})
        now_at = {before: now for now, before in enumerate(numbers)}
        self._at = {number: now_at[at] for number, at in self._at.items()}
        trials = self._study.get_trials(deepcopy=False)
        attrs = self._study._storage.get_study_system_attrs(self._study._study_id)
        attrs = {key: value for key, value in attrs.items() if "parent" not in key}
        self._begin_anew(attrs, [trials[number] for number in numbers])

    def _begin_anew(self, attrs: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> None:
        self._study = _new_study()
        for key, value in attrs.items():
            self._study._storage.set_study_system_attr(self._study._study_id, key, value)
        self._study.add_trials(trials)


def _worth_keeping(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the best trials by non-domination layers, and of the newest."""
    told = [trial for trial in trials if trial.values is not None and "prior" not in trial.user_attrs]
    layers = nondomination_layers(np.array([(trial.values[0], -trial.values[1]) for trial in told]))
    best = np.argsort(layers, kind="stable")[: MAX_TRIALS // 2]
    return {told[row].number for row in best} | {trial.number for trial in told[-MAX_TRIALS // 4 :]}


def _new_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
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
