"""The files of a study: what has ended, the front so far, and the checkpoints that the front needs."""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.evaluation.retention import Estimate
from raysearch.files import append_json, folder_bytes, read_json_lines, write_json
from raysearch.study.front import Baseline, Front, FrontPoint, Measured
from raysearch.study.records import Score, TrialRecord

TRIALS, SPACE, LAYERS = "trials.jsonl", "space.json", "layer-importance.json"
CHECKPOINTS, RUNNING, TEACHER = "checkpoints", "running", "teacher"
GB = 10**9
_LAYER_SCORES = TypeAdapter(dict[str, Annotated[list[FiniteFloat], Field(min_length=1)]])

logger = logging.getLogger(__name__)


class Study:
    """A study's folder. Lines are appended whole and flushed; other files are replaced whole."""

    def __init__(self, folder: Path, space: SearchSpace) -> None:
        """A new study in `folder`, or the one that is there."""
        self.folder, self.space = folder, space
        self.earlier_space = read_space(folder) if (folder / SPACE).exists() else None
        """The space of the last start of this study; None for a new one."""
        self.budgets = [Budget.parse(budget) for budget in space.budgets]
        self.records = read_trials(folder) if (folder / TRIALS).exists() else []
        self.front: Front | None = Front.load(folder) if (folder / "front.json").exists() else None
        self._open: dict[str, tuple[Recipe, list[Score], float]] = {}

    def create(self) -> None:
        """Write the space into the folder, and clear away what a crash has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SPACE, self.space.model_dump(mode="json"))
        self._sweep()
        self._keep_to_quota()

    def _sweep(self) -> None:
        """Delete files that were being written, checkpoints that the front does not name, and states of trials that
        have ended."""
        ended = {record.key for record in self.records}
        for path in self.folder.glob(".*.*"):
            path.unlink()
        named = {point.checkpoint for point in self.front.points} if self.front else set()
        for path in self.folder.glob(f"{CHECKPOINTS}/*"):
            if f"{CHECKPOINTS}/{path.name}" not in named:
                shutil.rmtree(path)
        for path in self.folder.glob(f"{RUNNING}/*"):
            if path.name in ended:
                shutil.rmtree(path)

    def trial_started(self, trial: str, recipe: Recipe) -> None:
        """Note that a trial runs."""
        self._open[trial] = (recipe, [], time.monotonic())

    def rung(self, trial: str, score: Score) -> bool:
        """Note a running trial's score; False if that rung was seen already (the trial is being replayed)."""
        scores = self._open[trial][1]
        if scores and score.samples_seen <= scores[-1].samples_seen:
            return False
        scores.append(score)
        self._keep_to_quota()
        return True

    def ending(self, trial: str, end: str, result: dict[str, Any], reason: str = "") -> TrialRecord:
        """What there will be to record of a trial that ends now."""
        recipe, scores, started = self._open.pop(trial)
        return TrialRecord(
            trial=trial,
            key=recipe.key,
            recipe=recipe,
            num_params=result.get("num_params", 0),
            size_bytes=result.get("size_bytes", 0),
            rungs=scores,
            end=end,  # type: ignore[arg-type]
            reason=reason,
            seconds=time.monotonic() - started,
            seconds_training=result.get("seconds_training", 0.0),
            seconds_evaluating=result.get("seconds_evaluating", 0.0),
        )

    def record(self, record: TrialRecord) -> None:
        """Write the trial's line; from now on it has ended, and what it kept at its rungs goes."""
        append_json(self.folder / TRIALS, record.model_dump(mode="json", exclude_none=True))
        self.records.append(record)
        shutil.rmtree(self.folder / RUNNING / record.key, ignore_errors=True)

    def offer(
        self,
        record: TrialRecord,
        baseline: Baseline,
        checkpoint: str | None,
        heldout: Measured | None,
        mlflow_run_id: str | None = None,
    ) -> bool:
        """Let a finished trial onto the front if nothing there dominates it, write that front, and delete the
        checkpoints that it pushes off; to be called before `record`, so that no crash can cost the front a point.

        Returns:
            Whether the front has changed.
        """
        last = record.rungs[-1]
        points = self.front.points if self.front else []
        before = [old for old in points if old.key != record.key]  # it is there if it is offered again
        beaten = any(old.size_bytes <= record.size_bytes and old.retention >= last.retention for old in before)
        if beaten and len(before) == len(points):
            if checkpoint:
                shutil.rmtree(self.folder / checkpoint, ignore_errors=True)
            return False
        point = FrontPoint(
            key=record.key,
            recipe=record.recipe,
            num_params=record.num_params,
            size_bytes=record.size_bytes,
            size_ratio=record.size_bytes / baseline.size_bytes,
            retention=last.retention,
            retention_ci=Estimate(last.retention, last.retention_se).interval,
            scores=last.scores,
            samples_seen=last.samples_seen,
            checkpoint=checkpoint,
            mlflow_run_id=mlflow_run_id,
            heldout=heldout,
        )
        self.front = self._build(baseline, [*before, point])
        keys = {kept.key for kept in self.front.points}
        if point.key in keys:
            self.front.save(self.folder)
        for gone in [old for old in [*before, point] if old.key not in keys and old.checkpoint]:
            shutil.rmtree(self.folder / str(gone.checkpoint), ignore_errors=True)
        self._keep_to_quota()
        return point.key in keys

    def _keep_to_quota(self) -> None:
        """Delete what is needed least until the running trials' states and the front's checkpoints keep to the quota.

        States go before checkpoints, large ones first: a trial without one starts anew if it is interrupted. A point
        whose checkpoint goes stays on the front. What slots are just writing is not counted.
        """
        if self.space.recovery.checkpoint_quota_gb is None:
            return
        quota = self.space.recovery.checkpoint_quota_gb * GB
        running = [self.folder / RUNNING / recipe.key for recipe, _, _ in self._open.values()]
        states = {path: folder_bytes(path) for folder in running for path in folder.glob("[0-9]*")}
        points = [point for point in (self.front.least_needed_first() if self.front else []) if point.checkpoint]
        checkpoints = {point.key: folder_bytes(self.folder / str(point.checkpoint)) for point in points}
        excess = sum(states.values()) + sum(checkpoints.values()) - quota
        for path in sorted(states, key=states.__getitem__, reverse=True):
            if excess > 0:
                shutil.rmtree(path, ignore_errors=True)
                excess -= states[path]
        for point in points:
            if excess > 0:
                self._drop_checkpoint(point)
                excess -= checkpoints[point.key]

    def _drop_checkpoint(self, point: FrontPoint) -> None:
        """The front forgets it first, so that no crash leaves it with a checkpoint that is half deleted."""
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
        shutil.rmtree(self.folder / str(point.checkpoint), ignore_errors=True)

    def write_front(self, baseline: Baseline) -> Front:
        """Replace `front.json`, empty if no trial has finished."""
        self.front = self.front or self._build(baseline, [])
        self.front.save(self.folder)
        return self.front

    def write_layer_importance(self, by_criterion: Mapping[str, Sequence[float]]) -> None:
        """Keep what each decoder layer of the dense model is worth, by criterion, for the report."""
        write_json(self.folder / LAYERS, by_criterion)

    def _build(self, baseline: Baseline, points: Iterable[FrontPoint]) -> Front:
        return Front.build(self.space.name, self.space.model, baseline, points, self.budgets)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder for this process alone; the lock ends with the process, however it ends.

    Raises:
        InputError: another process holds it.
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
    path = folder / TRIALS
    if not path.exists():
        raise InputError(f"{folder}: no {TRIALS}, so this is no study; give the --out folder of a search")
    try:
        return [TrialRecord.model_validate(row) for row in read_json_lines(path)]
    except ValueError as error:
        raise InputError(f"{path}: not trials of this version ({str(error).splitlines()[0]})") from None


def read_layer_importance(folder: Path) -> dict[str, list[float]]:
    """Scores of the dense model's decoder layers by criterion; empty if the study has none.

    Raises:
        InputError: the file holds something else.
    """
    path = folder / LAYERS
    if not path.exists():
        return {}
    try:
        return _LAYER_SCORES.validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"{path}: no scores of layers ({str(error).splitlines()[0]}); delete it, to go without them"
        ) from None


def read_space(folder: Path) -> SearchSpace:
    """The space that a study was started with.

    Raises:
        InputError: the folder holds no study.
    """
    path = folder / SPACE
    if not path.exists():
        raise InputError(f"{folder}: no {SPACE}, so there is no study to resume; give the --out folder of a search")
    return SearchSpace.load(path)
