"""The main job on a real Ray cluster, but for training: retention comes from a formula, and faults come on request.

    python -m scripts.fault_injection.formula_training SPACE.yaml --out DIR      # as python -m raysearch.pareto

Driver, Tune, slots, coordinator, worker loop and files are real. A file DIR.faults/NUMBER-KIND makes the worker that is
about to train the rung NUMBER of the study (by the lines of DIR.rungs) fail in that way, once.
"""

import errno
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import ray
import typer

from raysearch.backend.runtime import TrialRuntime, WorkerLoop
from raysearch.backend.search_job import run, study_of
from raysearch.cli.exit_codes import App
from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.config.settings import Slots
from raysearch.config.space import SearchSpace
from raysearch.files import write_json, write_text
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape_solver import shape_for
from raysearch.study.front import Measured
from raysearch.study.plan import plan_study
from raysearch.study.records import Score

SECONDS_PER_RUNG = 0.05


class FormulaBaselines:
    """What is measured once per study."""

    importances: Mapping[str, Any] = {}
    search = SimpleNamespace(means=lambda: {"digits": 1.0})


class FormulaContext:
    """A dense model without weights."""

    def __init__(self, space: SearchSpace, teacher_folder: Path, once: Callable[[Mapping], Mapping[str, Any]]) -> None:
        self.space, self.study, self._once = space, teacher_folder.parent, once
        self.counts = counts_of_model(space.model)
        self.dense_size = self.counts.size(self.counts.dense)
        self.heldout_baseline = {"digits": 1.0}
        note_process(self.study)

    @property
    def baselines(self) -> FormulaBaselines:
        """Each part by whichever slot comes to it first."""
        assert self._once({"one": lambda: 1, "two": lambda: 2}) == {"one": 1, "two": 2}
        return FormulaBaselines()


class FormulaTrial:
    """A recipe whose retention is known beforehand."""

    def __init__(self, recipe: Recipe, context: FormulaContext) -> None:
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

    scores_heldout_later = True

    def export(self, folder: Path, heldout: None) -> None:
        """Write a checkpoint that is none."""
        kept = retention(self.recipe, self.size, self.context.dense_size, self.end)
        (folder.parent / f".{folder.name}.made").mkdir(parents=True)
        (folder.parent / f".{folder.name}.made" / "retention").write_text(repr(kept))
        os.replace(folder.parent / f".{folder.name}.made", folder)

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
        request = faults_of(study) / f"please-{what}"
        write_text(request, f"{ray.get_runtime_context().get_node_id()} {ray.util.get_node_ip_address()}")
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
        for kind in (
            "node-lost",
            "driver-killed",
            "job-stopped",
            "disk-really-full",
            "host-disk-full",
            "second-driver",
            "mlflow-away",
            "host-cut",
            "raylet-killed",
            "agent-killed",
            "gcs-killed",
            "coordinator-killed",
            "trial-killed",
        )
    },
}


def fail_if_asked(study: Path) -> None:
    """Do what a file asks for at this rung."""
    for path in sorted(faults_of(study).glob(f"{num_rungs(study):04}-*")):
        path.unlink()
        FAULTS[path.name.partition("-")[2]](study)


class FormulaRuntime(TrialRuntime):
    """Trials whose retention is known beforehand, on one actor per slot, where Ray Train would start a dozen.

    Args:
        on_ray_train: start them by Ray Train all the same.
    """

    def __init__(self, on_ray_train: bool = False) -> None:
        self._on_ray_train = on_ray_train

    def run_workers(self, loop: WorkerLoop, config: dict[str, Any], slots: Slots, name: str, folder: Path) -> None:
        """Start the slot's worker and wait until it ends.

        Raises:
            RayActorError: it was killed.
        """
        if self._on_ray_train:
            super().run_workers(loop, config, slots, name, folder)
            return
        actor = ray.remote(num_cpus=slots.cpus_per_worker, scheduling_strategy="DEFAULT")(_Process).remote()
        ray.get(actor.run.remote(loop, config))

    def start_process(self, num_threads: int) -> None:
        """Nothing to prepare."""

    def open_context(self, space: SearchSpace, teacher_folder: Path, measure_once_per_study: Callable[..., Any]) -> Any:
        """A context without weights."""
        return FormulaContext(space, teacher_folder, measure_once_per_study)

    @contextmanager
    def shape_study(self, context: Any) -> Iterator[Mapping[str, Callable[[], Any]]]:
        """No shapes to judge without weights."""
        yield {}

    def open_trial(self, recipe: Recipe, context: Any) -> Any:
        """A trial without weights."""
        return FormulaTrial(recipe, context)

    def score_heldout(self, folder: Path, context: Any) -> Measured:
        """What the checkpoint tells."""
        kept = float((folder / "retention").read_text())
        return Measured(retention=kept, retention_ci=(kept - 0.02, kept + 0.02), scores={"digits": kept})


class _Process:
    def run(self, loop: WorkerLoop, config: dict[str, Any]) -> None:
        loop(config, 0, 1)


def main(
    space: Annotated[Path | None, typer.Argument()] = None,
    out: Annotated[Path | None, typer.Option()] = None,
    resume: Annotated[Path | None, typer.Option()] = None,
    on_ray_train: Annotated[bool, typer.Option()] = False,
) -> None:
    """Run a search on the cluster that RAY_ADDRESS names."""
    loaded, folder = study_of(space, resume, out)
    run(plan_study(loaded), folder, runtime=FormulaRuntime(on_ray_train))


if __name__ == "__main__":
    from scripts.fault_injection.formula_training import main  # so that workers find the classes by a name

    app = App()
    app.command()(main)
    app()
