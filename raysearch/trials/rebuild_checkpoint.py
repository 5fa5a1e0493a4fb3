"""Make a front point's checkpoint again, by the recipe that made it."""

from pathlib import Path

from raysearch.errors import InputError
from raysearch.study.folder import CHECKPOINTS, TEACHER, read_space, read_trials
from raysearch.study.front import FrontPoint
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial, quality_of


def rebuild_checkpoint(study: Path, point: FrontPoint) -> FrontPoint:
    """Prune and recover as the search did, rung by rung, and write the checkpoint beside the front's.

    One worker does it, in this process: on the same machine, by one worker as well, the weights are the same to the
    last bit. Elsewhere sums are rounded otherwise, so the scores are measured anew.

    Returns:
        The point with that checkpoint and its scores; `front.json` stays as it is.

    Raises:
        InputError: the study's model or data are gone.
    """
    context = TrialContext(read_space(study).fixed_to(point.recipe), teacher_folder=study / TEACHER)
    rungs = [score.samples_seen for record in read_trials(study) if record.key == point.key for score in record.rungs]
    trial = Trial(point.recipe, context)
    try:
        for _ in trial.scores(rungs):
            pass
        assert trial.latest_results is not None, point.key
        found = quality_of(trial.latest_results, context.baselines.search, context.space.retention)
        folder = f"{CHECKPOINTS}/{point.key}-retrained"
        heldout = trial.finish(study / folder)
    except FloatingPointError as error:
        raise InputError(
            f"--rebuild: recipe {point.key} came to no end here ({error}); choose another budget"
        ) from None
    finally:
        trial.close()
    changes = {
        "retention": found.retention,
        "retention_ci": found.retention_ci,
        "scores": found.scores,
        "checkpoint": folder,
        "heldout": heldout,
        "measured": None,
    }
    return point.model_copy(update=changes)
