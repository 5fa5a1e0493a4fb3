import numpy as np
import pytest

from raysearch.searching.samplers.ehvi import EHVIRanker, Observation
from raysearch.searching.samplers.gaussian_process import GaussianProcess, expected_hypervolume_improvement
from raysearch.study.multi_objective import hypervolume


def test_expected_improvement_is_the_mean_growth_of_the_area_under_the_front():
    front = [(0.3, 0.4), (0.5, 0.7), (0.9, 0.8)]
    sizes, mean, deviation = np.array([0.2, 0.4, 0.6, 0.95]), np.array([0.5, 0.6, 0.65, 0.7]), np.full(4, 0.1)
    expected = expected_hypervolume_improvement(sizes, mean, deviation, front)
    draws = np.random.default_rng(0).normal(size=4000)
    before = hypervolume(*zip(*front, strict=True))
    for row in range(4):
        grown = [
            hypervolume(*zip(*front, (sizes[row], min(1.0, mean[row] + deviation[row] * z)), strict=True))
            for z in draws
        ]
        assert expected[row] == pytest.approx(np.mean(grown) - before, abs=2e-3)


def test_expected_improvement_counts_a_named_limit_for_candidates_within_it():
    front = [(0.3, 0.4)]
    plain = expected_hypervolume_improvement(np.array([0.5, 0.7]), np.full(2, 0.6), np.full(2, 1e-6), front)
    limited = expected_hypervolume_improvement(
        np.array([0.5, 0.7]), np.full(2, 0.6), np.full(2, 1e-6), front, limits=[0.6]
    )
    assert limited - plain == pytest.approx([0.2, 0.0], abs=1e-6)


def test_the_model_learns_what_matters_and_knows_where_it_is_unsure():
    draw = np.random.default_rng(1)
    points = draw.random((60, 2))
    values = np.sin(4 * points[:, 0])
    model = GaussianProcess(points, np.array([0, 1]), values, np.zeros(60))
    new = draw.random((50, 2))
    mean, deviation = model.predict(new)
    assert np.abs(mean - np.sin(4 * new[:, 0])).max() < 0.1
    assert model.weights[0] > 5 * model.weights[1]
    _, far = model.predict(np.array([[5.0, 5.0]]))
    assert far[0] > 5 * deviation.max()


def smooth_values(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = draw.random((40, 4))
    return points, np.sin(3 * points[:, 0]) + 0.5 * points[:, 2] + 0.05 * draw.normal(size=40)


def test_the_gradient_of_the_likelihood_is_its_slope():
    points, values = smooth_values(np.random.default_rng(3))
    model = GaussianProcess(points, np.array([0, 1, 1, 2]), values, np.full(40, 0.02))
    at, apart, step = np.log([0.5, 3.0, 1.0, 0.02]), model.squared_distances(), 1e-5
    _, gradient = model.loss(at, apart)
    for place, change in enumerate(step * np.eye(4)):
        slope = (model.loss(at + change, apart)[0] - model.loss(at - change, apart)[0]) / (2 * step)
        assert gradient[place] == pytest.approx(slope, rel=1e-5, abs=1e-6)  # central differences, in fp64


def test_what_is_fitted_depends_neither_on_the_order_of_names_nor_of_values():
    draw = np.random.default_rng(4)
    points, values = smooth_values(draw)
    model = GaussianProcess(points, np.arange(4), values, np.zeros(40))
    columns, rows = np.array([2, 0, 3, 1]), draw.permutation(40)
    other = GaussianProcess(points[rows][:, columns], np.arange(4), values[rows], np.zeros(40))
    assert other.weights == pytest.approx(model.weights[columns], rel=0.01)  # where L-BFGS stops


def test_the_ranker_prefers_what_is_good_at_its_size():
    draw = np.random.default_rng(2)

    def known(size, is_bad):
        retention = 1 - (1 - size) ** 2 - 0.3 * is_bad + 0.005 * draw.normal()
        return Observation(np.array([size, is_bad]), size, retention, 0.0)

    observations = [known(size, is_bad) for size in np.linspace(0.2, 0.9, 10) for is_bad in (0, 1)]
    observations.append(Observation(np.array([0.55, 1]), 0.55, None, 0.0))  # under way
    points, sizes = np.array([[0.6, 1], [0.6, 0]]), np.array([0.6, 0.6])
    bad, good = EHVIRanker(np.arange(2)).improvements(points, sizes, observations, [0.65], len(observations))
    assert good > bad >= 0
