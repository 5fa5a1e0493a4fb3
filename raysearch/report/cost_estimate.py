"""Estimate of the work, memory, disk and hours of a search before it starts, with the basis of each number."""

import math
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from raysearch.config.budget import size_text
from raysearch.config.criteria import GREEDY, NUM_LAYERS_TRIED
from raysearch.config.duration import parse_duration
from raysearch.config.recipe import LOSS_FIELDS, Recipe
from raysearch.config.settings import DEFAULT_TRIALS, NUM_SHAPE_SAMPLES, Scalar, Slots
from raysearch.errors import InputError
from raysearch.models.shape_solver import shape_for
from raysearch.recovery.memory_planner import GIB, MemoryRequirements, layer_width, plan_memory
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.searching.pace import NUM_RECORDS, Pace, Work, pace_of
from raysearch.study.folder import TRIALS, read_trials
from raysearch.study.plan import StudyPlan
from raysearch.study.records import seconds_text

NUM_REPLAYS = 5
"""Simulated random searches whose work is averaged."""
MAX_DRAWN, MAX_TRIALS_PER_RUN = 300, 30
"""Trials that are simulated at most: in all, and for a full run's samples."""
SCATTER = 0.1
"""Standard deviation of a simulated retention about the size ratio; decides how many simulated trials are stopped."""
OPERATIONS_PER_SECOND = {"GPU": 1e14, "core": 2e10}
"""Assumed: a data-centre GPU in bf16 at a third of its peak, one CPU core in fp32."""


def measured_pace(folder: Path) -> Pace:
    """The pace of an earlier study's trials (`pace_of`).

    Raises:
        InputError: the folder is no study, or has too few trials of different length.
    """
    records = [record for record in read_trials(folder) if record.rungs and record.end != "failed"]
    num = len(records)
    newest = f"newest {NUM_RECORDS} of {num:,}" if num > NUM_RECORDS else f"{num}"
    pace = pace_of(records, f"the {newest} trials of {folder}")
    if pace is None:
        raise InputError(f"--like {folder}: has too few trials of different length; name another study")
    return pace


def pace_of_study(folder: Path) -> Pace | None:
    """The pace of the study's own trials; None if it has too few of different length.

    Raises:
        InputError: its trials can't be read.
    """
    return pace_of(read_trials(folder), f"the trials of {folder}") if (folder / TRIALS).exists() else None


def check_limits(plan: StudyPlan, pace: Pace | None = None) -> None:
    """See that the limits of a search leave room for one trial.

    Args:
        pace: of the study's own trials; left out, operations are counted (`seconds_of_trial`).

    Raises:
        InputError: they don't, or count what there is not.
    """
    settings, slots = plan.space.search, plan.space.slots
    if settings.runs is not None and set(plan.space.values_of("trained")) == {"nothing"}:
        raise InputError(f"search.runs {settings.runs:g}: no recipe of the space trains; limit search.trials instead")
    if settings.gpu_hours is not None and not slots.gpus_per_worker:
        raise InputError(
            f"search.gpu_hours {settings.gpu_hours:g}: the slots have no GPU (slots.gpus_per_worker is 0); set "
            "search.time (--time) instead"
        )
    seconds = settings.seconds((slots.num or 1) * slots.workers * slots.gpus_per_worker)
    shortest = shortest_recovery(plan)
    needed = seconds_of_trial(plan, shortest, pace)
    if seconds is not None and seconds < needed:
        name = "time" if settings.time is not None and parse_duration(settings.time) == seconds else "gpu_hours"
        basis = f"measured in {pace.basis}" if pace else "counted for the smallest model of the space"
        raise InputError(
            f"search.{name} {getattr(settings, name)}: the shortest trial, {shortest:,} samples, is estimated at "
            f"{seconds_text(needed)} ({basis}); give more time, or lower num_samples"
        )


def shortest_recovery(plan: StudyPlan) -> int:
    """Samples that the shortest trial with recovery sees; 0 where the space has none."""
    if set(plan.space.values_of("trained")) == {"nothing"}:
        return 0
    fraction, epochs = (min(map(float, plan.space.values_of(field) or [1.0])) for field in ("data_fraction", "epochs"))
    return max(1, round(fraction * plan.num_samples * epochs))


def seconds_of_trial(plan: StudyPlan, num_samples: int, pace: Pace | None = None) -> float:
    """Time of a trial on its slot: by the pace of other trials, or else the training of the smallest model without a
    teacher, counted as `OPERATIONS_PER_SECOND` has it."""
    if pace is not None:
        return pace.seconds(Work(num_samples, 1))
    operations = 6.0 * plan.smallest().num_params * plan.space.recovery.max_length * num_samples
    return operations / _operations_per_second(plan)


def _operations_per_second(plan: StudyPlan) -> float:
    """Of a slot."""
    slots = plan.space.slots
    unit = "GPU" if slots.gpus_per_worker else "core"
    return OPERATIONS_PER_SECOND[unit] * slots.workers * (slots.gpus_per_worker or slots.cpus_per_worker)


def estimate_lines(plan: StudyPlan, like: Path | None = None, pace: Pace | None = None) -> list[str]:
    """The estimate as text: a line each for work, memory, disk and time, and one for what its limits buy if they are
    not simply a number of trials.

    Args:
        like: a study of the same model and data on the same machines, whose trials give the pace.
        pace: or the pace itself.

    Raises:
        InputError: no recipe of the space fits a budget, no trial fits into memory, or `like` gives no pace.
    """
    pace = measured_pace(like) if like else pace
    settings = plan.space.search
    drawn, stopped_works, whole_works, nums = [], [], [], []
    for seed in range(NUM_REPLAYS):
        recipes = draw_recipes(plan, seed, _most_trials(plan, pace))
        works = _within_limits(plan, trial_works(plan, recipes, settings.early_stopping), pace)
        drawn.append(recipes[: len(works)])
        times = _times(plan, works, pace) if len(works) == len(recipes) else 1.0
        stopped_works.append(times * sum(works, Work()))
        whole_works.append(times * total_work(plan, drawn[-1], stopping=False))
        nums.append(times * len(works))
    stopped, whole = _mean(stopped_works), _mean(whole_works)
    most = f", at the very most {settings.num_trials * plan.max_samples:,} samples" if settings.num_trials else ""
    return [
        *_buys(plan, stopped, sum(nums) / len(nums), pace),
        f"work       about {_about(stopped.samples)} samples and {_about(stopped.evaluations)} evaluations; "
        f"{_about(whole.samples)} and {_about(whole.evaluations)} without early stopping; for recipes drawn at random"
        f"{most}",
        *_greedy(plan),
        *_shapes(plan),
        f"slots      {_slots(plan.space.slots)}",
        f"memory     {_memory(plan, [recipe for recipes in drawn for recipe in recipes])}",
        f"disk       {_disk(plan, drawn, round(max(nums)))}",
        f"time       {_time(plan, stopped, whole, pace)}",
    ]


def _greedy(plan: StudyPlan) -> list[str]:
    """What criteria that drop one layer after the other take, if the space has any."""
    names = [name for name in plan.space.criteria() if name in GREEDY]
    num_layers, num_samples = plan.counts.dense.num_layers, plan.space.calibration.num_samples
    num_tried = num_layers + sum(min(left, NUM_LAYERS_TRIED) for left in range(2, num_layers))
    rows = f"at most {num_tried * num_samples:,} rows through half of the layers on average"
    return [f"criteria   {name} takes {rows}; calibration.num_samples lowers it" for name in names]


def _shapes(plan: StudyPlan) -> list[str]:
    """What judging shapes takes, if any are."""
    num = plan.space.search.num_shapes
    if not num:
        return []
    rows = f"{num * NUM_SHAPE_SAMPLES:,} rows through the layers that each keeps"
    return [f"shapes     {num} judged before any is trained: at most {rows}; search.shapes lowers it"]


def _buys(plan: StudyPlan, work: Work, num_trials: float, pace: Pace | None) -> list[str]:
    """What the limits buy, unless they are a number of trials alone."""
    settings = plan.space.search
    others = [settings.runs, settings.time, settings.gpu_hours, settings.until_gain]
    if others == [None] * len(others):
        return []
    text = (
        f"buys       about {_about(work.samples / plan.max_samples)} full runs: {_about(work.samples)} samples in "
        f"{_about(num_trials)} trials"
    )
    if settings.time is not None or settings.gpu_hours is not None:
        slots = f"{plan.space.slots.num or 1} at a time"
        how = f"by {pace.basis}" if pace else "by counted operations, an estimate on the low side"
        text += f", {slots}, {how}"
    if settings.until_gain is not None:
        text += "; the forecast ends it sooner or, without another limit, later"
    return [text]


def _most_trials(plan: StudyPlan, pace: Pace | None) -> int:
    """How many recipes to draw, at least as many as the limits allow but for `MAX_DRAWN`."""
    settings = plan.space.search
    if settings.num_trials is not None:
        return min(MAX_DRAWN, settings.num_trials)
    seconds, runs = _slot_seconds(plan), settings.runs or math.inf
    if seconds is not None:
        runs = min(runs, seconds / max(1e-9, seconds_of_trial(plan, plan.max_samples, pace)))
    if math.isinf(runs):
        return DEFAULT_TRIALS
    return min(MAX_DRAWN, math.ceil(runs * MAX_TRIALS_PER_RUN))


def _slot_seconds(plan: StudyPlan) -> float | None:
    """The time limit, summed over the slots that are named, one at least."""
    slots = plan.space.slots
    num = slots.num or 1
    seconds = plan.space.search.seconds(num * slots.workers * slots.gpus_per_worker)
    return None if seconds is None else seconds * num


def _within_limits(plan: StudyPlan, works: Sequence[Work], pace: Pace | None) -> list[Work]:
    """The first of these trials, one at least, as far as samples and time go."""
    runs, seconds = plan.space.search.runs, _slot_seconds(plan)
    samples = math.inf if runs is None else runs * plan.max_samples
    taken: list[Work] = []
    total, passed = 0.0, 0.0
    for work in works:
        passed += _seconds(plan, work, pace)
        if taken and (total >= samples or (seconds is not None and passed > seconds)):
            break
        taken.append(work)
        total += work.samples
    return taken


def _times(plan: StudyPlan, works: Sequence[Work], pace: Pace | None) -> float:
    """How often the limits allow these trials, all within them; once where nothing but a forecast ends the search."""
    settings, seconds, total = plan.space.search, _slot_seconds(plan), sum(works, Work())
    allowed = []
    if settings.num_trials is not None:
        allowed.append(settings.num_trials / len(works))
    if settings.runs is not None:
        allowed.append(settings.runs * plan.max_samples / max(1.0, total.samples))
    if seconds is not None:
        allowed.append(seconds / max(1e-9, _seconds(plan, total, pace)))
    return max(1.0, min(allowed, default=1.0))


def _seconds(plan: StudyPlan, work: Work, pace: Pace | None) -> float:
    return pace.seconds(work) if pace else work.operations / _operations_per_second(plan)


class _RandomSuggester:
    """Suggests values uniformly at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._random.choice(choices)

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        drawn = self._random.uniform(0, 1)
        return low * (high / low) ** drawn if log else low + (high - low) * drawn


def draw_recipes(plan: StudyPlan, seed: int, num: int | None = None) -> list[Recipe]:
    """So many random recipes, by default as many as there will be trials, each within one of the budgets.

    Raises:
        InputError: hardly any recipe of the space is.
    """
    suggester, recipes = _RandomSuggester(seed), []
    num = num or plan.space.search.num_trials or DEFAULT_TRIALS
    for _ in range(100 * num):
        try:
            recipe = plan.space.suggest(suggester)
        except ValidationError:  # values that exclude each other
            continue
        size = plan.size_of(recipe)
        if size and (not plan.budgets or any(b.admits(size, plan.dense) for b in plan.budgets)):
            recipes.append(recipe)
        if len(recipes) == num:
            return recipes
    raise InputError("recipe: hardly any recipe of the space fits a budget; widen recipe.ratio or budgets")


def total_work(plan: StudyPlan, recipes: Sequence[Recipe], stopping: bool) -> Work:
    """Work of these trials together; with `stopping`, ASHA stops them on simulated retentions."""
    return sum(trial_works(plan, recipes, stopping), Work())


def trial_works(plan: StudyPlan, recipes: Sequence[Recipe], stopping: bool) -> list[Work]:
    """Work of each of these trials, one after another; with `stopping`, ASHA stops them on simulated retentions."""
    scatter = random.Random(0)
    budgets = [budget.size_ratio(plan.dense) for budget in plan.budgets]
    bracket = AshaBracket(plan.max_samples, plan.first_rung, plan.space.search.reduction_factor, budgets)
    works = []
    for number, recipe in enumerate(recipes):
        size = plan.size_of(recipe)
        assert size is not None, recipe
        ratio, end = size.size_bytes / plan.dense.size_bytes, recipe.samples_to_see(plan.num_samples)
        before = plan.space.search.early_questions if stopping and end else 0.0
        retention, seen, evaluations = ratio + scatter.gauss(0, SCATTER), end, before
        for level in [level for level in bracket.levels if stopping and level < end]:
            evaluations += plan.space.search.early_questions
            if not bracket.decide(str(number), ratio, retention, 0.0, level).go_on:
                seen = round(level)
                break
        else:
            evaluations += 1
            bracket.finish(str(number), ratio, retention, 0.0, end)
        works.append(Work(seen, evaluations, seen * _operations_per_sample(plan, recipe, size.num_params)))
    return works


def _operations_per_sample(plan: StudyPlan, recipe: Recipe, num_params: int) -> float:
    """6 per parameter and token for the student, forward and backward, and 2 for the teacher's forward pass."""
    taught = any(LOSS_FIELDS[name].needs_teacher for name in recipe.loss_weights)
    per_token = 6 * num_params + 2 * plan.dense.num_params * taught
    return float(per_token * plan.space.recovery.max_length)


def _mean(works: Sequence[Work]) -> Work:
    return Work(*np.mean([astuple(work) for work in works], axis=0).tolist())


def _slots(slots: Slots) -> str:
    """What a slot asks for, and how many this machine has room for."""
    cores, gpus = len(os.sched_getaffinity(0)), len(_gpus()) if slots.gpus_per_worker else 0
    asked = f"{slots.cpus_per_worker:g} CPU" + (f" and {slots.gpus_per_worker:g} GPU" if slots.gpus_per_worker else "")
    num_workers = cores // slots.cpus_per_worker
    if slots.gpus_per_worker:
        num_workers = min(num_workers, gpus // slots.gpus_per_worker)
    room = int(num_workers // slots.workers)
    has = f"{cores} CPU" + (f" and {gpus} GPU" if slots.gpus_per_worker else "")
    here = f"room for {room}" if room else "no room for one, so a search needs a cluster that has"
    return (
        f"{slots.num or 'as many as fit'} at a time, {slots.workers} x {asked} each; this machine with {has} has {here}"
    )


def _memory(plan: StudyPlan, recipes: Sequence[Recipe]) -> str:
    """Memory plan of the most demanding of `recipes`."""
    slots, settings = plan.space.slots, plan.space.recovery
    trained = [recipe for recipe in recipes if recipe.trained != "nothing"]
    if not trained:
        return "no recovery, so none beyond the models"
    needs = max((memory_needs(plan, recipe) for recipe in trained), key=lambda n: n.state_bytes(1, slots.workers))
    free = min(_gpus(), default=0) if slots.gpus_per_worker else _host_bytes()
    fitted = plan_memory(needs, settings, free or 2**60, slots.workers).describe()
    where = "of a GPU's memory" if slots.gpus_per_worker else "available here"
    known = f"{free / GIB:.1f} GiB {where}" if free else "no GPU here to fit it into"
    return f"{fitted}, for the most demanding recipe; {known}"


def memory_needs(plan: StudyPlan, recipe: Recipe) -> MemoryRequirements:
    """Memory requirements from parameter counts, with adapters on seven projections in every layer."""
    counts = plan.counts
    shape = shape_for(counts, recipe)
    hidden = shape.hidden_size or counts.dense.hidden_size
    heads, kv_heads = counts.head_dim * shape.num_heads, counts.head_dim * shape.num_kv_heads
    parts = recipe.trained.split("+")
    num_trained = counts.num_projector * ("projector" in parts) + counts.decoder(shape) * ("decoder" in parts)
    if recipe.lora_rank:
        sides = 7 * hidden + 2 * (heads + kv_heads) + 3 * shape.num_ffn_channels
        num_trained += recipe.lora_rank * shape.num_layers * sides
    on_gpu = plan.space.slots.gpus_per_worker > 0
    precision = plan.space.recovery.precision
    need_logits = any(LOSS_FIELDS[name].inputs == "logits" for name in recipe.loss_weights)
    return MemoryRequirements(
        num_params=counts.total(shape),
        num_trained=num_trained,
        bytes_per_param=2 if precision == "bf16" or (precision == "auto" and on_gpu) else 4,
        num_layers=shape.num_layers,
        hidden=hidden,
        layer_width=layer_width(hidden, heads, shape.num_ffn_channels),
        vocabulary=counts.vocab_size if need_logits else 0,
        online_bytes=0 if on_gpu else plan.dense.size_bytes,
    )


def _gpus() -> list[int]:
    """Memory of each of this machine's GPUs in bytes."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    return [int(line) * 2**20 for line in done.stdout.split() if line.isdigit()]


def _host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _disk(plan: StudyPlan, drawn: Sequence[Sequence[Recipe]], num_trials: int) -> str:
    """Size of the checkpoints on the front; others are deleted."""
    sizes = [plan.size_of(recipe) for recipes in drawn for recipe in recipes]
    largest = max(size.size_bytes for size in sizes if size)
    quota_gb = plan.space.recovery.checkpoint_quota_gb
    return (
        f"one checkpoint per recipe on the front, of at most {size_text(largest)}; "
        f"{size_text(num_trials * largest)} if all {num_trials:,} trials were on it"
        + (f"; not more than {quota_gb:g} GB are kept" if quota_gb else "")
    )


def _time(plan: StudyPlan, stopped: Work, whole: Work, pace: Pace | None) -> str:
    slots = plan.space.slots
    unit = "GPU" if slots.gpus_per_worker else "core"
    per_trial = slots.workers * (slots.gpus_per_worker or slots.cpus_per_worker)
    if pace is not None:
        hours, every = (per_trial * pace.seconds(work) / 3600 for work in (stopped, whole))
        return (
            f"about {_about(hours)} {unit}-hours, {_about(every)} without early stopping; measured: "
            f"{pace.seconds_per_evaluation:.2g} s per evaluation and {pace.seconds_per_sample:.2g} s per sample in "
            f"{pace.basis}. With N trials at a time {seconds_text(pace.seconds(stopped))} / N, and loading"
        )
    rate = OPERATIONS_PER_SECOND[unit]
    hours, every = (work.operations / rate / 3600 for work in (stopped, whole))
    return (
        f"at most {_about(hours, 1)} {unit}-hours of training, {_about(every, 1)} without early stopping; not measured "
        f"but counted, as if every row had {plan.space.recovery.max_length} tokens and a {unit} did {rate:.0e} "
        "operations per second. Evaluation and loading come on top. --like DIR takes the pace of an earlier study"
    )


def _about(value: float, digits: int = 2) -> str:
    """A number rounded to so many significant digits."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
