"""Retention by hand, and its interval by simulation."""

import numpy as np
import pytest

from raysearch.evaluation.retention import Estimate, Results, difference, retention, score_intervals


def results(scores, images=None, chance=None):
    arrays = {name: np.asarray(values, float) for name, values in scores.items()}
    images = images or {name: np.arange(len(values)) for name, values in arrays.items()}
    return Results(arrays, images, chance or dict.fromkeys(arrays, 0.0))


DENSE = results({"a": [1, 1, 1, 0], "b": [1, 0, 1, 0, 0, 0, 0, 0]}, chance={"a": 0.25, "b": 0.0})
PRUNED = results({"a": [1, 0, 1, 0], "b": [1, 0, 0, 0, 0, 0, 0, 0]})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("ratio_of_averages", (0.5 + 0.125) / (0.75 + 0.25)),
        ("mean_of_ratios", (0.5 / 0.75 + 0.125 / 0.25) / 2),
        ("chance_corrected", (0.25 + 0.125) / (0.5 + 0.25)),
    ],
)
def test_forms_by_hand(form, expected):
    assert retention(PRUNED, DENSE, form).value == pytest.approx(expected)


# arXiv 2604.24380, Table 2, LLaVA-1.5-7B: MMMU, SQA, MathVista, AI2D, MME-C, MME-P, POPE, DocVQA, GQA; AVG, AVG-%.
PUBLISHED_NAMES = ("MMMU", "SQA", "MathV", "AI2D", "MME-C", "MME-P", "POPE", "DocVQA", "GQA")
PUBLISHED = {
    "dense": ((35.10, 68.67, 26.70, 54.80, 363.21, 1511.33, 86.99, 28.10, 61.98), 53.70, 100.0),
    "width 30": ((31.00, 54.29, 15.80, 37.80, 253.21, 1174.93, 86.29, 17.90, 52.59), 42.90, 79.88),
    "layer 15": ((32.70, 59.64, 14.80, 32.10, 210.71, 921.88, 78.69, 16.50, 42.18), 38.78, 72.22),
}


def published(row):
    """Scores as shares of a perfect one: 100, and for MME 800 and 2000 (which the paper divides by 8 and by 20)."""
    perfect = {"MME-C": 800, "MME-P": 2000}
    values = zip(PUBLISHED_NAMES, PUBLISHED[row][0], strict=True)
    return results({name: [value / perfect.get(name, 100)] * 2 for name, value in values})


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_published_ratio_of_averages_is_ours(row):
    model, (_, average, ratio) = published(row), PUBLISHED[row]
    assert 100 * np.mean(list(model.means().values())) == pytest.approx(average, abs=0.006)
    assert 100 * retention(model, published("dense")).value == pytest.approx(ratio, abs=0.015)


def test_a_mean_of_ratios_is_another_number():
    """Table 2's layers at 15%: mean over the benchmarks of their own ratios, by hand from the rounded table."""
    dense, pruned = PUBLISHED["dense"][0], PUBLISHED["layer 15"][0]
    by_hand = sum(kept / had for kept, had in zip(pruned, dense, strict=True)) / 9
    found = retention(published("layer 15"), published("dense"), "mean_of_ratios").value
    assert found == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.7003, abs=0.0001)


def test_score_intervals_by_hand():
    # Images 0 and 1, two questions each, answered alike: sums about the mean are +-1, so se = sqrt(2/1 * 2) / 4 = .5.
    both = results({"a": [1, 1, 0, 0]}, {"a": np.array([0, 0, 1, 1])})
    assert score_intervals(both)["a"] == (0.0, 1.0), "within what a score can be"
    many = results({"a": [1.0, 0.0] * 200})  # se = sqrt(400/399 * 100) / 400
    low, high = score_intervals(many)["a"]
    assert (low, high) == pytest.approx((0.5 - 1.95996 * 0.0250313, 0.5 + 1.95996 * 0.0250313), abs=1e-5)


@pytest.mark.parametrize("form", ["ratio_of_averages", "mean_of_ratios", "chance_corrected"])
def test_the_dense_model_keeps_everything_with_certainty(form):
    kept = retention(DENSE, DENSE, form)
    assert (kept.value, kept.se) == (1.0, 0.0)
    assert kept.interval == (1.0, 1.0)


def test_standard_error_by_hand():
    dense, pruned = results({"a": [1, 1, 1, 1]}), results({"a": [1, 0, 1, 0]})
    # Residuals +-.5 with mean 0: variance of the mean = 4/3 * 4*.25 / 16.
    assert retention(pruned, dense).se == pytest.approx(np.sqrt(4 / 3 * 1.0) / 4)


def test_questions_about_one_image_count_as_one_draw():
    pruned = {"a": [1, 1, 0, 0] * 10}
    dense = {"a": [1] * 40}
    alone = retention(results(pruned), results(dense)).se
    grouped = {"a": np.repeat(np.arange(20), 2)}
    together = retention(results(pruned, grouped), results(dense, grouped)).se
    assert together == pytest.approx(alone * np.sqrt(2), rel=0.03)  # pairs are equal; n-1 differs


def test_the_difference_of_two_models_is_paired():
    generator = np.random.default_rng(1)
    dense = results({"a": np.ones(500)})
    first = results({"a": generator.random(500) < 0.8})
    second = results({"a": first.scores["a"] * (np.arange(500) % 50 != 0)})  # misses ten more questions
    gap = difference(first, second, dense)
    assert gap.value == pytest.approx(retention(first, dense).value - retention(second, dense).value)
    assert gap.se < 0.4 * np.hypot(retention(first, dense).se, retention(second, dense).se)
    assert difference(first, first, dense) == Estimate(0.0, 0.0)


def test_nothing_to_keep_other_questions_and_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="nothing to keep"):
        retention(results({"a": [0, 0]}), results({"a": [0, 0]}))
    with pytest.raises(ValueError, match="different questions"):
        retention(results({"a": [1]}), results({"a": [1, 1]}))
    with pytest.raises(ValueError, match="not known"):
        retention(PRUNED, DENSE, "median")


@pytest.mark.parametrize("form", ["ratio_of_averages", "mean_of_ratios", "chance_corrected"])
def test_intervals_cover_the_truth_and_pairing_narrows_them(form):
    """95% within 2 points, over 2,000 simulated evaluations of 150 images with three questions each."""
    generator = np.random.default_rng(0)
    num_images, per_image = 150, 3
    images = {"a": np.repeat(np.arange(num_images), per_image)}
    chance = {"a": 0.2}
    covered, paired, unpaired = 0, [], []
    for _ in range(2000):
        hardness = generator.normal(0, 0.8, num_images).repeat(per_image)
        draw = generator.random(num_images * per_image)
        right = 1 / (1 + np.exp(hardness - 1.5))
        dense = results({"a": draw < right}, images, chance)
        pruned = results({"a": draw < 0.8 * right}, images, chance)  # loses a fifth of what the dense one had
        kept = retention(pruned, dense, form)
        truth = 0.8 if form != "chance_corrected" else None
        low, high = kept.interval
        if truth is None:
            mean_right = 0.79086  # of 1 / (1 + exp(N(0, .8) - 1.5)), by quadrature
            truth = (0.8 * mean_right - 0.2) / (mean_right - 0.2)
        covered += low <= truth <= high
        paired.append(kept.se)
        shuffled = results({"a": generator.permutation(draw) < 0.8 * right}, images, chance)
        unpaired.append(retention(shuffled, dense, form).se)
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)
    assert np.mean(paired) < 0.8 * np.mean(unpaired)
