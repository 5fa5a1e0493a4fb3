"""The main job on a real Ray cluster, but for training: retention comes from a formula, and faults come on request.

    python raysearch/testing/stand_in_training.py SPACE.yaml --out DIR ...      # as python -m raysearch.pareto

Driver, Tune, slots, board and files are real; a slot's worker is one actor, where Ray Train would start a dozen
processes. A file DIR.faults/NUMBER-KIND makes the worker that is about to train the rung NUMBER of the study (by
the lines of DIR.rungs) fail in that way, once.
"""

import errno
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.files import write_json, write_text
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape_solver import shape_for
from raysearch.study.front import Measured
from raysearch.study.records import Score

SECONDS_PER_RUNG = 0.05


class DenseBaselines:
    """What is measured once per study."""

    importances: Mapping[str, Any] = {}
    search = SimpleNamespace(means=lambda: {"digits": 1.0})


class TrialContext:
    """A dense model without weights."""

    def __init__(self, space: SearchSpace, teacher_folder: Path, once: Callable[[Mapping], Mapping[str, Any]]) -> None:
        self.space, self.study, self._once = space, teacher_folder.parent, once
        self.counts = counts_of_model(space.model)
        self.dense_size = self.counts.size(self.counts.dense)
        note_process(self.study)

    @property
    def baselines(self) -> DenseBaselines:
        """Each part by whichever slot comes to it first."""
        assert self._once({"one": lambda: 1, "two": lambda: 2}) == {"one": 1, "two": 2}
        return DenseBaselines()


class Trial:
    """A recipe whose retention is known beforehand."""

    def __init__(self, recipe: Recipe, context: TrialContext) -> None:
        self.recipe, self.context, self.samples_seen = recipe, context, 0
        self.size = context.counts.size(shape_for(context.counts, recipe))
        self.end = recipe.samples_to_see(context.space.num_samples or 0)
        self.seconds = {"seconds_training": 0.0, "seconds_evaluating": 0.0}

    def scores(self, rungs: Iterable[int], keep_in: Path) -> Iterator[Score]:
        """A score per rung; those that were kept come again."""
        kept = keep_in / "scores.json"
        known = [Score(**row) for row in json.loads(kept.read_text())] if kept.exists() else []
        for score in known:
            self.samples_seen = score.samples_seen
            yield score
        for rung in [*(rung for rung in sorted(rungs) if rung < self.end), self.end]:
            if rung > self.samples_seen or not known:
                fail_if_asked(self.context.study)
                time.sleep(SECONDS_PER_RUNG)
                self.samples_seen = rung
                known.append(self._score(rung))
                write_json(kept, [score.model_dump() for score in known])
                note_rung(self.context.study, f"{self.recipe.key} {rung}")
                yield known[-1]

    def _score(self, seen: int) -> Score:
        kept = retention(self.recipe, self.size, self.context.dense_size, seen)
        return Score(samples_seen=seen, retention=kept, retention_se=0.01, scores={"digits": kept})

    def finish(self, folder: Path) -> Measured:
        """Write a checkpoint that is none."""
        (folder.parent / f".{folder.name}.made").mkdir(parents=True)
        (folder.parent / f".{folder.name}.made" / "recipe.yaml").write_text("made")
        os.replace(folder.parent / f".{folder.name}.made", folder)
        kept = retention(self.recipe, self.size, self.context.dense_size, self.end)
        return Measured(retention=kept, retention_ci=(kept - 0.02, kept + 0.02), scores={"digits": kept})

    def close(self) -> None:
        """Nothing to free."""


def retention(recipe: Recipe, size: Size, dense: Size, seen: int) -> float:
    """Rises with recovery, and falls with what is removed."""
    lost = (1 - size.size_bytes / dense.size_bytes) ** 2 + 0.05 * (recipe.criterion == "deepest")
    lost += 0.03 * abs(math.log10((recipe.lr or 1e-3) / 1e-3))
    return 1 - lost * (1 - 0.6 * (1 - math.exp(-seen / 20)))


def faults_of(study: Path) -> Path:
    """Where faults are asked for."""
    return study.with_name(study.name + ".faults")


def rungs_of(study: Path) -> Path:
    """Takes a line per trained rung."""
    return study.with_name(study.name + ".rungs")


def processes_of(study: Path) -> Path:
    """Takes the process id of every worker."""
    return study.with_name(study.name + ".processes")


def note_rung(study: Path, line: str) -> None:
    with rungs_of(study).open("a") as stream:
        stream.write(line + "\n")


def note_process(study: Path) -> None:
    with processes_of(study).open("a") as stream:
        stream.write(f"{os.getpid()}\n")


def num_rungs(study: Path) -> int:
    """Rungs that have been trained."""
    return rungs_of(study).read_bytes().count(b"\n") if rungs_of(study).exists() else 0


class OutOfMemoryError(RuntimeError):
    """As torch's."""


def _raises(error: Exception) -> Callable[[Path], None]:
    def act(study: Path) -> None:
        raise error

    return act


def _ask_for(what: str) -> Callable[[Path], None]:
    """Leave it to the one who watches, and wait until it has been done."""

    def act(study: Path) -> None:
        import ray

        request = faults_of(study) / f"please-{what}"
        write_text(request, ray.get_runtime_context().get_node_id())
        while request.exists():
            time.sleep(0.1)

    return act


FAULTS: dict[str, Callable[[Path], None]] = {
    "worker-killed": lambda study: os.kill(os.getpid(), signal.SIGKILL),
    "slot-hung": lambda study: os.kill(os.getpid(), signal.SIGSTOP),
    "out-of-memory": _raises(OutOfMemoryError("CUDA out of memory")),
    "loss-nan": _raises(FloatingPointError("sft is nan in the step from sample 8 to 16; lower lr")),
    "disk-full": _raises(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "running")),
    "storage-away": _raises(OSError(errno.EIO, os.strerror(errno.EIO), "running")),
    **{
        kind: _ask_for(kind)
        for kind in ("node-lost", "driver-killed", "disk-really-full", "second-driver", "mlflow-away")
    },
}


def fail_if_asked(study: Path) -> None:
    """Do what a file asks for at this rung."""
    for path in sorted(faults_of(study).glob(f"{num_rungs(study):04}-*")):
        path.unlink()
        FAULTS[path.name.partition("-")[2]](study)


def install() -> None:
    """In every process that Ray starts for the job: be what a slot and its worker import."""
    here = sys.modules["raysearch.testing.stand_in_training"]
    sys.modules["raysearch.trials.trial"] = sys.modules["raysearch.trials.context"] = here
    _put("raysearch.recovery.trainer", start_distributed=lambda: None)
    _put("ray.train.torch", TorchTrainer=OneActor)


def _put(name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


class OneActor:
    """As much of Ray Train's `TorchTrainer` as a slot of one worker needs."""

    def __init__(
        self, serve: Callable[..., None], train_loop_config: dict, scaling_config: Any, run_config: Any
    ) -> None:
        self._serve, self._config = serve, train_loop_config
        self._num_cpus = scaling_config.resources_per_worker["CPU"]

    def fit(self) -> None:
        """Until the worker ends.

        Raises:
            Exception: it was ended.
        """
        import ray

        actor = ray.remote(num_cpus=self._num_cpus, scheduling_strategy="DEFAULT")(_Serving).remote()
        ray.get(actor.serve.remote(self._serve, self._config))


class _Serving:
    def serve(self, serve: Callable[..., None], config: dict) -> None:
        alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        _put("torch", set_num_threads=lambda num: None)
        _put("ray.train", get_context=lambda: alone)
        serve(config)


def main() -> None:
    """Run the main job on the cluster that RAY_ADDRESS names."""
    import ray

    from raysearch import pareto
    from raysearch.backend.cluster import QUIET

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    hook = {"worker_process_setup_hook": "raysearch.testing.stand_in_training.install"}
    ray.init(runtime_env=hook, log_to_driver=False, logging_level=logging.ERROR)
    pareto.app()


if __name__ == "__main__":
    main()
