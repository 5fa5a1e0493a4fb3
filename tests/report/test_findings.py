"""Findings about a study: planted effects are found and absent ones are not, by hand and by simulation."""

import numpy as np
import pytest

from raysearch.config.recipe import Recipe
from raysearch.report import param_importance
from raysearch.report.effects import Effect, effect_of, spearman
from raysearch.report.findings import findings, num_samples_of
from raysearch.study.front import Front
from raysearch.study.records import Score, TrialRecord
from tests.support import synthetic_study

BASELINE = synthetic_study.BASELINE


def record(number, size_ratio, retention, end="finished", seen=(8000,), **fields):
    recipe = Recipe(**{"mode": "widthwise", "ratio": 0.3, "criterion": "taylor", "seed": number, **fields})
    rungs = [
        Score(samples_seen=samples, retention=retention, retention_se=0.01, scores=BASELINE.scores) for samples in seen
    ]
    return TrialRecord(
        trial=str(number),
        key=recipe.key,
        recipe=recipe,
        num_params=int(size_ratio * BASELINE.num_params),
        size_bytes=int(size_ratio * BASELINE.size_bytes),
        rungs=rungs,
        end=end,
        seconds=1,
    )


def with_hidden(trial):
    return bool(trial.recipe.hidden_kd)


def random_trials(random, num, effect, noise=0.02):
    """Retention rises with size; hidden-state loss adds `effect`; small models scatter more."""
    trials = []
    for number in range(num):
        size, on = random.uniform(0.35, 0.95), bool(random.random() < 0.5)
        mode, criterion = (("layerwise", "random"), ("widthwise", "taylor"))[int(random.random() < 0.5)]
        scatter = random.normal(0, noise * (1 + 2 * (1 - size)))
        kept = 0.4 + 0.6 * size + 0.05 * (mode == "widthwise") + effect * on + scatter
        trials.append(record(number, size, kept, mode=mode, criterion=criterion, hidden_kd=float(on)))
    return trials


def test_a_planted_effect_is_found_where_size_and_mode_hide_it():
    # Without noise the fit is exact: 5 points, though the side with the loss has the smaller models.
    trials = [
        record(i, 0.4 + 0.02 * i, 0.5 + 0.5 * (0.4 + 0.02 * i) + 0.05 * (i < 8), hidden_kd=float(i < 8))
        for i in range(8)
    ]
    trials += [record(i, 0.3 + 0.04 * i, 0.5 + 0.5 * (0.3 + 0.04 * i), hidden_kd=0.0) for i in range(8, 16)]
    effect = effect_of(trials, BASELINE, with_hidden)
    assert effect.value == pytest.approx(0.05, abs=1e-6)
    assert effect.is_significant
    plain = np.mean([t.rungs[-1].retention for t in trials[:8]]) - np.mean([t.rungs[-1].retention for t in trials[8:]])
    assert plain < 0, "the plain difference of means points the wrong way"


def test_intervals_of_effects_cover_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = [effect_of(random_trials(random, 24, 0.03), BASELINE, with_hidden) for _ in range(400)]
    covered = np.mean([effect.low <= 0.03 <= effect.high for effect in hits if effect])
    assert 0.93 <= covered <= 0.99  # HC3 errs to the wide side with few trials


def test_nothing_is_said_about_too_few_or_incomparable_trials():
    few = [record(i, 0.5 + 0.02 * i, 0.8, hidden_kd=float(i < 3)) for i in range(12)]
    assert effect_of(few, BASELINE, with_hidden) is None
    confounded = [record(i, 0.5, 0.8, hidden_kd=float(i < 6)) for i in range(12)]  # one size: no square to fit
    assert effect_of(confounded, BASELINE, with_hidden) is None


@pytest.mark.parametrize(
    ("first", "second", "rho"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([3, 1, 2], [-3, -1, -2], -1.0),
        ([1, 1, 2, 3], [1, 2, 3, 3], 8 / 9),  # ranks .5 .5 2 3 and 0 1 2.5 2.5: 4 / sqrt(4.5 * 4.5)
        ([1, 1, 1], [1, 2, 3], 0.0),
        ([1, np.inf, 2], [1, 3, 2], 1.0),
    ],
)
def test_spearman(first, second, rho):
    assert spearman(np.array(first), np.array(second)) == pytest.approx(rho)


def sentences(told, verdict=None):
    return " ".join(f.sentence for f in told if verdict in (None, f.verdict))


FRONT = Front(study="s", model="m", baseline=BASELINE, points=[], hypervolume=0, budgets={"60%": None, "80%": None})


def test_modes_are_compared_at_equal_size():
    # At equal size wide is 5 points better, though deep has the larger models, which retain more.
    random = np.random.default_rng(0)
    wide = [record(i, 0.52 + 0.01 * i, 0.80 + 0.01 * i + random.normal(0, 0.002)) for i in range(10)]
    deep = [
        record(20 + i, 0.59 + 0.01 * i, 0.82 + 0.01 * i + random.normal(0, 0.002), mode="layerwise", criterion="random")
        for i in range(10)
    ]
    told = findings(FRONT, [*wide, *deep])
    (seen,) = [finding for finding in told if finding.sentence.startswith("Mode at sizes around 60%")]
    assert seen.verdict == "significant"
    assert seen.sentence.endswith("widthwise retains 5.2 points more than layerwise.")
    assert seen.evidence.startswith("10 finished trials against 10, at equal size: [+4.")
    assert not any("80%" in finding.sentence for finding in told), "ten deep ones and no wide one are there"


def test_models_of_different_size_are_not_compared():
    wide = [record(i, 0.5 - 0.01 * i, 0.80) for i in range(6)]
    deep = [record(20 + i, 0.7 + 0.01 * i, 0.95, mode="layerwise", criterion="random") for i in range(6)]
    assert not any("Mode" in finding.sentence for finding in findings(FRONT, [*wide, *deep]))


def test_what_would_settle_an_open_question_is_said():
    told = findings(FRONT, random_trials(np.random.default_rng(3), 30, 0.0, noise=0.05))
    (finding,) = [found for found in told if found.sentence.startswith("Loss: ")]
    assert finding.verdict == "inconclusive"
    assert (
        "such trials would tell a difference of 2 points: raysearch search --resume DIR --trials N" in finding.evidence
    )


def test_small_differences_that_are_known_are_facts():
    told = findings(FRONT, random_trials(np.random.default_rng(3), 60, 0.0, noise=0.002))
    (finding,) = [found for found in told if found.sentence.startswith("Loss: ")]
    assert finding.verdict == "fact"
    assert " differ by less than 0." in finding.sentence


def test_findings_are_seldom_wrong():
    """Simulated studies in which nothing but size matters: hardly any has a significant finding."""
    random, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        trials = []
        for number in range(40):
            size, trained = random.uniform(0.35, 0.95), ["projector", "decoder", "projector+lora"][number % 3]
            mode, criterion = (("layerwise", "random"), ("widthwise", "taylor"))[int(random.random() < 0.5)]
            fields = {"hidden_kd": float(random.random() < 0.5), "data_fraction": [0.25, 0.5, 1.0][number % 3 - 1]}
            kept = 0.3 + 0.65 * size + random.normal(0, 0.02 * (1 + 2 * (1 - size)))
            trials.append(record(number, size, kept, mode=mode, criterion=criterion, trained=trained, **fields))
        wrong += any(finding.verdict == "significant" for finding in findings(FRONT, trials))
    # A binomial of 100 with probability 5% is above 10 in 1% of the cases.
    assert wrong <= 10


def test_what_stopping_saved():
    trials = [record(1, 0.5, 0.9, seen=(900, 8000)), record(2, 0.5, 0.5, end="stopped", seen=(900,))]
    assert num_samples_of(trials) == 8000
    front = Front(study="s", model="m", baseline=BASELINE, points=[], hypervolume=0, budgets={})
    # 7,100 of 16,000 samples.
    assert "Stopping 1 of 2 trials early saved 44% of the training." in sentences(findings(front, trials))


def test_every_finding_of_a_study_carries_its_evidence(tmp_path):
    study = synthetic_study.make(tmp_path / "run", num_trials=160)
    told = findings(study.front, study.records)
    assert {finding.verdict for finding in told} == {"significant", "fact", "inconclusive"}
    assert all(finding.sentence.endswith(".") and finding.evidence for finding in told)
    assert "projector+decoder retains" in sentences(told, "significant"), (
        "the formula gives it .75 of the loss back, against .25"
    )
    assert "drops most" in sentences(told)
    assert "correlation" in sentences(told)


def test_an_empty_study_says_nothing():
    front = Front(study="s", model="m", baseline=BASELINE, points=[], hypervolume=0, budgets={"60%": None})
    assert findings(front, []) == []
    failed = [record(1, 0.5, 0.5, end="failed").model_copy(update={"rungs": []})]
    assert findings(front, failed) == []
    assert param_importance.for_front(failed, BASELINE) is None
    assert param_importance.for_retention([], BASELINE) is None


def test_the_dimension_that_decides_is_named_first(tmp_path):
    random, trials = np.random.default_rng(1), []
    for number in range(60):
        ratio, fraction = float(random.uniform(0.1, 0.7)), [0.05, 0.2, 1.0][number % 3]
        kept = 1 - 0.2 * ratio - 0.4 * (fraction < 0.5) + random.normal(0, 0.01)
        rate = float(10 ** random.uniform(-4, -2))
        trials.append(record(number, 1 - 0.9 * ratio, kept, ratio=ratio, data_fraction=fraction, lr=rate))
    found = param_importance.for_retention(trials, BASELINE).dimensions
    assert found[0].name == "data_fraction"
    assert sum(dimension.share for dimension in found) == pytest.approx(1)
    assert {dimension.name for dimension in found} == {"data_fraction", "lr"}, "at equal size, so without the ratio"
    near_front = param_importance.for_front(trials, BASELINE).dimensions
    assert near_front[0].name == "data_fraction"
    assert all(0 <= dimension.low <= dimension.high <= 1 for dimension in near_front)


def test_reversed_effects():
    assert Effect(-0.1, -0.2, -0.05).reversed() == Effect(0.1, 0.05, 0.2)
    assert Effect(0.1, 0.05, 0.2).interval() == "[+5.0, +20.0]"
