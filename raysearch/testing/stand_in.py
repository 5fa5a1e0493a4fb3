"""A whole search but for training: real searcher, scheduler, recorder and files; retention comes from a formula, and a
loop calls them in the order in which Ray Tune's controller does."""

import heapq
import itertools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raysearch.backend import tuner
from raysearch.backend.recorder import Callback
from raysearch.config.budget import Budget, Size
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.study.folder import Study, locked
from raysearch.study.front import Baseline
from raysearch.study.plan import StudyPlan

DENSE = Size(1000, 2000)
NUM_SAMPLES = 900


class MadePlan(StudyPlan):
    """Sizes by a formula: layers go eight at a time, widths one by one; nine tenths of the model are the decoder."""

    def size_of(self, recipe: Recipe) -> Size | None:
        removed = round(recipe.ratio * 8) / 8 if recipe.mode == "layerwise" else recipe.ratio
        num_params = 1000 - int(900 * removed)
        return Size(num_params, 2 * num_params)


def plan(
    num_trials: int,
    sampler: str = "tpe",
    budgets: tuple[str, ...] = ("60%",),
    num_checkpoints: int | None = None,
) -> MadePlan:
    """`num_checkpoints`, of a byte each, are what the quota has room for."""
    space = SearchSpace.model_validate(
        {
            "name": "stand-in",
            "model": "pocket",
            "budgets": list(budgets),
            "recipe": {
                "mode": ["layerwise", "widthwise"],
                "ratio": {"low": 0.05, "high": 0.8},
                "criterion": ["block_influence", "deepest", "taylor", "activation"],
                "trained": ["nothing", "projector", "projector+decoder"],
                "logits_kd": [0, 1],
                "lr": {"low": 1e-5, "high": 1e-2, "log": True},
                "data_fraction": [0.05, 0.2, 1.0],
            },
            "search": {"trials": num_trials, "sampler": sampler, "first_rung": 1 / 27, "seed": 1},
            "recovery": {"checkpoint_quota_gb": num_checkpoints and num_checkpoints / 10**9},
        }
    )
    parsed = tuple(Budget.parse(text) for text in budgets)
    return MadePlan(space, None, DENSE, NUM_SAMPLES, NUM_SAMPLES, parsed)


def retention(made: MadePlan, recipe: Recipe, seen: int) -> float:
    """Rises with recovery; NaN for a learning rate that is too high, as a failed trial reports it."""
    size = made.size_of(recipe)
    assert size is not None
    if (recipe.lr or 0) > 8e-3:
        return math.nan
    lost = (1 - size.num_params / 1000) ** 2 + 0.05 * (recipe.criterion in ("deepest", "activation"))
    lost += 0.03 * abs(math.log10((recipe.lr or 1e-3) / 1e-3))
    return 1 - lost * (1 - 0.6 * (1 - math.exp(-seen / 200)))


def results(made: MadePlan, recipe: Recipe, levels: list[int], folder: Path) -> list[dict]:
    """What a slot would hand back for a recipe, rung by rung."""
    end = recipe.samples_to_see(NUM_SAMPLES)
    size = made.size_of(recipe)
    assert size is not None
    found = []
    for seen in [*(level for level in levels if level < end), end]:
        kept = retention(made, recipe, seen)
        if math.isnan(kept):
            found.append({"failed": "loss is nan", "retention": kept, "samples_seen": 0, "done": True})
            break
        found.append(
            {
                "samples_seen": seen,
                "retention": kept,
                "retention_se": 0.01,
                "num_questions": 100,
                "scores": {"digits": kept},
                "losses": {},
                "num_params": size.num_params,
                "size_bytes": size.size_bytes,
                "size_ratio": size.size_bytes / DENSE.size_bytes,
                "done": seen == end,
            }
        )
    if not found[-1].get("failed"):
        heldout = {"retention": found[-1]["retention"], "retention_ci": [0.0, 1.0], "scores": {}}
        found[-1] |= {"checkpoint": f"checkpoints/{recipe.key}", "heldout": heldout}
    return found


@dataclass
class Running:
    trial: SimpleNamespace
    results: list[dict]
    seconds: float
    """From one result to the next."""


def drive(
    made: MadePlan,
    folder: Path,
    num_slots: int = 1,
    name: str = "t",
    log: Path | None = None,
    seconds: Callable[[Recipe], float] = lambda recipe: 1.0,
    observe: Callable[[Study], Sequence[Callback]] = lambda study: (),
) -> Study:
    """Begin a study, or go on with it, and run it to its end.

    Args:
        name: begins the names of the trials of this start.
        log: takes the key of every recipe whose training would begin anew, that is, with nothing kept of it.
        seconds: how long a rung of a recipe would take; results come in the order of that clock.
        observe: who follows the study.
    """
    tuner.post_front = lambda board, points: None  # no slots
    with locked(folder):
        study = Study(folder, made.space)
        study.create()
        proposals = tuner._proposals(made, study, [])
        proposals.num_slots = lambda: num_slots
        recorder = tuner.Recorder(made, study, proposals, None, observe(study))
        recorder._baseline = Baseline(num_params=DENSE.num_params, size_bytes=DENSE.size_bytes, scores={"digits": 1.0})
        scheduler = proposals.scheduler
        levels = [round(level) for level in scheduler.levels]
        running: list[tuple[float, int, Running]] = []  # a heap by the time of the next result
        order, clock = itertools.count(), 0.0
        num_started, wanted = 0, made.space.search.trials - len(study.records)
        while True:
            while num_started < wanted:
                trial_id = f"{name}{num_started}"
                config = proposals.suggest(trial_id)
                if not isinstance(config, dict):
                    break
                num_started += 1
                recipe = Recipe(**config["recipe"])
                trial = SimpleNamespace(trial_id=trial_id, config=config, last_result=None)
                _keep(folder, recipe, log)
                scheduler.on_trial_add(None, trial)
                recorder.on_trial_start(0, [], trial)
                begun = Running(trial, results(made, recipe, levels, folder), seconds(recipe))
                heapq.heappush(running, (clock + begun.seconds, next(order), begun))
            if not running:
                break
            clock, _, now = heapq.heappop(running)
            if _one_result(now, proposals, recorder, folder):
                heapq.heappush(running, (clock + now.seconds, next(order), now))
        recorder.conclude()
    return study


def _keep(folder: Path, recipe: Recipe, log: Path | None) -> None:
    kept = folder / "running" / recipe.key
    if log is not None and not kept.exists():
        with log.open("a") as stream:
            stream.write(recipe.key + "\n")
    kept.mkdir(parents=True, exist_ok=True)


def _one_result(running: Running, proposals, recorder, folder: Path) -> bool:
    """As `TuneController._on_training_result` and `stop_trial`; whether the trial goes on."""
    trial, result = running.trial, running.results.pop(0)
    scheduler = proposals.scheduler
    stop = result["done"] or scheduler.on_trial_result(None, trial, result) == "STOP"
    if not stop:
        proposals.on_trial_result(trial.trial_id, result)
    if result.get("checkpoint"):
        checkpoint = folder / result["checkpoint"]
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "weights").write_text("w")
    recorder.on_trial_result(0, [], trial, result)
    trial.last_result = result
    if not stop:
        return True
    scheduler.on_trial_complete(None, trial, result)
    proposals.on_trial_complete(trial.trial_id, result)
    recorder.on_trial_complete(0, [], trial)
    return False


def killed(made: MadePlan, folder: Path, when: Callable[[], bool], **more: Any) -> bool:
    """Drive a study in a process of its own that is killed as soon as `when` says so; False if it ended before."""
    child = os.fork()
    if child == 0:
        try:
            drive(made, folder, **more)
        finally:
            os._exit(0)
    while not when():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


REFUSED = 2


def in_a_child(first: Callable[[], object], made: MadePlan, folder: Path, **more: Any) -> int:
    """Drive a study in a process of its own, after `first`.

    Returns:
        Its exit status: 0, -N for signal N, REFUSED after an `InputError`, or the number of an `OSError`.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            first()
            drive(made, folder, **more)
            status = 0
        except InputError:
            status = REFUSED
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def num_lines(folder: Path) -> int:
    """How far a study has come: trials that have ended, and decisions about trials."""
    paths = (folder / "trials.jsonl", folder / "decisions.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def further(folder: Path, num: int, delay: float = 0.0) -> Callable[[], bool]:
    """A condition that comes true, `delay` seconds late, when a study has `num` lines more than now: on a slow machine
    as on a fast one."""
    wanted = num_lines(folder) + num
    reached: list[float] = []

    def has_come() -> bool:
        if not reached and num_lines(folder) >= wanted:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() >= reached[0] + delay

    return has_come


def outcome(folder: Path) -> dict:
    """What a study came to, without times and the names of trials."""
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds"), row.pop("trial")
    decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    for decision in decisions:
        decision.pop("trial")
    return {
        "trials": rows,
        "decisions": decisions,
        "front": json.loads((folder / "front.json").read_text()),
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "running": list((folder / "running").iterdir()),
        "half written": [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"],
    }
