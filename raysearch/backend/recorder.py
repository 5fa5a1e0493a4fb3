"""Carry what Ray Tune reports into the study's files, to the slots and to callbacks."""

from collections.abc import Sequence
from typing import Any, Protocol

import ray
from ray import tune

from raysearch.backend.coordinator import post_front
from raysearch.backend.faults import LostFileError
from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.study.folder import Study
from raysearch.study.front import Baseline, Front, Measured
from raysearch.study.plan import StudyPlan
from raysearch.study.records import Score, TrialRecord


class Callback(Protocol):
    """Whoever wants to follow a search: the tracker, the terminal."""

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None: ...

    def rung(self, trial: str, score: Score) -> None: ...

    def trial_ended(self, record: TrialRecord) -> None: ...

    def front_changed(self, front: Front) -> None: ...


class Recorder(tune.Callback):
    """Carries what Tune reports into the study's files, to the slots and to the observers."""

    def __init__(
        self, plan: StudyPlan, study: Study, proposals: Any, board: Any, observers: Sequence[Callback]
    ) -> None:
        self.board = board
        self.refusal: str | None = None
        """Why no trial of this study can be run."""
        self._plan, self._study, self._proposals, self._observers = plan, study, proposals, observers
        self._baseline: Baseline | None = study.front.baseline if study.front else None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a file that this project never reads back."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the recipe; a trial that is tried again is noted again."""
        recipe = Recipe(**trial.config["recipe"])
        size = self._plan.size_of(recipe)
        assert size is not None, recipe
        self._study.trial_started(trial.trial_id, recipe)
        for observer in self._observers:
            observer.trial_started(trial.trial_id, recipe, size)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a rung."""
        if result.get("failed"):
            return
        score = Score(**{name: result[name] for name in Score.model_fields})
        if self._study.rung(trial.trial_id, score):
            for observer in self._observers:
                observer.rung(trial.trial_id, score)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the trial's line, and the front if it changes."""
        result = trial.last_result or {}
        if result.get("storage"):
            raise LostFileError(result["failed"])
        if result.get("refused"):
            self.refusal = result["refused"]
            self._proposals.recipes.exhausted = True
        elif result.get("failed"):
            self._end(trial, "failed", result, str(result["failed"]))
        elif self._proposals.scheduler.was_stopped(trial.trial_id):
            seen = result["samples_seen"]
            self._end(trial, "stopped", result, f"behind at the rung of {seen} samples; see decisions.jsonl")
        else:
            self._end(trial, "finished", result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune gave the trial up; without the board it would give up all others, too."""
        ray.get(self.board.dense_scores.remote())
        message = str(trial.get_error() or "the trial's process ended").strip().splitlines()[-1]
        self._end(trial, "failed", trial.last_result or {}, message)

    def conclude(self) -> Front | None:
        """Write the front as it stands; None if not even the dense model was measured."""
        baseline = self._baseline or self._measured_baseline()
        self._proposals.save_if_due(now=True)
        return self._study.write_front(baseline) if baseline else None

    def _end(self, trial: Any, end: str, result: dict[str, Any], reason: str = "") -> None:
        record = self._study.ending(trial.trial_id, end, result, reason)
        if end == "finished" and result.get("checkpoint"):
            self._offer(record, result)
        self._study.record(record)
        for observer in self._observers:
            observer.trial_ended(record)
        self._proposals.save_if_due()

    def _offer(self, record: TrialRecord, result: dict[str, Any]) -> None:
        self._baseline = self._baseline or self._measured_baseline()
        assert self._baseline is not None, record
        heldout = Measured(**result["heldout"])
        run_ids = [getattr(observer, "run_id", lambda trial: None)(record.trial) for observer in self._observers]
        run_id = next((found for found in run_ids if found), None)
        if self._study.offer(record, self._baseline, result["checkpoint"], heldout, run_id):
            assert self._study.front is not None
            post_front(self.board, self._study.front.points)
            for observer in self._observers:
                observer.front_changed(self._study.front)

    def _measured_baseline(self) -> Baseline | None:
        scores = ray.get(self.board.dense_scores.remote())
        dense = self._plan.dense
        if scores is None:
            return None
        self._study.write_layer_importance(ray.get(self.board.layer_importance.remote()))
        return Baseline(num_params=dense.num_params, size_bytes=dense.size_bytes, scores=scores)
