"""The files of a study: what has ended, the front so far, and the checkpoints that the front needs."""

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raysearch.errors import InputError
from raysearch.files import append_json, read_json_lines, write_json
from raysearch.front import Baseline, Front, FrontPoint, Measured
from raysearch.recipe import Recipe
from raysearch.retention import Retention
from raysearch.score import Score, TrialRecord
from raysearch.size import Budget
from raysearch.space import SearchSpace

TRIALS, STARTED, SPACE, LAYERS = "trials.jsonl", "started.jsonl", "space.json", "layer-importance.json"


class Study:
    """A study's folder. Lines are appended whole and flushed; other files are replaced whole."""

    def __init__(self, folder: Path, space: SearchSpace) -> None:
        """A new study in `folder`, or the one that is there."""
        self.folder, self.space = folder, space
        self.budgets = [Budget.parse(budget) for budget in space.budgets]
        self.records = read_trials(folder) if (folder / TRIALS).exists() else []
        self.front: Front | None = Front.load(folder) if (folder / "front.json").exists() else None
        self._open: dict[str, tuple[Recipe, list[Score], float]] = {}

    def create(self) -> None:
        """Make the folder and write the space into it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SPACE, self.space.model_dump(mode="json"))

    def unfinished(self) -> list[Recipe]:
        """Recipes that were started and have not ended, in the order of their start."""
        ended = {record.key for record in self.records}
        started = read_json_lines(self.folder / STARTED)
        recipes = {row["key"]: Recipe(**row["recipe"]) for row in started if row["key"] not in ended}
        return list(recipes.values())

    def trial_started(self, trial: str, recipe: Recipe) -> None:
        """Note that a trial runs, so that a resumed study takes its recipe up again."""
        self._open[trial] = (recipe, [], time.monotonic())
        append_json(self.folder / STARTED, {"trial": trial, "key": recipe.key, "recipe": recipe.as_dict()})

    def rung(self, trial: str, score: Score) -> bool:
        """Note a running trial's score; False if that rung was seen already (the trial is being replayed)."""
        scores = self._open[trial][1]
        if scores and score.samples_seen <= scores[-1].samples_seen:
            return False
        scores.append(score)
        return True

    def trial_ended(self, trial: str, end: str, result: dict[str, Any], reason: str = "") -> TrialRecord:
        """Write the trial's line."""
        recipe, scores, started = self._open.pop(trial)
        record = TrialRecord(
            trial=trial,
            key=recipe.key,
            recipe=recipe,
            num_params=result.get("num_params", 0),
            size_bytes=result.get("size_bytes", 0),
            rungs=scores,
            end=end,  # type: ignore[arg-type]
            reason=reason,
            seconds=time.monotonic() - started,
        )
        append_json(self.folder / TRIALS, record.model_dump(mode="json", exclude_none=True))
        self.records.append(record)
        return record

    def offer(
        self,
        record: TrialRecord,
        baseline: Baseline,
        checkpoint: str | None,
        heldout: Measured | None,
        mlflow_run_id: str | None = None,
    ) -> bool:
        """Let a finished trial onto the front if nothing there dominates it; delete what it pushes off.

        Returns:
            Whether the front has changed.
        """
        last = record.rungs[-1]
        point = FrontPoint(
            key=record.key,
            recipe=record.recipe,
            num_params=record.num_params,
            size_bytes=record.size_bytes,
            size_ratio=record.size_bytes / baseline.size_bytes,
            retention=last.retention,
            retention_ci=Retention(last.retention, last.retention_se).interval,
            scores=last.scores,
            samples_seen=last.samples_seen,
            checkpoint=checkpoint,
            mlflow_run_id=mlflow_run_id,
            heldout=heldout,
        )
        before = self.front.points if self.front else []
        self.front = self._build(baseline, [*before, point])
        keys = {kept.key for kept in self.front.points}
        for gone in [old for old in [*before, point] if old.key not in keys and old.checkpoint]:
            shutil.rmtree(self.folder / str(gone.checkpoint), ignore_errors=True)
        return point.key in keys

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
    except ValidationError as error:
        raise InputError(f"{path}: not trials of this version ({str(error).splitlines()[0]})") from None


def read_layer_importance(folder: Path) -> dict[str, list[float]]:
    """Scores of the dense model's decoder layers by criterion; empty if the study has none."""
    path = folder / LAYERS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_space(folder: Path) -> SearchSpace:
    """The space that a study was started with.

    Raises:
        InputError: the folder holds no study.
    """
    path = folder / SPACE
    if not path.exists():
        raise InputError(
            f"{folder}: no {SPACE}, so there is no study to resume; give the --out folder of a search"
        )
    return SearchSpace.load(path)
