"""Inject seeded random faults into studies, and check that each ends as the unbroken study does.

    python scripts/fault_injection/run.py driver --num 60        # the driver alone; minutes of one core
    python scripts/fault_injection/run.py cluster --num 30       # a Ray cluster of three nodes on this machine
    python scripts/fault_injection/run.py hosts --num 30         # three network namespaces, as root; half an hour
    python scripts/fault_injection/run.py real --num 5           # real small searches; ten minutes

`driver` has a stand-in for training and no Ray: searcher, scheduler, recorder and files are real. `cluster` has Ray,
slots and workers, too, and only training is a formula. `hosts` has three hosts with addresses of their own, a token,
and Ray Train's workers. `real` runs the search of the tests on the embedded LVLM. Every study ends with a check: its
trials, their rungs and the front are those of the unbroken study with the same seed, no trial has run twice, no process
is left, resources are free again, no file is half-written. Prints one line per study and counts by kind; exit status 1
if a check failed. With `--out`, a run that was broken off goes on where it was.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from raysearch.files import append_json, read_json_lines
from scripts.fault_injection import cluster, driver, hosts, real
from scripts.fault_injection.driver import Failed

Studies = Iterator[tuple[Counter[str], Callable[[], None]]]
"""What is broken in a study, how often; and the study, which raises `Failed` if a check does not hold."""
PARTS: dict[str, Callable[[Path, int], Studies]] = {
    "driver": driver.studies,
    "cluster": cluster.studies,
    "hosts": hosts.studies,
    "real": real.studies,
}


def run(studies: Studies, num: int, out: Path | None = None) -> tuple[Counter[str], int]:
    """Go through studies until there were `num` faults; counts by kind, and how many studies failed a check.

    Studies that have a line in `out` are not run again.
    """
    done = read_json_lines(out) if out and out.exists() else []
    counts: Counter[str] = Counter()
    num_failed = sum(bool(line["problem"]) for line in done)
    for number, (faults, act) in enumerate(studies):
        if number < len(done):
            counts += faults
            if counts.total() >= num:
                break
            continue
        started, problem = time.monotonic(), ""
        try:
            act()
        except Failed as error:
            problem, num_failed = str(error), num_failed + 1
        counts += faults
        seconds = time.monotonic() - started
        print(f"{described(faults)}: {problem or 'as it should be'}, {seconds:.0f} s", flush=True)
        if out:
            append_json(out, {"faults": faults, "problem": problem, "seconds": round(seconds, 1)})
        if counts.total() >= num:
            break
    return counts, num_failed


def described(faults: Counter[str]) -> str:
    """Counts by kind, in words."""
    return ", ".join(f"{num} x {kind}" for kind, num in faults.items())


def main() -> None:
    """Run the faults, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--num", type=int, default=60, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the studies there; the unbroken one is used again")
    parser.add_argument("--out", type=Path, help="JSONL file with a line per study, which is not run again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        studies = PARTS[options.part](folder, options.seed)
        counts, num_failed = run(studies, options.num, options.out)
        studies.close()  # type: ignore[attr-defined]
    print(f"{described(counts)}; {num_failed} studies failed a check")
    sys.exit(bool(num_failed))


if __name__ == "__main__":
    main()
