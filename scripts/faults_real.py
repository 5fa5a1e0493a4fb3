"""The part `real` of fault_suite.py: the search of the tests on the embedded LVLM, with real recovery training."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml
from faults_cluster import outcome
from faults_driver import TESTS, check

sys.path.insert(0, str(TESTS))
from test_search import SMALL_SPACE


def studies(folder: Path, seed: int) -> Iterator[tuple[Counter[str], Callable[[], None]]]:
    """A worker, a trial's process or the driver killed, a worker stopped for good, broken files, in turn, at random
    instants."""
    draw = random.Random(seed)
    space = folder / "small.yaml"
    slots = {**SMALL_SPACE["slots"], "timeout_s": 60}
    space.write_text(yaml.safe_dump({**SMALL_SPACE, "slots": slots}))
    if not (folder / "unbroken" / "front.json").exists():
        unbroken = Search(space, "--out", "unbroken", cwd=folder)
        check(unbroken.wait() == 0, "the unbroken search failed")
        unbroken.check_gone()
    wanted = outcome(folder / "unbroken")

    def begun(study: Path, has_come: Callable[[], bool]) -> Search:
        search = Search(space, "--out", study.name, cwd=folder)
        while search.process.poll() is None and not has_come():
            search.look()
            time.sleep(0.05)
        return search

    def ended(search: Search) -> None:
        status = search.wait()
        search.check_gone()
        check(status == 0, f"exit status {status}")

    def check_as_unbroken(study: Path) -> None:
        check(outcome(study) == wanted, "another outcome than unbroken")

    def workers_sent(study: Path, what: signal.Signals) -> None:
        moment = draw.uniform(0, 1)
        search = begun(study, lambda: _has_come_to(study, moment))
        for worker in search.processes("ray::RayTrainWorker"):
            worker.send_signal(what)
        ended(search)
        check_as_unbroken(study)

    def trials_killed(study: Path) -> None:
        """Two, one after the other: what one slot holds would be missed by the next but one."""
        moment = draw.uniform(0, 0.5)
        search = begun(study, lambda: _has_come_to(study, moment))
        for wait_for in (moment + 0.25, None):
            for process in search.processes("ray::ResourceTrainable"):
                process.kill()
            while wait_for and search.process.poll() is None and not _has_come_to(study, wait_for):
                time.sleep(0.05)
        ended(search)
        check_as_unbroken(study)

    def driver_killed(study: Path, then_damage: str) -> None:
        """As soon as there is a file of that kind, which is damaged before the study goes on."""
        search = begun(study, lambda: any(study.glob(then_damage)))
        search.process.kill()
        search.wait()
        search.check_gone()
        damage(study, then_damage)
        ended(Search("--resume", study.name, cwd=folder))
        check_as_unbroken(study)

    def damage(study: Path, pattern: str) -> None:
        """Change bytes in the middle of the newest file of a kind."""
        found = sorted(study.glob(pattern), key=lambda path: path.stat().st_mtime)
        check(found, f"no {pattern} to damage")
        path = found[-1]
        with path.open("r+b") as stream:
            stream.seek(path.stat().st_size // 2)
            stream.write(draw.randbytes(64))

    kinds: dict[str, Callable[[Path], None]] = {
        "worker killed": lambda study: workers_sent(study, signal.SIGKILL),
        "driver killed, running checkpoint broken": lambda study: driver_killed(
            study, then_damage="running/*/[0-9]*/*.safetensors"
        ),
        "driver killed, teacher shard broken": lambda study: driver_killed(
            study, then_damage="teacher/*.safetensors"
        ),
        "worker hung": lambda study: workers_sent(study, signal.SIGSTOP),
        "trial's process killed, twice": trials_killed,
    }
    for number in itertools.count(len(list(folder.glob("study-*")))):
        kind, act = list(kinds.items())[number % len(kinds)]
        yield Counter({kind: 1}), lambda act=act, number=number: act(folder / f"study-{number}")


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
