"""Part `hosts` of run.py: three hosts with addresses of their own on this machine, as root, and a token.

Each is a network namespace with a hosts file of its own, on one bridge; files are shared. The first host drives and has
no CPU, the other two take the slots, whose workers Ray Train starts; only training is a formula.
"""

import itertools
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from scripts.fault_injection import formula_training
from scripts.fault_injection.cluster import ROOT, SPACE, Broken, outcome, places_of
from scripts.fault_injection.driver import check

NUM_HOSTS, PORT, BRIDGE, NETWORK = 3, 6379, "rsbr0", "10.78.0"
MOST_SECONDS_LEFT, MOST_SECONDS_SILENT = 30, 20
SECONDS_CUT = 75
"""Longer than Ray takes to give up a node, and than a worker waits for its coordinator."""
SECONDS_FULL = 6
KINDS = (
    *("host-cut", "raylet-killed", "gcs-killed", "agent-killed", "worker-killed", "trial-killed", "start-killed"),
    *("coordinator-killed", "driver-killed", "job-stopped", "host-disk-full"),
)
FAULTS_PER_STUDY = 3
OF_RAY = ("", "ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Processes that a node has without a search."""
STATE = """
import json, sys, ray
from ray.util.placement_group import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
here, free = ray.cluster_resources(), ray.available_resources()
groups = [key for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
print(json.dumps({"taken": here.get("CPU", 0) - free.get("CPU", 0), "groups": groups}))
"""


def studies(folder: Path, seed: int) -> Iterator[tuple[Counter[str], Callable[[], None]]]:
    """Studies for ever, each with the next faults of a shuffled deck, and hosts files of both kinds in turn."""
    check(os.geteuid() == 0, "network namespaces need root")
    draw = random.Random(seed)
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump({**SPACE, "slots": {"num": 1, "timeout_s": 120}}))
    with Hosts() as hosts:
        unbroken = OnHosts(folder / "unbroken", space, hosts)
        if not (folder / "unbroken" / "front.json").exists():
            unbroken.run()
        wanted = outcome(folder / "unbroken")
        check(wanted["checkpoints"], f"the unbroken study made nothing: {unbroken.said()}")
        trials = [line.split()[0] for line in formula_training.rungs_of(folder / "unbroken").read_text().splitlines()]
        deck: list[str] = []
        for number in itertools.count():
            if len(deck) < FAULTS_PER_STUDY:
                deck = draw.sample(KINDS, len(KINDS)) + deck
            kinds = [deck.pop() for _ in range(FAULTS_PER_STUDY)]
            faults = dict(zip(places_of(draw, kinds, trials), kinds, strict=True))
            broken = OnHosts(folder / str(number), space, hosts, faults)

            def compare(broken: OnHosts = broken, number: int = number) -> None:
                for left in folder.glob(f"{number}*"):  # by a run that was broken off
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                hosts.name_by_loopback(number % 2 == 0)
                broken.compare(wanted)
                print(
                    f"study {number}: longest silence {broken.longest_silence_s:.0f} s, free again after "
                    f"{hosts.longest_until_free_s:.0f} s at most",
                    flush=True,
                )

            yield Counter(kinds), compare


class Hosts:
    """The hosts, numbered from 1, and Ray on them."""

    address = f"{NETWORK}.1:{PORT}"
    longest_until_free_s = 0.0
    """From a driver's end until nothing of its study was left."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="rsh-", dir="/tmp")  # the paths of sockets must be short
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "300",  # a busy machine
        }

    def __enter__(self) -> "Hosts":
        self._remove()
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for number in range(1, NUM_HOSTS + 1):
            host = f"rsh{number}"
            run("ip", "netns", "add", host)
            run("ip", "link", "add", f"rsv{number}", "type", "veth", "peer", "name", "eth0", "netns", host)
            run("ip", "link", "set", f"rsv{number}", "master", BRIDGE, "up")
            run("ip", "-n", host, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run("ip", "-n", host, "link", "set", device, "up")
        self.name_by_loopback(False)
        try:
            self.mend()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove(self) -> None:
        for number in range(1, NUM_HOSTS + 1):
            self.kill(number, "")
            subprocess.run(["ip", "netns", "del", f"rsh{number}"], capture_output=True)
            shutil.rmtree(f"/etc/netns/rsh{number}", ignore_errors=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)

    def name_by_loopback(self, by_loopback: bool) -> None:
        """Let each host's name stand for 127.0.1.1, as Debian does it, or for its address."""
        for number in range(1, NUM_HOSTS + 1):
            address = "127.0.1.1" if by_loopback else f"{NETWORK}.{number}"
            path = Path(f"/etc/netns/rsh{number}/hosts")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"127.0.0.1 localhost\n{address} {os.uname().nodename}\n")

    def command(self, number: int, *command: str) -> list[str]:
        """The command on a host."""
        return ["ip", "netns", "exec", f"rsh{number}", *command]

    def link(self, number: int, state: str) -> None:
        """Cut a host off ("down"), or connect it again ("up")."""
        run("ip", "link", "set", f"rsv{number}", state)

    def processes(self, number: int, name: str) -> list[psutil.Process]:
        """A host's processes whose command line has a text in it."""
        listed = subprocess.run(["ip", "netns", "pids", f"rsh{number}"], capture_output=True, text=True).stdout
        found = []
        for pid in map(int, listed.split()):
            try:
                process = psutil.Process(pid)
                if name in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, number: int, name: str) -> list[psutil.Process]:
        """End these processes at once."""
        found = self.processes(number, name)
        for process in found:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=10)
        return found

    def mend(self) -> None:
        """Start Ray wherever it doesn't run; on all hosts anew if the head's parts are gone."""
        if not self.processes(1, "gcs_server") or not self.processes(1, "raylet/raylet"):
            for number in range(1, NUM_HOSTS + 1):
                self.kill(number, "ray")
        for number in range(1, NUM_HOSTS + 1):
            if not self.processes(number, "raylet/raylet"):
                self.kill(number, "ray")
                self._start(number)

    def _start(self, number: int) -> None:
        head = ["--head", "--port", str(PORT), "--include-dashboard", "false", "--temp-dir", self._folder]
        joins = head if number == 1 else ["--address", self.address]
        cpus = ["--num-cpus", "0" if number == 1 else "1", "--object-store-memory", str(80 * 2**20)]
        ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", *joins, *cpus]
        started = subprocess.run(
            self.command(number, *ray_start, "--node-ip-address", f"{NETWORK}.{number}"),
            env={key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"},
            capture_output=True,
            text=True,
        )
        check(started.returncode == 0, f"Ray on host {number}: {started.stderr[-2000:]}")

    def state(self) -> dict[str, Any]:
        """CPUs that are taken, and placement groups."""
        looked = subprocess.run(
            self.command(1, sys.executable, "-c", STATE, self.address),
            env=self.environment,
            capture_output=True,
            text=True,
        )
        check(looked.returncode == 0, f"Ray doesn't answer: {looked.stderr[-500:]}")
        return json.loads(looked.stdout.splitlines()[-1])

    def check_free(self) -> None:
        """Nothing of a study is left: no CPU, no placement group, no process."""
        began = time.monotonic()
        while True:
            took_s = time.monotonic() - began
            busy = [process for n in range(1, NUM_HOSTS + 1) for process in self.processes(n, "ray::")]
            left = [name for name in (name_of(process) for process in busy) if name not in OF_RAY]
            state = self.state() if not left else {}
            if state.get("taken") == 0 and not state["groups"]:
                self.longest_until_free_s = max(self.longest_until_free_s, took_s)
                return
            check(took_s < MOST_SECONDS_LEFT, f"left after {MOST_SECONDS_LEFT} s: {left} {state}")
            time.sleep(1)


class OnHosts(Broken):
    """A study on the hosts, and how long its person saw nothing."""

    longest_silence_s = 0.0

    def _start(self, *arguments: str) -> subprocess.Popen:
        self._machines.mend()
        command = [sys.executable, "-m", formula_training.__name__, "--on-ray-train", *arguments]
        environment = {**self._machines.environment, "CI": "true"}
        with self._log.open("a") as log:
            driver = self._machines.command(1, *command)
            process = subprocess.Popen(driver, cwd=ROOT, env=environment, stdout=log, stderr=log)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen) -> None:
        """Note the longest time without a new line."""
        size, since = self._log.stat().st_size, time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if (now := self._log.stat().st_size) != size:
                size, since = now, time.monotonic()
            self.longest_silence_s = max(self.longest_silence_s, time.monotonic() - since)

    def compare(self, wanted: dict) -> None:
        """As elsewhere; and nobody waits in silence."""
        super().compare(wanted)
        check("(raylet)" not in self._log.read_text(), "Ray's own pages on the terminal")
        silent = f"silent for {self.longest_silence_s:.0f} s"
        check(self.longest_silence_s <= MOST_SECONDS_SILENT + 2, silent)  # a busy machine writes late

    def _check_gone(self) -> None:
        """`Hosts.check_free` looks at the processes, too."""

    def _follow(self, *arguments: str) -> int:
        """Nothing may be left of a driver that has ended, before another goes on."""
        status = super()._follow(*arguments)
        self._machines.mend()
        self._machines.check_free()
        return status

    def _host_of(self, request: Path) -> int:
        return int(request.read_text().rpartition(".")[2])

    def _host_cut(self, request: Path) -> None:
        host = self._host_of(request)
        before = self._machines.processes(host, "ray::RayTrainWorker")
        check(before, "no worker on the host")
        self._machines.link(host, "down")
        request.unlink()
        time.sleep(SECONDS_CUT)
        self._machines.link(host, "up")
        _, left = psutil.wait_procs(before, timeout=MOST_SECONDS_LEFT)
        check(not left, f"old workers on the host that is back: {left}")
        self._machines.mend()

    def _kill_and_mend(self, host: int, name: str) -> None:
        check(self._machines.kill(host, name), f"no {name} on host {host}")
        time.sleep(5)
        if host != 1:
            self._machines.mend()

    def _raylet_killed(self, request: Path) -> None:
        self._kill_and_mend(self._host_of(request), "raylet/raylet")

    def _agent_killed(self, request: Path) -> None:
        self._kill_and_mend(self._host_of(request), "ray::DashboardAgent")

    def _gcs_killed(self, request: Path) -> None:
        self._kill_and_mend(1, "gcs_server")

    def _coordinator_killed(self, request: Path) -> None:
        self._kill_and_mend(1, "ray::Coordinator")

    def _trial_killed(self, request: Path) -> None:
        """Once: a trial whose process ends twice is recorded as failed."""
        check(self._machines.kill(1, "ray::ResourceTrainable"), "no trial's process")

    def _start_killed(self, request: Path) -> None:
        """In its first second, when it has asked for workers or is about to."""
        assert self._process is not None
        while self._process.poll() is None and not self._machines.kill(1, "ray::ResourceTrainable"):
            time.sleep(0.1)

    def _host_disk_full(self, request: Path) -> None:
        """What the host writes goes to a disk, seen by it alone, that takes no file."""
        host, running = self._host_of(request), self._study / "running"
        raylet, *_ = self._machines.processes(host, "raylet/raylet")
        inside = ("nsenter", "--mount", "--target", str(raylet.pid))
        run(*inside, "mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "none", str(running))
        request.unlink()
        time.sleep(SECONDS_FULL)
        run(*inside, "umount", "--lazy", str(running))


def name_of(process: psutil.Process) -> str:
    """What a process of Ray calls itself; empty for one that is gone."""
    try:
        return process.cmdline()[0].strip()
    except (psutil.NoSuchProcess, IndexError):
        return ""


def run(*command: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}")
