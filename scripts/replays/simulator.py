"""A search on a simulated clock: the decisions are real, the trained models a table. For tests and benchmarks."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class World(Protocol):
    """The configurations that can be tried, and their learning curves."""

    def checkpoints(self, config: object) -> Sequence[float]:
        """Samples seen at each result of a trial, rising; the last one is the trial's own end."""

    def cost_of_result(self, config: object, samples_seen: float) -> float:
        """Cost of measuring there, in samples that could be trained on meanwhile."""

    def measure(self, trial: str, config: object, samples_seen: float) -> tuple[float, float, float]:
        """Size, measured retention and its standard error."""


class Policy(Protocol):
    """Proposes trials and stops them."""

    def suggest(self, trial: str) -> object | None:
        """The next trial's configuration; None for no more."""

    def on_result(self, trial: str, size: float, retention: float, se: float, samples_seen: float) -> bool:
        """Whether the trial continues; not called for a trial's last result."""

    def on_end(self, trial: str, result: "Result", finished: bool) -> None:
        """The trial ran to its own end with this result, or was stopped after it."""


@dataclass(frozen=True)
class Result:
    """One result of a simulated search; `cost` is that of all trials so far, in samples."""

    cost: float
    trial: str
    config: object
    samples_seen: float
    size: float
    retention: float
    se: float


def simulate(policy: Policy, world: World, num_slots: int, max_cost: float) -> list[Result]:
    """Run a search until its trials have cost `max_cost` samples, or the policy has no more trials.

    Every slot takes one sample per unit of time, and measures in between. Of results at the same time, that of the
    trial started first comes first.
    """
    results: list[Result] = []
    queue: list[tuple[float, int, int]] = []  # (time of the next result, trial, number of its checkpoint)
    running: dict[int, tuple[object, Sequence[float]]] = {}
    num_trials, cost = 0, 0.0

    def cost_of(config: object, checkpoints: Sequence[float], at: int) -> float:
        before = checkpoints[at - 1] if at else 0
        return checkpoints[at] - before + world.cost_of_result(config, checkpoints[at])

    def start(now: float) -> None:
        nonlocal num_trials
        config = policy.suggest(str(num_trials))
        if config is not None:
            running[num_trials] = (config, world.checkpoints(config))
            heapq.heappush(queue, (now + cost_of(*running[num_trials], 0), num_trials, 0))
            num_trials += 1

    for _ in range(num_slots):
        start(0.0)
    while queue and cost < max_cost:
        now, number, at = heapq.heappop(queue)
        config, checkpoints = running[number]
        cost += cost_of(config, checkpoints, at)
        trial, seen, last = str(number), checkpoints[at], at == len(checkpoints) - 1
        size, retention, se = world.measure(trial, config, seen)
        results.append(Result(cost, trial, config, seen, size, retention, se))
        if not last and policy.on_result(trial, size, retention, se, seen):
            heapq.heappush(queue, (now + cost_of(config, checkpoints, at + 1), number, at + 1))
            continue
        policy.on_end(trial, results[-1], finished=last)
        del running[number]
        start(now)
    return results
