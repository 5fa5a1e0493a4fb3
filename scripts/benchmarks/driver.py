"""How much the driver takes: real searcher, scheduler, recorder and files, with a stand-in for training.

    python scripts/benchmarks/driver.py                                          # 10,000 trials on 8 slots
    python scripts/benchmarks/driver.py --trials 20000 --slots 800               # 100 nodes of 8 slots
    python scripts/benchmarks/driver.py --sampler random
    python scripts/benchmarks/driver.py --trials 20000 --slots 800 --recorded --tracked

Results come in the order in which their slots are asked, or with `--recorded` in that of a clock by which every trial
takes as long as one of docs/data/pocket-trials.parquet. With `--tracked` MLflow is told, in SQLite. Prints results per
second of processor time and milliseconds per trial over each tenth of the trials, so that growing slower would be seen
(a trial that is stopped at once gives one result, and its proposal costs what any does), and what memory and files
came to.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from raysearch.config.recipe import Recipe
from raysearch.study.folder import StudyFolder
from raysearch.tracking.mlflow_runs import read_state
from raysearch.tracking.tracker import Tracker
from scripts.testing import stand_in

RECORDED = Path(__file__).parents[2] / "docs" / "data" / "pocket-trials.parquet"


def recorded_seconds() -> Callable[[Recipe], float]:
    """Seconds from one result of a recipe to the next: those of a recorded trial, chosen by the recipe's key."""
    table = pq.read_table(RECORDED, columns=["seconds", "samples_seen"]).to_pylist()
    rows = [row for row in table if row["seconds"] and row["samples_seen"]]
    each = [row["seconds"] / len(row["samples_seen"]) for row in rows]
    return lambda recipe: each[int(recipe.key, 16) % len(each)]


def main() -> None:
    """Run one simulated search, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--sampler", default="ehvi")
    parser.add_argument("--recorded", action="store_true", help="let trials take as long as recorded ones")
    parser.add_argument("--tracked", action="store_true", help="tell MLflow of every trial")
    options = parser.parse_args()
    marks: list[tuple[int, int, float]] = []  # trials and results so far, processor seconds

    def watched(study: StudyFolder, record, before=StudyFolder.record) -> None:
        before(study, record)
        num_results = (marks[-1][1] if marks else 0) + max(1, len(record.rungs))
        marks.append((len(study.records), num_results, time.process_time()))

    StudyFolder.record = watched  # type: ignore[method-assign]
    trackers: list[Tracker] = []

    def tracked(study: StudyFolder) -> list[Tracker]:
        trackers.append(Tracker(study, f"sqlite:///{study.folder}/mlflow.db", stand_in.DENSE))
        return trackers

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # MLflow may still be writing
        folder, started, wall = Path(name) / "study", time.process_time(), time.perf_counter()
        stand_in.drive(
            stand_in.plan(options.trials, options.sampler),
            folder,
            num_slots=options.slots,
            seconds=recorded_seconds() if options.recorded else lambda recipe: 1.0,
            callbacks=tracked if options.tracked else lambda study: (),
        )
        wall = time.perf_counter() - wall
        for tracker in trackers:
            num_told = len(read_state(folder, f"sqlite:///{folder}/mlflow.db").ended)
            print(f"MLflow had {num_told} ended trials at the end of the search; what is left waits in a file")
            tracker.close()
        before = (0, 0, started)
        for tenth in range(1, 11):
            now = marks[len(marks) * tenth // 10 - 1]
            trials, results, seconds = (later - earlier for later, earlier in zip(now, before, strict=True))
            print(
                f"to trial {now[0]:6}: {results / seconds:5.0f} results a second, "
                f"{1000 * seconds / trials:.1f} ms a trial"
            )
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
