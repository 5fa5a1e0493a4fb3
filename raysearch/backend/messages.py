"""What a trial asks of its slot, and what the slot replies."""

from pydantic import BaseModel, ConfigDict

from raysearch.config.recipe import Recipe
from raysearch.study.front import Measured
from raysearch.study.records import Score, Sized


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRecipe(_Message):
    """Prune by a recipe; the reply is the first of its scores."""

    recipe: Recipe


class NextRung(_Message):
    """Recover to the next rung and score there."""


class SaveScores(_Message):
    """Write the scores of the running trial per held-out question."""

    folder: str


class FinishTrial(_Message):
    """Write the trained model as a checkpoint."""

    folder: str


class ScoreHeldout(_Message):
    """Score a checkpoint on held-out questions."""

    folder: str


class EndSlot(_Message):
    """End the workers."""


TrialCommand = RunRecipe | NextRung | SaveScores | FinishTrial | ScoreHeldout
Command = TrialCommand | EndSlot


class RungScored(_Message, Sized):
    """The running trial before recovery or at a rung; at its last one also its checkpoint, if the front doesn't
    dominate it."""

    score: Score
    size_ratio: float
    is_last: bool
    seconds_training: float = 0.0
    seconds_evaluating: float = 0.0
    checkpoint: str | None = None
    """Folder of the checkpoint, inside the study's."""
    heldout: Measured | None = None
    """Left out where the checkpoint is scored after the search (`ScoreHeldout`)."""


class CheckpointWritten(_Message):
    """Reply to `FinishTrial`."""

    checkpoint: str
    heldout: Measured | None = None
    seconds_training: float = 0.0
    seconds_evaluating: float = 0.0


class ScoresWritten(_Message):
    """Reply to `SaveScores`."""


class HeldoutScored(_Message):
    """Reply to `ScoreHeldout`."""

    heldout: Measured


class Failed(_Message):
    """The trial can't go on here."""

    reason: str
    may_pass: bool
    """Whether another attempt may succeed."""
    by_storage: bool = False
    """Whether a full disk or lost storage was the cause."""
    at_start: bool = False
    """Whether slots fail again and again before they begin."""
    refusal: str | None = None
    """Why no trial of this study can be run, if that is so."""


Reply = RungScored | CheckpointWritten | ScoresWritten | HeldoutScored | Failed


class PointScored(_Message):
    """A point of the front after its checkpoint was scored on held-out questions."""

    key: str
    heldout: Measured | None = None
    reason: str = ""
    """Why it has no score, if it has none."""


class AllScored(_Message):
    """No point of the front is left to be scored on held-out questions."""


TrialReply = RungScored | Failed | PointScored | AllScored
"""What a Tune trial's result holds."""
