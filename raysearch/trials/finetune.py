"""Continue the recovery of a front point: the same recipe on all of the data, from its checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from raysearch import models
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError, first_line
from raysearch.evaluation.retention import Estimate, difference
from raysearch.export.export_checkpoint import checkpoint_of
from raysearch.files import read_json
from raysearch.study.folder import read_space
from raysearch.study.front import FrontPoint, Measured
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial, quality_of, with_checkpoint


@dataclass(frozen=True)
class Finetuned:
    """Result of further recovery.

    Attributes:
        point: of the model before and after, the better one on the search's questions, with its checkpoint.
        gain: retention on the search's questions, after less before, paired.
        before, after: on the held-out questions, which took no part in the choice.
        num_samples: further samples seen.
    """

    point: FrontPoint
    gain: Estimate
    before: Measured
    after: Measured
    num_samples: int

    @property
    def is_better(self) -> bool:
        """Whether the finetuned model is chosen."""
        return self.gain.value > 0

    def describe(self) -> str:
        """One sentence."""
        verdict = "The finetuned model was taken" if self.is_better else "The model was left as it was"
        low, high = self.gain.interval
        return (
            f"{verdict}: {self.num_samples:,} further samples changed its retention on the search's questions by "
            f"{100 * self.gain.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], on held-out questions from "
            f"{self.before.retention:.1%} to {self.after.retention:.1%}."
        )


def finetune(study: Path, point: FrontPoint, epochs: float = 1.0) -> Finetuned:
    """Train a front point's checkpoint further, in this process, and choose the better model.

    The finetuned one is written beside the point's checkpoint.

    Args:
        epochs: over all of the study's recovery data.

    Raises:
        InputError: the point has no checkpoint or no recovery, or is quantised, or the study's model or data are gone.
    """
    if point.recipe.trained == "nothing":
        raise InputError(f"--finetune: recipe {point.key} has no recovery to continue; choose another budget")
    if point.recipe.quantization != "none":
        raise InputError(
            f"--finetune: recipe {point.key} is quantised, and rounded weights can't be trained further; choose "
            "another budget, or search with more data"
        )
    checkpoint = checkpoint_of(study, point)
    longer = Recipe(**{**point.recipe.as_dict(), "data_fraction": 1.0, "epochs": epochs})
    # The model is pruned already, so choose a criterion that takes no measuring.
    unpruned = longer.model_copy(update={"mode": "layerwise", "criterion": "deepest", "depth_share": None})
    context = TrialContext(read_space(study).fixed_to(unpruned))
    form, dense = context.space.retention, context.baselines  # before another model is on the device
    dense_heldout = context.heldout_baseline
    model, _ = models.load(checkpoint)
    before, before_heldout = (context.evaluate(model, split) for split in (context.questions, context.heldout))
    trial = Trial(longer, context, model, _kept_layers(checkpoint))
    try:
        (score,) = trial.scores([])
        assert trial.latest_results is not None, trial.recipe
        gain = difference(trial.latest_results, before, dense.search, form)
        before_quality = quality_of(before_heldout, dense_heldout, form)
        quality = quality_of(trial.latest_results, dense.search, form)
        folder = f"{point.checkpoint}-polished"
        after = trial.finish(study / folder)
    finally:
        trial.close()
    if gain.value > 0:
        before_it = point.samples_seen if point.best_at is None else point.best_at
        point = with_checkpoint(point, folder, quality, after)
        point = point.model_copy(update={"samples_seen": before_it + score.samples_seen})
    return Finetuned(point, gain, before_quality, after, score.samples_seen)


def _kept_layers(checkpoint: Path) -> list[int] | None:
    """The dense decoder's layers in a checkpoint; None where its `scores.json` doesn't say."""
    path = checkpoint / "scores.json"
    try:
        scores = read_json(path) if path.exists() else {}
        return scores.get("pruning", {}).get("layers_kept")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not the scores of a checkpoint ({first_line(error)})") from None
