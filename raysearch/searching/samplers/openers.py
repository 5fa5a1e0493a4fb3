"""Recipes to start a search with, where its space names none (`start`).

What they rest on is in docs/measurements/log.md, 2026-11-29: heads are kept, layers go only where much is removed,
projector and decoder are trained together, and the learning rate rises as the model shrinks.
"""

from collections.abc import Mapping
from typing import Any

from raysearch.config.dimensions import RecipeSuggester, field_of

SIZE_RATIOS = (0.9, 0.75, 0.6, 0.45)
"""Where a search without budgets starts, as shares of the dense model's bytes."""
LAYERS_BELOW = 0.7  # size ratio; above it, widths alone
DATA_FRACTION = 0.25
_COMMON = {
    "quantization": "none",
    "depth_share": 0.5,
    "attention_share": 0.0,
    "expert_ratio": 0.0,
    "hidden_ratio": 0.0,
    "trained": ["projector+decoder", "decoder", "projector+lora", "projector"],
    "lora_rank": 16,
    "sft": 1.0,
    "logits_kd": 0.5,
    "hidden_kd": 0.5,
    "temperature": 2.0,
    "data_fraction": DATA_FRACTION,
    "epochs": 1.0,
}
_LAYER_CRITERIA = ["greedy_loss", "one_shot_loss", "block_influence"]
_WIDTH_CRITERIA = ["taylor", "wanda", "activation"]


class OpeningSuggester(RecipeSuggester):
    """Chooses the opening recipe for a size.

    Args:
        size_ratio: share of the dense model's bytes.
        shape: values of the shape's parameters, by the names that the space asks for, where a good one is known.
    """

    def __init__(self, size_ratio: float, shape: Mapping[str, Any] | None = None) -> None:
        modes = ["both", "widthwise", "layerwise"] if size_ratio < LAYERS_BELOW else ["widthwise", "both", "layerwise"]
        values: dict[str, Any] = {**_COMMON, "mode": modes, "ratio": 0.0}
        values |= {"layer_criterion": _LAYER_CRITERIA, "width_criterion": _WIDTH_CRITERIA}
        super().__init__(values | dict(shape or {}))
        self._size_ratio = size_ratio

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """The given value; a learning rate between the lowest (for the dense size) and the middle of its range."""
        if field_of(name) != "lr":
            return super().number(name, low, high, log, step)
        at = min(max(0.5 * (1 - self._size_ratio) + 0.15, 0.0), 0.5)
        return low * (high / low) ** at if log else low + (high - low) * at
