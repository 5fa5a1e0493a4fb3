"""What is measured once per study: shared out among slots, whichever of them comes, waits or dies."""

import asyncio
from unittest.mock import AsyncMock, patch

from raysearch.backend import coordinator as board_module
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
    """Runs `scenario(board)` to its end."""

    async def run():
        await asyncio.wait_for(scenario(Coordinator()), 30)

    return lambda: asyncio.run(run())


async def measured(board, slot, *names):
    for name in names:
        assert await board.next_part(slot, NAMES) == name
        await board.publish(name, name.encode())


@runs
async def test_one_slot_measures_all(board):
    await measured(board, "a", *NAMES)
    assert await board.next_part("a", NAMES) is None
    assert await board.prepared() == (None, {"long": b"long", "middle": b"middle", "short": b"short"})


@runs
async def test_two_slots_measure_each_part_once(board):
    assert await board.next_part("a", NAMES) == "long"
    await measured(board, "b", "middle", "short")
    others = [await waits(board.next_part("b", NAMES)), await waits(board.prepared())]
    await board.publish("long", b"long")
    assert await board.next_part("a", NAMES) is None
    assert await others[0] is None
    refusal, parts = await others[1]
    assert refusal is None
    assert set(parts) == set(NAMES)
    assert await board.next_part("late", NAMES) is None


@runs
async def test_a_part_whose_slot_dies_is_measured_by_one_that_waits(board):
    assert await board.next_part("a", NAMES) == "long"
    await measured(board, "b", "middle", "short")
    waiting = await waits(board.next_part("b", NAMES))
    await board.forget("a")
    assert await waiting == "long"
    await board.publish("long", b"again")
    assert (await board.prepared())[1]["long"] == b"again"


@runs
async def test_what_a_slot_has_measured_outlives_it(board):
    await measured(board, "a", "long")
    await board.forget("a")
    await measured(board, "b", "middle", "short")
    assert (await board.prepared())[1]["long"] == b"long"


@runs
async def test_a_refusal_reaches_all_who_wait(board):
    before = await waits(board.prepared())  # nobody has said yet what the parts are
    assert await board.next_part("a", NAMES) == "long"
    await measured(board, "b", "middle", "short")
    waiting = await waits(board.next_part("b", NAMES))
    await board.refuse(b"no")
    assert await waiting is None
    assert (await before)[0] == (await board.prepared())[0] == b"no"
    assert await board.next_part("late", NAMES) is None


@runs
async def test_what_slots_of_dead_owners_held_is_given_back(board):
    removed = []
    with (
        patch.object(board_module, "remove_placement_group", removed.append),
        patch.object(board_module, "_is_dead", AsyncMock(side_effect=lambda owner: owner == "dead")),
    ):
        for slot, owner in (("a", "dead"), ("b", "busy"), ("c", "dead")):
            board._owners[slot] = owner
        for slot in "ab":
            await board.join(slot, f"worker of {slot}", "node", f"group of {slot}")
        assert await board.next_part("a", NAMES) == "long"
        await board.begin("d", "alive")
        await board.begin("e", "alive")
    assert removed == ["group of a"]
    assert set(board._owners) == {"b", "d", "e"}
    assert await board.workers("b") == [("worker of b", "node")]
    assert await board.next_part("d", NAMES) == "long"
