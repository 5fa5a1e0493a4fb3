"""What a study shows, in plain sentences with their evidence. Every interval is a 95% one."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from raysearch.config.budget import Budget, Size
from raysearch.config.recipe import LOSS_FIELDS
from raysearch.report.effects import Effect, effect_of, finished, spearman
from raysearch.report.terminal import standard_error
from raysearch.study.front import Baseline, Front, FrontPoint
from raysearch.study.records import TrialRecord

_Z95 = 1.959964


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
    for name, first, second, level in _contrasts(ended):
        effect = effect_of(ended, baseline, level)
        if effect is None:
            continue
        sides = [level(record) for record in ended]
        counts = sides.count(True), sides.count(False)
        if effect.value < 0:
            first, second, counts, effect = second, first, counts[::-1], effect.reversed()
        evidence = (
            f"{counts[0]} finished trials against {counts[1]}, at equal size and mode: {effect.interval()} points"
        )
        if effect.is_significant:
            told.append(Finding(f"{name}: {first} kept {effect.points()} more than {second}.", evidence, "seen"))
        else:
            text = f"{name}: {first} and {second} can't be told apart."
            told.append(Finding(text, evidence, "open"))
    return told


Side = Callable[[TrialRecord], bool | None]


def _contrasts(records: Sequence[TrialRecord]) -> list[tuple[str, str, str, Side]]:
    """Pairs of settings worth comparing: name, one side, the other side, and who is on which."""
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
    """Which benchmark suffers most in the answer to each budget."""
    points = {point.key: point for point in front.points}
    told = []
    for key in dict.fromkeys(key for key in front.budgets.values() if key):
        ratios = kept_per_benchmark(points[key], front.baseline)
        if len(ratios) < 2 or max(ratios.values()) - min(ratios.values()) < 0.02:
            continue
        worst = min(ratios, key=ratios.__getitem__)
        asked = " and ".join(budget for budget, answer in front.budgets.items() if answer == key)
        text = f"Within {asked}, {worst} suffers most: {ratios[worst]:.0%} of the dense score is kept."
        every = ", ".join(f"{name} {ratio:.1%}" for name, ratio in ratios.items())
        told.append(Finding(text, f"{key}: {every}", "fact"))
    return told


def kept_per_benchmark(point: FrontPoint, baseline: Baseline) -> dict[str, float]:
    """Score over the dense model's score, per benchmark on which the dense model scores at all."""
    return {name: score / baseline.scores[name] for name, score in point.scores.items() if baseline.scores.get(name)}


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
    if effect.is_significant:
        direction = "less" if mean > 0 else "more"
        text = f"On held-out questions the front keeps {effect.points()} {direction} than on the search's questions."
        return [Finding(text, evidence, "seen")]
    return [Finding("On held-out questions the front keeps as much as on the search's questions.", evidence, "fact")]


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
    evidence = f"Spearman over {len(pairs)} finished trials: [{low:.2f}, {high:.2f}]; stopped ones can't be counted"
    return [Finding(text, evidence, "fact")]


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
