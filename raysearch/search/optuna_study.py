"""The Optuna study behind a search: asked with a freshly seeded sampler each time, saved and resumed as JSON."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysearch.search.sampling import Solve, SteeredSampler, make_sampler

PRIOR_UNTIL = 20


class OptunaStudy:
    """Two objectives: the size ratio, minimised, and retention, maximised.

    Trials of earlier studies stand before its own until PRIOR_UNTIL of its own have values; `number_of` and all that
    takes a number count its own alone.
    """

    def __init__(self, sampler: str, seed: int) -> None:
        make_sampler(sampler, seed, 0)  # refuses an unknown name at once
        self._sampler, self._seed, self._num_asks, self._num_prior = sampler, seed, 0, 0
        self._num_told = 0
        self._study = _new_study()

    def add_prior(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        size_ratio: float,
        retention: float,
    ) -> None:
        """What an earlier study has found, before any trial of its own is asked for."""
        assert len(self._study.get_trials(deepcopy=False)) == self._num_prior
        trial = create_trial(
            values=[size_ratio, retention],
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"prior": True},
        )
        self._study.add_trial(trial)
        self._num_prior += 1

    def ask(
        self, solve: Solve | None = None, at_least: bool = False, at_random: bool = False
    ) -> optuna.Trial:
        """A new trial, whose ratio `solve` decides (see `SteeredSampler`)."""
        base = make_sampler("random" if at_random else self._sampler, self._seed, self._num_asks)
        self._num_asks += 1
        self._study.sampler = base if solve is None else SteeredSampler(base, solve, at_least)
        return self._study.ask()

    def number_of(self, trial: optuna.Trial) -> int:
        """A trial's number among its own."""
        return trial.number - self._num_prior

    def ask_for(self, params: Mapping[str, Any]) -> optuna.Trial:
        """A new trial with these values."""
        self._study.enqueue_trial(dict(params))
        return self.ask(at_random=True)

    def answers(self, number: int) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """The values of a trial, and what they were chosen from."""
        trial = self._study._storage.get_trial(self._num_prior + number)  # in memory, ids are numbers
        return trial.params, trial.distributions

    def tell(
        self, number: int, size_ratio: float, retention: float, extrapolated_from: float | None = None
    ) -> None:
        """The trial is over; `extrapolated_from` marks a retention that was not measured but foreseen."""
        at = self._num_prior + number
        if extrapolated_from is not None:
            self._study._storage.set_trial_user_attr(at, "extrapolated_from", extrapolated_from)
        self._study.tell(at, [size_ratio, retention])
        self._num_told += 1
        if self._num_prior and self._num_told == PRIOR_UNTIL:
            self._drop_prior()

    def tell_failed(self, number: int) -> None:
        """The trial has no values; the sampler passes over it."""
        self._study.tell(self._num_prior + number, state=TrialState.FAIL)

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {
            "num_asks": self._num_asks,
            "num_prior": self._num_prior,
            "num_told": self._num_told,
            "attrs": self._study._storage.get_study_system_attrs(self._study._study_id),
            "trials": [_as_json(trial) for trial in self._study.get_trials(deepcopy=False)],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a study with the same sampler and seed."""
        self._num_asks, self._study = state["num_asks"], _new_study()
        self._num_prior, self._num_told = state["num_prior"], state["num_told"]
        for key, value in state["attrs"].items():
            self._study._storage.set_study_system_attr(self._study._study_id, key, value)
        self._study.add_trials([_from_json(saved) for saved in state["trials"]])

    def _drop_prior(self) -> None:
        """Its own evidence is enough: make the study anew without the trials of earlier ones."""
        state = self.state()
        self.set_state(state | {"trials": state["trials"][self._num_prior :], "num_prior": 0})


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
