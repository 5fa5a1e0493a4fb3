"""A slot whose two workers are on hosts of their own; a network namespace each, so only root can make them."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from scripts.fault_injection.hosts import Hosts
from scripts.testing.spaces import SMALL_SPACE

SPACE = SMALL_SPACE | {
    "num_samples": 16,
    "benchmarks": [{"name": "digits", "data": "pocket", "metric": "exact", "num_search": 20, "num_heldout": 20}],
    "recipe": {**SMALL_SPACE["recipe"], "mode": "widthwise", "trained": "projector+decoder"},
    "search": {"trials": 1, "shapes": 0, "seed": 3},
    "calibration": {"num_samples": 4},
    "recovery": {"batch_size": 4, "max_length": 256, "zero_stage": 3},
    "slots": {"num": 1, "workers": 2},
}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_zero_3_over_two_hosts(tmp_path):
    """Parameters, gradients and optimizer states are in two parts, one on each host."""
    path, study = tmp_path / "space.yaml", tmp_path / "study"
    path.write_text(yaml.safe_dump(SPACE))
    with Hosts() as hosts, (tmp_path / "log").open("w") as log:
        hosts.name_by_loopback(True)
        driver = hosts.command(1, sys.executable, "-m", "raysearch.pareto", str(path), "--out", str(study))
        process = subprocess.Popen(driver, cwd=tmp_path, env=hosts.environment, stdout=log, stderr=log)
        at_work = set()
        while process.poll() is None:
            at_work |= {number for number in (2, 3) if hosts.processes(number, "ray::RayTrainWorker")}
            time.sleep(0.5)
        hosts.check_free()
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert at_work == {2, 3}
    (row,) = map(json.loads, (study / "trials.jsonl").read_text().splitlines())
    assert row["end"] == "finished", row["reason"]
