"""Carry what Ray Tune reports into the study's files, to the coordinator and to callbacks."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ray import tune

from raysearch.backend.coordinator import Coordinator, CoordinatorClient
from raysearch.backend.faults import LostFileError, SlotStartError, fatal_errors
from raysearch.backend.messages import Failed, PointScored, RungScored
from raysearch.backend.trainable import HELDOUT, REPLY
from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.logging import logger
from raysearch.searching.journaled_search import JournaledSearch
from raysearch.study.folder import StudyFolder
from raysearch.study.front import CHECKPOINTS, Baseline, Front
from raysearch.study.plan import StudyPlan
from raysearch.study.records import Score, Sized, TrialRecord


class Callback(Protocol):
    """Follows a search: the tracker, the live view."""

    def trial_started(self, trial: str, recipe: Recipe, size: Size) -> None: ...

    def rung(self, trial: str, score: Score) -> None: ...

    def trial_ended(self, record: TrialRecord) -> None: ...

    def front_changed(self, front: Front) -> None: ...


class Recorder(tune.Callback):
    """Writes the trials and the front of a search.

    Args:
        search: its state is saved when trials have ended.
        baseline: of the dense model, where it is known before a worker has measured it.

    Attributes:
        refusal: why no trial of this study can be run.
    """

    def __init__(
        self,
        plan: StudyPlan,
        study: StudyFolder,
        search: JournaledSearch,
        coordinator: CoordinatorClient,
        callbacks: Sequence[Callback] = (),
        baseline: Baseline | None = None,
    ) -> None:
        self.refusal: str | None = None
        self._plan, self._study, self._search = plan, study, search
        self._coordinator, self._callbacks = coordinator, callbacks
        self._baseline = study.front.baseline if study.front else baseline
        self._post_front()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a file that this project never reads back."""
        return {}

    @fatal_errors()
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the recipe, if it has one; a trial that is tried again is noted again."""
        if HELDOUT in trial.config:
            return
        recipe = Recipe(**trial.config["recipe"])
        size = self._plan.size_of(recipe)
        assert size is not None, recipe
        self._study.trial_started(trial.trial_id, recipe)
        for callback in self._callbacks:
            callback.trial_started(trial.trial_id, recipe, size)

    @fatal_errors()
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a rung, or a score on held-out questions."""
        reply = result[REPLY]
        if isinstance(reply, PointScored):
            self._note_heldout(reply)
        if isinstance(reply, RungScored) and self._study.rung(trial.trial_id, reply.score):
            for callback in self._callbacks:
                callback.rung(trial.trial_id, reply.score)

    @fatal_errors()
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the trial's line, and the front if it changes.

        Raises:
            LostFileError: the trial gave up waiting for the storage.
            SlotStartError: its slot couldn't be started.
        """
        if HELDOUT in trial.config:
            return
        reply = trial.last_result[REPLY]
        if isinstance(reply, Failed):
            if reply.by_storage:
                raise LostFileError(reply.reason)
            if reply.at_start:
                raise SlotStartError(reply.reason, self._study.folder)
            if reply.refusal:
                self.refusal = reply.refusal
                self._search.searcher.exhausted = True
                return
            self._end(trial, "failed", reply, reply.reason)
        elif self._search.bracket.was_stopped(trial.trial_id):
            seen = reply.score.samples_seen
            self._end(trial, "stopped", reply, f"behind at the rung of {seen} samples; see decisions.jsonl")
        else:
            self._end(trial, "finished", reply)

    @fatal_errors()
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune gave the trial up; without the coordinator it would give up all others, too."""
        self._coordinator.call(Coordinator.dense_scores)
        message = str(trial.get_error() or "the trial's process ended").strip().splitlines()[-1]
        if HELDOUT in trial.config:
            logger.warning("%s: a slot has stopped asking held-out questions: %s", self._study.folder, message)
            return
        self._end(trial, "failed", (trial.last_result or {}).get(REPLY), message)

    def unscored(self) -> list[str]:
        """The keys of the front's points that are to be scored on held-out questions; none where all is refused."""
        front = self._study.front
        return [point.key for point in front.unscored()] if front and not self.refusal else []

    def conclude(self) -> Front | None:
        """Write the front as it stands; None if not even the dense model was measured."""
        baseline = self._baseline or self._measured_baseline()
        self._search.save_if_due(now=True)
        return self._study.write_front(baseline) if baseline else None

    def _end(self, trial: Any, end: str, reply: RungScored | Failed | None, reason: str = "") -> None:
        sizes: dict[str, Any] = {}
        if isinstance(reply, RungScored):
            sizes = reply.model_dump(include={*Sized.model_fields, "seconds_training", "seconds_evaluating"})
        record = self._study.ending(trial.trial_id, end, sizes, reason)
        if end == "finished" and isinstance(reply, RungScored) and reply.checkpoint:
            self._offer(record, reply)
        self._study.record(record)
        for callback in self._callbacks:
            callback.trial_ended(record)
        self._search.save_if_due()

    def _note_heldout(self, reply: PointScored) -> None:
        if reply.heldout is None:
            where = f"{self._study.folder}/{CHECKPOINTS}/{reply.key}"
            logger.warning("%s: not scored on held-out questions: %s", where, reply.reason)
            return
        self._study.add_heldout(reply.key, reply.heldout)
        assert self._study.front is not None
        for callback in self._callbacks:
            callback.front_changed(self._study.front)

    def _offer(self, record: TrialRecord, reply: RungScored) -> None:
        self._baseline = self._baseline or self._measured_baseline()
        assert self._baseline is not None, record
        run_ids = [getattr(callback, "run_id", lambda trial: None)(record.trial) for callback in self._callbacks]
        run_id = next((found for found in run_ids if found), None)
        if self._study.offer(record, self._baseline, reply.checkpoint, reply.heldout, run_id):
            self._post_front()
            assert self._study.front is not None
            for callback in self._callbacks:
                callback.front_changed(self._study.front)

    def _post_front(self) -> None:
        """Tell the slots the front so far: what it dominates needs no checkpoint."""
        if self._study.front:
            points = [(point.size_ratio, point.retention) for point in self._study.front.points]
            self._coordinator.call(Coordinator.post_front, points)

    def _measured_baseline(self) -> Baseline | None:
        scores = self._coordinator.call(Coordinator.dense_scores)
        dense = self._plan.dense
        if scores is None:
            return None
        self._study.write_layer_importance(self._coordinator.call(Coordinator.layer_importance))
        return Baseline(**asdict(dense), scores=scores)
