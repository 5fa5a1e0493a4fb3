"""Two workers over gloo are one worker with twice the batch."""

import errno
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raysearch.config.settings import RecoverySettings
from raysearch.data.bad_rows import BadData
from raysearch.files import StorageProblem
from raysearch.recovery.hidden_states import DistillationPoints
from raysearch.recovery.schedule import SampleOrder
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.trainer import RecoveryTrainer
from raysearch.study.records import Score
from raysearch.trials import rung_checkpoint
from tests.recovery.test_trainer import samples, series, start
from tests.support.recovery_setup import recipe, tiny_encoder, tiny_family, tiny_model

ENDS = [8, 16, 21, 32, 33, 40]
"""Batches of 8 samples, and rungs that leave 5 and 1: one worker then has fewer rows than the other, or none."""
STAGES = (1, 2, 3)


def _join(rank: int, world: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)


def _worker(rank: int, world: int, folder: str) -> None:
    _join(rank, world, folder)
    found = {}
    for stage in STAGES:
        for part in ("projector+decoder", "projector+lora"):
            recovery = start({"zero_stage": stage}, trained=part)
            found[stage, part] = series(recovery, ENDS)
            with recovery.weights_for_evaluation() as model:
                found[stage, part].append({"weight": sum(p.double().sum().item() for p in model.parameters())})
            recovery.close()
        where = {"hidden_layers": [0.5, 1.0], "kd_tokens": "answers+images"}
        compared = DistillationPoints.of(RecoverySettings(**where), tiny_family(), tiny_model().config)
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


def _worker_with_a_bad_row(rank: int, world: int, folder: str) -> None:
    _join(rank, world, folder)
    rows = list(samples())
    place = SampleOrder(len(rows), seed=0)[9]  # of the second step, and of worker 1
    rows[place] = replace(rows[place], id="spoilt", images=(b"no picture",))
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    alone = recipe(logits_kd=0, hidden_kd=0)
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), alone, rows, tiny_encoder(), None, chosen)
    recovery.train_until(8)
    try:
        recovery.train_until(40)
    except BadData as error:
        Path(folder, f"worker-{rank}").write_text(f"{recovery.samples_seen} {error}")
    recovery.close()


@pytest.mark.slow
def test_too_many_bad_rows_end_all_workers_at_the_same_step(tmp_path: Path) -> None:
    """One of 40 rows is more than a hundredth; only worker 1 reads it, and worker 0 must not wait for it."""
    torch.multiprocessing.spawn(_worker_with_a_bad_row, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        said = (tmp_path / f"worker-{rank}").read_text()
        assert said.startswith("8 recovery data: more than 1.0% of 40 rows can't be used (row spoilt: image ")


FAILURES = [("worker-1", 1), ("position.json", 0), ("scores.json", 0)]
"""A file and the worker whose disk is full when it comes to write it."""


def _worker_with_a_full_disk(rank: int, world: int, folder: str) -> None:
    _join(rank, world, folder)
    kept_in, replace_file = Path(folder, "kept"), os.replace
    said = []
    for name, _ in [*FAILURES, ("", 0)]:
        recovery = start({"zero_stage": 1})
        scores = rung_checkpoint.restore(recovery, kept_in)
        losses = series(recovery, ENDS[:2])

        def full(source: str, target: str, name: str = name) -> None:
            if name and Path(target).name.startswith(name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace_file(source, target)

        os.replace = full
        problem = OSError()
        try:
            recovery.save(Path(folder, "saved"))
        except StorageProblem as error:
            problem = error
        rung_checkpoint.save(recovery, [Score(samples_seen=16, retention=1, retention_se=0, scores={})], kept_in)
        os.replace = replace_file
        said.append([problem.errno, problem.filename, scores, losses])
        recovery.close()
    again = start({"zero_stage": 1})
    restored = rung_checkpoint.restore(again, kept_in)
    assert restored is not None
    said.append([again.samples_seen, len(restored)])
    again.close()
    Path(folder, f"worker-{rank}").write_text(json.dumps(said))


@pytest.mark.slow
def test_a_full_disk_of_one_worker_is_told_to_all_and_they_go_on(tmp_path: Path) -> None:
    """Whichever worker's write fails, nothing is kept of the rung, and the same workers train it again."""
    torch.multiprocessing.spawn(_worker_with_a_full_disk, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        said = json.loads((tmp_path / f"worker-{rank}").read_text())
        for (name, owner), (number, file, known, losses) in zip(FAILURES, said, strict=False):
            assert (known, losses) == ([], said[0][3])
            if name != "scores.json":  # which is no part of what `save` writes
                assert number == errno.ENOSPC
                assert (name in file) if rank == owner else file is None
        assert said[len(FAILURES)] == [None, None, [], said[0][3]]
        assert said[-1] == [16, 1]


@pytest.mark.slow
def test_two_workers_are_one_with_twice_the_batch() -> None:
    """fp32. Sums over rows are then added in another order: 1e-7 relative per step, and Adam's first steps, which
    divide gradients by their own size, carry that into weights whose gradient is almost 0."""
    assert len(samples()) == 40
    one, two = _run(1), _run(2)
    for key, wanted in one.items():
        for mine, theirs in zip(two[key], wanted, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4), key
