"""Memory of each kind of process while many slots run real trials of the embedded LVLM on this machine.

    python scripts/benchmarks/slot_memory.py --slots 1 --formula      # what a slot takes on the head: a minute
    python scripts/benchmarks/slot_memory.py --slots 32               # 32 slots of real trials, whatever the cores

Every two seconds the proportional set size (PSS: shared pages in equal parts) of this process and of all below it. All
of a slot but its workers is on the head of a cluster; with `--formula`, whose workers have no torch, it is the same.
Ends the search where it exceeds `--most-gb`.
"""

import argparse
import os
import re
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import ray

from raysearch.backend.search_job import run
from raysearch.config.space import SearchSpace
from raysearch.files import read_json_lines
from raysearch.study.plan import plan_study
from scripts.fault_injection.formula_training import FormulaRuntime
from scripts.testing.spaces import SMALL_SPACE

TINY = SMALL_SPACE | {
    "num_samples": 16,
    "benchmarks": [{"name": "digits", "data": "pocket", "metric": "exact", "num_search": 20, "num_heldout": 20}],
    "calibration": {"num_samples": 4, "batch_size": 2},
    "recovery": {**SMALL_SPACE["recovery"], "batch_size": 2},
}
FREE_BYTES = 1.5e9
"""Left to others on this machine."""


class Watch:
    """The largest memory so far, as a whole and by kind of process."""

    def __init__(self, most_bytes: float) -> None:
        self.most_bytes, self.peak_bytes, self.num = most_bytes, 0, Counter[str]()
        self.by_kind: dict[str, int] = defaultdict(int)
        """Largest PSS of one process of each kind."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(2):
            total, num = 0, Counter[str]()
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    kind, size = kind_of(process), process.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue
                total, num[kind] = total + size, num[kind] + 1
                self.by_kind[kind] = max(self.by_kind[kind], size)
            self.num |= num
            self.peak_bytes = max(self.peak_bytes, total)
            if total > self.most_bytes or psutil.virtual_memory().available < FREE_BYTES:
                print(f"ended at {total / 1e9:.1f} GB: {dict(num)}", flush=True)
                for process in psutil.Process().children(recursive=True):
                    process.kill()
                os._exit(1)


def kind_of(process: psutil.Process) -> str:
    """What a process is, without what differs from one to the next."""
    command = process.cmdline()
    if process.pid == os.getpid():
        return "driver"
    if command[0].startswith("ray::"):
        return re.split(r"[.(\s]|with_", command[0])[0]
    return Path(command[0]).name if "python" not in command[0] else " ".join(Path(part).name for part in command[1:3])


def main() -> None:
    """Run a search, and print what its processes took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--formula", action="store_true", help="no training")
    parser.add_argument("--most-gb", type=float, default=20)
    given = parser.parse_args()
    search = {**SMALL_SPACE["search"], "trials": max(6, given.slots), "shapes": 0}
    space = SearchSpace.model_validate(TINY | {"search": search, "slots": {"num": given.slots}})
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, Watch(given.most_gb * 1e9) as watch:
        ray.init(
            address="local",
            num_cpus=given.slots,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",
            object_store_memory=200 * 2**20,
        )
        run(
            plan_study(space),
            Path(name) / "study",
            runtime=FormulaRuntime(on_ray_train=True) if given.formula else None,
        )
        rows = read_json_lines(Path(name) / "study" / "trials.jsonl")
    ends = Counter(row["end"] for row in rows)
    print(f"\n{len(rows)} trials {dict(ends)} on {given.slots} slots in {time.monotonic() - began:.0f} s")
    print(f"peak of all processes {watch.peak_bytes / 1e9:.2f} GB\n")
    print("| process | most at a time | largest, MB |\n|---|---|---|")
    for kind, size in sorted(watch.by_kind.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {watch.num[kind]} | {size / 1e6:.0f} |")


if __name__ == "__main__":
    main()
