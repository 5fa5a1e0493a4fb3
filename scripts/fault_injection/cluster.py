"""Part `cluster` of run.py: three Ray nodes on this machine, on which only training is a formula.

A head without a CPU drives; two nodes take the slots. Each study is a process of its own, and is broken several times.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import ray
import yaml
from ray.cluster_utils import Cluster

from raysearch.files import read_json_lines
from scripts.fault_injection import formula_training
from scripts.fault_injection.driver import check

ROOT = Path(__file__).parents[2]
SPACE = {
    "name": "cluster",
    "model": "pocket",
    "num_samples": 60,
    "budgets": ["95%"],
    "recipe": {
        "mode": ["layerwise", "widthwise"],
        "ratio": {"low": 0.1, "high": 0.6},
        "criterion": ["deepest", "magnitude"],
        "trained": ["projector", "projector+decoder"],
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "data_fraction": [0.5, 1.0],
    },
    "search": {"trials": 8, "first_rung": 0.25, "seed": 3},
    "slots": {"num": 1, "timeout_s": 45},
}
NOWHERE = "http://127.0.0.1:9"
STUDIES = (
    ("worker-killed", "out-of-memory", "driver-killed", "disk-full", "node-lost", "storage-away"),
    ("slot-hung", "second-driver", "out-of-memory", "storage-away", "loss-nan"),
    ("mlflow-away", "driver-killed", "node-lost", "worker-killed", "disk-full"),
    ("disk-really-full", "worker-killed", "driver-killed", "out-of-memory"),
)
"""What happens in a study, each at a rung of its own; a trial that fails for good comes last, since it changes what is
tried after it."""
OWN = ("worker-killed", "slot-hung", "out-of-memory", "trial-killed", "start-killed")
"""Kinds that a trial is blamed for, so that a second one would end it."""
AT_START = "start-killed"
"""The kind that waits for no rung: the first trial's process is killed when it has just begun."""


def studies(folder: Path, seed: int) -> Iterator[tuple[Counter[str], Callable[[], None]]]:
    """Studies for ever, each broken at other rungs than the one of its like before."""
    draw = random.Random(seed)
    with ExitStack() as stack:
        machines = stack.enter_context(Machines())
        space = folder / "space.yaml"
        space.write_text(yaml.safe_dump(SPACE))
        unbroken = Broken(folder / "unbroken", space, machines)
        unbroken.run()
        wanted = outcome(folder / "unbroken")
        check(wanted["checkpoints"], f"the unbroken study made nothing: {unbroken.said()}")
        trials = [line.split()[0] for line in formula_training.rungs_of(folder / "unbroken").read_text().splitlines()]
        server: Server | None = None
        for number, kinds in enumerate(itertools.cycle(STUDIES)):
            if "disk-really-full" in kinds and os.geteuid() != 0:  # only root can mount a small disk
                continue
            if "mlflow-away" in kinds and server is None:
                server = stack.enter_context(mlflow_server(folder))
            faults = dict(zip(places_of(draw, kinds, trials), kinds, strict=True))
            broken = Broken(folder / str(number), space, machines, faults, server)
            yield Counter(kinds), lambda broken=broken: broken.compare(wanted)


def places_of(draw: random.Random, kinds: Sequence[str], trials: Sequence[str]) -> list[int]:
    """A rung for each kind; no trial is blamed for two, and what comes last is last."""
    while True:
        later = iter(draw.sample(range(1, len(trials)), len(kinds)))
        places = [0 if kind == AT_START else next(later) for kind in kinds]
        blamed = [trials[place] for place, kind in zip(places, kinds, strict=True) if kind in OWN]
        is_last = "loss-nan" not in kinds or places[-1] == max(places)
        if is_last and len(blamed) == len(set(blamed)):
            return places


class Machines:
    """The cluster, whose nodes can be lost."""

    def __init__(self) -> None:
        self._node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        self._sockets = tempfile.mkdtemp(prefix="ray-")  # the paths of sockets must be short
        head = {**self._node, "num_cpus": 0, "include_dashboard": False, "temp_dir": self._sockets}
        head["dashboard_agent_listen_port"] = None
        with patch("ray._private.utils.write_ray_address"):  # else it is joined by whoever starts Ray here
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self._cluster.add_node(**self._node)
        ray.init(address=self.address, log_to_driver=False, namespace="watching")

    @property
    def address(self) -> str:
        """For drivers."""
        return self._cluster.address

    def lose(self, node_id: str) -> None:
        """End a node without a word, and let another one come a little later."""
        node = next(node for node in self._cluster.worker_nodes if node.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)
        time.sleep(2)
        self._cluster.add_node(**self._node)

    def check_free(self, seconds: float = 60) -> None:
        """Every CPU is to be had again."""
        deadline = time.monotonic() + seconds
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
            check(time.monotonic() < deadline, f"resources not returned: {ray.available_resources()}")
            time.sleep(0.5)

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *error: object) -> None:
        ray.shutdown()
        self._cluster.shutdown()
        shutil.rmtree(self._sockets, ignore_errors=True)


class Broken:
    """A study that is broken at some of its rungs.

    Args:
        faults: kind by number of the rung.
        server: of MLflow; without one nobody is told.
    """

    def __init__(
        self,
        study: Path,
        space: Path,
        machines: Any,
        faults: Mapping[int, str] | None = None,
        server: "Server | None" = None,
    ) -> None:
        self._study, self._space, self._machines = study, space, machines
        self._faults = dict(faults or {})
        self._server = server if "mlflow-away" in self._faults.values() else None
        self._process: subprocess.Popen | None = None

    def compare(self, wanted: dict) -> None:
        """Run the study; it must come to what the unbroken one came to, a trial that failed by its own fault apart."""
        self.run()
        found = outcome(self._study)
        if "loss-nan" in self._faults.values():
            check_one_failed(found)
        else:
            check(found == wanted, f"another outcome than unbroken with {self._faults}")
        trained = formula_training.rungs_of(self._study).read_text().split("\n")
        check(len(trained) == len(set(trained)), "a rung was trained twice")
        if self._server:
            self._server.check_told(self._study, [row["key"] for row in found["trials"]])

    def run(self) -> None:
        """To its end, whatever it takes; and nothing may be left of it."""
        faults = formula_training.faults_of(self._study)
        faults.mkdir()
        for number, kind in self._faults.items():
            (faults / (f"please-{kind}" if kind == AT_START else f"{number:04}-{kind}")).touch()
        with self._small_disk():
            status = self._follow("--out", str(self._study), str(self._space))
            for _ in range(2 * len(self._faults)):
                if status == 0:
                    break
                status = self._follow("--resume", str(self._study))
        check(status == 0, f"exit status {status}: {self.said()}")
        check(not list(faults.iterdir()), f"did not happen: {[path.name for path in faults.iterdir()]}")
        self._check_gone()
        self._machines.check_free()

    def said(self) -> str:
        """The end of what its drivers have printed."""
        return self._log.read_text()[-2000:]

    @property
    def _log(self) -> Path:
        return self._study.with_name(self._study.name + ".log")

    @contextmanager
    def _small_disk(self) -> Iterator[None]:
        """A disk of its own for a study that shall fill it."""
        if "disk-really-full" not in self._faults.values():
            yield
            return
        self._study.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", self._study], check=True)
        kept = self._study.with_name(self._study.name + ".kept")
        try:
            yield
            shutil.copytree(self._study, kept)
        finally:
            subprocess.run(["umount", "--lazy", self._study], check=True)
        self._study.rmdir()
        kept.rename(self._study)

    def _start(self, *arguments: str) -> subprocess.Popen:
        environment = {
            **os.environ,
            "RAY_ADDRESS": self._machines.address,
            "MLFLOW_TRACKING_URI": self._server.uri if self._server else NOWHERE,
            "CI": "true",
        }
        command = [sys.executable, "-m", formula_training.__name__, *arguments]
        with self._log.open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def _job_stopped(self, request: Path) -> None:
        """As `ray job stop` does it."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def _follow(self, *arguments: str) -> int:
        """One start of the driver: do what its workers ask for, until it ends."""
        self._process = self._start(*arguments)
        try:
            while self._process.poll() is None:
                for path in formula_training.faults_of(self._study).glob("please-*"):
                    getattr(self, "_" + path.name.removeprefix("please-").replace("-", "_"))(path)
                    path.unlink(missing_ok=True)
                time.sleep(0.1)
        finally:
            self._process.kill()
        return self._process.wait()

    def _node_lost(self, request: Path) -> None:
        self._machines.lose(request.read_text().split()[0])

    def _driver_killed(self, request: Path) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _second_driver(self, request: Path) -> None:
        second = subprocess.run(
            [sys.executable, "-m", formula_training.__name__, "--resume", str(self._study)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": self._machines.address},
            capture_output=True,
            text=True,
        )
        check(second.returncode == 2, f"the second driver ended with {second.returncode}")
        check("a search is at work on this study" in second.stderr, second.stderr)

    def _mlflow_away(self, request: Path) -> None:
        assert self._server is not None
        self._server.go_away(seconds=4)

    def _disk_really_full(self, request: Path) -> None:
        ballast = self._study / "ballast"
        with ballast.open("wb") as stream:
            try:
                while True:
                    os.write(stream.fileno(), b"\0" * 4096)
            except OSError:
                pass
        request.unlink()
        time.sleep(4)
        ballast.unlink()

    def _check_gone(self) -> None:
        """No worker is left two minutes after the end."""
        numbers = map(int, formula_training.processes_of(self._study).read_text().split())
        workers = [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]
        _, left = psutil.wait_procs(workers, timeout=120)
        check(not left, f"left behind: {left}")


def outcome(folder: Path) -> dict:
    """Trials, rungs and front, without times and names; and what must not be there."""
    rows = read_json_lines(folder / "trials.jsonl")
    kept = [{name: row[name] for name in ("key", "recipe", "num_params", "rungs", "end")} for row in rows]
    front = json.loads((folder / "front.json").read_text())
    for point in front["points"]:
        del point["mlflow_run_id"]
    return {
        "trials": kept,
        "front": front,
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").glob("*")),
        "half written": [p.name for p in folder.rglob(".*") if p.name != ".lock" and _is_ours(p, folder)],
        "running": [path.name for path in (folder / "running").glob("*")],
    }


def _is_ours(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0] not in ("tune", "slots")


def check_one_failed(found: dict) -> None:
    """All trials are there, one of them as failed, and the front lacks none of the others' best."""
    ends = Counter(row["end"] for row in found["trials"])
    check(ends["failed"] == 1 and ends.total() == SPACE["search"]["trials"], f"ends {dict(ends)}")
    points = [
        (row["num_params"], row["rungs"][-1]["retention"], row["key"])
        for row in found["trials"]
        if row["end"] == "finished"
    ]
    best = {
        key
        for size, kept, key in points
        if not any(s <= size and k >= kept and (s, k) != (size, kept) for s, k, _ in points)
    }
    check(best == {point["key"] for point in found["front"]["points"]}, "the front lacks a finished trial")
    check(not found["half written"] and not found["running"], "something is left")


class Server:
    """A tracking server that can go away for a while."""

    def __init__(self, process: subprocess.Popen, uri: str) -> None:
        self.process, self.uri = process, uri

    def go_away(self, seconds: float) -> None:
        """Answer nothing for a while, as a machine that is cut off."""
        tree = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in tree:
            process.suspend()
        time.sleep(seconds)
        for process in tree:
            process.resume()

    def check_told(self, study: Path, keys: Sequence[str]) -> None:
        """Every trial is there once, when what waited has been sent."""
        from mlflow import MlflowClient

        from raysearch.tracking.tracker import sync_unsent

        sync_unsent(study, self.uri)
        client = MlflowClient(self.uri)
        (experiment,) = [found for found in client.search_experiments() if found.name == SPACE["name"]]
        runs = client.search_runs([experiment.experiment_id], "tags.`raysearch.key` != ''", max_results=1000)
        told = sorted(
            run.data.tags["raysearch.key"]
            for run in runs
            if run.info.run_id in set(json.loads((study / "mlflow.json").read_text())["runs"].values())
        )
        check(told == sorted(keys), f"MLflow has {len(told)} runs of {len(keys)}")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """A real one, on the loopback."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    with (folder / "mlflow.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield Server(process, f"http://127.0.0.1:{port}")
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
