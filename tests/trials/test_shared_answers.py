"""Workers of a slot answer a part of the questions each, and all know all answers."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from raysearch.errors import InputError
from raysearch.evaluation.benchmarks import Benchmark
from raysearch.evaluation.questions import Question
from raysearch.trials.shared_answers import answer_together, parts_by_image


def benchmarks():
    """Two questions about each picture, in no order; and a benchmark about one picture."""
    mixed = tuple(Question(str(i), f"p{i % 4}", None, ("yes",)) for i in range(8))
    one = tuple(Question(str(i), "p", None, ("yes",)) for i in range(3))
    return [Benchmark("mixed", mixed, 0.0), Benchmark("one", one, 0.0, "normalised")]


def answers_to(asked, seen=None):
    if seen is not None:
        seen += [q.id for benchmark in asked for q in benchmark.questions]
    return {
        "mixed": np.array([float(q.id) for q in asked[0].questions]),
        **{b.name: np.array([f"said {q.id}" for q in b.questions], dtype=object) for b in asked if b.name == "one"},
    }


def test_parts_have_whole_images_and_every_question_once():
    for num in (1, 2, 3, 5):
        parts = parts_by_image(benchmarks()[0].questions, num)
        assert sorted(row for part in parts for row in part) == list(range(8))
        images = [{row % 4 for row in part} for part in parts]
        assert sum(map(len, images)) == 4


def _worker(rank: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    seen: list[str] = []
    found = answer_together(lambda asked: answers_to(asked, seen), benchmarks())
    assert found["mixed"].tolist() == [float(i) for i in range(8)]
    assert found["one"].tolist() == ["said 0", "said 1", "said 2"]
    assert len(seen) == (7 if rank == 0 else 4)

    def refuse_on_one(asked):
        if rank == 1:
            raise InputError("benchmarks: one: question 2: gone")
        return answers_to(asked)

    with pytest.raises(InputError, match="question 2: gone"):
        answer_together(refuse_on_one, benchmarks())
    Path(folder, f"done-{rank}").touch()
    torch.distributed.destroy_process_group()  # its threads may abort a process that ends


def test_two_workers_share_the_questions(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}


def test_one_worker_answers_all():
    seen: list[str] = []
    found = answer_together(lambda asked: answers_to(asked, seen), benchmarks())
    assert len(seen) == 11
    assert found["one"].tolist() == ["said 0", "said 1", "said 2"]
