"""Searches without Ray in processes of their own, which are killed or disturbed, and what they came to."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysearch.backend.faults import LostFileError
from raysearch.errors import InputError
from scripts.testing.stand_in import MadePlan, drive


def killed(plan: MadePlan, folder: Path, when: Callable[[], bool], **more: Any) -> bool:
    """Drive a study in a process of its own that is killed as soon as `when` says so; False if it ended before."""
    child = os.fork()
    if child == 0:
        try:
            drive(plan, folder, **more)
        finally:
            os._exit(0)
    while not when():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


REFUSED = 2


def in_a_child(first: Callable[[], object], plan: MadePlan, folder: Path, **more: Any) -> int:
    """Drive a study in a process of its own, after `first`.

    Returns:
        Its exit status: 0, -N for signal N, REFUSED after an `InputError`, or the number of an `OSError`.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            first()
            drive(plan, folder, **more)
            status = 0
        except InputError:
            status = REFUSED
        except LostFileError as error:
            status = getattr(error.__cause__, "errno", 1)
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def num_lines(folder: Path) -> int:
    """How far a study has come: trials that have ended, and decisions about trials."""
    paths = (folder / "trials.jsonl", folder / "decisions.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def further(folder: Path, num: int, delay: float = 0.0) -> Callable[[], bool]:
    """A condition that comes true, `delay` seconds late, when a study has `num` lines more than now: on a slow machine
    as on a fast one."""
    wanted = num_lines(folder) + num
    reached: list[float] = []

    def has_come() -> bool:
        if not reached and num_lines(folder) >= wanted:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() >= reached[0] + delay

    return has_come


def outcome(folder: Path) -> dict:
    """What a study came to, without times and the names of trials."""
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds"), row.pop("started"), row.pop("trial")
    decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    for decision in decisions:
        decision.pop("trial")
    return {
        "trials": rows,
        "decisions": decisions,
        "front": json.loads((folder / "front.json").read_text()),
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "running": list((folder / "running").iterdir()),
        "half written": [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"],
    }
