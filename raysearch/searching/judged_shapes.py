"""Shapes that were judged without training."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

NEAR = 0.06
"""Size ratios within which shapes compete."""


class JudgedShape(BaseModel):
    """A shape without recovery.

    Attributes:
        params: the values chosen for it, by the names that the space asks for; those of `FIELDS` alone.
        size_ratio: of the model, as a share of the dense one's bytes.
        divergence: mean KL(dense || pruned) per answer token, in nats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: dict[str, Any]
    size_ratio: float
    divergence: float


def best_near(shapes: Sequence[JudgedShape], limit: float) -> JudgedShape | None:
    """The shape that is least divergent of those within a size ratio, and near it; None if there is none."""
    near = [shape for shape in shapes if limit - NEAR <= shape.size_ratio <= limit + 1e-9]
    return min(near, key=lambda shape: shape.divergence, default=None)
