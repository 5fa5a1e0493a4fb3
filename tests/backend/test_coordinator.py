"""What is measured once per study: shared out among slots, whichever of them comes, waits or dies."""

import asyncio
from unittest.mock import AsyncMock, patch

from raysearch.backend import coordinator as coordinator_module
from raysearch.backend.coordinator import Coordinator

NAMES = ["long", "middle", "short"]
SOON_S = 0.05


async def waits(awaitable):
    """The task, which must still be waiting."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(SOON_S)
    assert not task.done()
    return task


def runs(scenario):
    """Runs `scenario(coordinator)` to its end."""

    async def run():
        await asyncio.wait_for(scenario(Coordinator()), 30)

    return lambda: asyncio.run(run())


async def measured(coordinator, slot, *names):
    for name in names:
        assert await coordinator.next_part(slot, NAMES) == name
        await coordinator.publish(name, name.encode())


@runs
async def test_one_slot_measures_all(coordinator):
    await measured(coordinator, "a", *NAMES)
    assert await coordinator.next_part("a", NAMES) is None
    assert await coordinator.prepared(NAMES) == (None, {"long": b"long", "middle": b"middle", "short": b"short"})


@runs
async def test_two_slots_measure_each_part_once(coordinator):
    assert await coordinator.next_part("a", NAMES) == "long"
    await measured(coordinator, "b", "middle", "short")
    others = [await waits(coordinator.next_part("b", NAMES)), await waits(coordinator.prepared(NAMES))]
    await coordinator.publish("long", b"long")
    assert await coordinator.next_part("a", NAMES) is None
    assert await others[0] is None
    refusal, parts = await others[1]
    assert refusal is None
    assert set(parts) == set(NAMES)
    assert await coordinator.next_part("late", NAMES) is None


@runs
async def test_a_part_whose_slot_dies_is_measured_by_one_that_waits(coordinator):
    assert await coordinator.next_part("a", NAMES) == "long"
    await measured(coordinator, "b", "middle", "short")
    waiting = await waits(coordinator.next_part("b", NAMES))
    await coordinator.forget("a")
    assert await waiting == "long"
    await coordinator.publish("long", b"again")
    assert (await coordinator.prepared(NAMES))[1]["long"] == b"again"


@runs
async def test_what_a_slot_has_measured_outlives_it(coordinator):
    await measured(coordinator, "a", "long")
    await coordinator.forget("a")
    await measured(coordinator, "b", "middle", "short")
    assert (await coordinator.prepared(NAMES))[1]["long"] == b"long"


@runs
async def test_a_refusal_reaches_all_who_wait(coordinator):
    before = await waits(coordinator.prepared(NAMES))  # nobody measures yet
    assert await coordinator.next_part("a", NAMES) == "long"
    await measured(coordinator, "b", "middle", "short")
    waiting = await waits(coordinator.next_part("b", NAMES))
    await coordinator.refuse(b"no")
    assert await waiting is None
    assert (await before)[0] == (await coordinator.prepared(NAMES))[0] == b"no"
    assert await coordinator.next_part("late", NAMES) is None


@runs
async def test_what_slots_of_dead_owners_held_is_given_back(coordinator):
    removed, dead = [], set()
    with (
        patch.object(coordinator_module, "remove_placement_group", removed.append),
        patch.object(coordinator_module, "_is_dead", AsyncMock(side_effect=dead.__contains__)),
    ):
        for slot, owner in (("a", "one"), ("b", "two"), ("c", "three")):
            await coordinator.begin(slot, owner)
        for slot in "ab":
            await coordinator.join(slot, f"worker of {slot}", "node", f"group of {slot}")
        assert await coordinator.next_part("a", NAMES) == "long"
        dead |= {"one", "three"}
        await coordinator.begin("d", "four")
        await coordinator.begin("e", "five")
    assert removed == ["group of a"]
    assert await coordinator.workers("a") == []
    assert await coordinator.workers("b") == [("worker of b", "node")]
    assert await coordinator.next_part("d", NAMES) == "long"
