import random
import time

import pytest

from raysearch.searching.early_stopping.asha import AshaBracket
from scripts.replays.simulator import simulate


class Straight:
    """Trials that rise in a straight line to their quality; size and quality come with the configuration."""

    def cost_of_result(self, config, samples_seen):
        return 0.0

    def checkpoints(self, config):
        return [1, 3, 9]

    def measure(self, trial, config, samples_seen):
        size, quality = config
        return size, quality * samples_seen / 9, 0.0


class InTurn:
    """Proposes a list, and lets `AshaBracket` decide."""

    def __init__(self, configs):
        self.configs, self.rungs, self.ended = list(configs), AshaBracket(9, 1, 3), []

    def suggest(self, trial):
        return self.configs.pop(0) if self.configs else None

    def on_result(self, trial, size, retention, se, samples_seen):
        return self.rungs.decide(trial, size, retention, se, samples_seen).go_on

    def on_end(self, trial, result, finished):
        self.ended.append((trial, finished))


def test_results_come_in_order_of_the_clock_and_cost_adds_up():
    policy = InTurn([(0.2, 0.9), (0.1, 0.95)])
    results = simulate(policy, Straight(), num_slots=2, max_cost=100)
    assert [(r.trial, r.samples_seen) for r in results] == [("0", 1), ("1", 1), ("0", 3), ("1", 3), ("0", 9), ("1", 9)]
    assert [r.cost for r in results] == [1, 2, 4, 6, 12, 18]
    assert policy.ended == [("0", True), ("1", True)]


def test_measuring_takes_its_time():
    world = Straight()
    world.cost_of_result = lambda config, samples_seen: 0.5 if samples_seen < 9 else 2
    results = simulate(InTurn([(0.1, 0.9), (0.05, 0.95)]), world, num_slots=1, max_cost=100)
    assert [r.cost for r in results] == [1.5, 4, 12, 13.5, 16, 24]


def test_a_stopped_trial_makes_room_for_the_next():
    policy = InTurn([(0.1, 0.9), (0.5, 0.1), (0.05, 0.95)])
    results = simulate(policy, Straight(), num_slots=1, max_cost=100)
    assert policy.ended == [("0", True), ("1", False), ("2", True)]
    assert results[-1].cost == 9 + 1 + 9


def test_the_search_ends_at_its_cost():
    results = simulate(InTurn([(0.1, 0.9)] * 50), Straight(), num_slots=1, max_cost=20)
    assert 20 <= results[-1].cost < 29


@pytest.mark.parametrize("num_slots", [1, 4])
def test_ten_thousand_trials_do_not_slow_the_rungs_down(num_slots):
    draw = random.Random(0)
    policy = InTurn([(draw.uniform(0.1, 1), draw.random()) for _ in range(10_000)])
    started = time.process_time()
    results = simulate(policy, Straight(), num_slots, max_cost=1e9)
    assert len(results) > 13_000
    assert time.process_time() - started < 20  # about 1 s on an idle core


def test_a_hundred_thousand_decisions_at_one_rung_take_seconds():
    draw, rungs = random.Random(0), AshaBracket(9, 1, 3)
    for number in range(10_000):
        rungs.decide(str(number), draw.uniform(0.1, 1), draw.random(), 0, 1)
    judged = [(draw.uniform(0.1, 1), draw.random(), 0.0) for _ in range(100_000)]
    started = time.process_time()
    for size, retention, se in judged:
        rungs.judge("new", rungs.rungs[0], size, retention, se, 1)
    assert time.process_time() - started < 30  # about 4 s on an idle core
