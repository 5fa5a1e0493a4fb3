"""The scores that a criterion returns."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Importance:
    """Scores of one criterion; fields that it does not give are None.

    Attributes:
        criterion: its name.
        layers: (L,) fp32.
        layer_order: (L,) indices, the first to be dropped first.
        block_distance: (L, L) fp32, `[start, length - 1]`: distance between the input of layer `start` and the output
            `length` layers on; inf beyond the last layer.
        kv_groups: (L, G) fp32, each with its query heads.
        heads: (L, H) fp32.
        ffn_channels: (L, F) fp32.
        experts: (L, E) fp32; 0 in layers without experts.
        hidden_channels: (d,) fp32, of the residual stream.
        attention_means: (L, H * head size) fp32, mean inputs of the attention output, for bias compensation.
        ffn_means: (L, F) fp32, mean inputs of the FFN output, for bias compensation.
    """

    criterion: str
    layers: np.ndarray | None = None
    layer_order: np.ndarray | None = None
    block_distance: np.ndarray | None = None
    kv_groups: np.ndarray | None = None
    heads: np.ndarray | None = None
    ffn_channels: np.ndarray | None = None
    experts: np.ndarray | None = None
    hidden_channels: np.ndarray | None = None
    attention_means: np.ndarray | None = None
    ffn_means: np.ndarray | None = None

    def per_layer(self) -> np.ndarray:
        """(L,) scores of layers; else the mean over a layer's FFN channels, or over its experts."""
        if self.layers is not None:
            return self.layers
        of_units = self.experts if self.ffn_channels is None else self.ffn_channels
        assert of_units is not None, self.criterion
        return of_units.mean(axis=1)
