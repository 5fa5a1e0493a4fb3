"""Part `driver` of run.py: the driver alone, with a stand-in for training."""

import errno
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.fault_injection import processes
from scripts.testing import stand_in

NUM_TRIALS = 40
LINES = ("trials.jsonl", "search-events.jsonl", "decisions.jsonl")
Act = Callable[[str, Callable[..., Any], tuple[Any, ...]], None]
"""What happens in the place of an operation on a file: its name in `os`, the operation, its arguments."""


class Failed(Exception):
    """A check that didn't hold."""


def check(holds: object, what: str) -> None:
    """Raise `Failed` unless it holds."""
    if not holds:
        raise Failed(what)


def studies(folder: Path, seed: int) -> Iterator[tuple[Counter[str], Callable[[], None]]]:
    """Studies for ever, a kind of fault each, in turn; those where the driver dies take many of them."""
    driver = Driver(folder, seed)
    kinds = {
        "driver killed, one slot": driver.killed,
        "driver killed, four slots": driver.killed_with_four_slots,
        "driver killed in a write": driver.killed_in_a_write,
        "line cut": driver.line_cut,
        "disk full": driver.disk_full,
        "storage away": driver.storage_away,
        "clock jump": driver.clock_jumps,
        "second driver": driver.second_driver,
    }
    for number, (kind, act) in enumerate(itertools.cycle(kinds.items())):
        faults: Counter[str] = Counter()

        def go(act: Any = act, kind: str = kind, number: int = number, faults: Counter = faults) -> None:
            faults[kind] = act(folder / str(number))

        yield faults, go


class Driver:
    """Breaks a driver in ways of its own choice; each method takes a new study's folder, and returns the number of
    faults that it went through."""

    def __init__(self, folder: Path, seed: int, num_trials: int = NUM_TRIALS) -> None:
        """Run the unbroken study, in `folder`."""
        self._draw, self._made = random.Random(seed), stand_in.plan(num_trials)
        self._num_trials = num_trials
        with operations(-1, lambda *operation: None) as count:
            stand_in.drive(self._made, folder / "unbroken")
        self._num_operations = next(count)
        self._num_lines = processes.num_lines(folder / "unbroken")
        self._wanted = processes.outcome(folder / "unbroken")

    def killed(self, study: Path) -> int:
        """By SIGKILL at random instants, again and again."""
        num = self._kill_until_done(study, 1)
        self.check_as_unbroken(study)
        return num

    def killed_with_four_slots(self, study: Path) -> int:
        """The order of events is then not fixed."""
        num = self._kill_until_done(study, 4)
        keys = [row["key"] for row in processes.outcome(study)["trials"]]
        check(len(keys) == len(set(keys)) == self._num_trials, f"{len(set(keys))} trials in {len(keys)} lines")
        return num

    def killed_in_a_write(self, study: Path) -> int:
        """When half of it is written, or between writing and renaming; twice."""

        def die(name: str, real: Callable, arguments: tuple) -> None:
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        ends = [self._broken_at_a_write(study, die, name=f"{start}-") for start in range(2)]
        check(ends == [-signal.SIGKILL] * 2, f"the driver ended with {ends}")
        self._go_on(study)
        return 2

    def line_cut(self, study: Path) -> int:
        """Half a line at the end of a file, as a crash of the machine leaves it."""
        check(processes.killed(self._made, study, self._later(study, 0.2, 0.9)), "the driver ended unbroken")
        with (study / self._draw.choice(LINES)).open("a") as stream:
            stream.write('{"trial": "cut", "key": "01234'[: self._draw.randrange(1, 30)])
        self._go_on(study)
        return 1

    def disk_full(self, study: Path) -> int:
        """A write fails, or is done in part."""
        in_part = self._draw.random() < 0.5

        def fill(name: str, real: Callable, arguments: tuple) -> None:
            if name == "write" and in_part:
                real(arguments[0], arguments[1][:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        status = self._broken_at_a_write(study, fill)
        check(status == errno.ENOSPC, f"the driver ended with {status}")
        self._go_on(study)
        return 1

    def storage_away(self, study: Path) -> int:
        """Operations block for a while, or fail from one on."""
        blocks, back_at = self._draw.random() < 0.5, []

        def leave(name: str, real: Callable, arguments: tuple) -> None:
            if not blocks:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if not back_at:
                back_at.append(time.sleep(1))

        status = self._broken_at_a_write(study, leave)
        check(status == (0 if blocks else errno.EIO), f"the driver ended with {status}")
        self._go_on(study)
        return 1

    def clock_jumps(self, study: Path) -> int:
        """Ten years forward and back, at every look at the clock."""
        years, real, num_looks = 10 * 365 * 86400, time.time, itertools.count()

        def jump() -> None:
            time.time = lambda: real() + years * (next(num_looks) % 3 - 1)

        check(processes.in_a_child(jump, self._made, study) == 0, "the driver failed")
        self.check_as_unbroken(study)
        return 1

    def second_driver(self, study: Path) -> int:
        """Refused, while the first one goes on."""

        answers: list[int] = []

        def begin(name: str, real: Callable, arguments: tuple) -> None:
            if not answers:
                answers.append(-1)
                answers[0] = processes.in_a_child(lambda: None, self._made, study, name="second-")

        with operations(self._some_operation(), begin):
            stand_in.drive(self._made, study)
        check(answers == [processes.REFUSED], f"the second driver ended with {answers}")
        self.check_as_unbroken(study)
        return 1

    def _broken_at_a_write(self, study: Path, act: Act, **more: Any) -> int:
        """The exit status of a driver that `act` happens to, at a random operation on a file."""
        disturbed = operations(self._some_operation(), act)
        return processes.in_a_child(lambda: disturbed.__enter__(), self._made, study, **more)

    def _some_operation(self) -> int:
        return self._draw.randrange(1, int(0.45 * self._num_operations))

    def _go_on(self, study: Path) -> None:
        stand_in.drive(self._made, study, name="again")
        self.check_as_unbroken(study)

    def check_as_unbroken(self, study: Path) -> None:
        """Trials, rungs, decisions, front and files are those of the unbroken study."""
        check(processes.outcome(study) == self._wanted, "another outcome than unbroken")

    def _later(self, study: Path, least: float, most: float) -> Callable[[], bool]:
        """A condition that comes true when a study has come on by a share of its whole, between the two."""
        num = int(self._draw.uniform(least, most) * self._num_lines)
        return processes.further(study, num, self._draw.uniform(0, 0.05))

    def _kill_until_done(self, study: Path, num_slots: int) -> int:
        log, area = study.parent / f"{study.name}.begun", 0.0
        for start in range(1000):
            when = self._later(study, 0, 0.3)
            more = {"name": f"{start}-", "num_slots": num_slots, "log": log}
            killed = processes.killed(self._made, study, when, **more)
            if (study / "front.json").exists():
                now = json.loads((study / "front.json").read_text())["hypervolume"]
                check(now >= area, "the front has lost a point")
                area = now
            if not killed:
                break
        begun = log.read_text().split()
        check(len(begun) == len(set(begun)), "a trial was begun twice")
        return start


@contextmanager
def operations(number: int, act: Act) -> Iterator[Iterator[int]]:
    """Count what this process writes, syncs and renames; from operation `number` on, `act` first: it may raise."""
    count = itertools.count()
    real = {name: getattr(os, name) for name in ("write", "fsync", "replace")}

    def counted(name: str) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            at = next(count)
            if 0 <= number <= at:
                act(name, real[name], arguments)
            return real[name](*arguments)

        return operation

    for name in real:
        setattr(os, name, counted(name))
    try:
        yield count
    finally:
        for name, operation in real.items():
            setattr(os, name, operation)
