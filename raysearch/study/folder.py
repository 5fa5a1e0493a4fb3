"""The files of a study: ended trials, the front so far, and the checkpoints that the front needs."""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field, FiniteFloat

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.evaluation.retention import Estimate
from raysearch.files import append_json, delete_folder, delete_unfinished, folder_bytes, write_json
from raysearch.study.examples import EXAMPLES
from raysearch.study.front import CHECKPOINTS, Baseline, Front, FrontPoint, Measured
from raysearch.study.records import Score, TrialRecord, read_document, read_rows

TRIALS, SPACE, LAYERS = "trials.jsonl", "space.json", "layer-importance.json"
RUNNING, TEACHER = "running", "teacher"
GB = 10**9
_OWN_CHECKPOINT = re.compile(r"\.?[0-9a-f]{10}(-retrained|-polished)*(\.\w+)?")
"""Name of a checkpoint, whole or being written or replaced; other folders beside them are the person's."""
_LayerScores = dict[str, Annotated[list[FiniteFloat], Field(min_length=1)]]

logger = logging.getLogger(__name__)


class StudyFolder:
    """A study's folder, new or with the files of earlier starts. Lines are appended whole and flushed; other files are
    replaced whole."""

    def __init__(self, folder: Path, space: SearchSpace) -> None:
        self.folder, self.space = folder, space
        self.budgets = [Budget.parse(budget) for budget in space.budgets]
        self.records = read_trials(folder) if (folder / TRIALS).exists() else []
        self.front: Front | None = Front.load(folder) if (folder / "front.json").exists() else None
        self._open: dict[str, tuple[Recipe, list[Score], float, float]] = {}

    def create(self) -> None:
        """Write the space into the folder, and delete what a crash has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SPACE, self.space.model_dump(mode="json"))
        self._sweep()
        self._keep_to_quota()

    def _sweep(self) -> None:
        """Delete half-written files, checkpoints that the front does not name, and states of ended trials."""
        delete_unfinished(self.folder)
        named = {point.checkpoint for point in self.front.points} if self.front else set()
        for path in self.folder.glob(f"{CHECKPOINTS}/*"):
            if _OWN_CHECKPOINT.fullmatch(path.name) and f"{CHECKPOINTS}/{path.name}" not in named:
                self._delete(path)
        ended = {record.key for record in self.records}
        for path in self.folder.glob(f"{RUNNING}/*"):
            if path.name in ended:
                self._delete(path)

    def _delete(self, path: Path) -> None:
        delete_folder(path, within=self.folder)

    def trial_started(self, trial: str, recipe: Recipe) -> None:
        """Note that a trial runs."""
        self._open[trial] = (recipe, [], time.monotonic(), time.time())

    def rung(self, trial: str, score: Score) -> bool:
        """Note a running trial's score; False if that rung was seen before (the trial is replayed)."""
        scores = self._open[trial][1]
        if scores and score.samples_seen <= scores[-1].samples_seen:
            return False
        scores.append(score)
        self._keep_to_quota()
        return True

    def ending(self, trial: str, end: str, result: dict[str, Any], reason: str = "") -> TrialRecord:
        """The record of a trial that ends now."""
        recipe, scores, started, started_at = self._open.pop(trial)
        return TrialRecord(
            trial=trial,
            key=recipe.key,
            recipe=recipe,
            rungs=scores,
            end=end,  # type: ignore[arg-type]
            reason=reason,
            started=started_at,
            seconds=time.monotonic() - started,
            **{"num_params": 0, "size_bytes": 0, **result},
        )

    def record(self, record: TrialRecord) -> None:
        """Write the trial's line, which ends it, and delete what it saved at its rungs."""
        append_json(self.folder / TRIALS, record.model_dump(mode="json", exclude_none=True))
        self.records.append(record)
        self._delete(self.folder / RUNNING / record.key)

    def offer(
        self,
        record: TrialRecord,
        baseline: Baseline,
        checkpoint: str | None,
        heldout: Measured | None,
        mlflow_run_id: str | None = None,
    ) -> bool:
        """Add a finished trial to the front unless a point there dominates or equals it, write that front, and delete
        the checkpoints of points that leave it; to be called before `record`, so that no crash can cost the front a
        point.

        Returns:
            Whether the front has changed.
        """
        last = record.rungs[-1]
        points = self.front.points if self.front else []
        before = [old for old in points if old.key != record.key]  # it is there if it is offered again
        point = FrontPoint(
            key=record.key,
            recipe=record.recipe,
            **asdict(record.size),
            size_ratio=record.size_bytes / baseline.size_bytes,
            retention=last.retention,
            retention_ci=Estimate(last.retention, last.retention_se).interval,
            scores=last.scores,
            num_questions=last.num_questions,
            samples_seen=last.samples_seen,
            best_at=last.best_at,
            checkpoint=checkpoint,
            mlflow_run_id=mlflow_run_id,
            heldout=heldout,
        )
        front = self._build(baseline, [*before, point])
        keys = {kept.key for kept in front.points}
        is_changed = point.key in keys or len(before) < len(points)
        if is_changed:
            self.front = front
            self.front.save(self.folder)
        for gone in [old for old in [*before, point] if old.key not in keys]:
            self._delete_checkpoint(gone)
            (self.folder / EXAMPLES / f"{gone.key}.json").unlink(missing_ok=True)
        if is_changed:
            self._keep_to_quota()
        return is_changed

    def add_heldout(self, key: str, heldout: Measured) -> None:
        """Note the score of a front point on held-out questions."""
        assert self.front is not None, key
        points = [
            point.model_copy(update={"heldout": heldout}) if point.key == key else point for point in self.front.points
        ]
        self.front = self.front.model_copy(update={"points": points})
        self.front.save(self.folder)

    def _keep_to_quota(self) -> None:
        """Delete what is needed least until the running trials' states and the front's checkpoints fit the quota.

        States go before checkpoints, large ones first: a trial without one starts again if it is interrupted. A point
        whose checkpoint is deleted stays on the front. What slots are just writing is not counted.
        """
        if self.space.recovery.checkpoint_quota_gb is None:
            return
        quota = self.space.recovery.checkpoint_quota_gb * GB
        running = [self.folder / RUNNING / recipe.key for recipe, *_ in self._open.values()]
        states = {path: folder_bytes(path) for folder in running for path in folder.glob("[0-9]*")}
        points = self.front.least_needed_first() if self.front else []
        paths = {point.key: path for point in points if (path := point.checkpoint_path(self.folder))}
        checkpoints = {key: folder_bytes(path) for key, path in paths.items()}
        excess = sum(states.values()) + sum(checkpoints.values()) - quota
        for path in sorted(states, key=states.__getitem__, reverse=True):
            if excess > 0:
                self._delete(path)
                excess -= states[path]
        for point in points:
            if excess > 0 and point.key in checkpoints:
                self._drop_checkpoint(point)
                excess -= checkpoints[point.key]

    def _drop_checkpoint(self, point: FrontPoint) -> None:
        """Take it off the front first, so that no crash leaves a point with a half-deleted checkpoint."""
        assert self.front is not None, point
        logger.warning(
            "%s/%s: deleted, since what the front needs takes more than recovery.checkpoint_quota_gb, %g; "
            "raysearch export --rebuild makes it again",
            self.folder,
            point.checkpoint,
            self.space.recovery.checkpoint_quota_gb,
        )
        without = point.model_copy(update={"checkpoint": None})
        points = [without if other.key == point.key else other for other in self.front.points]
        self.front = self.front.model_copy(update={"points": points})
        self.front.save(self.folder)
        self._delete_checkpoint(point)

    def _delete_checkpoint(self, point: FrontPoint) -> None:
        path = point.checkpoint_path(self.folder)
        if path:
            self._delete(path)

    def write_front(self, baseline: Baseline) -> Front:
        """Replace `front.json`, empty if no trial has finished."""
        self.front = self.front or self._build(baseline, [])
        self.front.save(self.folder)
        return self.front

    def write_layer_importance(self, by_criterion: Mapping[str, Sequence[float]]) -> None:
        """Write the importance of each decoder layer of the dense model, by criterion, for the report."""
        write_json(self.folder / LAYERS, by_criterion)

    def _build(self, baseline: Baseline, points: Iterable[FrontPoint]) -> Front:
        return Front.build(self.space.name, self.space.model, baseline, points, self.budgets)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a study's folder for this process; the lock ends with the process, however it ends.

    Raises:
        InputError: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"{folder}: a search is at work on this study; wait for its end, or choose another --out"
        ) from None


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return any((folder / name).exists() for name in (SPACE, TRIALS, "front.json"))


def read_trials(folder: Path) -> list[TrialRecord]:
    """The ended trials of a study, in the order of their end.

    Raises:
        InputError: there is no such file, or a line is not a trial.
    """
    if not (folder / TRIALS).exists():
        raise InputError(f"{folder}: no {TRIALS}, so this is no study; give the --out folder of a search")
    return list(read_rows(folder / TRIALS, TrialRecord))


def read_layer_importance(folder: Path) -> dict[str, list[float]]:
    """Scores of the dense model's decoder layers by criterion; empty if the study has none.

    Raises:
        InputError: the file holds something else.
    """
    return read_document(folder / LAYERS, _LayerScores, "scores of layers") or {}


def read_space(folder: Path) -> SearchSpace:
    """The space that a study was started with.

    Raises:
        InputError: the folder holds no study.
    """
    path = folder / SPACE
    if not path.exists():
        raise InputError(f"{folder}: no {SPACE}; give the --out folder of a search, or copy the whole of it")
    try:
        return SearchSpace.load(path)
    except InputError as error:
        raise InputError(f"{error}; was it written by another version of raysearch?") from None
