"""How much the driver takes: real searcher, scheduler, recorder and files, with a stand-in for training.

    python scripts/bench_driver.py                                          # 10,000 trials on 8 slots
    python scripts/bench_driver.py --trials 20000 --slots 800               # 100 nodes of 8 slots
    python scripts/bench_driver.py --trials 2000 --sampler tpe              # with a sampler that models

Trials end in the order in which their slots are asked. Prints results per second of processor time over each tenth of
the trials, so that growing slower would be seen, and what memory and files came to.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import stand_in

from raysearch.study import Study


def main() -> None:
    """Run one simulated search, and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--sampler", default="random")
    options = parser.parse_args()
    marks: list[tuple[int, int, float]] = []  # trials and results so far, processor seconds

    def watched(study: Study, record, before=Study.record) -> None:
        before(study, record)
        num_results = (marks[-1][1] if marks else 0) + max(1, len(record.rungs))
        marks.append((len(study.records), num_results, time.process_time()))

    Study.record = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder, started, wall = Path(name) / "study", time.process_time(), time.perf_counter()
        stand_in.drive(stand_in.plan(options.trials, options.sampler), folder, num_slots=options.slots)
        wall = time.perf_counter() - wall
        before = (0, 0, started)
        for tenth in range(1, 11):
            now = marks[len(marks) * tenth // 10 - 1]
            rate = (now[1] - before[1]) / (now[2] - before[2])
            print(f"to trial {now[0]:6}: {rate:5.0f} results a second")
            before = now
        num_trials, num_results, ended = marks[-1]
        print(
            f"{num_trials} trials by {options.sampler} on {options.slots} slots, {num_results} results: "
            f"{ended - started:.0f} s of processor time, {num_results / (ended - started):.0f} results a second "
            f"({wall:.0f} s on the clock), "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB of memory at most"
        )
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.stat().st_size > 1000:
                print(f"  {path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
