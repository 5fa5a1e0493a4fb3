"""A Ray head with token authentication, and the README's command for it: submitted, refused, failed and stopped."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scripts.testing.spaces import SMALL_SPACE

ROOT = Path(__file__).parents[2]
COMMAND = re.search(r"^ray job submit .*$", (ROOT / "README.md").read_text(), re.MULTILINE)[0]
PATIENCE_S = 400

pytestmark = pytest.mark.slow


def free_ports(num):
    sockets = [socket.socket() for _ in range(num)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Head:
    """A Ray head of its own, and a copy of the project with a small space."""

    def __init__(self, folder):
        self.shared, self.project = folder / "shared", folder / "project"
        (folder / "home").mkdir()
        gcs, dashboard, agent, client = free_ports(4)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.without_token = {**os.environ, "PATH": path, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        self.without_token |= {"HOME": str(folder / "elsewhere"), "CI": "true"}
        self.without_token.pop("PYTHONPATH", None)  # the project travels with the job
        self.environment = {**self.without_token, "HOME": str(folder / "home"), "RAY_AUTH_MODE": "token"}
        self.ray("get-auth-token", "--generate")
        shutil.copytree(ROOT / "raysearch", self.project / "raysearch", ignore=shutil.ignore_patterns("__pycache__"))
        (self.project / "search_spaces").mkdir()
        (self.project / "search_spaces" / "pocket.yaml").write_text(yaml.safe_dump(SMALL_SPACE))
        self._options = f"--head --block --num-cpus 1 --port {gcs} --dashboard-port {dashboard}"
        self._options += f" --dashboard-agent-listen-port {agent} --ray-client-server-port {client}"
        self._folder = folder
        self._sockets = Path(f"/tmp/ray-head-{os.getpid()}")  # the paths of sockets must be short
        self.process = next(filter(None, (self._start() for _ in range(5))))

    def _start(self):
        """None if it has not come up within the half minute that Ray gives itself on a busy machine."""
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with (self._folder / "head.log").open("w") as log:
            process = subprocess.Popen(
                ["ray", "start", *self._options.split(), "--temp-dir", str(self._sockets)],
                env=environment | {"RAY_USAGE_STATS_ENABLED": "0"},
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        while process.poll() is None and "runtime started" not in (self._folder / "head.log").read_text():
            time.sleep(0.5)
        return process if process.poll() is None else None

    def ray(self, *arguments, environment=None):
        return subprocess.run(
            ["ray", *arguments],
            env=environment or self.environment,
            cwd=self.project if self.project.exists() else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def submit(self, *more, out="first", options=(), **how):
        """The README's command, word for word but for the shared folder."""
        words = shlex.split(COMMAND.replace("/shared/runs/first", str(self.shared / out)))
        assert words[:3] == ["ray", "job", "submit"]
        return self.ray(*words[1:3], *options, *words[3:], *more, **how)

    def wait_for(self, condition, complaint):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.5)

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self._sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    made = Head(tmp_path_factory.mktemp("head"))
    yield made
    made.stop()


def test_without_the_token_a_submission_is_refused(head):
    done = head.submit(out="refused", environment=head.without_token)
    assert done.returncode != 0
    assert "authentication" in (done.stdout + done.stderr).lower()
    assert not (head.shared / "refused").exists()


def test_the_readme_command_brings_a_front(head):
    done = head.submit()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "6/6" in done.stdout
    assert "succeeded" in done.stdout
    front = json.loads((head.shared / "first" / "front.json").read_text())
    assert front["points"]
    for point in front["points"]:
        assert (head.shared / "first" / point["checkpoint"] / "recipe.yaml").exists()


def test_a_job_with_a_mistake_has_failed_and_says_why(head):
    done = head.submit("--budget", "12", out="mistake")
    assert done.returncode != 0
    assert "raysearch: budget '12': not a size" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (head.shared / "mistake").exists()


def test_a_stopped_job_has_written_its_front_and_says_how_to_go_on(head):
    study = head.shared / "stopped"
    head.submit("--trials", "50", out="stopped", options=("--no-wait", "--submission-id", "to-be-stopped"))
    head.wait_for(lambda: (study / "front.json").exists(), "no trial has finished")
    assert head.ray("job", "stop", "to-be-stopped").returncode == 0
    log = head.ray("job", "logs", "to-be-stopped").stdout
    assert "Interrupted;" in log
    assert re.search(rf"Resume with: .* --resume {study}", log)
    assert "was stopped" in head.ray("job", "status", "to-be-stopped").stdout
    front = json.loads((study / "front.json").read_text())
    assert front["points"]
    assert (study / "front.png").stat().st_size > 10_000
    num_ended = len((study / "trials.jsonl").read_text().splitlines())
    assert 0 < num_ended < 50
