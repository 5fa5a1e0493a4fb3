"""A Gaussian process for retention, and the expected hypervolume improvement of recipes of known size.

The size of a recipe is exact before anything is trained, so only one of the two objectives is uncertain. The expected
hypervolume improvement is then a sum over the steps of the front (compare arXiv 1905.02370, section 3, with one
objective deterministic).
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

STARTS, START_JITTER = (0.3, 3.0), 0.03
WEIGHT_BOUNDS, JITTER_BOUNDS = (0.01, 100.0), (0.003, 0.3)
LOG_WEIGHT_DEVIATION = 2.0  # of the logarithms of the weights
MAX_ITERATIONS = 60


class GaussianProcess:
    """Gaussian process with a Matern 5/2 kernel and one length scale per dimension, by maximum likelihood.

    Args:
        points: (n, columns) encoded recipes.
        groups: (columns,) the dimension of each column (`Encoding.groups`).
        values: (n,) retention.
        noise: (n,) standard deviation of each value.
        fitted: weights per group (inverse squared length scales) and jitter; left out, they are fitted.
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
        """The most likely weights and jitter, by L-BFGS in their logarithms from two common length scales."""
        bounds = [WEIGHT_BOUNDS] * (int(self._groups.max()) + 1) + [JITTER_BOUNDS]
        distances = self.squared_distances()
        found = []
        for common in STARTS:
            start = np.log([common] * (len(bounds) - 1) + [START_JITTER])
            how = {"bounds": np.log(bounds), "options": {"maxiter": MAX_ITERATIONS}}
            found.append(minimize(self.loss, start, (distances,), "L-BFGS-B", True, **how))
        best = np.exp(min(found, key=lambda one: one.fun).x)
        return best[:-1], float(best[-1])

    def squared_distances(self) -> np.ndarray:
        """(groups, n, n) squared distances of the points in the columns of each group."""
        gaps = (self._points[:, None] - self._points) ** 2
        return np.stack([gaps[:, :, self._groups == group].sum(2) for group in range(self._groups.max() + 1)])

    def loss(self, logs: np.ndarray, squared_distances: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log likelihood with a log-normal prior on the weights against overfitting few points, and its
        gradient (Rasmussen and Williams, Gaussian Processes for Machine Learning, equations 5.8 and 5.9).

        Args:
            logs: (groups + 1,) logarithms of the weights and the jitter.
            squared_distances: as the method of that name.
        """
        weights, jitter = np.exp(logs[:-1]), np.exp(logs[-1])
        scaled = np.sqrt(5.0 * np.tensordot(weights, squared_distances, 1))
        covariance = _correlation(scaled)
        covariance[np.diag_indices_from(covariance)] += self._noise + jitter
        factor = cho_factor(covariance, lower=True, overwrite_a=True)
        alpha = cho_solve(factor, self._values)
        likelihood = -0.5 * self._values @ alpha - np.log(np.diag(factor[0])).sum()
        # Of twice the likelihood by the covariance, and of that by the squared distance.
        slope = np.outer(alpha, alpha) - cho_solve(factor, np.eye(len(alpha)))
        decline = -5 / 6 * (1.0 + scaled) * np.exp(-scaled)
        by_weight = weights * np.tensordot(squared_distances, slope * decline, 2)
        gradient = 0.5 * np.append(by_weight, jitter * np.trace(slope))
        likelihood -= 0.5 * np.sum((logs[:-1] / LOG_WEIGHT_DEVIATION) ** 2)
        gradient[:-1] -= logs[:-1] / LOG_WEIGHT_DEVIATION**2
        return -float(likelihood), -gradient


def _matern(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n, m) covariances of unit variance between points whose columns are in units of their length scales."""
    squared = np.sum(left**2, 1)[:, None] + np.sum(right**2, 1) - 2 * left @ right.T
    return _correlation(np.sqrt(5.0 * np.maximum(squared, 0.0)))


def _correlation(scaled: np.ndarray) -> np.ndarray:
    """Matern 5/2 kernel at distances of `scaled / sqrt(5)` length scales."""
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)


def expected_hypervolume_improvement(
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
        front: (size ratio, retention) of the trials so far, in any order.
        limits: budgets as size ratios; each adds the expected improvement of its own answer.

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
