"""Prior studies for a warm start: a folder or an MLflow experiment, of the same model or another."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysearch.config.recipe import Recipe
from raysearch.errors import InputError, first_line
from raysearch.study.folder import is_study, read_trials
from raysearch.study.multi_objective import nondomination_ranks
from raysearch.study.secrets import mask
from raysearch.tracking.mlflow_runs import find_trials


@dataclass(frozen=True)
class PriorTrial:
    """A finished trial of another study."""

    recipe: Recipe
    size_bytes: int
    retention: float
    on_front: bool = False
    """Whether no other trial of its study dominates it."""


def read_prior_trials(source: str, uri: str) -> list[PriorTrial]:
    """The finished trials of a prior study.

    Args:
        source: the --out folder of a search, or the name of an experiment in MLflow.
        uri: MLflow's tracking server.

    Raises:
        InputError: `source` is neither, or none of its trials has finished.
    """
    folder = Path(source)
    if folder.exists() and not is_study(folder):
        raise InputError(f"--warm-start {source}: no study; give the --out folder of a search")
    found = list(_from_folder(folder) if folder.exists() else _from_experiment(source, uri))
    if not found:
        raise InputError(f"--warm-start {source}: no trial has finished there; leave it out")
    ranks = nondomination_ranks(np.array([(trial.size_bytes, -trial.retention) for trial in found]))
    return [replace(trial, on_front=bool(rank == 0)) for trial, rank in zip(found, ranks, strict=True)]


def _from_folder(folder: Path) -> Iterator[PriorTrial]:
    for record in read_trials(folder):
        if record.end == "finished" and record.rungs:
            yield PriorTrial(record.recipe, record.size_bytes, record.rungs[-1].retention)


def _from_experiment(name: str, uri: str) -> Iterable[PriorTrial]:
    try:
        runs = find_trials(uri, name)
    except Exception as error:
        raise InputError(
            f"--warm-start {name}: no such folder, and MLflow at {mask(uri)} does not answer: {mask(first_line(error))}"
        ) from None
    if runs is None:
        raise InputError(
            f"--warm-start {name}: no such folder, and no such experiment in MLflow at {mask(uri)}; "
            "give the --out folder of a search, or set MLFLOW_TRACKING_URI"
        )
    for params, metrics in runs:
        try:
            fields: dict[str, Any] = {name: _value(text) for name, text in params.items()}
            trial = PriorTrial(Recipe(**fields), round(metrics["size_bytes"]), float(metrics["retention"]))
        except (ValidationError, KeyError, TypeError, ValueError, OverflowError):  # not a run of a trial
            continue
        if math.isfinite(trial.retention):
            yield trial


def _value(text: str) -> float | str:
    """A parameter, which MLflow stores as text."""
    try:
        return float(text)
    except ValueError:
        return text
