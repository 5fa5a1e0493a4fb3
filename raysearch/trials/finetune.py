"""Go on with the recovery of a front point: the same recipe on all of the data, from its checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path

from raysearch import models
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.evaluation.retention import Estimate, difference
from raysearch.export.export_checkpoint import checkpoint_of
from raysearch.study.folder import read_space
from raysearch.study.front import FrontPoint, Measured
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial, quality_of


@dataclass(frozen=True)
class Finetuned:
    """What further recovery came to.

    Attributes:
        point: the better of the two by the search's questions, scored on the held-out ones; it names its checkpoint.
        gain: retention on the search's questions, after less before, paired.
        before, after: on the held-out questions, which took no part in the choice.
        num_samples: how many further samples were seen.
    """

    point: FrontPoint
    gain: Estimate
    before: Measured
    after: Measured
    num_samples: int

    @property
    def is_better(self) -> bool:
        """Whether the finetuned model is the one chosen."""
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
    """Train a front point's checkpoint further and keep what is better, beside it in the study's folder.

    One worker does it, in this process.

    Args:
        epochs: passes over all of the study's recovery data.

    Raises:
        InputError: the point has no checkpoint or no recovery, or is quantised, or the study's model or data are gone.
    """
    if point.recipe.trained == "nothing":
        raise InputError(f"--finetune: recipe {point.key} has no recovery to go on with; choose another budget")
    if point.recipe.quantization != "none":
        raise InputError(
            f"--finetune: recipe {point.key} is quantised, and rounded weights can't be trained further; choose "
            "another budget, or search with more data"
        )
    checkpoint = checkpoint_of(study, point)
    longer = Recipe(**{**point.recipe.as_dict(), "data_fraction": 1.0, "epochs": epochs})
    # What is pruned already needs no importance measured.
    unpruned = longer.model_copy(update={"mode": "layerwise", "criterion": "deepest", "depth_share": None})
    context = TrialContext(read_space(study).fixed_to(unpruned))
    form, dense = context.space.retention, context.baselines  # before another model is on the device
    model, _ = models.load(checkpoint)
    before, before_heldout = (context.evaluate(model, asked) for asked in (context.questions, context.heldout))
    trial = Trial(longer, context, model, _kept_layers(checkpoint))
    try:
        (score,) = trial.scores([])
        assert trial.latest_results is not None, trial.recipe
        gain = difference(trial.latest_results, before, dense.search, form)
        before_quality = quality_of(before_heldout, dense.heldout, form)
        folder = Path(f"{point.checkpoint}-polished")
        after = trial.finish(study / folder)
    finally:
        trial.close()
    if gain.value > 0:
        changes = {
            "retention": score.retention,
            "retention_ci": Estimate(score.retention, score.retention_se).interval,
            "scores": score.scores,
            "samples_seen": point.samples_seen + score.samples_seen,
            "checkpoint": str(folder),
            "heldout": after,
            "measured": None,
        }
        return Finetuned(point.model_copy(update=changes), gain, before_quality, after, score.samples_seen)
    return Finetuned(point, gain, before_quality, after, score.samples_seen)


def _kept_layers(checkpoint: Path) -> list[int] | None:
    """The dense decoder's layers that a checkpoint has; None where it doesn't say."""
    path = checkpoint / "scores.json"
    scores = json.loads(path.read_text()) if path.exists() else {}
    return scores.get("pruning", {}).get("layers_kept")
