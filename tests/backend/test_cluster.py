"""cluster.yaml by Ray's own rules, without a network; and a cluster that lacks what a trial asks for."""

import errno
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray._private import worker
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from raysearch.backend import cluster, node_check
from raysearch.backend.cluster import join_cluster, num_slots
from raysearch.backend.node_check import check_node, versions
from raysearch.config.settings import Slots
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.study.folder import SPACE

PATH = Path(__file__).parents[2] / "cluster.yaml"
TEXT = PATH.read_text()


def variants():
    """The file as it stands, and with each of the blocks that its comments offer."""
    written = yaml.safe_load(TEXT)
    blocks = re.findall(r"^# For ([^,\n]*).*?:\n#\n((?:# .*\n)+)", TEXT, re.MULTILINE)
    found = {"AWS": written}
    for name, block in blocks:
        changes = yaml.safe_load(re.sub(r"^# ", "", block, flags=re.MULTILINE))
        found[name] = {**written, **changes}
        if changes["provider"]["type"] == "local":
            del found[name]["available_node_types"], found[name]["head_node_type"]
    return found


VARIANTS = variants()


def test_the_comments_offer_two_others():
    assert list(VARIANTS) == ["AWS", "GCP", "machines of your own"]


@pytest.mark.parametrize("name", VARIANTS)
def test_ray_takes_the_cluster_file(name):
    prepared = prepare_config(VARIANTS[name])
    validate_config(prepared)
    with pytest.raises(ValidationError, match="idle_minutes"):  # so that the line above can fail
        validate_config({**prepared, "idle_minutes": 5})


@pytest.mark.parametrize("name", ["AWS", "GCP"])
def test_no_node_waits_idle_and_spot_comes_before_on_demand(name):
    types = prepare_config(VARIANTS[name])["available_node_types"]
    workers = {kind: entry for kind, entry in types.items() if kind != "head"}
    assert {entry["min_workers"] for entry in workers.values()} == {0}
    demand = [{"CPU": 1, "GPU": 1}] * 3

    def asked(kinds):
        return get_nodes_for(
            kinds,
            {},
            "head",
            8,
            list(demand),
            lambda r, d, k: _default_utilization_scorer(r, d, k, node_availability_summary=None),
        )[0]

    assert asked(types) == {"worker-spot": 3}
    del types["worker-spot"]  # none to be had
    assert asked(types) == {"worker-on-demand": 3}


def test_ray_is_started_with_a_token_and_the_dashboard_on_loopback():
    config = VARIANTS["AWS"]
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_the_slots_of_its_comment_are_valid():
    (slots,) = re.findall(r"slots: (\{.*?\})", TEXT)
    assert Slots(**yaml.safe_load(slots)).autoscaling


@pytest.fixture
def nodes(monkeypatch):
    """Resources of the cluster's living nodes; fill the list."""
    found = []
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr("ray.nodes", lambda: [dead, *({"Alive": True, "Resources": resources} for resources in found)])
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    return found


@pytest.mark.parametrize(
    ("slots", "found", "num"),
    [
        ({}, [{"CPU": 4.0}], 4),
        ({"num": 3}, [{"CPU": 4.0}], 3),
        ({"workers": 2}, [{"CPU": 4.0}], 2),
        ({"workers": 2}, [{"CPU": 1.0}, {"CPU": 3.0}], 2),
        ({"gpus_per_worker": 1}, [{}, {"CPU": 16.0, "GPU": 2.0}], 2),
        ({"gpus_per_worker": 0.5}, [{"CPU": 16.0, "GPU": 2.0}], 4),
        ({"num": 5, "gpus_per_worker": 1, "autoscaling": True}, [{"CPU": 4.0}], 5),
    ],
)
def test_slots_follow_the_cluster(slots, found, num, nodes):
    nodes += found
    join_cluster(Slots(**slots))
    assert num_slots(Slots(**slots)) == num


@pytest.mark.parametrize(
    ("slots", "found", "message"),
    [
        (
            {"workers": 2, "gpus_per_worker": 1},
            [{"CPU": 8.0, "GPU": 1.0}],
            r"asks for 2 workers of 1 CPUs and 1 GPUs each, the cluster has 1 node of 8 CPUs and 1 GPUs; lower",
        ),
        (
            {"gpus_per_worker": 2},  # in all there are two, though not on one node
            [{"CPU": 4.0, "GPU": 1.0}, {}, {"CPU": 4.0, "GPU": 1.0}],
            r"has 2 nodes of 4 CPUs and 1 GPUs, 1 node of 0 CPUs and 0 GPUs",
        ),
    ],
)
def test_a_cluster_without_what_a_trial_asks_for_is_refused(slots, found, message, nodes):
    nodes += found
    with pytest.raises(InputError, match=message):
        join_cluster(Slots(**slots))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "can't join that cluster ([Errno 111] Connection refused); start it"),
        ("http://127.0.0.1:8265", "an address for clients; on the cluster itself give HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_plain_line(address, message, tmp_path):
    command = [sys.executable, "-m", "raysearch.pareto", "--out", "study"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"RAY_ADDRESS {address}: {message}" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:²", "a..b:1"])
def test_an_address_that_no_socket_takes_is_told(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster.ray, "init", lambda **settings: None)
    with pytest.raises(InputError, match="can't join that cluster"):
        cluster._start()


def test_autoscaling_without_a_number_is_refused(tmp_path):
    path = tmp_path / "space.yaml"
    recipe = {"mode": "layerwise", "ratio": 0.3, "criterion": "deepest"}
    path.write_text(yaml.safe_dump({"name": "a", "model": "pocket", "recipe": recipe, "slots": {"autoscaling": True}}))
    with pytest.raises(InputError, match=r"slots: autoscaling needs num"):
        SearchSpace.load(path)


def test_a_node_with_other_versions_says_which(tmp_path):
    wanted = {**versions(), "torch": "1.0", "peft": "0.1"}
    problem = str(check_node(tmp_path, {}, wanted))
    assert f"has torch {versions()['torch']}, peft {versions()['peft']} where the driver has torch 1.0" in problem
    assert "install requirements.lock" in problem


def test_a_node_that_does_not_reach_the_study_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(node_check, "SECONDS_TO_APPEAR", 0.1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / SPACE).write_text('{"name": "a"}')
    assert check_node(tmp_path / "mine", {"name": "a"}, versions()) is None
    for folder in (tmp_path / "nowhere", tmp_path / "mine"):  # a study of another name at the same place
        problem = str(check_node(folder, {"name": "b"}, versions()))
        assert f"--out {folder}: not there on node" in problem
        assert "storage that every node reaches" in problem


def test_storage_that_is_away_is_not_told_as_a_wrong_folder(tmp_path, monkeypatch):
    read_text = Path.read_text

    def away(path, *arguments, **more):
        if path.is_relative_to(tmp_path):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read_text(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", away)
    with pytest.raises(OSError, match="Stale"):  # which the trial waits for, where a wrong folder ends the search
        check_node(tmp_path, {}, versions())


@pytest.mark.parametrize(
    ("length", "chosen"), [(30, None), (38, None), (39, f"/tmp/ray-{os.getuid()}"), (300, f"/tmp/ray-{os.getuid()}")]
)
def test_sockets_get_a_short_folder_where_the_temporary_one_is_long(length, chosen, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
    assert cluster._short_temporary_folder() == chosen


def test_where_ray_is_joined_is_said(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.joining_text() == ("starting Ray", "on this machine")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster.joining_text() == ("joining the cluster", "RAY_ADDRESS 10.0.0.1:6379")


def test_a_slot_that_waits_says_what_it_lacks(monkeypatch):
    groups = {"a": {"state": "CREATED"}}
    monkeypatch.setattr(cluster, "placement_group_table", lambda: groups)
    free = {"n1": {"CPU": 1.0, "GPU": 0.0}, "n2": {"CPU": 0.5, "memory": 1e9}}
    monkeypatch.setattr(cluster, "available_resources_per_node", lambda: free)
    assert cluster.room_text(Slots()) == "Ray starts its processes"
    groups["b"] = {"state": "PENDING"}
    assert cluster.room_text(Slots(cpus_per_worker=2)) == "it needs 2 CPU on one node; the freest has 1 CPU"
    assert cluster.room_text(Slots(workers=2, gpus_per_worker=1)) == (
        "it needs 2 times 1 CPU and 1 GPU, each on one node; the freest has 1 CPU and 0 GPU"
    )


@pytest.mark.parametrize(("level", "is_quiet"), [(logging.WARNING, True), (logging.INFO, False)])
def test_ray_prints_no_states_of_raylets_unless_asked(level, is_quiet, monkeypatch):
    listened = []
    monkeypatch.setattr(worker, "listen_error_messages", lambda *listening: listened.append(listening))
    monkeypatch.setattr(cluster, "_start_local", lambda **named: worker.listen_error_messages("a"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.logger, "isEnabledFor", lambda asked: asked >= level)
    cluster._start()
    assert listened == ([] if is_quiet else [("a",)])


def test_a_search_without_its_head_ends_with_the_way_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "SECONDS_BETWEEN_CALLS", 0.01)
    monkeypatch.setattr(cluster, "SECONDS_WITHOUT_HEAD", 0.1)
    statuses, is_over = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch = threading.Thread(
            target=cluster.leave_without_head, args=(address, Path("runs/my study"), is_over, statuses.append)
        )
        watch.start()
        watch.join(0.5)
        assert watch.is_alive(), "a head that listens"
    watch.join(10)
    assert statuses == [2]
    said = capsys.readouterr().err
    assert said.startswith(f"raysearch: the head of Ray's cluster at {address} is gone (")
    assert said.endswith("start it again, then go on with raysearch search --resume 'runs/my study'\n")
    is_over.set()
    cluster.leave_without_head(address, Path("runs/my study"), is_over, statuses.append)
    assert statuses == [2], "a search that is over isn't ended"
