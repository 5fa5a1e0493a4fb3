"""The claims of arXiv 2604.24380, as checks of the values in a table.

A check is a measured value and the range that a claim puts it in. A claim holds if the 95% interval of every value
lies inside its range; it fails if one lies outside by an interval widened for their number (Bonferroni); otherwise the
measurements can't tell.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from statistics import NormalDist
from typing import Literal

import numpy as np

from raysearch.evaluation.retention import Estimate, difference, retention
from raysearch.replication.probes import Probes
from raysearch.replication.table import Cell, Table, percent

Verdict = Literal["holds", "fails", "can't tell"]
LAYER, WIDTH = "layerwise", "widthwise"
FREE_FORM_CHANCE = 0.1
"""Benchmarks with a lower chance score count as free-form."""


@dataclass(frozen=True)
class Check:
    """A measured value and the range that a claim puts it in."""

    label: str
    value: Estimate
    low: float = -inf
    high: float = inf
    signed: bool = True
    """Whether it is a difference, shown with its sign."""

    def verdict(self, num: int = 1) -> Verdict:
        """Of this value, as one of `num` that must all lie inside their ranges."""
        low, high = self.value.interval
        if self.low <= low and high <= self.high:
            return "holds"
        reach = NormalDist().inv_cdf(1 - 0.025 / num) * self.value.se
        outside = self.value.value + reach < self.low or self.value.value - reach > self.high
        return "fails" if outside else "can't tell"

    def text(self) -> str:
        """The value, for a table."""
        return f"{self.label}: {percent(self.value, self.signed)}"


@dataclass(frozen=True)
class Claim:
    """A numbered claim; `checks` returns none where the study hasn't measured its cells."""

    number: int
    text: str
    checks: Callable[[Table, Probes], Sequence[Check]]


def verdict(checks: Sequence[Check]) -> Verdict:
    """Of all checks together; `can't tell` if there are none."""
    found = [check.verdict(len(checks)) for check in checks]
    if "fails" in found:
        return "fails"
    return "holds" if found and set(found) == {"holds"} else "can't tell"


def untrained(mode: str, ratio: float) -> Cell:
    """Pruned, without recovery."""
    return Cell(mode, ratio)


def projector(mode: str, ratio: float) -> Cell:
    """The projector trained by cross-entropy."""
    return Cell(mode, ratio, "projector", "sft")


def joint(mode: str, ratio: float, losses: str = "sft", fraction: float = 1.0) -> Cell:
    """Projector and decoder trained together."""
    return Cell(mode, ratio, "joint", losses, fraction)


def _gaps(table: Table, pairs: Iterable[tuple[str, Cell, Cell]], low: float = -inf, high: float = inf) -> list[Check]:
    return [
        Check(label, table.gap(first, second), low, high)
        for label, first, second in pairs
        if first in table and second in table
    ]


def _retentions(table: Table, cells: Iterable[tuple[Cell, float, float]]) -> list[Check]:
    return [
        Check(f"{cell.mode} {cell.ratio:.0%}", table.retention(cell), low, high, signed=False)
        for cell, low, high in cells
        if cell in table
    ]


def _at(table: Table, low: float, high: float = 1.0) -> list[float]:
    """Measured ratios from `low` to `high`, both included."""
    return [ratio for ratio in table.ratios if low - 0.005 <= ratio <= high + 0.005]


def _width_leads_untrained(table: Table, probes: Probes) -> list[Check]:
    pairs = ((f"{r:.0%}", untrained(WIDTH, r), untrained(LAYER, r)) for r in _at(table, 0.15, 0.3))
    return _gaps(table, pairs, low=0)


def _both_collapse(table: Table, probes: Probes) -> list[Check]:
    return _retentions(table, ((untrained(mode, r), -inf, 0.5) for mode in (WIDTH, LAYER) for r in _at(table, 0.45)))


def _free_form_gap_is_larger(table: Table, probes: Probes) -> list[Check]:
    free = [name for name, chance in table.dense.chance.items() if chance < FREE_FORM_CHANCE]
    checks = []
    for ratio in _at(table, 0.15, 0.3):
        wide, deep = untrained(WIDTH, ratio), untrained(LAYER, ratio)
        if free and wide in table and deep in table:
            free_gap, overall = table.gap(wide, deep, free), table.gap(wide, deep)
            # The two gaps are treated as independent; they share questions, so the interval is too wide.
            gap = Estimate(free_gap.value - overall.value, float(np.hypot(free_gap.se, overall.se)))
            checks.append(Check(f"{ratio:.0%}, {' and '.join(free)} against all", gap, low=0))
    return checks


def _width_keeps_91_to_95(table: Table, probes: Probes) -> list[Check]:
    return _retentions(table, ((untrained(WIDTH, r), 0.905, 0.955) for r in _at(table, 0.15, 0.15)))


def _projector_near_joint(at: float) -> Callable[[Table, Probes], list[Check]]:
    def checks(table: Table, probes: Probes) -> list[Check]:
        pairs = (
            (f"{mode} {r:.0%}", projector(mode, r), joint(mode, r))
            for mode in (WIDTH, LAYER)
            for r in _at(table, at, at)
        )
        return _gaps(table, pairs, low=-0.03)

    return checks


def _projector_keeps_95(table: Table, probes: Probes) -> list[Check]:
    return _retentions(
        table, ((projector(mode, r), 0.95, inf) for mode in (WIDTH, LAYER) for r in _at(table, 0.15, 0.15))
    )


def _joint_leads_by_4(table: Table, probes: Probes) -> list[Check]:
    pairs = (
        (f"{mode} {r:.0%}", joint(mode, r), projector(mode, r)) for mode in (WIDTH, LAYER) for r in _at(table, 0.45)
    )
    return _gaps(table, pairs, low=0.04)


def _layer_leads_recovered(table: Table, probes: Probes) -> list[Check]:
    return _gaps(table, ((f"{r:.0%}", joint(LAYER, r), joint(WIDTH, r)) for r in _at(table, 0.15, 0.3)), low=0)


def _width_leads_recovered(table: Table, probes: Probes) -> list[Check]:
    return _gaps(table, ((f"{r:.0%}", joint(WIDTH, r), joint(LAYER, r)) for r in _at(table, 0.45)), low=0)


def _kd_alone(table: Table, probes: Probes) -> list[Check]:
    alone = ("kl", "rkl", "l2")
    mild = [
        (f"{name} {r:.0%}", joint(WIDTH, r, name), joint(WIDTH, r)) for r in _at(table, 0.15, 0.15) for name in alone
    ]
    steep = [(f"{name} {r:.0%}", joint(WIDTH, r, name), joint(WIDTH, r)) for r in _at(table, 0.45) for name in alone]
    return _gaps(table, mild, low=-0.02, high=0.02) + _gaps(table, steep, high=0)


def _kd_order(table: Table, probes: Probes) -> list[Check]:
    order = ("sft", "rkl", "kl", "l2")
    pairs = (
        (f"{first} - {second}, {r:.0%}", joint(WIDTH, r, first), joint(WIDTH, r, second))
        for r in _at(table, 0.45)
        for first, second in pairwise(order)
    )
    return _gaps(table, pairs, low=0)


def _l2_helps(table: Table, probes: Probes) -> list[Check]:
    pairs = (
        (f"{mode} {r:.0%}", joint(mode, r, "sft+l2"), joint(mode, r)) for mode in (WIDTH, LAYER) for r in table.ratios
    )
    return _gaps(table, pairs, low=0)


def _l2_is_the_best_mix(table: Table, probes: Probes) -> list[Check]:
    others = ("sft+kl", "sft+rkl", "sft+kl+l2", "sft+rkl+l2")
    pairs = (
        (f"{r:.0%}, against {other}", joint(WIDTH, r, "sft+l2"), joint(WIDTH, r, other))
        for r in table.ratios
        for other in others
    )
    return _gaps(table, pairs, low=0)


def _little_data(fraction: float, first: float, last: float, low: float) -> Callable[[Table, Probes], list[Check]]:
    def checks(table: Table, probes: Probes) -> list[Check]:
        pairs = [(joint(WIDTH, r, "sft+l2", fraction), joint(WIDTH, r, "sft+l2")) for r in _at(table, first, last)]
        return [
            Check(f"{little.ratio:.0%}", table.relative(little, whole), low, signed=False)
            for little, whole in pairs
            if little in table and whole in table
        ]

    return checks


def _little_data_keeps_95(table: Table, probes: Probes) -> list[Check]:
    return _retentions(table, ((joint(WIDTH, r, "sft+l2", 0.05), 0.95, inf) for r in table.ratios))


def _ten_samples_calibrate(table: Table, probes: Probes) -> list[Check]:
    most = max((num for num, _ in probes.calibration), default=0)
    checks = []
    for (num, cell), results in probes.calibration.items():
        if 10 <= num < most and (most, cell) in probes.calibration and probes.search_dense:
            gap = difference(results, probes.calibration[most, cell], probes.search_dense)
            checks.append(Check(f"{cell.mode} {cell.ratio:.0%}, {num} - {most} samples", gap, -0.01, 0.01))
    return checks


def _damage_is_cross_modal(table: Table, probes: Probes) -> list[Check]:
    checks = []
    for ratio in _at(table, 0.15, 0.3):
        cell = untrained(WIDTH, ratio)
        if cell in table and cell in probes.text and probes.text_dense:
            images, text = table.retention(cell), retention(probes.text[cell], probes.text_dense)
            excess = Estimate((1 - images.value) - 1.9 * (1 - text.value), float(np.hypot(images.se, 1.9 * text.se)))
            checks.append(Check(f"{ratio:.0%}, drop with images - 1.9 x drop in words", excess, low=0))
    return checks


def _same_memory_and_layers_are_quicker(table: Table, probes: Probes) -> list[Check]:
    checks = []
    for ratio in table.ratios:
        wide, deep = untrained(WIDTH, ratio), untrained(LAYER, ratio)
        if wide in table.sizes and deep in table.sizes:
            share = table.sizes[wide].size_bytes / table.sizes[deep].size_bytes - 1
            checks.append(Check(f"{ratio:.0%}, bytes of width over layers", Estimate(share, 0.0), -0.05, 0.05))
        if wide in probes.seconds and deep in probes.seconds:
            slow, quick = probes.seconds[wide], probes.seconds[deep]
            lead = Estimate(1 - quick.value / slow.value, float(np.hypot(slow.se, quick.se)) / slow.value)
            checks.append(Check(f"{ratio:.0%}, time saved by layers over width", lead, low=0))
    return checks


def _best_recipes(table: Table, probes: Probes) -> list[Check]:
    ranges = ((LAYER, 0.15, 0.98, inf), (LAYER, 0.3, 0.94, inf), (WIDTH, 0.45, 0.84, 0.9), (WIDTH, 0.6, 0.78, 0.84))
    return _retentions(table, ((joint(mode, ratio, "sft+l2"), low, high) for mode, ratio, low, high in ranges))


def _int8_costs_little(table: Table, probes: Probes) -> list[Check]:
    pairs = (
        (f"{cell.mode} {cell.ratio:.0%}, {cell.regime}", cell, replace(cell, quantization="none"))
        for cell in table.cells
        if cell.quantization == "int8"
    )
    return _gaps(table, pairs, low=-1.2 / 53.7)


CLAIMS = (
    Claim(1, "Without recovery, at 15 to 30%, width keeps at least as much as layers.", _width_leads_untrained),
    Claim(2, "Without recovery, from 45% on, both keep less than half.", _both_collapse),
    Claim(3, "Without recovery, width's lead is larger on free-form tasks.", _free_form_gap_is_larger),
    Claim(4, "Without recovery, at 15%, width keeps 91 to 95%.", _width_keeps_91_to_95),
    Claim(
        5, "At 15%, the projector alone comes within 3 points of projector and decoder.", _projector_near_joint(0.15)
    ),
    Claim(6, "At 15%, the projector alone keeps at least 95%.", _projector_keeps_95),
    Claim(7, "At 30%, the projector alone comes within 3 points of projector and decoder.", _projector_near_joint(0.3)),
    Claim(8, "From 45% on, training the decoder too gains at least 4 points.", _joint_leads_by_4),
    Claim(9, "Recovered, at 15 to 30%, layers keep at least as much as width.", _layer_leads_recovered),
    Claim(10, "Recovered, from 45% on, width keeps at least as much as layers.", _width_leads_recovered),
    Claim(11, "Distillation alone is within 2 points of SFT at 15% and below it from 45% on.", _kd_alone),
    Claim(12, "From 45% on, alone: SFT, then reverse KL, then KL, then hidden states.", _kd_order),
    Claim(13, "SFT with hidden states keeps at least as much as SFT.", _l2_helps),
    Claim(14, "SFT with hidden states keeps at least as much as every other mix.", _l2_is_the_best_mix),
    Claim(
        15, "Up to 45%, 5% of the data reach at least 90% of what all data reach.", _little_data(0.05, 0.0, 0.45, 0.9)
    ),
    Claim(16, "At 60%, 20% of the data reach at least 88% of what all data reach.", _little_data(0.2, 0.6, 0.6, 0.88)),
    Claim(17, "With 5% of the data, at least 95% of the dense model is kept.", _little_data_keeps_95),
    Claim(18, "More than 10 calibration samples change nothing (1 point).", _ten_samples_calibrate),
    Claim(
        19, "At 15 to 30%, the drop with images is at least 1.9 times the drop in words alone.", _damage_is_cross_modal
    ),
    Claim(
        20,
        "At one ratio, memory differs by less than 5% between the modes, and layers answer no later than width.",
        _same_memory_and_layers_are_quicker,
    ),
    Claim(21, "The best recipes keep 98, 94, 84 to 90 and 78 to 84% at 15, 30, 45 and 60%.", _best_recipes),
    Claim(22, "int8 on top costs at most 1.2 points of the average of 53.7.", _int8_costs_little),
)
