"""Workers of a slot find each other at the addresses that Ray knows them by.

gloo takes the address that a host's name resolves to, which Debian's hosts file makes 127.0.1.1, and NCCL the first
interface of its own order. Neither need be the one that the nodes reach each other by.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

SECONDS_TO_PART = 30
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class SlotTrainer(DataParallelTrainer):
    """Ray Train without processes of its own, 115 to 130 MB of the head each.

    The controller runs in the thread that calls `fit`, whose process would only wait for it. What synchronises reports,
    brings datasets of Ray's, gives placement groups back (`placement_groups` does), looks out for nodes that are about
    to go (a lost slot is replaced without notice) and asks the cluster for nodes has no work in a slot; the last would
    outlive the search, too.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        worker_group.SynchronizationActor, state._shutdown_sync_actor = NoReports(), NoReports.end
        os.environ[ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"  # of the trial's process, which may not have the driver's
        controller = TrainController(**{**arguments, "scaling_policy": OwnGroup(self.scaling_config)})
        asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, needless)]


class NoReports:
    """In place of the actor by which workers wait for each other's reports: a slot's workers report nothing."""

    def options(self, **options: Any) -> "NoReports":
        """As of an actor's class."""
        return self

    remote = options

    def end(self) -> None:
        """Nothing runs."""


class OwnGroup(FixedScalingPolicy):
    """Workers of a placement group, whose waiting is all that an autoscaling cluster needs to add nodes."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Don't register with Ray's actor that asks for nodes."""

    def _maybe_send_resource_request(self) -> None:
        """Ask nobody."""


@dataclass
class ProcessGroup(BackendConfig):
    """Torch's process group over the interface that has the node's address in Ray.

    As Ray Train's own `TorchConfig`, but only workers import torch: the trial's process, on the head, holds this too.
    """

    backend: str = "gloo"

    @property
    def backend_cls(self) -> type["ProcessGroupBackend"]:
        """What Ray Train calls when the workers are there."""
        return ProcessGroupBackend

    @property
    def train_func_context(self) -> Any:
        """What a worker's loop runs in."""
        return on_own_device


class ProcessGroupBackend(Backend):
    """Chooses the interface before the workers meet, and names their addresses if they don't."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Let the workers meet.

        Raises:
            RuntimeError: they can't reach each other.
        """
        worker_group.execute(choose_interface)
        try:
            address = worker_group.execute_single(0, get_address_and_port)
            ranks = range(len(worker_group))
            joined = (address, backend_config.backend, len(worker_group))
            ray.get([worker_group.execute_single_async(rank, join, *joined, rank) for rank in ranks])
        except Exception as error:
            places = "; ".join(dict.fromkeys(worker_group.execute(describe_addresses)))
            raise RuntimeError(
                f"the workers of a slot can't reach each other ({places}); set {' and '.join(INTERFACE_VARIABLES)} on "
                f"the nodes to the interface that they reach each other by: {' '.join(str(error).split())[:300]}"
            ) from error

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Let the workers part; one that doesn't answer is ended by Ray Train."""
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(part), timeout=SECONDS_TO_PART)


def join(address: tuple[str, int], backend: str, num_workers: int, rank: int) -> None:
    """Join the process group as worker `rank`."""
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, num_workers, "env://")


def part() -> None:
    """Leave the process group."""
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=True)


@contextmanager
def on_own_device() -> Iterator[None]:
    """Inside, CUDA's device is this worker's."""
    import ray.train.torch
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    yield


def choose_interface() -> None:
    """Set the interface of this process's groups, unless the node's environment does."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in INTERFACE_VARIABLES if name else ():
        # NCCL takes every interface whose name begins so, but for the sign; the loopback too, if it is named.
        os.environ.setdefault(variable, f"={name}" if variable.startswith("NCCL") else f"{name}")


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None if none has."""
    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if any(entry.address == address for entry in entries)), None)


def describe_addresses() -> str:
    """This node by the address that Ray uses and the one that its name stands for, and the interface chosen."""
    name, resolved = socket.gethostname(), "nothing"
    with suppress(OSError):
        resolved = socket.gethostbyname(name)
    chosen = os.environ.get(INTERFACE_VARIABLES[0], "none")
    return f"Ray's address {ray.util.get_node_ip_address()}, {name} resolves to {resolved}, interface {chosen}"
