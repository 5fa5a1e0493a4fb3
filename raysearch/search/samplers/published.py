"""Published recipes for the wanted sizes, to start a search with."""

from collections.abc import Sequence
from typing import Any

# arXiv 2604.24380, Table 5 and its decision guide: layers up to 30% of the decoder, widths from 45%, both recovered by
# cross-entropy and a match of the last hidden states, projector and decoder together.
_LOSSES = {"sft": 1.0, "logits_kd": 0.0, "hidden_kd": 1.0, "data_fraction": 1.0, "epochs": 1.0}
_LAYERS = {"mode": "layerwise", "quantization": "none", "criterion": "block_influence"}
_WIDTHS = {"mode": "widthwise", "quantization": "none", "criterion": "taylor"}
# Where the space has no LoRA, the next of these that it has.
_TRAINED = ["projector+lora", "projector+decoder", "decoder", "projector"]
PUBLISHED_RATIOS = (0.15, 0.3, 0.45, 0.6)


def published_recipe(ratio: float) -> dict[str, Any]:
    """The recipe published as the best at a share of removed decoder parameters, as values for a space to fit.

    Between 30% and 45%, where nothing was published, it is the nearer side's recipe.
    """
    shape = _LAYERS if ratio <= 0.375 else _WIDTHS
    return {**shape, "ratio": ratio, "trained": _TRAINED, "lora_rank": 128, **_LOSSES}


def mild_recipe(ratio: float) -> dict[str, Any]:
    """The published advice for at most 15%: drop layers and train the projector alone."""
    return {**_LAYERS, "ratio": ratio, "trained": "projector", **_LOSSES, "hidden_kd": 0.0}


def published_recipes(ratios: Sequence[float]) -> list[dict[str, Any]]:
    """The best published recipe for each share of removed decoder parameters, then the mild ones for small shares."""
    return [published_recipe(ratio) for ratio in ratios] + [mild_recipe(r) for r in ratios if r <= 0.175]
