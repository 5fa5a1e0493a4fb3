"""The Pareto front of size against retention, and the answer to a budget."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.files import write_json
from raysearch.study.multi_objective import exclusive_hypervolume, hypervolume, nondomination_ranks
from raysearch.study.records import Key, Printable, Sized, problem_text

CHECKPOINTS = "checkpoints"


class Measured(BaseModel):
    """Quality of one checkpoint on one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retention: float
    retention_ci: tuple[float, float]
    scores: dict[Printable, float]
    scores_ci: dict[Printable, tuple[float, float]] = {}
    """95% interval of each mean score, where it was computed."""
    num_questions: int | None = None
    """Questions that were scored."""


def retention_text(measured: Measured) -> str:
    """Retention with its 95% interval, in percent of the dense model."""
    low, high = measured.retention_ci
    return f"{measured.retention:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


class Speed(BaseModel):
    """Speed and memory of one checkpoint on one machine, for one row of a picture and a short question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Printable
    dtype: Printable
    num_prompt_tokens: int
    """Image tokens included."""
    prefill_seconds: float
    """Median time from the encoded prompt to the first token's logits."""
    decode_tokens_per_second: float
    """Greedy, after the prompt."""
    peak_memory_bytes: int
    """Of the GPU, or of the whole process on a CPU."""
    checkpoint_bytes: int
    """Of the files with weights."""
    kv_cache_bytes_per_1000_tokens: int


class FrontPoint(Measured, Sized):
    """One recipe on the front, with its size, its quality on the search split and its checkpoint."""

    key: Key
    recipe: Recipe
    size_ratio: float
    samples_seen: int
    best_at: int | None = None
    """Samples seen by the state that was handed over, where that isn't the final one (`Score.best_at`)."""
    checkpoint: str | None = None
    """Folder of the stock Hugging Face checkpoint, relative to the study's: one in its `checkpoints`."""
    mlflow_run_id: Printable | None = None
    heldout: Measured | None = None
    """The same checkpoint on questions that the search never saw."""
    measured: Speed | None = None
    """Its speed and memory, once `raysearch benchmark` has run."""

    def checkpoint_path(self, study: Path) -> Path | None:
        """The folder of its checkpoint; None if the study's disk quota deleted it.

        Args:
            study: folder of the study.

        Raises:
            InputError: it lies elsewhere than in `checkpoints`, symbolic links followed.
        """
        if self.checkpoint is None:
            return None
        path = study / self.checkpoint
        if path.resolve().parent != study.resolve() / CHECKPOINTS:
            raise InputError(
                f"{study}/front.json: checkpoint {self.checkpoint} is no folder in {study}/{CHECKPOINTS}; correct it"
            )
        return path


class Baseline(Sized):
    """The dense model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: dict[Printable, float]
    measured: Speed | None = None


class Front(BaseModel):
    """`front.json`: points sorted by size, none dominated, and by budget the key of the point that answers it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: int = Field(1, alias="schema")
    study: Printable
    model: Printable
    baseline: Baseline
    points: list[FrontPoint]
    hypervolume: float
    reference_point: tuple[float, float] = (1.0, 0.0)
    budgets: dict[Printable, Key | None]

    @classmethod
    def build(
        cls,
        study: str,
        model: str,
        baseline: Baseline,
        candidates: Iterable[FrontPoint],
        budgets: Iterable[Budget] = (),
    ) -> "Front":
        """The front of `candidates`; of those with equal size and retention the first is kept."""
        unique: dict[tuple[int, float], FrontPoint] = {}
        for point in candidates:
            unique.setdefault((point.size_bytes, point.retention), point)
        points = list(unique.values())
        if points:
            ranks = nondomination_ranks(np.array([(p.size_bytes, -p.retention) for p in points]))
            points = [point for point, rank in zip(points, ranks, strict=True) if rank == 0]
        points.sort(key=lambda p: p.size_bytes)
        area = hypervolume([p.size_ratio for p in points], [p.retention for p in points])
        front = cls(study=study, model=model, baseline=baseline, points=points, hypervolume=area, budgets={})
        answers = {budget.text: getattr(front.pick(budget), "key", None) for budget in budgets}
        return front.model_copy(update={"budgets": answers})

    def pick(self, budget: Budget) -> FrontPoint | None:
        """Of the points within `budget`, the one with the highest lower bound of retention; ties to the smaller, then
        to the one that saw fewer samples. None when nothing fits."""
        fitting = [point for point in self.points if budget.admits(point.size, self.baseline.size)]
        return min(fitting, key=lambda p: (-p.retention_ci[0], p.size_bytes, p.samples_seen), default=None)

    def answer(self, budget: Budget, folder: Path) -> FrontPoint:
        """As `pick`.

        Args:
            folder: of the study, for messages.

        Raises:
            InputError: the front is empty, or no point is small enough.
        """
        if not self.points:
            raise InputError(f"{folder}: no recipe has finished yet; resume it with raysearch search --resume {folder}")
        point = self.pick(budget)
        if point is None:
            smallest = budget.costs_text(self.points[0].size, self.baseline.size)
            raise InputError(
                f"--budget {budget.text}: the smallest recipe on the front takes {smallest}; raise the budget, or "
                f"search with --budget {shlex.quote(budget.text)}"
            )
        return point

    def least_needed_first(self) -> list[FrontPoint]:
        """The points that answer no budget before those that do; among each, those first that add least hypervolume."""
        places = np.array([(point.size_ratio, -point.retention) for point in self.points]).reshape(-1, 2)
        areas = exclusive_hypervolume(np.clip(places, (0, -1), (1, 0)), np.array((1, 0)))
        added = {point.key: area for point, area in zip(self.points, areas, strict=True)}
        return sorted(self.points, key=lambda p: (p.key in self.budgets.values(), added[p.key]))

    def unscored(self) -> list[FrontPoint]:
        """The points whose checkpoint has not been scored on held-out questions, which a search does at its end."""
        return [point for point in self.points if point.heldout is None and point.checkpoint is not None]

    def save(self, folder: Path) -> None:
        """Replace `front.json` in `folder`."""
        write_json(folder / "front.json", self.model_dump(mode="json", by_alias=True, exclude_none=False))

    @classmethod
    def load(cls, folder: str | Path) -> "Front":
        """Read `front.json` of a study's folder.

        Raises:
            InputError: there is none, or it isn't one, or names a checkpoint elsewhere.
        """
        path = Path(folder) / "front.json"
        try:
            front = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            is_started = any((path.parent / name).exists() for name in ("space.json", "trials.jsonl"))
            raise InputError(
                f"{folder}: no front.json, so no trial has finished here, or the folder was copied in part; raysearch "
                f"status {shlex.quote(str(folder))} says how far the search is"
                if is_started
                else f"{folder}: no front.json, so this is no study; give the --out folder of a search"
            ) from None
        except (ValueError, OSError) as error:
            raise InputError(
                f"{path}: not a front of this version ({problem_text(error)}); use the version of raysearch that wrote "
                "it, copy the folder again if it was copied in part, or run the search again"
            ) from None
        for point in front.points:
            point.checkpoint_path(path.parent)
        return front
