"""A Gaussian process for retention, and the hypervolume that a recipe of known size can be expected to add.

The size of a recipe is exact before anything is trained, so only one of the two objectives is uncertain. The expected
improvement of the hypervolume is then a sum over the steps of the front (compare arXiv 1905.02370, section 3, with one
objective deterministic).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr

Answers = Mapping[str, Any]
"""What was asked for in a recipe: a number scaled to [0, 1], or a category, by name."""

MAX_POINTS = 200
FIT_GRID = (0.1, 0.33, 1.0, 3.0, 10.0)


class Encoding:
    """Turns answers into columns: numbers as they are, categories one-hot, each in a group under its name."""

    def __init__(self, answers: Sequence[Answers]) -> None:
        values: dict[str, set] = {}
        for answer in answers:
            for name, value in answer.items():
                values.setdefault(name, set()).add(value)
        self._columns: list[tuple[str, Any]] = []  # (name, category), or (name, None) for numbers
        for name in sorted(values):
            words = sorted(value for value in values[name] if isinstance(value, str))
            sometimes = any(name not in answer for answer in answers)
            self._columns += [(name, word) for word in words] or [(name, None)]
            if sometimes and not words:
                self._columns.append((name, "applies"))
        self.names = sorted(values)
        self.groups = np.array([self.names.index(name) for name, _ in self._columns], int)

    def encode(self, answers: Sequence[Answers]) -> np.ndarray:
        """(n, columns); a number that doesn't apply stands in the middle."""
        encoded = np.empty((len(answers), len(self._columns)))
        for row, answer in enumerate(answers):
            for column, (name, category) in enumerate(self._columns):
                value = answer.get(name)
                if category is None:
                    encoded[row, column] = 0.5 if value is None else value
                elif category == "applies":
                    encoded[row, column] = 0.7 * (value is not None)
                else:
                    encoded[row, column] = 0.7 * (value == category)
        return encoded


class RetentionModel:
    """Gaussian process with a Matern 5/2 kernel and one length scale per asked name, by maximum likelihood.

    Args:
        points: (n, columns) encoded recipes.
        groups: (columns,) which name each column belongs to.
        values: (n,) retention.
        noise: (n,) standard deviation of each value.
        fitted: weights per group and jitter found before; left out, they are searched for.
    """

    def __init__(
        self,
        points: np.ndarray,
        groups: np.ndarray,
        values: np.ndarray,
        noise: np.ndarray,
        fitted: tuple[np.ndarray, float] | None = None,
    ) -> None:
        self._points, self._groups = points, groups
        self._mean, self._scale = float(values.mean()), float(values.std()) or 1.0
        self._values = (values - self._mean) / self._scale
        self._noise = (noise / self._scale) ** 2 + 1e-4
        self._distances = _distances(points, points, groups)
        self.weights, self.jitter = fitted or self._fit()
        self._factor = cho_factor(self._covariance(self.weights, self.jitter), lower=True)
        self._alpha = cho_solve(self._factor, self._values)

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of retention, both (m,)."""
        cross = _matern(_distances(points, self._points, self._groups), self.weights)  # (m, n)
        mean = cross @ self._alpha
        variance = 1.0 - np.sum(cross * cho_solve(self._factor, cross.T).T, 1)
        return self._mean + self._scale * mean, self._scale * np.sqrt(np.maximum(variance, 1e-6))

    def _covariance(self, weights: np.ndarray, jitter: float) -> np.ndarray:
        return _matern(self._distances, weights) + np.diag(self._noise + jitter)

    def _fit(self) -> tuple[np.ndarray, float]:
        """Coordinate-wise search over the inverse squared length scales, two sweeps from one common scale."""
        num = len(self._distances)
        best, at = -np.inf, (np.ones(num), 0.01)
        for common in FIT_GRID:
            for jitter in (0.003, 0.03, 0.3):
                likelihood = self._likelihood(np.full(num, common), jitter)
                if likelihood > best:
                    best, at = likelihood, (np.full(num, common), jitter)
        weights, jitter = at
        for factor in (4.0, 2.0):
            for group in range(num):
                for change in (factor, 1 / factor):
                    tried = weights.copy()
                    tried[group] = np.clip(tried[group] * change, 0.01, 100)
                    likelihood = self._likelihood(tried, jitter)
                    if likelihood > best:
                        best, weights = likelihood, tried
                        break
        return weights, jitter

    def _likelihood(self, weights: np.ndarray, jitter: float) -> float:
        """Log likelihood, with a log-normal prior on the weights that keeps few points from explaining too much."""
        lower = np.linalg.cholesky(self._covariance(weights, jitter))
        solved = np.linalg.solve(lower, self._values)
        prior = -0.5 * np.sum((np.log(weights) / 2.0) ** 2)
        return float(-0.5 * solved @ solved - np.log(np.diag(lower)).sum() + prior)


def _distances(left: np.ndarray, right: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(groups, n, m) squared distances, apart by group."""
    squared = (left[:, None, :] - right[None, :, :]) ** 2
    return np.stack([squared[..., groups == group].sum(-1) for group in range(groups.max() + 1)])


def _matern(distances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    scaled = np.sqrt(5.0 * np.tensordot(weights, distances, 1) + 1e-12)
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)


def expected_gain(
    sizes: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    front: Sequence[tuple[float, float]],
    limits: Sequence[float] = (),
) -> np.ndarray:
    """Expected growth of the area under the front, per candidate.

    Args:
        sizes: (m,) size ratios of the candidates.
        mean, deviation: (m,) predicted retention.
        front: (size ratio, retention) of what there is, in any order.
        limits: size ratios that answers are wanted for; each adds the expected improvement of its own answer.

    Returns:
        (m,) values >= 0.
    """
    ordered = sorted(front)
    edges = np.array([0.0] + [size for size, _ in ordered] + [1.0])
    heights = np.maximum.accumulate(np.array([0.0] + [max(0.0, retention) for _, retention in ordered]))
    gain = np.zeros(len(sizes))
    for start, end, height in zip(edges[:-1], edges[1:], heights, strict=True):
        width = np.maximum(0.0, min(end, 1.0) - np.maximum(start, sizes))
        gain += width * _expected_improvement(mean, deviation, height)
    for limit in limits:
        best = max((retention for size, retention in ordered if size <= limit), default=0.0)
        gain += np.where(sizes <= limit, _expected_improvement(mean, deviation, best), 0.0)
    return gain


def _expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    z = (mean - best) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
