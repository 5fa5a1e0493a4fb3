"""Join a Ray cluster, or start one on this machine; and how many trials it has room for."""

import logging
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray._private.state import available_resources_per_node  # public, but for its place
from ray.util.placement_group import placement_group_table

from raysearch.config.settings import Slots
from raysearch.errors import InputError, first_line
from raysearch.logging import logger

LOOPBACK = "127.0.0.1"
MAX_SOCKET_PATH, CHARS_BELOW = 107, 65  # of `session_2026-11-30_18-39-54_404421_1135012/sockets/plasma_store.123`
SECONDS_BETWEEN_LOOKS = 10.0
SECONDS_TO_ANSWER = 10.0
SECONDS_BETWEEN_CALLS = 5.0
SECONDS_WITHOUT_HEAD = 45.0
"""After which a search ends; Ray would end its process after 60, with lines of its own."""
ON_HEAD = {"node:__internal_head__": 0.001}
"""Resources of what must outlive the worker nodes: room for a thousand, without a share of any CPU."""
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study's own files say it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `search` ends cleanly itself
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",  # trials are the work here; Ray would step back behind everything else
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def join_cluster(slots: Slots) -> int:
    """Join the cluster that RAY_ADDRESS or the job names, else start one on this machine.

    Returns:
        How many trials it has room for at a time.

    Raises:
        InputError: the cluster can't be joined, or has not even room for one trial.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("USER", f"uid{os.getuid()}")  # getpass asks for it before the password file
    if not ray.is_initialized():
        _start()
    num = num_slots(slots)
    if num < 1:
        raise InputError(
            f"slots: a trial asks for {slots.workers} workers of {_text(_asked(slots))} each, the cluster has "
            f"{_nodes_text()}; lower slots.workers, add nodes, or set slots.autoscaling if the cluster adds them"
        )
    return num


def leave_without_head(
    address: str, folder: Path, is_over: threading.Event, leave: Callable[[int], None] = os._exit
) -> None:
    """End this process with one line once nobody has listened at the head's address for `SECONDS_WITHOUT_HEAD`; until
    then it may be restarted. The study's files are whole at any time.

    Args:
        address: HOST:PORT of Ray's control service (GCS).
        folder: of the study.
        is_over: ends the watch.
    """
    host, _, port = address.rpartition(":")
    heard = time.monotonic()
    while not is_over.wait(SECONDS_BETWEEN_CALLS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
            heard = time.monotonic()
        except OSError as error:
            if time.monotonic() - heard > SECONDS_WITHOUT_HEAD and not is_over.is_set():
                resume = f"raysearch search --resume {shlex.quote(str(folder))}"
                reason = f"the head of Ray's cluster at {address} is gone ({first_line(error)})"
                print(f"raysearch: {reason}; start it again, then go on with {resume}", file=sys.stderr, flush=True)
                leave(2)
                return


def joining_text() -> tuple[str, str]:
    """What `join_cluster` will do, and where."""
    address = os.environ.get("RAY_ADDRESS")
    return ("joining the cluster", f"RAY_ADDRESS {address}") if address else ("starting Ray", "on this machine")


def _start() -> None:
    verbosity = {
        "log_to_driver": logger.isEnabledFor(logging.DEBUG),
        "logging_level": logging.INFO if logger.isEnabledFor(logging.INFO) else logging.CRITICAL,
    }
    if not logger.isEnabledFor(logging.INFO):
        # It prints what raylets say of their ends, with pages of their state, whatever is set; Ray's logs have it, too.
        worker.listen_error_messages = lambda *listening: None
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        _start_local(**verbosity)
        return
    try:
        _check_address(address)
        ray.init(**verbosity)
    except InputError:
        raise
    except Exception as error:  # also of an address that no socket takes, and whatever Ray raises
        reason = " ".join(str(error).split())
        raise InputError(
            f"RAY_ADDRESS {address}: can't join that cluster ({reason}); start it, give the nodes and this machine "
            "the same versions and token, or unset RAY_ADDRESS"
        ) from None


def _start_local(**verbosity: Any) -> None:
    """Start Ray on this machine, where no other can reach it; once more if its processes didn't come up in time, as on
    a crowded machine."""
    _listen_on_loopback()
    for is_last in (False, True):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=_short_temporary_folder(),
                **verbosity,
            )
            return
        except Exception as error:  # Ray raises bare ones here
            ray.shutdown()
            if is_last:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"Ray can't be started on this machine ({reason}); free processors or memory"
                ) from None


def _listen_on_loopback() -> None:
    """Ray's own switch for a node of one machine, its default on Windows and macOS; read once, at Ray's import."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _short_temporary_folder() -> str | None:
    """Where Ray's sockets go if its own choice, below TMPDIR, makes their paths too long for the kernel; else None."""
    own = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    if len(os.fsencode(own)) + CHARS_BELOW <= MAX_SOCKET_PATH:
        return None
    short = Path("/tmp") / f"ray-{os.getuid()}"
    logger.info("%s: too long for Ray's sockets; they go to %s", own, short)
    return str(short)


def _check_address(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
        InputError: it is no address that a driver can join.
    """
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS {address}: an address for clients; on the cluster itself give HOST:PORT of its head, from "
            "elsewhere submit the search by ray job submit"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()


def num_slots(slots: Slots) -> int:
    """Trials at a time: what the space says, or as many as the cluster has room for now."""
    if slots.autoscaling:
        assert slots.num is not None, slots
        return slots.num
    num_workers = sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in _asked(slots).items() if amount) for node in _nodes()
    )
    room = num_workers // slots.workers
    return min(slots.num or room, room)


def room_text(slots: Slots) -> str:
    """Why a slot that waits has no workers yet: what it needs and what there is, or that Ray starts their processes."""
    if all(group["state"] not in ("PENDING", "RESCHEDULING") for group in placement_group_table().values()):
        return "Ray starts its processes"
    asked, free = {kind: amount for kind, amount in _asked(slots).items() if amount}, available_resources_per_node()
    most = {kind: max((node.get(kind, 0.0) for node in free.values()), default=0.0) for kind in asked}
    needed, freest = (" and ".join(f"{amount:g} {kind}" for kind, amount in one.items()) for one in (asked, most))
    each = f"{slots.workers} times {needed}, each" if slots.workers > 1 else needed
    return f"it needs {each} on one node; the freest has {freest}"


def is_node_lost(nodes: Sequence[str]) -> bool:
    """Whether one of the nodes with these ids is gone."""
    return not {node["NodeID"] for node in ray.nodes() if node["Alive"]}.issuperset(nodes)


class SlotCapacity:
    """How many trials may run at a time, as nodes come and go; looks every ten seconds."""

    def __init__(self, slots: Slots) -> None:
        self._slots, self._asked_at, self._num = slots, 0.0, 1

    def num_slots(self) -> int:
        """Trials at a time, now; one at least, which waits for a node to come back."""
        if time.monotonic() - self._asked_at > SECONDS_BETWEEN_LOOKS:
            self._num, self._asked_at = max(1, num_slots(self._slots)), time.monotonic()
        return self._num


def _asked(slots: Slots) -> dict[str, float]:
    """What one worker takes, all on one node."""
    return {"CPU": slots.cpus_per_worker, "GPU": slots.gpus_per_worker}


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _text(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _nodes_text() -> str:
    kinds = Counter(map(_text, _nodes()))
    return ", ".join(f"{num} node{'s' * (num > 1)} of {kind}" for kind, num in kinds.items()) or "no node"
