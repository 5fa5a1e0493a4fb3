"""What a study shows, in plain sentences with their evidence. Numpy only; every interval is a 95% one.

Differences between settings are estimated at equal size and mode, among finished trials, by least squares with a
bootstrap over trials. A search tries what looks good more often, so these are observations, not experiments.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raysearch.front import Baseline, Front, FrontPoint
from raysearch.recipe import LOSS_FIELDS
from raysearch.score import TrialRecord
from raysearch.size import Budget, Size
from raysearch.summary import standard_error

_Z95 = 1.959964
NUM_RESAMPLES = 400
MIN_PER_LEVEL = 4
"""Finished trials that a setting needs before anything is said about it."""


@dataclass(frozen=True)
class Finding:
    """A sentence and what it rests on.

    Attributes:
        verdict: `seen` if the interval excludes no difference, `open` if it does not, `fact` for plain counts.
    """

    sentence: str
    evidence: str
    verdict: Literal["seen", "open", "fact"]


def findings(front: Front, records: Sequence[TrialRecord]) -> list[Finding]:
    """All that can be said about a study; what is certain first."""
    told = [
        *_modes(front, records),
        *_settings(records, front.baseline),
        *_benchmarks(front),
        *_heldout(front),
        *_first_rung(records),
        *_saved(records),
    ]
    order = {"seen": 0, "fact": 1, "open": 2}
    return sorted(told, key=lambda finding: order[finding.verdict])


@dataclass(frozen=True)
class Effect:
    """An estimated difference with its interval."""

    value: float
    low: float
    high: float

    @property
    def is_seen(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def points(self) -> str:
        """In points of retention."""
        return f"{100 * abs(self.value):.1f} points"

    def interval(self) -> str:
        """The interval in points of retention, signed as the value."""
        return f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def effect_of(
    records: Sequence[TrialRecord],
    baseline: Baseline,
    level: Callable[[TrialRecord], bool | None],
    seed: int = 0,
) -> Effect | None:
    """Difference in retention between trials with and without something, at equal size and mode.

    Args:
        records: finished trials.
        baseline: the dense model.
        level: True or False per trial; None leaves it out.
        seed: of the bootstrap.

    Returns:
        The coefficient of `level` beside an intercept, the size, its square and the mode, with its interval; None
        when either side has fewer than MIN_PER_LEVEL trials or the size and mode leave nothing to compare.
    """
    rows = [(record, level(record)) for record in records]
    chosen = [(record, found) for record, found in rows if found is not None]
    on = np.array([found for _, found in chosen], bool)
    if min(on.sum(), (~on).sum()) < MIN_PER_LEVEL:
        return None
    design = np.column_stack([on, _size_and_mode([record for record, _ in chosen], baseline)])
    kept = np.array([record.rungs[-1].retention for record, _ in chosen])
    if len(kept) <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    random, samples = np.random.default_rng(seed), []
    for _ in range(NUM_RESAMPLES):
        drawn = random.integers(len(kept), size=len(kept))
        if 0 < on[drawn].sum() < len(kept):
            samples.append(np.linalg.lstsq(design[drawn], kept[drawn], rcond=None)[0][0])
    value = float(np.linalg.lstsq(design, kept, rcond=None)[0][0])
    low, high = np.quantile(samples, (0.025, 0.975))
    return Effect(value, float(low), float(high))


def _size_and_mode(records: Sequence[TrialRecord], baseline: Baseline) -> np.ndarray:
    """(n, 3 + modes - 1): an intercept, the size, its square, and a column per mode but the first."""
    size = np.array([record.size_bytes / baseline.size_bytes for record in records])
    modes = sorted({record.recipe.mode for record in records})
    dummies = [[record.recipe.mode == mode for record in records] for mode in modes[1:]]
    return np.column_stack([np.ones(len(size)), size, size**2, *np.array(dummies, float)])


def finished(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that went to their own end."""
    return [record for record in records if record.end == "finished" and record.rungs]


def _modes(front: Front, records: Sequence[TrialRecord]) -> list[Finding]:
    """Which mode's best recipe leads within each budget."""
    dense = front.baseline.size
    budgets = [Budget.parse(text) for text in front.budgets or ("45%", "60%", "75%", "90%")]
    told = []
    for budget in sorted(budgets, key=lambda b: b.bound_bytes(dense)):
        by_mode: dict[str, list[TrialRecord]] = {}
        for record in finished(records):
            if budget.admits(Size(record.num_params, record.size_bytes), dense):
                by_mode.setdefault(record.recipe.mode, []).append(record)
        tried = [mode for mode, trials in sorted(by_mode.items()) if len(trials) > 1]
        for pair in itertools.combinations(tried, 2):
            told.append(_leader(f"Within {budget.text}", *(by_mode[mode] for mode in pair)))
    return told


def _leader(where: str, first: Sequence[TrialRecord], second: Sequence[TrialRecord]) -> Finding:
    """Whether the best trial of one mode leads the best of another."""
    groups = sorted((first, second), key=lambda group: -_best(group).rungs[-1].retention)
    best, other = (_best(group) for group in groups)
    lead, trail = best.rungs[-1], other.rungs[-1]
    gap = lead.retention - trail.retention
    noise = _Z95 * math.hypot(lead.retention_se, trail.retention_se)
    evidence = (
        f"best of {len(groups[0])} {best.recipe.mode} trials ({best.key}: {lead.retention:.1%}) against best of "
        f"{len(groups[1])} {other.recipe.mode} trials ({other.key}: {trail.retention:.1%}): "
        f"{Effect(gap, gap - noise, gap + noise).interval()} points"
    )
    if gap > noise:
        text = f"{where}, {best.recipe.mode} leads {other.recipe.mode} by {100 * gap:.1f} points."
        return Finding(text, evidence, "seen")
    text = f"{where}, {best.recipe.mode} and {other.recipe.mode} can't be told apart."
    return Finding(text, evidence, "open")


def _best(records: Sequence[TrialRecord]) -> TrialRecord:
    return max(records, key=lambda record: record.rungs[-1].retention)


def _settings(records: Sequence[TrialRecord], baseline: Baseline) -> list[Finding]:
    """What was trained, with which losses, on how much data."""
    ended = finished(records)
    told = []
    for name, with_it, without, level in _contrasts(ended):
        effect = effect_of(ended, baseline, level)
        if effect is None:
            continue
        sides = [level(record) for record in ended]
        evidence = (
            f"{sides.count(True)} finished trials against {sides.count(False)}, at equal size and mode: "
            f"{effect.interval()} points"
        )
        if effect.is_seen:
            winner, loser = (with_it, without) if effect.value > 0 else (without, with_it)
            told.append(
                Finding(f"{name}: {winner} kept {effect.points()} more than {loser}.", evidence, "seen")
            )
        else:
            text = f"{name}: no difference can be seen between {with_it} and {without}."
            told.append(Finding(text, evidence, "open"))
    return told


def _contrasts(
    records: Sequence[TrialRecord],
) -> list[tuple[str, str, str, Callable[[TrialRecord], bool | None]]]:
    """Pairs of settings worth comparing: name, one side, the other side, and who is on which."""
    pairs: list[tuple[str, str, str, Callable[[TrialRecord], bool | None]]] = []
    for field, name in (("trained", "Trained part"), ("criterion", "Criterion")):
        levels = sorted({getattr(record.recipe, field) for record in records})
        for first, second in itertools.combinations(levels, 2):
            sides = {first: True, second: False}
            pairs.append((name, first, second, lambda r, f=field, s=sides: s.get(getattr(r.recipe, f))))  # type: ignore[misc]
    for field in LOSS_FIELDS[1:]:
        pairs.append(
            ("Loss", f"with {field}", "without it", lambda r, f=field: _above_zero(getattr(r.recipe, f)))  # type: ignore[misc]
        )
    fractions = sorted({r.recipe.data_fraction for r in records if r.recipe.data_fraction})
    for first, second in itertools.pairwise(fractions):
        sides = {second: True, first: False}
        pairs.append(
            ("Data", f"{second:.0%}", f"{first:.0%} of it", lambda r, s=sides: s.get(r.recipe.data_fraction))  # type: ignore[misc]
        )
    return pairs


def _above_zero(weight: float | None) -> bool | None:
    return None if weight is None else weight > 0


def _benchmarks(front: Front) -> list[Finding]:
    """Which benchmark suffers most in the answer to each budget."""
    points = {point.key: point for point in front.points}
    told = []
    for budget, key in front.budgets.items():
        ratios = kept_per_benchmark(points[key], front.baseline) if key else {}
        if len(ratios) < 2:
            continue
        worst, best = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
        if ratios[best] - ratios[worst] > 0.02:
            text = f"Within {budget}, {worst} suffers most: {ratios[worst]:.0%} of the dense score is kept."
            every = ", ".join(f"{name} {ratio:.1%}" for name, ratio in ratios.items())
            told.append(Finding(text, f"{key}: {every}", "fact"))
    return told


def kept_per_benchmark(point: FrontPoint, baseline: Baseline) -> dict[str, float]:
    """Score over the dense model's score, per benchmark on which the dense model scores at all."""
    return {
        name: score / baseline.scores[name]
        for name, score in point.scores.items()
        if baseline.scores.get(name)
    }


def _heldout(front: Front) -> list[Finding]:
    """Whether the front is as good on questions that the search never saw."""
    told = [point for point in front.points if point.heldout]
    gaps = [point.retention - point.heldout.retention for point in told if point.heldout]
    if len(gaps) < 2:
        return []
    mean = float(np.mean(gaps))
    # All points answer the same questions, so their errors do not average out.
    noise = _Z95 * math.sqrt(2) * float(np.mean([standard_error(point) for point in told]))
    effect = Effect(mean, mean - noise, mean + noise)
    evidence = f"mean over {len(gaps)} front points, search minus held out: {effect.interval()} points"
    if effect.is_seen:
        direction = "less" if mean > 0 else "more"
        text = f"On held-out questions the front keeps {effect.points()} {direction} than on the search's questions."
        return [Finding(text, evidence, "seen")]
    return [
        Finding(
            "On held-out questions the front keeps as much as on the search's questions.", evidence, "fact"
        )
    ]


def _first_rung(records: Sequence[TrialRecord]) -> list[Finding]:
    """How far the first rung foretells the end."""
    pairs = [(r.rungs[0].retention, r.rungs[-1].retention) for r in finished(records) if len(r.rungs) > 1]
    if len(pairs) < 5:
        return []
    first, last = np.array(pairs).T
    rho = spearman(first, last)
    half = _Z95 / math.sqrt(len(pairs) - 3)  # Fisher's transformation
    centre = math.atanh(max(-0.9999, min(0.9999, rho)))
    low, high = math.tanh(centre - half), math.tanh(centre + half)
    text = f"The first rung ranks trials as the end does with a correlation of {rho:.2f}."
    evidence = (
        f"Spearman over {len(pairs)} finished trials: [{low:.2f}, {high:.2f}]; stopped ones can't be counted"
    )
    return [Finding(text, evidence, "fact")]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank; 0 if one side does not vary."""
    one, other = _ranks(np.asarray(first, float)), _ranks(np.asarray(second, float))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def _saved(records: Sequence[TrialRecord]) -> list[Finding]:
    """What stopping saved, in samples."""
    stopped = [record for record in records if record.end == "stopped" and record.rungs]
    full = num_samples_of(records)
    if not stopped or full is None:
        return []
    wanted = sum(record.recipe.samples_to_see(full) for record in stopped)
    seen = sum(record.rungs[-1].samples_seen for record in stopped)
    every = wanted + sum(record.rungs[-1].samples_seen for record in finished(records))
    saved = f"{(wanted - seen) / every:.0%} of the training"
    text = f"Stopping {len(stopped)} of {len(records)} trials early saved {saved}."
    return [Finding(text, f"{seen:,} samples seen instead of {wanted:,}, of {every:,} in all", "fact")]


def num_samples_of(records: Sequence[TrialRecord]) -> int | None:
    """Rows of the whole recovery data, as the finished trials tell; None if none was trained to its end."""
    guesses: list[Any] = []
    for record in finished(records):
        fraction, epochs = record.recipe.data_fraction, record.recipe.epochs
        if fraction and epochs:
            guesses.append((fraction * epochs, round(record.rungs[-1].samples_seen / (fraction * epochs))))
    return max(guesses)[1] if guesses else None
