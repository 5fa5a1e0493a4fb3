"""What a running trial keeps at its rungs, so that another process can go on from the last one."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from raysearch.errors import InputError
from raysearch.files import is_storage_problem, write_json
from raysearch.recovery.deepspeed_engine import all_reduce_min, collective_io, is_rank_zero
from raysearch.recovery.trainer import RecoveryTrainer
from raysearch.study.records import Score

SCORES, UNFINISHED = "scores.json", "unfinished"
logger = logging.getLogger(__name__)


def keep(recovery: RecoveryTrainer, scores: Sequence[Score], folder: Path) -> None:
    """Write the state at a rung to FOLDER/SAMPLES_SEEN, whole or not at all, and delete the rung before.

    Where it can't be written, on a full disk for instance, the rung before stays and a warning says so: the trial needs
    no state unless it is interrupted. Every worker must call it; worker 0 moves and deletes.

    Args:
        scores: of all rungs so far.
    """
    unfinished, whole = folder / UNFINISHED, folder / str(recovery.samples_seen)
    try:
        recovery.save(unfinished)
        with collective_io():
            if is_rank_zero():
                write_json(unfinished / SCORES, [score.model_dump() for score in scores])
                _take(unfinished, whole)
    except OSError as error:
        if not is_storage_problem(error):
            raise
        if is_rank_zero():
            shutil.rmtree(unfinished, ignore_errors=True)
            logger.warning("%s: not kept (%s); the trial goes on without it", whole, error.strerror)


def _take(unfinished: Path, whole: Path) -> None:
    """Let a finished state be the only one."""
    shutil.rmtree(whole, ignore_errors=True)  # of an earlier attempt that could not be restored
    os.replace(unfinished, whole)
    for other in _rungs(whole.parent):
        if other != whole:
            shutil.rmtree(other, ignore_errors=True)  # the study may have deleted it to keep to its quota


def restore(recovery: RecoveryTrainer, folder: Path) -> list[Score] | None:
    """Go on from the newest rung in a folder. Every worker must call it.

    Returns:
        The scores of all rungs up to there, none if nothing was kept; None if what was kept is broken, or of other
        settings: then the recovery may be half overwritten.
    """
    rungs = _rungs(folder)
    if all_reduce_min(bool(rungs)) == 0:
        return []
    newest = rungs[-1]
    try:
        scores = [Score(**row) for row in json.loads((newest / SCORES).read_text())]
        recovery.restore(newest)
        usable = bool(scores) and scores[-1].samples_seen == recovery.samples_seen
    except (InputError, OSError, ValueError, TypeError) as error:
        logger.warning("%s: can't go on from it (%s); the trial starts anew", newest, error)
        usable = False
    return scores if all_reduce_min(usable) else None


def _rungs(folder: Path) -> list[Path]:
    """What has been kept, whole, in the order of samples seen."""
    found = folder.iterdir() if folder.exists() else ()
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))
