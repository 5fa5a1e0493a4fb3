"""What the paper measured beside its recipes, on models that are pruned and not recovered: how many samples
importance takes (Figure 7), what is lost in words alone (Table 4), and how long an answer takes (Table 3)."""

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
NUM_TIMED, NUM_WARM = 30, 3


@dataclass(frozen=True)
class Probes:
    """What was measured.

    Attributes:
        search_dense: the dense model's results on the search split; None if they weren't measured.
        calibration: by calibration samples and cell, results on the search split.
        text_dense: the dense model's held-out results with the images withheld; None if they weren't measured.
        text: the same by cell.
        seconds: of the first token of an answer, mean and standard error, by cell; None for the dense model.
    """

    search_dense: Results | None
    calibration: Mapping[tuple[int, Cell], Results]
    text_dense: Results | None
    text: Mapping[Cell, Results]
    seconds: Mapping[Cell | None, Estimate]

    @classmethod
    def load(cls, folder: Path, recipes: Sequence[Recipe]) -> "Probes":
        """As far as the study in `folder` has them."""
        cells = {_name(recipe): cell_of(recipe) for recipe in _probed(recipes)}
        stored = {path.stem: load_results(path) for path in sorted((folder / PROBES).glob("*.npz"))}
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
    """Measure what the study in `folder` lacks, in this process."""
    untrained = _probed(recipes)
    wanted = {f"text-{_name(recipe)}" for recipe in untrained} | {"search-dense", "text-dense", "seconds"}
    wanted |= {f"calibration-{num}-{_name(recipe)}" for num in CALIBRATION_SIZES for recipe in untrained}
    if not untrained or wanted <= {path.stem for path in (folder / PROBES).glob("*")}:
        return
    from raysearch.trials.context import DenseBaselines, TrialContext

    dense = load_results(folder / SCORES / "dense.npz")
    context = TrialContext(space, DenseBaselines(dense, dense, dense, {}))
    words = [replace(b, questions=tuple(q.without_images() for q in b.questions)) for b in context.heldout]
    _keep(folder, "search-dense", partial(context.evaluate, context.model, context.questions))
    _keep(folder, "text-dense", partial(context.evaluate, context.model, words))
    timed = {"dense": _seconds(context, context.model)}
    for recipe, model in _pruned(context, untrained, space.calibration.num_samples):
        _keep(folder, f"text-{_name(recipe)}", partial(context.evaluate, model, words))
        timed[_name(recipe)] = _seconds(context, model)
    write_json(folder / PROBES / "seconds.json", timed)
    for num in CALIBRATION_SIZES:
        left = [r for r in untrained if not _path(folder, f"calibration-{num}-{_name(r)}").exists()]
        for recipe, model in _pruned(context, left, num):
            save_results(
                _path(folder, f"calibration-{num}-{_name(recipe)}"), context.evaluate(model, context.questions)
            )


def _probed(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes that only prune."""
    return [r for r in recipes if r.trained == "nothing" and r.quantization == "none" and r.ratio > 0]


def _pruned(context: Any, recipes: Sequence[Recipe], num_samples: int) -> Iterator[tuple[Recipe, Any]]:
    """Each recipe's model, pruned by importance on so many samples."""
    names = {name for recipe in recipes for name in recipe.criteria if name}
    importances = {name: context.importance(name, num_samples) for name in sorted(names)}
    for recipe in recipes:
        yield recipe, context.prune(recipe, importances)


def _seconds(context: Any, model: Any) -> tuple[float, float]:
    """Mean time of one token's answer to one held-out question, and its standard error."""
    from raysearch.evaluation.evaluator import generate_answers

    question = context.heldout[0].questions[:1]
    taken = []
    for _ in range(NUM_WARM + NUM_TIMED):
        start = time.perf_counter()
        generate_answers(model, context.encoder, question, 1)
        taken.append(time.perf_counter() - start)
    timed = np.array(taken[NUM_WARM:])
    return float(timed.mean()), float(timed.std(ddof=1) / np.sqrt(len(timed)))


def _keep(folder: Path, name: str, evaluate: Callable[[], Results]) -> None:
    if not _path(folder, name).exists():
        save_results(_path(folder, name), evaluate())


def _path(folder: Path, name: str) -> Path:
    return folder / PROBES / f"{name}.npz"


def _name(recipe: Recipe) -> str:
    return f"{recipe.mode}-{recipe.ratio:g}"
