"""Save a trial at its rungs, and resume it from the last one; keep the weights of the best."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.files import is_storage_problem, read_json, write_json
from raysearch.recovery import checkpoint
from raysearch.recovery.deepspeed_engine import all_reduce_min, collective_io, is_rank_zero
from raysearch.recovery.trainer import RecoveryTrainer
from raysearch.study.records import Score

SCORES, UNFINISHED, BEST = "scores.json", "unfinished", "{samples_seen}-best"
logger = logging.getLogger(__name__)


def save(trainer: RecoveryTrainer, scores: Sequence[Score], folder: Path) -> None:
    """Write a rung's checkpoint to FOLDER/SAMPLES_SEEN, whole or not at all, and delete the one of the rung before.

    If the storage fails, on a full disk for instance, the one before stays and a warning is logged: the trial needs a
    checkpoint only if it is interrupted. Every worker must call it; rank 0 moves and deletes.

    Args:
        scores: of all rungs so far.

    Raises:
        OSError: another than a storage problem.
    """
    unfinished, whole = folder / UNFINISHED, folder / str(trainer.samples_seen)
    with _warning_if_full(unfinished, whole):
        trainer.save(unfinished)
        with collective_io():
            if is_rank_zero():
                write_json(unfinished / SCORES, [score.model_dump() for score in scores])
                _replace_others(unfinished, whole, _rungs(folder))


def save_best(trainer: RecoveryTrainer, folder: Path) -> None:
    """Write the weights of a rung to FOLDER/SAMPLES_SEEN-best, and delete those of another rung; else as `save`."""
    unfinished, whole = folder / UNFINISHED, folder / BEST.format(samples_seen=trainer.samples_seen)
    with _warning_if_full(unfinished, whole):
        weights = trainer.changed_weights()
        with collective_io():
            if is_rank_zero():
                checkpoint.write_checked(unfinished / checkpoint.WEIGHTS, weights)
                _replace_others(unfinished, whole, folder.glob(BEST.format(samples_seen="*")))


def load_best(model: PreTrainedModel, samples_seen: int, folder: Path) -> bool:
    """Give a pruned model the weights that `save_best` wrote at `samples_seen`. Every worker must call it.

    Returns:
        Whether they were there and whole, for every worker; else the model must not be used.
    """
    path = folder / BEST.format(samples_seen=samples_seen) / checkpoint.WEIGHTS
    try:
        weights = checkpoint.read_checked(path)
    except (OSError, ValueError, SafetensorError):
        return all_reduce_min(False) == 1
    params = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            params[name].copy_(value)
    return all_reduce_min(True) == 1


@contextmanager
def _warning_if_full(unfinished: Path, whole: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_storage_problem(error):
            raise
        if is_rank_zero():
            shutil.rmtree(unfinished, ignore_errors=True)
            logger.warning("%s: not written (%s); the trial continues without it", whole, error.strerror)


def _replace_others(unfinished: Path, whole: Path, others: Iterable[Path]) -> None:
    """Move a written checkpoint to its place and delete all others of its kind."""
    shutil.rmtree(whole, ignore_errors=True)  # of an earlier attempt that could not be restored
    os.replace(unfinished, whole)
    for other in list(others):
        if other != whole:
            shutil.rmtree(other, ignore_errors=True)  # it may be gone already, for the study's disk quota


def exists(folder: Path) -> bool:
    """Whether every worker finds a checkpoint in a folder. Every worker must call it."""
    return all_reduce_min(bool(_rungs(folder))) == 1


def restore(trainer: RecoveryTrainer, folder: Path) -> list[Score] | None:
    """Resume from the latest rung in a folder. Every worker must call it.

    Returns:
        The scores of all rungs up to there, empty if there is no checkpoint; None if it is damaged or of other
        settings: then the trainer may be partly overwritten.
    """
    if not exists(folder):
        return []
    newest = _rungs(folder)[-1]
    try:
        scores = [Score(**row) for row in read_json(newest / SCORES)]
        trainer.restore(newest)
        usable = bool(scores) and scores[-1].samples_seen == trainer.samples_seen
    except (InputError, OSError, ValueError, TypeError) as error:
        logger.warning("%s: can't be resumed (%s); the trial starts again", newest, error)
        usable = False
    return scores if all_reduce_min(usable) else None


def _rungs(folder: Path) -> list[Path]:
    """The whole checkpoints, in the order of samples seen."""
    found = folder.iterdir() if folder.exists() else ()
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))
