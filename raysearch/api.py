"""The Python API: search, open a study, take its answers, prune a model in memory."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr, ValidationError

from raysearch.config.budget import Budget
from raysearch.config.problems import first_problem
from raysearch.config.recipe import Recipe
from raysearch.config.shape_rules import ShapeRules, shape_rules
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.study.folder import is_study, read_space, read_trials
from raysearch.study.front import Front, FrontPoint
from raysearch.study.records import TrialRecord

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects
    import torch
    from transformers import PreTrainedModel


def search(
    space: str | Path | Mapping[str, Any] | SearchSpace | None = None,
    *,
    budgets: Sequence[str] = (),
    out: str | Path | None = None,
    trials: int | None = None,
    runs: float | None = None,
    time: str | None = None,
    gpu_hours: float | None = None,
    until_gain: float | None = None,
    seed: int | None = None,
    slots: int | None = None,
    warm_start: Sequence[str] = (),
    live: bool = False,
) -> "Study":
    """Search for the Pareto front of model size against retention; returns when the search has ended.

    It runs on the Ray cluster of this process or of `RAY_ADDRESS`, else on this machine, and prints its progress.

    Args:
        space: a file, its content, or a checked space; None for that of the embedded LVLM.
        budgets: sizes to answer, e.g. `60%`, `3.2GB`; they replace those of the space.
        out: folder of the study, new or empty; None makes one below `runs`.
        trials: limit: trials, stopped ones included; a limit given here replaces all those of the space.
        runs: limit: full runs' worth of training.
        time: limit: `90s`, `20m`, `2h`.
        gpu_hours: limit: hours of all GPUs together.
        until_gain: end when ten more full runs are expected to add fewer points at every budget.
        seed: of the sampler and the data order.
        slots: trials at a time.
        warm_start: folders or MLflow experiments of earlier studies.
        live: serve the report on this machine while the search runs; its address is printed.

    Raises:
        InputError: the space, an argument or an earlier study can't be used.
    """
    limits = {"trials": trials, "runs": runs, "time": time, "gpu_hours": gpu_hours, "until_gain": until_gain}
    return _search(_checked(space), None, out, budgets, limits, seed, slots, warm_start, live)


def prune(
    model: "PreTrainedModel",
    recipe: Recipe | Mapping[str, Any],
    calibration: "Iterable[Mapping[str, torch.Tensor]] | None" = None,
    shapes: ShapeRules | Mapping[str, Any] | None = None,
) -> "PreTrainedModel":
    """A new, smaller model of a stock class, without recovery; `model` stays as it is.

    Args:
        recipe: what to remove: mode, ratio, criterion, depth_share, attention_share, expert_ratio, hidden_ratio and
            their criteria; other fields are not used.
        calibration: batches of the model's inputs with `labels`, on its device; None for criteria that need no data.
        shapes: numbers that the model must have, by the keys of a space's `shapes`.

    Raises:
        InputError: not a recipe, no stock class holds its shape, or a criterion misses data; or a smaller hidden size
            would not be right for the architecture.
    """
    from raysearch.models.param_count import counts_of
    from raysearch.models.shape_solver import shape_for
    from raysearch.pruning import prune
    from raysearch.pruning.importance import importance
    from raysearch.pruning.self_check import check_architecture

    if not isinstance(recipe, Recipe):
        try:
            recipe = Recipe.model_validate({"trained": "nothing", **recipe})
        except ValidationError as error:
            raise InputError(f"recipe: {first_problem(error, recipe, Recipe)}") from None
    if recipe.hidden_ratio:
        check_architecture(model.config, recipe.mode, drops_hidden=True)
    shape = shape_for(counts_of(model.config).under(shape_rules(shapes)), recipe)
    batches = None if calibration is None else list(calibration)
    names = recipe.scored_by
    by_name = {name: importance(model, batches, name, recipe.seed) for name in dict.fromkeys(names.values())}
    return prune(model, shape, {part: by_name[name] for part, name in names.items()})


class StudyPoint(FrontPoint):
    """A point of a study's front, with its checkpoint at hand."""

    _study: Path = PrivateAttr()

    @property
    def folder(self) -> Path:
        """Its checkpoint, a stock Hugging Face folder.

        Raises:
            InputError: the disk quota deleted it, or the folder of the study was not copied whole.
        """
        from raysearch.export.export_checkpoint import checkpoint_of

        return checkpoint_of(self._study, self)

    def load(self) -> tuple["PreTrainedModel", Any]:
        """The model in eval mode and its processor.

        Raises:
            InputError: there is no checkpoint, or it can't be read.
        """
        from raysearch.models import load

        return load(self.folder)

    def export(self, to: str | Path) -> None:
        """Copy the checkpoint to a new or empty folder, once a clean process has loaded it by transformers alone.

        Raises:
            InputError: there is no checkpoint, it does not load, or `to` is not empty.
        """
        from raysearch.export.export_checkpoint import export_checkpoint

        export_checkpoint(self._study, self, Path(to), Front.load(self._study))


class Study:
    """A study's folder, to read; each property reads its file anew, so that a running search can be followed."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder.

        Raises:
            InputError: it holds no study.
        """
        self.folder = Path(folder)
        if not is_study(self.folder):
            raise InputError(f"{folder}: holds no study; give the --out folder of a search")

    @classmethod
    def load(cls, folder: str | Path) -> "Study":
        """The same as `Study(folder)`."""
        return cls(folder)

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    @property
    def space(self) -> SearchSpace:
        """The space that it was started with."""
        return read_space(self.folder)

    @property
    def trials(self) -> list[TrialRecord]:
        """Its ended trials, in the order of their end."""
        return read_trials(self.folder)

    @property
    def front(self) -> Front:
        """Its Pareto front of size against retention."""
        return Front.load(self.folder)

    def best(self, budget: str | Budget) -> StudyPoint:
        """The point within a budget with the highest lower bound of retention.

        Args:
            budget: a share of the dense model's bytes (`60%`), bytes (`3.2GB`) or parameters (`3B`).

        Raises:
            InputError: not a budget, or no point is small enough.
        """
        parsed = Budget.parse(budget) if isinstance(budget, str) else budget
        point = StudyPoint(**dict(self.front.answer(parsed, self.folder)))
        point._study = self.folder
        return point

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per ended trial: the fields of its recipe, its size, and its last score.

        Fields of a recipe that don't apply, and scores of a trial without any, are missing values; `score_NAME` is the
        mean score on a benchmark.
        """
        import pandas

        path = self.folder / "front.json"
        front = self.front if path.exists() else None
        keys = {point.key for point in front.points} if front else set()
        rows = []
        for record in self.trials:
            last = record.rungs[-1].model_dump(exclude={"scores", "losses"}) if record.rungs else {}
            scores = record.rungs[-1].scores if record.rungs else {}
            rows.append(
                {
                    "key": record.key,
                    "end": record.end,
                    "on_front": record.key in keys,
                    "num_params": record.num_params,
                    "size_bytes": record.size_bytes,
                    "size_ratio": record.size_bytes / front.baseline.size_bytes if front else None,
                    **last,
                    **{f"score_{name}": score for name, score in scores.items()},
                    **record.recipe.as_dict(),
                    "seconds": record.seconds,
                    "reason": record.reason,
                }
            )
        return pandas.DataFrame(rows)

    def plot(self) -> "plotly.graph_objects.Figure":
        """The front, every trial and the budgets."""
        from raysearch.report.front_info import front_info, trial_points
        from raysearch.report.plots import front_figure

        front = self.front
        return front_figure(front_info(front), trial_points(self.trials, front.baseline))

    def resume(
        self,
        *,
        trials: int | None = None,
        runs: float | None = None,
        time: str | None = None,
        gpu_hours: float | None = None,
        until_gain: float | None = None,
        slots: int | None = None,
        live: bool = False,
    ) -> "Study":
        """Go on with the search, up to its limits or to those given here; returns when it has ended.

        Raises:
            InputError: a search is at work on it, or an argument can't be used.
        """
        limits = {"trials": trials, "runs": runs, "time": time, "gpu_hours": gpu_hours, "until_gain": until_gain}
        return _search(None, self.folder, None, (), limits, None, slots, (), live)


def _checked(space: str | Path | Mapping[str, Any] | SearchSpace | None) -> Path | SearchSpace | None:
    if not isinstance(space, Mapping):
        return Path(space) if isinstance(space, str) else space
    try:
        return SearchSpace.model_validate(dict(space))
    except ValidationError as error:
        raise InputError(f"space: {first_problem(error, space, SearchSpace)}") from None


def _search(
    space: Path | SearchSpace | None,
    resume: Path | None,
    out: str | Path | None,
    budgets: Sequence[str],
    limits: Mapping[str, Any],
    seed: int | None,
    slots: int | None,
    warm_start: Sequence[str],
    is_live: bool,
) -> Study:
    from raysearch.backend.search_job import check, run

    began = monotonic()
    to = None if out is None else Path(out)
    checked = check(space, resume, to, budgets, limits, seed, slots, warm_start, began)
    run(checked.plan, checked.folder, checked.prior_trials, began=began, is_live=is_live)
    return Study(checked.folder)
