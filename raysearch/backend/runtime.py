"""How the workers of a slot are started, and what runs in them; tests hand in one of their own."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.settings import Slots
from raysearch.config.space import SearchSpace
from raysearch.study.front import Measured

WorkerLoop = Callable[[dict[str, Any], int, int], None]
"""Runs in each worker, given its configuration, its rank and the number of workers of the slot."""


class TrialRuntime:
    """Ray Train workers that prune, recover and score with torch and DeepSpeed."""

    def run_workers(self, loop: WorkerLoop, config: dict[str, Any], slots: Slots, name: str, folder: Path) -> None:
        """Start a slot's workers and wait until they end.

        Args:
            name: of the slot.
            folder: takes Ray Train's files.

        Raises:
            Exception: whatever ended them.
        """
        from ray.train import RunConfig, ScalingConfig, get_context

        from raysearch.backend.process_group import ProcessGroup, SlotTrainer

        def ranked(config: dict[str, Any]) -> None:
            loop(config, get_context().get_world_rank(), get_context().get_world_size())

        resources = {"CPU": slots.cpus_per_worker} | ({"GPU": slots.gpus_per_worker} if slots.gpus_per_worker else {})
        scaling = ScalingConfig(
            num_workers=slots.workers, resources_per_worker=resources, use_gpu=slots.gpus_per_worker > 0
        )
        run = RunConfig(name=name, storage_path=str(folder))
        SlotTrainer(
            ranked,
            train_loop_config=config,
            backend_config=ProcessGroup(backend="nccl" if slots.gpus_per_worker else "gloo"),
            scaling_config=scaling,
            run_config=run,
        ).fit()

    def start_process(self, num_threads: int) -> None:
        """Make a worker's process ready for training, together with the others of its slot."""
        import torch

        from raysearch.recovery.deepspeed_engine import start_distributed

        torch.set_num_threads(num_threads)
        start_distributed()

    def open_context(self, space: SearchSpace, teacher_folder: Path, measure_once_per_study: Callable[..., Any]) -> Any:
        """The `TrialContext` of a worker.

        Raises:
            InputError: the model, the data or the benchmarks can't be used.
        """
        from raysearch.trials.context import TrialContext

        return TrialContext(space, teacher_folder=teacher_folder, measure_once_per_study=measure_once_per_study)

    @contextmanager
    def shape_study(self, context: Any) -> Iterator[Mapping[str, Callable[[], Any]]]:
        """The functions by name that together judge shapes before any is trained; they work inside."""
        from raysearch.searching.samplers.sized_space import SizedSpace
        from raysearch.searching.shape_study import study_parts

        space = context.space
        if not space.search.num_shapes:
            yield {}
            return
        budgets = [Budget.parse(text) for text in space.budgets]
        sized = SizedSpace(space, context.size_of, context.dense_size, budgets)
        with context.judging_shapes() as judge:
            yield study_parts(sized, judge, context.pruned_identity, space.search.num_shapes, space.search.seed)

    def open_trial(self, recipe: Recipe, context: Any) -> Any:
        """A `Trial` of a recipe."""
        from raysearch.trials.trial import Trial

        return Trial(recipe, context)

    def score_heldout(self, folder: Path, context: Any) -> Measured:
        """Score a checkpoint on held-out questions.

        Raises:
            InputError: there is none.
        """
        from raysearch.trials.heldout import score_heldout

        return score_heldout(folder, context)

    def this_worker(self) -> tuple[Any, str, Any]:
        """The actor of this worker, the id of its node, and the placement group of its slot."""
        context = ray.get_runtime_context()
        return context.current_actor, context.get_node_id(), ray.util.get_current_placement_group()

    def leave(self) -> None:
        """End this process at once, whatever it computes."""
        os._exit(1)

    def kill(self, worker: Any) -> None:
        """End a worker's process."""
        ray.kill(worker)
