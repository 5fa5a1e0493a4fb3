"""cluster.yaml by Ray's own rules, without a network; and a cluster that lacks what a trial asks for."""

import re
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from raysearch.errors import InputError
from raysearch.settings import Slots
from raysearch.space import SearchSpace
from raysearch.tuner import _check_room, _num_slots

PATH = Path(__file__).parents[1] / "cluster.yaml"
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
    starts = [
        line
        for key in ("head", "worker")
        for line in config[f"{key}_start_ray_commands"]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_the_slots_of_its_comment_are_valid():
    (slots,) = re.findall(r"slots: (\{.*?\})", TEXT)
    assert Slots(**yaml.safe_load(slots)).autoscaling


@pytest.mark.parametrize(
    ("slots", "found", "num"),
    [
        ({}, {"CPU": 4.0}, 4),
        ({"num": 3}, {"CPU": 4.0}, 3),
        ({"workers": 2}, {"CPU": 4.0}, 2),
        ({"gpus_per_worker": 1}, {"CPU": 16.0, "GPU": 2.0}, 2),
        ({"gpus_per_worker": 0.5}, {"CPU": 16.0, "GPU": 2.0}, 4),
        ({"num": 5, "gpus_per_worker": 1, "autoscaling": True}, {"CPU": 4.0}, 5),
    ],
)
def test_slots_follow_the_cluster(slots, found, num, monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: found)
    _check_room(Slots(**slots))
    assert _num_slots(Slots(**slots)) == num


def test_a_cluster_without_the_gpus_asked_for_is_refused(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(
        InputError, match=r"asks for 2 CPUs and 2 GPUs, the cluster has 8 and 1; lower slots\.workers"
    ):
        _check_room(Slots(workers=2, gpus_per_worker=1))


def test_autoscaling_without_a_number_is_refused(tmp_path):
    path = tmp_path / "space.yaml"
    recipe = {"mode": "layerwise", "ratio": 0.3, "criterion": "deepest"}
    path.write_text(
        yaml.safe_dump({"name": "a", "model": "pocket", "recipe": recipe, "slots": {"autoscaling": True}})
    )
    with pytest.raises(InputError, match=r"slots: autoscaling needs num"):
        SearchSpace.load(path)
