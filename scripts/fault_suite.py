"""Seeded random faults, and whether a study comes through them as if nothing had happened.

    python scripts/fault_suite.py driver --num 60        # the driver killed at random instants; minutes of one core
    python scripts/fault_suite.py real --num 4           # real small searches: a worker, the driver, a hung slot

`driver` has a stand-in for training: searcher, scheduler, recorder and files are real. `real` runs the search of the
tests on the embedded LVLM, and ends processes by SIGKILL or stops them by SIGSTOP. Every fault ends with a check: the
trials, their rungs and the front are those of the unbroken search with the same seed, no trial has run twice, no
process is left, no file is half-written. Prints one line per fault and counts by kind; exit status 1 if a check failed.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import stand_in
from test_search import SMALL_SPACE

from raysearch.files import append_json, read_json_lines

NUM_TRIALS = 40


class Failed(Exception):
    """A check that didn't hold."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


# ---------------------------------------------------------------- the driver, with a stand-in for training


def driver_faults(folder: Path, seed: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """(kind, what to do; it returns how many faults it took the study through)."""
    draw = random.Random(seed)
    wanted_folder, made = folder / "unbroken", stand_in.plan(NUM_TRIALS)
    started = time.monotonic()
    stand_in.drive(made, wanted_folder)
    seconds, wanted = time.monotonic() - started, stand_in.outcome(wanted_folder)

    def one_slot(study: Path) -> int:
        num = _kill_until_done(study, draw, seconds, 1)
        check(stand_in.outcome(study) == wanted, "another outcome than unbroken")
        return num

    def four_slots(study: Path) -> int:
        num = _kill_until_done(study, draw, seconds, 4)
        keys = [row["key"] for row in stand_in.outcome(study)["trials"]]
        check(len(keys) == len(set(keys)) == NUM_TRIALS, f"{len(set(keys))} trials, {len(keys)} lines")
        return num

    def cut_line(study: Path) -> int:
        stand_in.killed(made, study, stand_in.after(draw.uniform(0.2, 0.9) * seconds))
        name = draw.choice(["trials.jsonl", "search-events.jsonl", "decisions.jsonl"])
        with (study / name).open("a") as stream:
            stream.write('{"trial": "cut", "key": "01234'[: draw.randrange(1, 30)])
        stand_in.drive(made, study, name="again")
        check(stand_in.outcome(study) == wanted, f"another outcome than unbroken after a cut in {name}")
        return 1

    for number in range(10**9):
        kind, act = (
            ("driver killed, one slot", one_slot),
            ("driver killed, four slots", four_slots),
            ("line cut", cut_line),
        )[number % 3]
        yield kind, lambda act=act, number=number: act(folder / str(number))


def _kill_until_done(study: Path, draw: random.Random, seconds: float, num_slots: int) -> int:
    log, area = study.parent / f"{study.name}.begun", 0.0
    for start in range(1000):
        when = stand_in.after(draw.uniform(0.05, 0.6) * seconds)
        more = {"name": f"{start}-", "num_slots": num_slots, "log": log}
        killed = stand_in.killed(stand_in.plan(NUM_TRIALS), study, when, **more)
        if (study / "front.json").exists():
            now = json.loads((study / "front.json").read_text())["hypervolume"]
            check(now >= area, "the front has lost a point")
            area = now
        if not killed:
            break
    begun = log.read_text().split()
    check(len(begun) == len(set(begun)), "a trial was begun twice")
    return start


# ---------------------------------------------------------------- real searches


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

    def workers(self) -> list[psutil.Process]:
        """Those that train."""
        self.look()
        return [
            p for p in self.seen.values() if p.is_running() and _title(p).startswith("ray::RayTrainWorker")
        ]

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


def real_outcome(folder: Path) -> dict:
    """Trials, rungs and front, without times and names."""
    rows = read_json_lines(folder / "trials.jsonl")
    kept = [{name: row[name] for name in ("key", "recipe", "num_params", "rungs", "end")} for row in rows]
    front = json.loads((folder / "front.json").read_text())
    for point in front["points"]:
        del point["mlflow_run_id"]
    half = [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    running = [path.name for path in (folder / "running").glob("*")]
    return {"trials": kept, "front": front, "half written": half, "running": running}


def real_faults(folder: Path, seed: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """A worker killed, the driver killed, a worker stopped for good, in turn, at random instants."""
    draw = random.Random(seed)
    space = folder / "small.yaml"
    slots = {**SMALL_SPACE["slots"], "timeout_s": 60}
    space.write_text(yaml.safe_dump({**SMALL_SPACE, "slots": slots}))
    if not (folder / "unbroken" / "front.json").exists():
        unbroken = Search(space, "--out", "unbroken", cwd=folder)
        check(unbroken.wait() == 0, "the unbroken search failed")
        unbroken.check_gone()
    wanted = real_outcome(folder / "unbroken")

    def disturbed(study: Path, act: Callable[[Search], None], resumes: bool) -> int:
        search = Search(space, "--out", study.name, cwd=folder)
        moment = draw.uniform(0, 1)
        while search.process.poll() is None and not _has_come_to(study, moment):
            search.look()
            time.sleep(0.05)
        act(search)
        status = search.wait()
        search.check_gone()
        if resumes:
            again = Search("--resume", study.name, cwd=folder)
            status = again.wait()
            again.check_gone()
        check(status == 0, f"exit status {status}")
        check(real_outcome(study) == wanted, "another outcome than unbroken")
        return 1

    def end(search: Search, what: signal.Signals) -> None:
        for worker in search.workers():
            worker.send_signal(what)

    acts = (
        ("worker killed", lambda study: disturbed(study, lambda s: end(s, signal.SIGKILL), False)),
        ("driver killed", lambda study: disturbed(study, lambda s: s.process.kill(), True)),
        ("worker hung", lambda study: disturbed(study, lambda s: end(s, signal.SIGSTOP), False)),
    )
    for number in itertools.count(len(list(folder.glob("study-*")))):
        kind, act = acts[number % 3]
        yield kind, lambda act=act, number=number: act(folder / f"study-{number}")


def _has_come_to(study: Path, moment: float) -> bool:
    """Whether a study has kept so many rungs and ended so many trials: `moment` is a share of four trials."""
    path = study / "trials.jsonl"
    num_ended = path.read_bytes().count(b"\n") if path.exists() else 0
    inside = any((study / "running").glob("*/[0-9]*"))
    return num_ended >= int(4 * moment) and (inside or num_ended > int(4 * moment))


def main() -> None:
    """Run the faults, and say what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["driver", "real"])
    parser.add_argument("--num", type=int, default=60, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the studies there; the unbroken one is used again")
    parser.add_argument("--out", type=Path, help="JSONL file that takes one line per study")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    num_failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        faults = (driver_faults if options.what == "driver" else real_faults)(folder, options.seed)
        for kind, act in faults:
            started, problem = time.monotonic(), ""
            try:
                counts[kind] += act()
            except Failed as error:
                problem, num_failed = str(error), num_failed + 1
            seconds = time.monotonic() - started
            print(f"{kind}: {problem or 'as unbroken'}, {seconds:.0f} s", flush=True)
            if options.out:
                append_json(options.out, {"kind": kind, "problem": problem, "seconds": round(seconds, 1)})
            if counts.total() + num_failed >= options.num:
                break
    print(
        "; ".join(f"{num} x {kind}" for kind, num in counts.items())
        + f"; {num_failed} studies failed a check"
    )
    sys.exit(bool(num_failed))


if __name__ == "__main__":
    main()
