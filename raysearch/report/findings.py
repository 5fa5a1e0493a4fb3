"""What a study shows, in sentences with their evidence. Every interval is a 95% interval."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from raysearch.config.budget import Budget
from raysearch.config.recipe import LOSS_FIELDS
from raysearch.evaluation.retention import Estimate
from raysearch.report.effects import Effect, Side, effect_of, finished, spearman
from raysearch.report.terminal import half_width
from raysearch.study.front import Baseline, Front, FrontPoint
from raysearch.study.records import TrialRecord

Verdict = Literal["significant", "inconclusive", "fact"]
NEAR = 0.1
"""Trials whose size is this near to a budget's, as a share of the dense size, are compared around it."""
RELEVANT = 0.02
"""A difference in retention that matters to a person; smaller ones that are known to be smaller are a fact."""

_FIELDS = {"Trained part": "trained", "Criterion": "criterion"}
"""Fields of which each choice is compared with each other one, by what a finding calls them."""


@dataclass(frozen=True)
class Finding:
    """A sentence and its evidence.

    Attributes:
        verdict: `significant` if it holds beside all others that were tested, `inconclusive` if that is open, `fact`
            for counts, and for differences that are known to be small.
        needless: field and value of a choice that is worse than another one, or known to be as good.
    """

    sentence: str
    evidence: str
    verdict: Verdict
    needless: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Comparison:
    """Trials of two settings, at equal size.

    Attributes:
        about: what is compared.
        num_trials: finished trials of each side.
        effect: of `first` against `second`, 0 or more.
        alike: what the trials are equal in.
    """

    about: str
    first: str
    second: str
    num_trials: tuple[int, int]
    effect: Effect
    alike: str

    def finding(self, is_significant: bool, num_comparisons: int) -> Finding:
        evidence = (
            f"{self.num_trials[0]} finished trials against {self.num_trials[1]}, at equal {self.alike}: "
            f"{self.effect.interval()} points"
        )
        field = _FIELDS.get(self.about)
        needless = (field, self.second) if field else None
        if is_significant:
            text = f"{self.about}: {self.first} retains {self.effect.points()} more than {self.second}."
            return Finding(text, evidence, "significant", needless)
        bound = max(abs(self.effect.low), abs(self.effect.high))
        if bound <= RELEVANT:
            text = f"{self.about}: {self.first} and {self.second} differ by less than {100 * bound:.1f} points."
            return Finding(text, evidence, "fact", needless)
        num_needed = math.ceil(sum(self.num_trials) * ((self.effect.high - self.effect.low) / 2 / RELEVANT) ** 2)
        evidence += (
            f", one of {num_comparisons} comparisons; about {max(num_needed, sum(self.num_trials) + 1)} such trials "
            f"would tell a difference of {100 * RELEVANT:.0f} points: raysearch search --resume DIR --trials N"
        )
        return Finding(
            f"{self.about}: {self.first} and {self.second} don't differ significantly.", evidence, "inconclusive"
        )


def findings(front: Front, records: Sequence[TrialRecord]) -> list[Finding]:
    """All findings about a study: significant ones, facts, inconclusive ones.

    Of the comparisons that are called significant, 5% at most are expected to be wrong: their p-values are adjusted for
    their number (Benjamini and Hochberg, 1995).
    """
    from scipy.stats import false_discovery_control

    compared = [*_modes(front, records), *_settings(records, front.baseline)]
    adjusted = false_discovery_control([comparison.effect.p_value for comparison in compared])
    found = [
        *(one.finding(p_value <= 0.05, len(compared)) for one, p_value in zip(compared, adjusted, strict=True)),
        *_benchmarks(front),
        *_heldout(front),
        *_first_rung(records),
        *_early_stopping(records),
    ]
    order: list[Verdict] = ["significant", "fact", "inconclusive"]
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def _modes(front: Front, records: Sequence[TrialRecord]) -> Iterator[_Comparison]:
    """The modes, compared around each budget at equal size."""
    baseline = front.baseline
    budgets = [Budget.parse(text) for text in front.budgets or ("45%", "60%", "75%", "90%")]
    for budget in sorted(budgets, key=lambda b: b.size_ratio(baseline.size)):
        centre = budget.size_ratio(baseline.size)
        near = [r for r in finished(records) if abs(r.size_bytes / baseline.size_bytes - centre) <= NEAR]
        for one, other in itertools.combinations(sorted({record.recipe.mode for record in near}), 2):
            side = partial(_side, "mode", {one: True, other: False})
            about = f"Mode at sizes around {budget.text}"
            yield from _compared(near, baseline, about, one, other, side, within_modes=False)


def _settings(records: Sequence[TrialRecord], baseline: Baseline) -> Iterator[_Comparison]:
    """What was trained, with which losses, on how much data."""
    ended = finished(records)
    for about, first, second, side in _contrasts(ended):
        yield from _compared(ended, baseline, about, first, second, side)


def _compared(
    records: Sequence[TrialRecord],
    baseline: Baseline,
    about: str,
    first: str,
    second: str,
    side: Side,
    within_modes: bool = True,
) -> Iterator[_Comparison]:
    """The comparison with the better side first; none where there are too few trials."""
    effect = effect_of(records, baseline, side, within_modes)
    if effect is None:
        return
    sides = [side(record) for record in records]
    counts = sides.count(True), sides.count(False)
    if effect.value < 0:
        first, second, counts, effect = second, first, counts[::-1], effect.reversed()
    yield _Comparison(about, first, second, counts, effect, "size and mode" if within_modes else "size")


def _contrasts(records: Sequence[TrialRecord]) -> list[tuple[str, str, str, Side]]:
    """Pairs of settings to compare: name, one side, the other side, and which side a trial is on."""
    pairs: list[tuple[str, str, str, Side]] = []
    for name, field in _FIELDS.items():
        levels = sorted({getattr(record.recipe, field) for record in records})
        for one, other in itertools.combinations(levels, 2):
            pairs.append((name, one, other, partial(_side, field, {one: True, other: False})))
    for field in (name for name, loss in LOSS_FIELDS.items() if not loss.default):
        pairs.append(("Loss", f"with {field}", f"without {field}", partial(_has_loss, field)))
    fractions = sorted({record.recipe.data_fraction for record in records if record.recipe.data_fraction})
    for less, more in itertools.pairwise(fractions):
        side = partial(_side, "data_fraction", {more: True, less: False})
        pairs.append(("Data", f"{more:.0%} of it", f"{less:.0%} of it", side))
    return pairs


def _side(field: str, sides: Mapping[Any, bool], record: TrialRecord) -> bool | None:
    return sides.get(getattr(record.recipe, field))


def _has_loss(field: str, record: TrialRecord) -> bool | None:
    weight = getattr(record.recipe, field)
    return None if weight is None else weight > 0


def _benchmarks(front: Front) -> list[Finding]:
    """The benchmark with the largest loss, for the answer to each budget."""
    points = {point.key: point for point in front.points}
    found = []
    for key in dict.fromkeys(key for key in front.budgets.values() if key):
        ratios = retention_per_benchmark(points[key], front.baseline)
        if len(ratios) < 2 or max(ratios.values()) - min(ratios.values()) < 0.02:
            continue
        worst = min(ratios, key=ratios.__getitem__)
        budgets = " and ".join(budget for budget, answer in front.budgets.items() if answer == key)
        text = f"Within {budgets}, {worst} drops most, to {ratios[worst]:.0%} of the dense score."
        every = ", ".join(f"{name} {ratio:.1%}" for name, ratio in ratios.items())
        found.append(Finding(text, f"{key}: {every}", "fact"))
    return found


def retention_per_benchmark(point: FrontPoint, baseline: Baseline) -> dict[str, float]:
    """Score over the dense model's score, per benchmark on which the dense model's score isn't 0."""
    return {name: score / baseline.scores[name] for name, score in point.scores.items() if baseline.scores.get(name)}


def _heldout(front: Front) -> list[Finding]:
    """The front's retention on the search's questions, compared with that on held-out ones."""
    points = [point for point in front.points if point.heldout]
    gaps = [point.retention - point.heldout.retention for point in points if point.heldout]
    if len(gaps) < 2:
        return []
    mean = float(np.mean(gaps))
    # All points answer the same questions, so their errors do not average out.
    reach = math.sqrt(2) * float(np.mean([half_width(point) for point in points]))
    effect = Effect(mean, mean - reach, mean + reach)
    evidence = f"mean over {len(gaps)} front points, search minus held out: {effect.interval()} points"
    if effect.is_significant:
        direction = "less" if mean > 0 else "more"
        text = f"The front retains {effect.points()} {direction} on held-out questions than on the search's questions."
        return [Finding(text, evidence, "significant")]
    return [Finding("The front retains as much on held-out questions as on the search's questions.", evidence, "fact")]


def _first_rung(records: Sequence[TrialRecord]) -> list[Finding]:
    """How well retention at the first rung predicts the final one."""
    rungs = [[score.retention for score in r.rungs if score.samples_seen] for r in finished(records)]
    pairs = [(found[0], found[-1]) for found in rungs if len(found) > 1]
    if len(pairs) < 5:
        return []
    first, last = np.array(pairs).T
    rho = spearman(first, last)
    # Fisher's transformation
    low, high = map(math.tanh, Estimate(math.atanh(max(-0.9999, min(0.9999, rho))), (len(pairs) - 3) ** -0.5).interval)
    text = f"The rank correlation of retention at the first rung and at the end is {rho:.2f}."
    evidence = f"Spearman over {len(pairs)} finished trials, without stopped ones: [{low:.2f}, {high:.2f}]"
    return [Finding(text, evidence, "fact")]


def _early_stopping(records: Sequence[TrialRecord]) -> list[Finding]:
    """What early stopping saved, in samples."""
    stopped = [record for record in records if record.end == "stopped" and record.rungs]
    full = num_samples_of(records)
    if not stopped or full is None:
        return []
    planned = sum(record.recipe.samples_to_see(full) for record in stopped)
    seen = sum(record.rungs[-1].samples_seen for record in stopped)
    total = planned + sum(record.rungs[-1].samples_seen for record in finished(records))
    saved = f"{(planned - seen) / total:.0%} of the training"
    text = f"Stopping {len(stopped)} of {len(records)} trials early saved {saved}."
    return [Finding(text, f"{seen:,} samples seen instead of {planned:,}, of {total:,} in all", "fact")]


def num_samples_of(records: Sequence[TrialRecord]) -> int | None:
    """Number of recovery samples, inferred from the finished trials; None if no trial finished its training."""
    guesses: list[tuple[float, int]] = []
    for record in finished(records):
        fraction, epochs = record.recipe.data_fraction, record.recipe.epochs
        if fraction and epochs:
            guesses.append((fraction * epochs, round(record.rungs[-1].samples_seen / (fraction * epochs))))
    return max(guesses)[1] if guesses else None
