"""Gives back what slots had reserved, however they ended.

Ray removes a placement group when the actor that made it and the whole job are dead; a slot that dies before its
workers have joined would keep its processors until the search ends. Ids of groups end with that of their job.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

SECONDS_OF_DOUBT = 2.0  # between a group's first look and its slot's beginning


class GroupSweeper:
    """Removes the groups of this job whose slots are gone."""

    def __init__(self) -> None:
        self._first_seen: dict[str, float] = {}

    def sweep(self, registered: Iterable[str], waiting_since: Iterable[float]) -> list[str]:
        """Remove each group that no slot has registered and that was there before every slot that still waits for one.

        Args:
            registered: ids of the groups of slots whose workers have joined.
            waiting_since: when the slots began whose workers have not, in seconds since 1970.

        Returns:
            The ids of the removed groups.
        """
        now, here = time.time(), reserved()
        self._first_seen = {group: self._first_seen.get(group, now) for group in here}
        oldest = min(waiting_since, default=now)
        orphans = [
            group
            for group, seen in self._first_seen.items()
            if group not in set(registered) and seen < oldest - SECONDS_OF_DOUBT
        ]
        remove(orphans)
        return orphans


def reserved() -> list[str]:
    """Ids of this job's living groups with processors; those of Ray Tune's trials have none."""
    job = ray.get_runtime_context().get_job_id()
    return [
        group
        for group, entry in placement_group_table().items()
        if group.endswith(job) and entry["state"] != "REMOVED" and _has_processors(entry["bundles"])
    ]


def remove(groups: Iterable[str]) -> None:
    """Remove placement groups by their ids, as far as they are there."""
    for group in groups:
        with suppress(Exception):  # whatever Ray raises where its head is going away
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))


def _has_processors(bundles: dict[int, dict[str, Any]]) -> bool:
    return any(bundle.get("CPU") or bundle.get("GPU") for bundle in bundles.values())
