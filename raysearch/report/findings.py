"""What a study shows, in sentences with their evidence. Every interval is a 95% interval."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from raysearch.config.budget import Budget, Size
from raysearch.config.recipe import LOSS_FIELDS
from raysearch.evaluation.retention import Estimate
from raysearch.report.effects import Effect, Side, effect_of, finished, spearman
from raysearch.report.terminal import half_width
from raysearch.study.front import Baseline, Front, FrontPoint
from raysearch.study.records import TrialRecord

Verdict = Literal["significant", "inconclusive", "fact"]


@dataclass(frozen=True)
class Finding:
    """A sentence and its evidence.

    Attributes:
        verdict: `significant` if the interval excludes 0, `inconclusive` if it does not, `fact` for plain counts.
    """

    sentence: str
    evidence: str
    verdict: Verdict


def findings(front: Front, records: Sequence[TrialRecord]) -> list[Finding]:
    """All findings about a study: significant ones, facts, inconclusive ones."""
    found = [
        *_modes(front, records),
        *_settings(records, front.baseline),
        *_benchmarks(front),
        *_heldout(front),
        *_first_rung(records),
        *_early_stopping(records),
    ]
    order: list[Verdict] = ["significant", "fact", "inconclusive"]
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def _modes(front: Front, records: Sequence[TrialRecord]) -> list[Finding]:
    """The best trials of the modes, compared within each budget."""
    dense = front.baseline.size
    budgets = [Budget.parse(text) for text in front.budgets or ("45%", "60%", "75%", "90%")]
    found = []
    for budget in sorted(budgets, key=lambda b: b.bound_bytes(dense)):
        by_mode: dict[str, list[TrialRecord]] = {}
        for record in finished(records):
            if budget.admits(Size(record.num_params, record.size_bytes), dense):
                by_mode.setdefault(record.recipe.mode, []).append(record)
        tried = [trials for _, trials in sorted(by_mode.items()) if len(trials) > 1]
        found += [_leader(f"Within {budget.text}", *pair) for pair in itertools.combinations(tried, 2)]
    return found


def _leader(where: str, first: Sequence[TrialRecord], second: Sequence[TrialRecord]) -> Finding:
    """The best trial of one mode, compared with the best of another."""
    groups = sorted((first, second), key=lambda group: -_best(group).rungs[-1].retention)
    best, other = (_best(group) for group in groups)
    lead, trail = best.rungs[-1], other.rungs[-1]
    gap = Estimate(lead.retention - trail.retention, math.hypot(lead.retention_se, trail.retention_se))
    effect = Effect(gap.value, *gap.interval)
    evidence = (
        f"best of {len(groups[0])} {best.recipe.mode} trials ({best.key}: {lead.retention:.1%}) against best of "
        f"{len(groups[1])} {other.recipe.mode} trials ({other.key}: {trail.retention:.1%}): {effect.interval()} points"
    )
    if effect.is_significant:
        text = f"{where}, {best.recipe.mode} leads {other.recipe.mode} by {effect.points()}."
        return Finding(text, evidence, "significant")
    text = f"{where}, {best.recipe.mode} and {other.recipe.mode} don't differ significantly."
    return Finding(text, evidence, "inconclusive")


def _best(records: Sequence[TrialRecord]) -> TrialRecord:
    return max(records, key=lambda record: record.rungs[-1].retention)


def _settings(records: Sequence[TrialRecord], baseline: Baseline) -> list[Finding]:
    """Effects of what was trained, with which losses, on how much data."""
    ended = finished(records)
    found = []
    for name, first, second, side in _contrasts(ended):
        effect = effect_of(ended, baseline, side)
        if effect is None:
            continue
        sides = [side(record) for record in ended]
        counts = sides.count(True), sides.count(False)
        if effect.value < 0:
            first, second, counts, effect = second, first, counts[::-1], effect.reversed()
        evidence = (
            f"{counts[0]} finished trials against {counts[1]}, at equal size and mode: {effect.interval()} points"
        )
        if effect.is_significant:
            text = f"{name}: {first} retains {effect.points()} more than {second}."
            found.append(Finding(text, evidence, "significant"))
        else:
            text = f"{name}: {first} and {second} don't differ significantly."
            found.append(Finding(text, evidence, "inconclusive"))
    return found


def _contrasts(records: Sequence[TrialRecord]) -> list[tuple[str, str, str, Side]]:
    """Pairs of settings to compare: name, one side, the other side, and which side a trial is on."""
    pairs: list[tuple[str, str, str, Side]] = []
    for field, name in (("trained", "Trained part"), ("criterion", "Criterion")):
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
