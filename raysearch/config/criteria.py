"""The pruning criteria by name: what each one scores and what it needs.

A criterion is a row here and a function of the same name in the module of `pruning/importance/` that `module` names.
"""

from dataclasses import dataclass
from typing import Literal, get_args


@dataclass(frozen=True)
class Criterion:
    """Properties of a pruning criterion.

    Attributes:
        scores: decoder layers, widths (KV groups, query heads, FFN channels), experts, hidden channels, or several
            of them.
        needs_data: whether it is computed on calibration batches.
        needs_labels: whether every batch must hold answer tokens.
        tokens: which tokens count unless a person says otherwise, see `calibration.TOKENS`.
    """

    scores: tuple[Literal["layers", "widths", "experts", "hidden"], ...]
    needs_data: bool = True
    needs_labels: bool = False
    tokens: str = "all"

    @property
    def module(self) -> str:
        """Where its function is, inside `pruning/importance/`."""
        if self.scores == ("experts",):
            return "expert_criteria"
        return "layer_criteria" if self.scores == ("layers",) else "width_criteria"


CRITERIA = {
    "block_influence": Criterion(("layers",)),
    "angular": Criterion(("layers",), tokens="last"),
    "one_shot_loss": Criterion(("layers",), needs_labels=True),
    "greedy_loss": Criterion(("layers",), needs_labels=True),
    "greedy_kl": Criterion(("layers",), needs_labels=True),
    "deepest": Criterion(("layers",), needs_data=False),
    "magnitude": Criterion(("widths", "experts", "hidden"), needs_data=False),
    "taylor": Criterion(("widths", "experts"), needs_labels=True),
    "taylor2": Criterion(("widths",), needs_labels=True),
    "activation": Criterion(("widths", "hidden")),
    "wanda": Criterion(("widths",)),
    "fluctuation": Criterion(("widths",)),
    "frequency": Criterion(("experts",)),
    "reap": Criterion(("experts",)),
    "random": Criterion(("layers", "widths", "experts", "hidden"), needs_data=False),
}
GREEDY = ("greedy_loss", "greedy_kl")
NUM_LAYERS_TRIED = 8
"""Layers that a step of a greedy criterion leaves out, one at a time; the first tries all."""
LAYER_CRITERIA = tuple(name for name, row in CRITERIA.items() if "layers" in row.scores)
WIDTH_CRITERIA = tuple(name for name, row in CRITERIA.items() if "widths" in row.scores)
ExpertCriterion = Literal["magnitude", "taylor", "frequency", "reap", "random"]
assert set(get_args(ExpertCriterion)) == {name for name, row in CRITERIA.items() if "experts" in row.scores}
HiddenCriterion = Literal["magnitude", "activation", "random"]
assert set(get_args(HiddenCriterion)) == {name for name, row in CRITERIA.items() if "hidden" in row.scores}
WITHOUT_DATA = ", ".join(name for name, row in CRITERIA.items() if not row.needs_data)
"""The criteria that need no calibration data, for error messages."""


def needs_data(criterion: str) -> bool:
    """Whether a criterion, or either part of LAYER+WIDTH, needs calibration batches."""
    return any(CRITERIA[name].needs_data for name in criterion.split("+"))
