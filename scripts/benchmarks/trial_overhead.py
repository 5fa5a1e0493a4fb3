"""What a trial takes besides training and evaluation, in a real search of the embedded LVLM on one slot.

    python scripts/benchmarks/trial_overhead.py                  # 28 trials
    python scripts/benchmarks/trial_overhead.py --trials 8

Between the end of a trial and the end of the next one lie the proposal, Ray Tune and the slot's commands, pruning, the
engine's start, what is kept at rungs, and the checkpoint of a trial that comes onto the front. The first trial of the
slot, which loads the model, is left out.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from raysearch.backend.cluster import join_cluster
from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.backend.tuner import resume_search, run_trials
from raysearch.config.space import SearchSpace
from raysearch.study.folder import StudyFolder
from raysearch.study.plan import plan_study
from raysearch.study.records import TrialRecord
from raysearch.tracking.tracker import Tracker


class Ends:
    """Notes when trials end."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, TrialRecord]] = []

    def trial_ended(self, record: TrialRecord) -> None:
        self.ends.append((time.monotonic(), record))

    def ignored(self, *args: Any) -> None:
        pass

    trial_started = rung = front_changed = ignored


def main() -> None:
    """Run the search, and print where its time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=28)
    options = parser.parse_args()
    space = SearchSpace.load(EMBEDDED_SPACE)
    content = space.model_dump(mode="json")
    content["search"]["trials"], content["slots"]["num"] = options.trials, 1
    planned, watch = plan_study(SearchSpace.model_validate(content)), Ends()
    with tempfile.TemporaryDirectory() as name:
        study = StudyFolder(Path(name) / "study", planned.space)
        search = resume_search(planned, study)
        join_cluster(planned.space.slots)
        study.create()
        tracker = Tracker(study, dense=planned.dense)
        run_trials(planned, study, search, [tracker, watch])
        tracker.close()
    took = np.diff([end for end, _ in watch.ends])
    records = [record for _, record in watch.ends[1:]]
    training = np.array([record.seconds_training for record in records])
    evaluating = np.array([record.seconds_evaluating for record in records])
    other = took - training - evaluating
    print("| trials | seconds each | training | evaluating | other, mean | median | 90th percentile |")
    print("|---|---|---|---|---|---|---|")
    ends = np.array([record.end for record in records])
    for end, chosen in (("all", ends != ""), *((end, ends == end) for end in sorted(set(ends)))):
        cells = [took[chosen].mean(), training[chosen].mean(), evaluating[chosen].mean(), other[chosen].mean()]
        cells += [np.median(other[chosen]), np.quantile(other[chosen], 0.9)]
        print(f"| {chosen.sum()} {end} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")


if __name__ == "__main__":
    main()
