"""Part `real` of run.py: the search of the tests on the embedded LVLM, with real recovery training."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import yaml

from scripts.fault_injection.cluster import outcome
from scripts.fault_injection.driver import check
from scripts.testing.spaces import SMALL_SPACE


def studies(folder: Path, seed: int) -> Iterator[tuple[Counter[str], Callable[[], None]]]:
    """A worker, a trial's process or the driver killed, a worker stopped for good, broken files, in turn, at random
    instants."""
    broken = Broken(folder, seed)
    kinds: dict[str, Callable[[Path], None]] = {
        "worker killed": broken.worker_killed,
        "driver killed, running checkpoint broken": broken.state_damaged,
        "driver killed, teacher shard broken": broken.shard_damaged,
        "worker hung": broken.worker_hung,
        "trial's process killed, twice": broken.trial_killed_twice,
    }
    for number in itertools.count(len(list(folder.glob("study-*")))):
        kind, act = list(kinds.items())[number % len(kinds)]
        yield Counter({kind: 1}), partial(act, folder / f"study-{number}")


class Broken:
    """Breaks real searches; each public method takes a new study's folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Run the unbroken search in `folder`, unless it is there."""
        self._folder, self._draw = folder, random.Random(seed)
        self._space = folder / "small.yaml"
        slots = {**SMALL_SPACE["slots"], "timeout_s": 60}
        self._space.write_text(yaml.safe_dump({**SMALL_SPACE, "slots": slots}))
        if not (folder / "unbroken" / "front.json").exists():
            unbroken = Search(self._space, "--out", "unbroken", cwd=folder)
            check(unbroken.wait() == 0, "the unbroken search failed")
            unbroken.check_gone()
        self._wanted = outcome(folder / "unbroken")

    def worker_killed(self, study: Path) -> None:
        self._workers_sent(study, signal.SIGKILL)

    def worker_hung(self, study: Path) -> None:
        self._workers_sent(study, signal.SIGSTOP)

    def trial_killed_twice(self, study: Path) -> None:
        """On two cores: if the first left its slot's core taken, the second would take the last."""
        moment = self._draw.uniform(0, 0.5)
        search = self._begun(study, lambda: _has_come_to(study, moment))
        for wait_for in (moment + 0.25, None):
            for process in search.processes("ray::ResourceTrainable"):
                process.kill()
            while wait_for and search.process.poll() is None and not _has_come_to(study, wait_for):
                time.sleep(0.05)
        self._check_ends_as_unbroken(search, study)

    def state_damaged(self, study: Path) -> None:
        self._driver_killed(study, then_damage="running/*/[0-9]*/*.safetensors")

    def shard_damaged(self, study: Path) -> None:
        self._driver_killed(study, then_damage="teacher/*.safetensors")

    def _workers_sent(self, study: Path, what: signal.Signals) -> None:
        moment = self._draw.uniform(0, 1)
        search = self._begun(study, lambda: _has_come_to(study, moment))
        for worker in search.processes("ray::RayTrainWorker"):
            worker.send_signal(what)
        self._check_ends_as_unbroken(search, study)

    def _driver_killed(self, study: Path, then_damage: str) -> None:
        """As soon as there is a file of that kind, which is damaged before the study goes on."""
        search = self._begun(study, lambda: any(study.glob(then_damage)))
        search.process.kill()
        search.wait()
        search.check_gone()
        self._damage(study, then_damage)
        self._check_ends_as_unbroken(Search("--resume", study.name, cwd=self._folder), study)

    def _damage(self, study: Path, pattern: str) -> None:
        """Change bytes in the middle of the newest file of a kind."""
        found = sorted(study.glob(pattern), key=lambda path: path.stat().st_mtime)
        check(found, f"no {pattern} to damage")
        path = found[-1]
        with path.open("r+b") as stream:
            stream.seek(path.stat().st_size // 2)
            stream.write(self._draw.randbytes(64))

    def _begun(self, study: Path, has_come: Callable[[], bool]) -> "Search":
        search = Search(self._space, "--out", study.name, cwd=self._folder)
        while search.process.poll() is None and not has_come():
            search.look()
            time.sleep(0.05)
        return search

    def _check_ends_as_unbroken(self, search: "Search", study: Path) -> None:
        status = search.wait()
        search.check_gone()
        check(status == 0, f"exit status {status}")
        check(outcome(study) == self._wanted, "another outcome than unbroken")


class Search:
    """`python -m raysearch.pareto` on the embedded LVLM, and the processes that it starts."""

    def __init__(self, *arguments: object, cwd: Path) -> None:
        command = [sys.executable, "-m", "raysearch.pareto", *map(str, arguments)]
        self._log = (cwd / "log.txt").open("a")
        self.process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, "CI": "true"}, stdout=self._log, stderr=self._log
        )
        self.seen: dict[int, psutil.Process] = {}

    def look(self) -> None:
        """Note the processes there are."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)

    def processes(self, title: str) -> list[psutil.Process]:
        """Those that bear a title: of workers that train, or of trials."""
        self.look()
        return [p for p in self.seen.values() if p.is_running() and _title(p).startswith(title)]

    def wait(self) -> int:
        while self.process.poll() is None:
            self.look()
            time.sleep(0.5)
        return self.process.returncode

    def check_gone(self) -> None:
        """No process is left, two minutes after the end: Ray's agents look for their node now and then."""
        _, left = psutil.wait_procs(list(self.seen.values()), timeout=120)
        check(not left, f"left behind: {[_title(process) for process in left]}")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _has_come_to(study: Path, moment: float) -> bool:
    """Whether a study has kept so many rungs and ended so many trials: `moment` is a share of four trials."""
    path = study / "trials.jsonl"
    num_ended = path.read_bytes().count(b"\n") if path.exists() else 0
    inside = any((study / "running").glob("*/[0-9]*"))
    return num_ended >= int(4 * moment) and (inside or num_ended > int(4 * moment))
