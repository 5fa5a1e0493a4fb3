"""Recipes of a space as points, for the model of their retention."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysearch.config.dimensions import Choices, Dimension

WORD = 0.7  # value of a word's column, so that two words are about as far apart as a number's two ends


class Encoding:
    """Turns the values chosen for a recipe into a point.

    The size comes first. A number has two columns: its position between its dimension's ends, the middle if it does not
    apply, and whether it applies. A word has one column per choice.

    Args:
        dimensions: of the space, by name (`SearchSpace.search_params`).

    Attributes:
        names: the size, and the dimensions.
        groups: (columns,) index of the name that each column belongs to.
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self.names = ["size", *dimensions]
        self._dimensions, self._columns = dict(dimensions), dict[str, slice]()
        self._of_choice: dict[str, dict[Any, Sequence[float]]] = {}  # by name and value
        self._default = [0.0]
        for name, dimension in dimensions.items():
            choices = dimension.choices if isinstance(dimension, Choices) else []
            if is_number(dimension):
                columns = [0.5, 0.0]
                self._of_choice[name] = {value: (place(dimension, value), WORD) for value in choices}  # type: ignore[arg-type]
            else:
                columns = [0.0] * len(choices)
                self._of_choice[name] = dict(zip(choices, (WORD * np.eye(len(choices))).tolist(), strict=True))
            self._columns[name] = slice(len(self._default), len(self._default) + len(columns))
            self._default += columns
        widths = [1, *(columns.stop - columns.start for columns in self._columns.values())]
        self.groups = np.repeat(np.arange(len(widths)), widths)

    def point(self, params: Mapping[str, Any], size_ratio: float) -> np.ndarray:
        """(columns,) of the values chosen, by name, and the size as a share of the dense model's."""
        point = self._default.copy()
        point[0] = 1 + math.log(size_ratio) / 5
        for name, value in params.items():
            choices = self._of_choice[name]
            point[self._columns[name]] = choices[value] if choices else (place(self._dimensions[name], value), WORD)
        return np.array(point)


def is_number(dimension: Dimension) -> bool:
    """Whether a dimension's values have an order."""
    return not isinstance(dimension, Choices) or all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in dimension.choices
    )


def place(dimension: Dimension, value: float) -> float:
    """Position of a number between its dimension's ends, from 0 to 1."""
    if isinstance(dimension, Choices):
        return sorted(dimension.choices).index(value) / (len(dimension.choices) - 1)
    return scaled(value, dimension.low, dimension.high, dimension.log)


def scaled(value: float, low: float, high: float, log: bool) -> float:
    """Position of a number between two others, from 0 to 1; on a log scale if `log`."""
    if high <= low:
        return 0.5
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
