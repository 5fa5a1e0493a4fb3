"""Two workers over gloo are one worker with twice the batch."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from recovery_setup import tiny_family, tiny_model
from test_recover import samples, series, start

from raysearch.recovery.states import Compared
from raysearch.recovery.teacher import Teacher
from raysearch.settings import RecoverySettings

ENDS = [8, 16, 21, 32, 33, 40]
"""Batches of 8 samples, and rungs that leave 5 and 1: one worker then has fewer rows than the other, or none."""
STAGES = (1, 2, 3)


def _worker(rank: int, world: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = {}
    for stage in STAGES:
        for part in ("projector+decoder", "projector+lora"):
            recovery = start({"zero_stage": stage}, trained=part)
            found[stage, part] = series(recovery, ENDS)
            with recovery.weights_for_evaluation() as model:
                found[stage, part].append(
                    {"weight": sum(p.double().sum().item() for p in model.parameters())}
                )
            recovery.close()
        where = {"hidden_layers": [0.5, 1.0], "kd_tokens": "answers+images"}
        compared = Compared.of(RecoverySettings(**where), tiny_family(), tiny_model().config)
        teacher = Teacher(tiny_model(), tiny_family(), compared)
        recovery = start({"zero_stage": stage} | where, teacher)
        found[stage, "image tokens and inner layers"] = series(recovery, ENDS)
        recovery.close()
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


def _run(world: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (world, folder), nprocs=world)
        return torch.load(Path(folder) / "found.pt")


@pytest.mark.slow
def test_two_workers_are_one_with_twice_the_batch() -> None:
    """fp32. Sums over rows are then added in another order: 1e-7 relative per step, and Adam's first steps, which
    divide gradients by their own size, carry that into weights whose gradient is almost 0."""
    assert len(samples()) == 40
    one, two = _run(1), _run(2)
    for key, wanted in one.items():
        for mine, theirs in zip(two[key], wanted, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4), key
