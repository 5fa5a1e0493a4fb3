"""A whole search without Ray and training: real searcher, scheduler, recorder and files; retention comes from a
formula, and a loop calls them in the order in which Ray Tune's controller does."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raysearch.backend.coordinator import Coordinator
from raysearch.backend.messages import AllScored, Failed, PointScored, RungScored, TrialReply
from raysearch.backend.recorder import Callback, Recorder
from raysearch.backend.trainable import HELDOUT, REPLY
from raysearch.backend.tune_searcher import TuneScheduler, TuneSearcher
from raysearch.backend.tuner import resume_search
from raysearch.config.budget import Budget, Size
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.models.param_count_cache import counts_of_model
from raysearch.searching.pace import Deadline
from raysearch.study.folder import StudyFolder, locked
from raysearch.study.front import CHECKPOINTS, Baseline, Measured
from raysearch.study.plan import StudyPlan
from raysearch.study.records import Score
from scripts.testing.local_coordinator import LocalCoordinator

DENSE = Size(1000, 2000)
NUM_SAMPLES = 900


class MadePlan(StudyPlan):
    """Sizes by a formula: layers go eight at a time, widths one by one; nine tenths of the model are the decoder."""

    def size_of(self, recipe: Recipe) -> Size | None:
        removed = round(recipe.ratio * 8) / 8 if recipe.mode == "layerwise" else recipe.ratio
        num_params = 1000 - int(900 * removed)
        return Size(num_params, 2 * num_params)


def plan(
    num_trials: int | None,
    sampler: str = "tpe",
    budgets: tuple[str, ...] = ("60%",),
    num_checkpoints: int | None = None,
    **limits: Any,
) -> MadePlan:
    """`num_checkpoints`, of a byte each, are what the quota has room for; `limits` are other ones of the search."""
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
            "search": {"trials": num_trials, "sampler": sampler, "first_rung": 1 / 27, "seed": 1, **limits},
            "recovery": {"checkpoint_quota_gb": num_checkpoints and num_checkpoints / 10**9},
        }
    )
    parsed = tuple(Budget.parse(text) for text in budgets)
    return MadePlan(space, counts_of_model("pocket"), DENSE, NUM_SAMPLES, NUM_SAMPLES, parsed)


def retention(plan: MadePlan, recipe: Recipe, seen: int) -> float:
    """Rises with recovery; NaN for a learning rate that is too high, as a failed trial reports it."""
    size = plan.size_of(recipe)
    assert size is not None
    if (recipe.lr or 0) > 8e-3:
        return math.nan
    lost = (1 - size.num_params / 1000) ** 2 + 0.05 * (recipe.criterion in ("deepest", "activation"))
    lost += 0.03 * abs(math.log10((recipe.lr or 1e-3) / 1e-3))
    return 1 - lost * (1 - 0.6 * (1 - math.exp(-seen / 200)))


def replies(plan: MadePlan, recipe: Recipe, levels: list[int]) -> list[RungScored | Failed]:
    """What a slot would reply for a recipe, rung by rung."""
    end = recipe.samples_to_see(NUM_SAMPLES)
    size = plan.size_of(recipe)
    assert size is not None
    found: list[RungScored | Failed] = []
    for seen in [*(level for level in levels if level < end), end]:
        kept = retention(plan, recipe, seen)
        if math.isnan(kept):
            return [*found, Failed(reason="loss is nan", may_pass=False)]
        reply = RungScored(
            score=Score(
                samples_seen=seen, retention=kept, retention_se=0.01, num_questions=100, scores={"digits": kept}
            ),
            num_params=size.num_params,
            size_bytes=size.size_bytes,
            size_ratio=size.size_bytes / DENSE.size_bytes,
            is_last=seen == end,
        )
        if reply.is_last:
            reply = reply.model_copy(update={"checkpoint": f"{CHECKPOINTS}/{recipe.key}"})
        found.append(reply)
    return found


@dataclass
class RunningTrial:
    """What Ray Tune's controller holds of a trial, and the replies that it has still to give."""

    trial_id: str
    config: dict[str, Any]
    replies: Iterator[TrialReply]
    seconds: float
    """From one reply to the next."""
    last_result: dict[str, Any] | None = None


def drive(
    plan: MadePlan,
    folder: Path,
    num_slots: int = 1,
    name: str = "t",
    log: Path | None = None,
    seconds: Callable[[Recipe], float] = lambda recipe: 1.0,
    callbacks: Callable[[StudyFolder], Sequence[Callback]] = lambda study: (),
    deadline: Deadline | None = None,
) -> StudyFolder:
    """Begin a study, or go on with it, and run it to its end.

    Args:
        name: begins the names of the trials of this start.
        log: takes the key of every recipe whose training would begin anew, since it has no rung checkpoint.
        seconds: how long a rung of a recipe would take; replies come in the order of that clock.
        callbacks: follow the study.
        deadline: of this start.
    """
    with locked(folder):
        study = StudyFolder(folder, plan.space)
        search = resume_search(plan, study)
        study.create()
        search.begin()
        baseline = Baseline(num_params=DENSE.num_params, size_bytes=DENSE.size_bytes, scores={"digits": 1.0})
        coordinator = LocalCoordinator()
        recorder = Recorder(plan, study, search, coordinator, callbacks(study), baseline)
        post = partial(coordinator.call, Coordinator.post_unscored)
        more = {"deadline": deadline, "unscored": recorder.unscored, "post_unscored": post}
        searcher = TuneSearcher(search, lambda: num_slots, **more)
        tune = _Tune(searcher, TuneScheduler(search), recorder, folder)
        levels = [round(level) for level in search.bracket.levels]
        running: list[tuple[float, int, RunningTrial]] = []  # a heap by the time of the next reply
        order, clock = itertools.count(), 0.0
        num_started = 0
        while True:
            while config := tune.suggest(f"{name}{num_started}"):
                if HELDOUT in config:
                    trial = RunningTrial(f"{name}{num_started}", config, _points(coordinator, study), 1.0)
                else:
                    recipe = Recipe(**config["recipe"])
                    given = iter(replies(plan, recipe, levels))
                    trial = RunningTrial(f"{name}{num_started}", config, given, seconds(recipe))
                    _keep(folder, recipe, log)
                num_started += 1
                tune.start(trial)
                heapq.heappush(running, (clock + trial.seconds, next(order), trial))
            if not running:
                break
            clock, _, trial = heapq.heappop(running)
            if HELDOUT in trial.config and any(HELDOUT not in other.config for _, _, other in running):
                heapq.heappush(running, (max(at for at, _, _ in running), next(order), trial))  # waits for them
                continue
            if tune.goes_on(trial):
                heapq.heappush(running, (clock + trial.seconds, next(order), trial))
        recorder.conclude()
    return study


@dataclass
class _Tune:
    """Calls searcher, scheduler and callback in the order of Ray's `TuneController`."""

    searcher: TuneSearcher
    scheduler: TuneScheduler
    recorder: Recorder
    folder: Path

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        config = self.searcher.suggest(trial_id)
        return config if isinstance(config, dict) else None

    def start(self, trial: Any) -> None:
        self.scheduler.on_trial_add(None, trial)
        self.recorder.on_trial_start(0, [], trial)

    def goes_on(self, trial: Any) -> bool:
        """As `_on_training_result` and `stop_trial`."""
        reply = next(trial.replies)
        result = {REPLY: reply}
        stop = isinstance(reply, Failed | AllScored) or (isinstance(reply, RungScored) and reply.is_last)
        stop = stop or self.scheduler.on_trial_result(None, trial, result) == "STOP"
        if not stop:
            self.searcher.on_trial_result(trial.trial_id, result)
        if isinstance(reply, RungScored) and reply.checkpoint:
            (self.folder / reply.checkpoint).mkdir(parents=True, exist_ok=True)
            (self.folder / reply.checkpoint / "weights").write_text("w")
        self.recorder.on_trial_result(0, [], trial, result)
        trial.last_result = result
        if stop:
            self.scheduler.on_trial_complete(None, trial, result)
            self.searcher.on_trial_complete(trial.trial_id, result)
            self.recorder.on_trial_complete(0, [], trial)
        return not stop


def _points(coordinator: LocalCoordinator, study: StudyFolder) -> Iterator[TrialReply]:
    """What a trial without a recipe would reply."""
    while (key := coordinator.call(Coordinator.next_unscored)) is not None:
        point = next(point for point in study.front.points if point.key == key) if study.front else None
        if point is None or not (study.folder / f"{CHECKPOINTS}/{key}" / "weights").exists():
            yield PointScored(key=key, reason="no checkpoint")
        else:
            yield PointScored(key=key, heldout=Measured(retention=point.retention, retention_ci=(0.0, 1.0), scores={}))
    yield AllScored()


def _keep(folder: Path, recipe: Recipe, log: Path | None) -> None:
    kept = folder / "running" / recipe.key
    if log is not None and not kept.exists():
        with log.open("a") as stream:
            stream.write(recipe.key + "\n")
    kept.mkdir(parents=True, exist_ok=True)
