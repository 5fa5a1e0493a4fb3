"""A Gaussian process for retention, and the hypervolume that a recipe of known size can be expected to add.

The size of a recipe is exact before anything is trained, so only one of the two objectives is uncertain. The expected
improvement of the hypervolume is then a sum over the steps of the front (compare arXiv 1905.02370, section 3, with one
objective deterministic).
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ndtr

FIT_GRID = (0.1, 0.33, 1.0, 3.0, 10.0)


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
        self.weights, self.jitter = fitted or self._fit()
        self._factor = cho_factor(self._covariance(self.weights, self.jitter), lower=True, overwrite_a=True)
        self._alpha = cho_solve(self._factor, self._values)

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of retention, both (m,)."""
        scales = np.sqrt(self.weights)[self._groups]
        cross = _matern(points * scales, self._points * scales)  # (m, n)
        mean = cross @ self._alpha
        half = solve_triangular(self._factor[0], cross.T, lower=True)
        deviation = np.sqrt(np.maximum(1.0 - np.sum(half**2, 0), 1e-6))
        return self._mean + self._scale * mean, self._scale * deviation

    def _covariance(self, weights: np.ndarray, jitter: float) -> np.ndarray:
        scaled = self._points * np.sqrt(weights)[self._groups]
        covariance = _matern(scaled, scaled)
        covariance[np.diag_indices_from(covariance)] += self._noise + jitter
        return covariance

    def _fit(self) -> tuple[np.ndarray, float]:
        """Coordinate-wise search over the inverse squared length scales, two sweeps from one common scale."""
        num = int(self._groups.max()) + 1
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
        solved = solve_triangular(lower, self._values, lower=True)
        prior = -0.5 * np.sum((np.log(weights) / 2.0) ** 2)
        return float(-0.5 * solved @ solved - np.log(np.diag(lower)).sum() + prior)


def _matern(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n, m) covariances of unit variance between points whose columns are in units of their length scales."""
    squared = np.sum(left**2, 1)[:, None] + np.sum(right**2, 1) - 2 * left @ right.T
    scaled = np.sqrt(5.0 * np.maximum(squared, 0.0))
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
    starts, ends = edges[:-1], np.minimum(edges[1:], 1.0)
    widths = np.maximum(0.0, ends - np.maximum(starts, sizes[:, None]))  # (m, steps of the front)
    gain = np.sum(widths * _expected_improvement(mean, deviation, heights), 1)
    bests = np.array([heights[np.searchsorted(edges[:-1], limit, "right") - 1] for limit in limits])
    within = sizes[:, None] <= np.asarray(limits)
    return gain + np.sum(np.where(within, _expected_improvement(mean, deviation, bests), 0.0), 1)


def _expected_improvement(mean: np.ndarray, deviation: np.ndarray, bests: np.ndarray) -> np.ndarray:
    """(m, bests) expected excess over each of `bests`."""
    deviation = deviation[:, None]
    z = (mean[:, None] - bests) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
