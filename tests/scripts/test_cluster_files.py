"""What starts raysearch on Slurm and Kubernetes, and in a container, without any of them."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
PYTHON = """#!/bin/sh
# What the interpreter is asked for, one line each; Ray blocks, and the search ends as told or by SIGTERM.
case "$*" in
  *"import secrets"*) echo 5ec2e7; exit ;;
  *"import socket"*) exit 0 ;;
esac
echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN ${RAY_ADDRESS:-none} $*" >>"$LOG"
case "$*" in
  *"search"*" WAIT") trap 'exit 130' TERM; while true; do sleep 0.05; done ;;
  *"-m raysearch"*) sleep 2; exit 3 ;;
  *) exec sleep 60 ;;
esac
"""
TOOLS = {
    "python": PYTHON,
    "scontrol": "#!/bin/sh\nprintf 'n1\\nn2\\nn3\\n'\n",
    "hostname": "#!/bin/sh\necho '10.0.0.1 10.0.0.2'\n",
    "srun": '#!/bin/sh\necho "srun $*" >>"$LOG"\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
}


@pytest.fixture
def slurm(tmp_path):
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2"}
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": "python",
        "LOG": str(tmp_path / "log"),
        **given,
    }

    def start(*arguments):
        return subprocess.Popen([ROOT / "scripts" / "slurm.sh", *arguments], env=environment, start_new_session=True)

    return start, tmp_path / "log"


def test_slurm_makes_a_cluster_and_ends_as_the_search_does(slurm):
    start, log = slurm
    job = start("space.yaml", "--out", "/shared/runs/a b")
    assert job.wait(timeout=30) == 3
    lines = log.read_text().splitlines()
    ray = [line for line in lines if "ray.scripts.scripts" in line and not line.startswith("srun")]
    (head,) = [line for line in ray if "--head" in line]
    assert head.startswith("token 5ec2e7 none -m ray.scripts.scripts start --head --block")
    assert "--node-ip-address=10.0.0.1 --port=20007" in head
    assert "--num-cpus=8 --num-gpus=2" in head
    assert sum("start --block --address=10.0.0.1:20007" in line for line in ray) == 2
    sent = [line for line in lines if line.startswith("srun") and "ray.scripts.scripts start" in line]
    assert sorted(re.search(r"--nodelist=(\S+)", line)[1] for line in sent) == ["n1", "n2", "n3"]
    assert "token 5ec2e7 10.0.0.1:20007 -m raysearch search space.yaml --out /shared/runs/a b" in lines


def test_slurm_passes_the_signal_before_the_time_limit_on(slurm):
    start, log = slurm
    job = start("--resume", "WAIT")
    deadline = time.monotonic() + 30
    while not (log.exists() and "-m raysearch" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 130


def test_the_container_is_built_from_files_that_are_there():
    text = (ROOT / "Dockerfile").read_text()
    copied = [source for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for source in line.split()]
    assert {"requirements.lock", "raysearch", "pyproject.toml"} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)


def test_the_job_on_kubernetes_has_the_locked_ray_and_one_image():
    job = yaml.safe_load((ROOT / "cluster-kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert cluster["rayVersion"] == LOCKED["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    assert all({"name": "shared", "mountPath": "/shared"} in container["volumeMounts"] for container in containers)
