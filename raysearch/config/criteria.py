"""The pruning criteria by name: what each one scores and what it needs.

A criterion is a row here and a function of the same name, for layers in `pruning/importance/layer_criteria.py`, else in
`pruning/importance/width_criteria.py`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Criterion:
    """Properties of a pruning criterion.

    Attributes:
        scores: decoder layers, widths (KV groups, query heads, FFN channels), or both.
        needs_data: whether it is computed on calibration batches.
        needs_labels: whether every batch must hold answer tokens.
        tokens: which tokens count unless a person says otherwise, see `calibration.TOKENS`.
    """

    scores: Literal["layers", "widths", "both"]
    needs_data: bool = True
    needs_labels: bool = False
    tokens: str = "all"


CRITERIA = {
    "block_influence": Criterion("layers"),
    "angular": Criterion("layers", tokens="last"),
    "one_shot_loss": Criterion("layers", needs_labels=True),
    "greedy_loss": Criterion("layers", needs_labels=True),
    "deepest": Criterion("layers", needs_data=False),
    "magnitude": Criterion("widths", needs_data=False),
    "taylor": Criterion("widths", needs_labels=True),
    "taylor2": Criterion("widths", needs_labels=True),
    "activation": Criterion("widths"),
    "wanda": Criterion("widths"),
    "fluctuation": Criterion("widths"),
    "random": Criterion("both", needs_data=False),
}
LAYER_CRITERIA = tuple(name for name, row in CRITERIA.items() if row.scores != "widths")
WIDTH_CRITERIA = tuple(name for name, row in CRITERIA.items() if row.scores != "layers")
WITHOUT_DATA = ", ".join(name for name, row in CRITERIA.items() if not row.needs_data)
"""The criteria that need no calibration data, for error messages."""


def needs_data(criterion: str) -> bool:
    """Whether a criterion, or either part of LAYER+WIDTH, needs calibration batches."""
    return any(CRITERIA[name].needs_data for name in criterion.split("+"))
