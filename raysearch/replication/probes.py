"""The paper's measurements on models that are pruned and not recovered: number of calibration samples (Figure 7),
scores without images (Table 4), and time to the first token (Table 3)."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import Estimate, Results, load_results, save_results
from raysearch.files import write_json
from raysearch.replication.table import SCORES, Cell, cell_of

PROBES = "probes"
CALIBRATION_SIZES = (1, 2, 5, 10, 20, 50)
NUM_TIMED, NUM_WARM_UP = 30, 3


@dataclass(frozen=True)
class Probes:
    """The measurements, as far as a study has them.

    Attributes:
        search_dense: the dense model's results on the search split.
        calibration: results on the search split by number of calibration samples and cell.
        text_dense: the dense model's held-out results with the images withheld.
        text: the same by cell.
        seconds: mean time to the first token by cell; of the dense model under None.
    """

    search_dense: Results | None
    calibration: Mapping[tuple[int, Cell], Results]
    text_dense: Results | None
    text: Mapping[Cell, Results]
    seconds: Mapping[Cell | None, Estimate]

    @classmethod
    def load(cls, folder: Path, recipes: Sequence[Recipe]) -> "Probes":
        """Read those that the study in `folder` has, of the cells of `recipes`."""
        cells = {_name(recipe): cell_of(recipe) for recipe in _probed(recipes)}
        stored = {path.stem: load_results(path) for path in (folder / PROBES).glob("*.npz")}
        timed = json.loads(path.read_text()) if (path := folder / PROBES / "seconds.json").exists() else {}
        calibration = {
            (num, cell): stored[f"calibration-{num}-{name}"]
            for num in CALIBRATION_SIZES
            for name, cell in cells.items()
            if f"calibration-{num}-{name}" in stored
        }
        text = {cell: stored[f"text-{name}"] for name, cell in cells.items() if f"text-{name}" in stored}
        seconds = {cells.get(name): Estimate(*values) for name, values in timed.items()}
        return cls(stored.get("search-dense"), calibration, stored.get("text-dense"), text, seconds)


def measure(space: SearchSpace, folder: Path, recipes: Sequence[Recipe]) -> None:
    """Measure what the study in `folder` lacks of `recipes`, in this process, into its `probes` folder."""
    untrained = _probed(recipes)
    wanted = {f"text-{_name(recipe)}" for recipe in untrained} | {"search-dense", "text-dense", "seconds"}
    wanted |= {f"calibration-{num}-{_name(recipe)}" for num in CALIBRATION_SIZES for recipe in untrained}
    if not untrained or wanted <= {path.stem for path in (folder / PROBES).glob("*")}:
        return
    from raysearch.trials.context import DenseBaselines, TrialContext

    dense = load_results(folder / SCORES / "dense.npz")
    context = TrialContext(space, DenseBaselines(dense, dense, {}))
    without_images = [replace(b, questions=tuple(q.without_images() for q in b.questions)) for b in context.heldout]
    _save_once(folder, "search-dense", partial(context.evaluate, context.model, context.questions))
    _save_once(folder, "text-dense", partial(context.evaluate, context.model, without_images))
    timed = {"dense": _seconds(context, context.model)}
    for recipe, model in _pruned(context, untrained, space.calibration.num_samples):
        _save_once(folder, f"text-{_name(recipe)}", partial(context.evaluate, model, without_images))
        timed[_name(recipe)] = _seconds(context, model)
    write_json(folder / PROBES / "seconds.json", timed)
    for num in CALIBRATION_SIZES:
        missing = [r for r in untrained if not _path(folder, f"calibration-{num}-{_name(r)}").exists()]
        for recipe, model in _pruned(context, missing, num):
            name = f"calibration-{num}-{_name(recipe)}"
            _save_once(folder, name, partial(context.evaluate, model, context.questions))


def _probed(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes that only prune."""
    return [r for r in recipes if r.trained == "nothing" and r.quantization == "none" and r.ratio > 0]


def _pruned(context: Any, recipes: Sequence[Recipe], num_samples: int) -> Iterator[tuple[Recipe, Any]]:
    """Each recipe with its model, pruned by importance on `num_samples` samples."""
    names = {name for recipe in recipes for name in recipe.scored_by.values()}
    importances = {name: context.importance(name, num_samples) for name in sorted(names)}
    for recipe in recipes:
        yield recipe, context.prune(recipe, importances)


def _seconds(context: Any, model: Any) -> tuple[float, float]:
    """Mean time to the first token of the answer to one held-out question, and its standard error."""
    from raysearch.evaluation.evaluator import generate_answers

    question = context.heldout[0].questions[:1]
    seconds = []
    for _ in range(NUM_WARM_UP + NUM_TIMED):
        start = time.perf_counter()
        generate_answers(model, context.encoder, question, 1)
        seconds.append(time.perf_counter() - start)
    timed = np.array(seconds[NUM_WARM_UP:])
    return float(timed.mean()), float(timed.std(ddof=1) / np.sqrt(len(timed)))


def _save_once(folder: Path, name: str, evaluate: Callable[[], Results]) -> None:
    if not _path(folder, name).exists():
        save_results(_path(folder, name), evaluate())


def _path(folder: Path, name: str) -> Path:
    return folder / PROBES / f"{name}.npz"


def _name(recipe: Recipe) -> str:
    return f"{recipe.mode}-{recipe.ratio:g}"
