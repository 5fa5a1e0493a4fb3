"""What slots had reserved is given back, and nothing else is."""

import os
import subprocess
import sys

import pytest
import ray

from raysearch.backend import placement_groups
from raysearch.backend.placement_groups import GroupSweeper, reserved

JOB, OTHER_JOB = "02000000", "03000000"
CPU = {0: {"CPU": 1.0}}


@pytest.fixture
def table(monkeypatch):
    """Ray's table of placement groups; fill it."""
    found = {}
    monkeypatch.setattr(placement_groups, "placement_group_table", lambda: found)
    monkeypatch.setattr(placement_groups, "remove_placement_group", lambda group: found.pop(group.id.hex()))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"get_job_id": lambda self: JOB})())
    return found


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(placement_groups.time, "time", lambda: now[0])
    return now


def group(number, job=JOB):
    return f"{number:028x}{job}"


def add(table, number, job=JOB, state="CREATED", bundles=CPU):
    table[group(number, job)] = {"state": state, "bundles": bundles}


def test_groups_of_this_job_with_processors_count(table):
    add(table, 1)
    add(table, 2, bundles={0: {"node:__internal_head__": 0.001}})
    add(table, 3, OTHER_JOB)
    add(table, 4, state="REMOVED")
    add(table, 5, state="PENDING", bundles={0: {"GPU": 1.0}})
    assert reserved() == [group(1), group(5)]


def test_a_group_that_was_there_before_the_slots_that_wait_is_given_back(table, clock):
    sweeper = GroupSweeper()
    add(table, 1)  # of a slot that is about to die before its workers join
    assert sweeper.sweep([], waiting_since=[999.0]) == []
    clock[0] = 1010.0
    add(table, 2)  # of the slot in its place, which began at 1008
    add(table, 3)  # of a slot whose workers have joined
    add(table, 4, OTHER_JOB)
    assert sweeper.sweep([group(3)], waiting_since=[1008.0]) == [group(1)]
    clock[0] = 1100.0
    assert sweeper.sweep([group(3)], waiting_since=[1008.0]) == []
    assert sorted(table) == sorted([group(2), group(3), group(4, OTHER_JOB)])
    assert sweeper.sweep([group(3)], waiting_since=[]) == [group(2)], "no slot is left that it could be of"


ORPHAN = """
import time
import ray
from ray.util.placement_group import placement_group
from raysearch.backend.cluster import join_cluster
from raysearch.backend.placement_groups import GroupSweeper, reserved
from raysearch.config.settings import Slots

@ray.remote(num_cpus=0)
class Maker:
    def make(self):
        self.group = placement_group([{"CPU": 1}])
        ray.get(self.group.ready())

join_cluster(Slots(num=1))
maker, sweeper = Maker.remote(), GroupSweeper()
ray.get(maker.make.remote())
assert sweeper.sweep([], [time.time() - 1]) == []
ray.kill(maker)
time.sleep(4)
(orphan,) = reserved()
assert sweeper.sweep([], [time.time()]) == [orphan]
while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
    time.sleep(0.1)
assert reserved() == []
ports = ray.get_runtime_context().gcs_address
ray.shutdown()
print("given back", ports)
"""


@pytest.mark.slow
def test_ray_keeps_the_group_of_a_dead_actor_until_it_is_given_back():
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", ORPHAN], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("given back 127.0.0.1:"), done.stderr
