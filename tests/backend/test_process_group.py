"""The network interface of process groups is the one that has the node's address in Ray."""

import asyncio
import os
import subprocess
import sys

import pytest
import ray
from ray.train import ScalingConfig

from raysearch.backend import process_group
from raysearch.backend.process_group import (
    INTERFACE_VARIABLES,
    OwnGroup,
    ProcessGroup,
    ProcessGroupBackend,
    SlotTrainer,
    choose_interface,
    interface_of,
)


@pytest.fixture
def address(monkeypatch):
    for variable in INTERFACE_VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what is set below is undone
        monkeypatch.delenv(variable)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")


def test_the_interface_that_has_an_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None


def test_what_the_node_says_holds(address, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    choose_interface()
    assert [os.environ[name] for name in INTERFACE_VARIABLES] == ["lo", "ib0"]


def test_nccl_gets_the_name_as_a_whole(address):
    choose_interface()
    assert [os.environ[name] for name in INTERFACE_VARIABLES] == ["lo", "=lo"]


def test_an_address_that_no_interface_has_changes_nothing(address, monkeypatch):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.77")
    choose_interface()
    assert not set(INTERFACE_VARIABLES) & os.environ.keys()


def test_workers_that_do_not_meet_are_told_with_both_addresses_and_the_setting(address, monkeypatch):
    class Group:
        def execute(self, function):
            return [function(), function()]

        def execute_single(self, rank, function):
            assert os.environ["GLOO_SOCKET_IFNAME"] == "lo", "chosen before they meet"
            raise OSError("connectFullMesh failed\nat once")

    monkeypatch.setattr(process_group.socket, "gethostname", lambda: "h1")
    monkeypatch.setattr(process_group.socket, "gethostbyname", lambda name: "127.0.1.1")
    assert ProcessGroup().backend_cls is ProcessGroupBackend
    with pytest.raises(RuntimeError) as error:
        ProcessGroupBackend().on_start(Group(), ProcessGroup())
    assert str(error.value) == (
        "the workers of a slot can't reach each other (Ray's address 127.0.0.1, h1 resolves to 127.0.1.1, interface "
        "lo); set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME on the nodes to the interface that they reach each other "
        "by: connectFullMesh failed at once"
    )


def test_a_slot_has_no_process_for_datasets_or_for_placement_groups():
    kinds = {type(callback).__name__ for callback in SlotTrainer(print)._create_default_callbacks()}
    assert kinds >= {"BackendSetupCallback", "AcceleratorSetupCallback"}
    assert not kinds & {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def test_a_slot_registers_with_no_actor_that_asks_for_nodes():
    policy = OwnGroup(ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2}))
    policy.after_controller_start(None)
    decision = policy.make_decision_for_non_running_worker_group()
    assert (decision.num_workers, decision.resources_per_worker) == (3, {"CPU": 2})
    asyncio.run(policy.before_controller_shutdown())
    assert policy._coordinator_client is None, "nobody was asked"


def test_a_trial_imports_no_torch():
    """Its process is on the head, one per slot; torch takes 125 MB."""
    code = "import sys, raysearch.backend.trainable, raysearch.backend.process_group; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_workers_meet_on_ray_train(tmp_path):
    """Two real workers add their ranks up; Ray runs no other process for them, and has its processors back after it."""
    code = f"""
import ray
from ray.train import RunConfig, ScalingConfig, get_context
from raysearch.backend.process_group import ProcessGroup, SlotTrainer
def add():
    import torch
    total = torch.tensor([1 + get_context().get_world_rank()])
    torch.distributed.all_reduce(total)
    assert total.item() == 3 and torch.distributed.get_backend() == "gloo"
    open("{tmp_path}/" + str(get_context().get_world_rank()), "w").write("met")
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
scaling, run = ScalingConfig(num_workers=2), RunConfig(name="x", storage_path="{tmp_path}/run")
@ray.remote(num_cpus=0)
class Trial:
    def fit(self):
        SlotTrainer(add, backend_config=ProcessGroup("gloo"), scaling_config=scaling, run_config=run).fit()
trial = Trial.remote()
ray.get(trial.fit.remote())
names = [actor["ActorClassName"] for actor in ray._private.state.actors().values()]
assert sorted(names) == ["RayTrainWorker", "RayTrainWorker", "Trial"], names
while ray.available_resources().get("CPU") != 2:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.read_text() for path in tmp_path.glob("[01]")} == {"met"}
    assert len(list(tmp_path.glob("[01]"))) == 2
