"""Rebuild a front point's checkpoint from its recipe."""

import tempfile
from pathlib import Path

from raysearch.errors import InputError
from raysearch.study.folder import TEACHER, read_space, read_trials
from raysearch.study.front import CHECKPOINTS, FrontPoint
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial, quality_of, with_checkpoint


def rebuild_checkpoint(study: Path, point: FrontPoint) -> FrontPoint:
    """Prune and recover as the search did, rung by rung, and write the checkpoint beside the front's.

    It runs as one worker, in this process: if the search did so on the same machine, the weights are equal bit by bit.
    Elsewhere rounding differs, so the scores are measured again.

    Returns:
        The point with that checkpoint and its scores; `front.json` stays as it is.

    Raises:
        InputError: the study's model or data are gone, or a loss is not finite.
    """
    context = TrialContext(read_space(study).fixed_to(point.recipe), teacher_folder=study / TEACHER)
    rungs = [score.samples_seen for record in read_trials(study) if record.key == point.key for score in record.rungs]
    trial = Trial(point.recipe, context)
    trial.keeps_best &= 0 in rungs  # as the search has chosen
    try:
        with tempfile.TemporaryDirectory(prefix="raysearch-rebuild-") as states:
            *_, last = trial.scores(rungs, Path(states) if trial.keeps_best else None)
        assert trial.latest_results is not None, point.key
        quality = quality_of(trial.latest_results, context.baselines.search, context.space.retention)
        folder = f"{CHECKPOINTS}/{point.key}-retrained"
        heldout = trial.finish(study / folder)
    except FloatingPointError as error:
        raise InputError(
            f"--rebuild: recipe {point.key} did not finish here ({error}); choose another budget"
        ) from None
    finally:
        trial.close()
    return with_checkpoint(point, folder, quality, heldout, last.best_at)
