"""What a search would take, before anything starts: work, memory, disk and hours, and what each rests on."""

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from raysearch.config.budget import size_text
from raysearch.config.recipe import LOSS_FIELDS, Recipe
from raysearch.config.settings import Scalar
from raysearch.errors import InputError
from raysearch.models.shape_solver import shape_for
from raysearch.recovery.memory_planner import GIB, MemoryRequirements, layer_width, plan_memory
from raysearch.search.early_stopping.asha import AshaBracket
from raysearch.study.folder import read_trials
from raysearch.study.plan import StudyPlan
from raysearch.study.records import TrialRecord, seconds_text

NUM_REPLAYS = 5
"""Random searches whose work is averaged."""
SCATTER = 0.1
"""Spread of a made-up retention about the size ratio; it decides how many trials a replay stops."""
OPERATIONS_PER_SECOND = {"GPU": 1e14, "core": 2e10}
"""What arithmetic assumes: a data-centre GPU in bf16 at a third of its peak, one CPU core in fp32."""


@dataclass(frozen=True)
class Work:
    """What trials do, added up.

    Attributes:
        samples: recovery samples that are trained on.
        scorings: evaluations, one per rung that a trial reaches; on a share of the questions they count as that share.
        operations: floating-point operations of the training alone, if every row were of the greatest length.
    """

    samples: float = 0
    scorings: float = 0
    operations: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.samples + other.samples, self.scorings + other.scorings, self.operations + other.operations)


@dataclass(frozen=True)
class Pace:
    """Seconds per evaluation and per sample, measured in an earlier study."""

    per_scoring: float
    per_sample: float
    basis: str

    def seconds(self, work: Work) -> float:
        """Of one trial at a time."""
        return self.per_scoring * work.scorings + self.per_sample * work.samples


def measured_pace(folder: Path) -> Pace:
    """The pace of an earlier study's trials, which includes pruning and scoring.

    A line through seconds per scoring over samples per scoring, by the median of all slopes (Theil and Sen): the first
    trial of a slot, which loads the model, does not tilt it.

    Raises:
        InputError: the folder is no study, or its trials are too few or too alike to tell.
    """
    records = [record for record in read_trials(folder) if record.rungs and record.end != "failed"]
    scorings = _scorings(records)
    samples = np.array([record.rungs[-1].samples_seen for record in records]) / scorings
    seconds = np.array([record.seconds for record in records]) / scorings
    first, second = np.triu_indices(len(records), 1)
    apart = samples[first] != samples[second]
    if apart.sum() < 3:
        raise InputError(f"--like {folder}: has too few trials of different length; name another study")
    rises = (seconds[second] - seconds[first])[apart] / (samples[second] - samples[first])[apart]
    slope = max(0.0, float(np.median(rises)))
    level = max(0.0, float(np.median(seconds - slope * samples)))
    return Pace(level, slope, f"the {len(records)} trials of {folder}")


def _scorings(records: Sequence[TrialRecord]) -> np.ndarray:
    """Per trial, the evaluations on all questions that those of its rungs amount to."""
    asked = [[score.num_questions or 1 for score in record.rungs] for record in records]
    return np.array([sum(nums) for nums in asked]) / max((max(nums) for nums in asked), default=1)


def estimate_lines(plan: StudyPlan, like: Path | None = None) -> list[str]:
    """The estimate in words, one fact a line.

    Args:
        like: a study of the same model and data on the same machines, whose trials give the pace.

    Raises:
        InputError: the space has no recipe that fits, no trial fits into memory, or `like` is no use.
    """
    pace = measured_pace(like) if like else None
    drawn = [_drawn_recipes(plan, seed) for seed in range(NUM_REPLAYS)]
    whole = _mean([_work(plan, recipes, stopping=False) for recipes in drawn])
    stopped = _mean([_work(plan, recipes, stopping=True) for recipes in drawn])
    if not plan.space.search.early_stopping:
        stopped = whole
    return [
        f"work       about {_about(stopped.samples)} samples and {_about(stopped.scorings)} scorings; "
        f"{_about(whole.samples)} and {_about(whole.scorings)} without early stopping; for recipes drawn at random, "
        f"at the very most {plan.space.search.trials * plan.max_samples:,} samples",
        f"memory     {_memory(plan, [recipe for recipes in drawn for recipe in recipes])}",
        f"disk       {_disk(plan, drawn)}",
        f"time       {_time(plan, stopped, whole, pace)}",
    ]


class _Dice:
    """Proposes uniformly."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._random.choice(choices)

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        drawn = self._random.uniform(0, 1)
        return low * (high / low) ** drawn if log else low + (high - low) * drawn


def _drawn_recipes(plan: StudyPlan, seed: int) -> list[Recipe]:
    """As many random recipes as there will be trials, none larger than every budget."""
    dice, recipes = _Dice(seed), []
    for _ in range(100 * plan.space.search.trials):
        try:
            recipe = plan.space.suggest(dice)
        except ValidationError:  # values that exclude each other
            continue
        size = plan.size_of(recipe)
        if size and (not plan.budgets or any(b.admits(size, plan.dense) for b in plan.budgets)):
            recipes.append(recipe)
        if len(recipes) == plan.space.search.trials:
            return recipes
    raise InputError("recipe: hardly any recipe of the space fits a budget; widen recipe.ratio or budgets")


def _work(plan: StudyPlan, recipes: Sequence[Recipe], stopping: bool) -> Work:
    """What these trials do, one after another; the real rule stops them, on made-up retentions."""
    scatter = random.Random(0)
    budgets = [budget.size_ratio(plan.dense) for budget in plan.budgets]
    rungs = AshaBracket(plan.max_samples, plan.first_rung, plan.space.search.reduction_factor, budgets)
    total = Work()
    for number, recipe in enumerate(recipes):
        size = plan.size_of(recipe)
        assert size is not None, recipe
        ratio, end = size.size_bytes / plan.dense.size_bytes, recipe.samples_to_see(plan.num_samples)
        retention, seen, scorings = ratio + scatter.gauss(0, SCATTER), end, 0.0
        for level in [level for level in rungs.levels if stopping and level < end]:
            scorings += plan.space.search.early_questions
            if not rungs.decide(str(number), ratio, retention, 0.0, level).go_on:
                seen = round(level)
                break
        else:
            scorings += 1
            rungs.finish(str(number), ratio, retention, 0.0, end)
        total += Work(seen, scorings, seen * _operations_per_sample(plan, recipe, size.num_params))
    return total


def _operations_per_sample(plan: StudyPlan, recipe: Recipe, num_params: int) -> float:
    """6 per parameter and token for the student, forward and backward, and 2 for a teacher that only looks."""
    taught = any(getattr(recipe, name) for name in LOSS_FIELDS[1:])
    per_token = 6 * num_params + 2 * plan.dense.num_params * taught
    return float(per_token * plan.space.recovery.max_length)


def _mean(works: Sequence[Work]) -> Work:
    total = sum(works, Work())
    return Work(*(value / len(works) for value in (total.samples, total.scorings, total.operations)))


def _memory(plan: StudyPlan, recipes: Sequence[Recipe]) -> str:
    """How the most demanding of `recipes` would be fitted in."""
    slots, settings = plan.space.slots, plan.space.recovery
    trained = [recipe for recipe in recipes if recipe.trained != "nothing"]
    if not trained:
        return "no recovery, so none beyond the models"
    needs = max((_needs(plan, recipe) for recipe in trained), key=lambda n: n.state_bytes(1, slots.workers))
    free = _gpu_bytes() if slots.gpus_per_worker else _host_bytes()
    fitted = plan_memory(needs, settings, free or 2**60, slots.workers).describe()
    where = "of a GPU's memory" if slots.gpus_per_worker else "available here"
    known = f"{free / GIB:.1f} GiB {where}" if free else "no GPU here to fit it into"
    return f"{fitted}, for the most demanding recipe; {known}"


def _needs(plan: StudyPlan, recipe: Recipe) -> MemoryRequirements:
    """By counting; adapters as if every layer had the usual seven projections."""
    counts = plan.counts
    shape = shape_for(counts, recipe)
    heads, kv_heads = counts.head_dim * shape.num_heads, counts.head_dim * shape.num_kv_heads
    parts = recipe.trained.split("+")
    num_trained = counts.num_projector * ("projector" in parts) + counts.decoder(shape) * ("decoder" in parts)
    if recipe.lora_rank:
        sides = 7 * counts.hidden_size + 2 * (heads + kv_heads) + 3 * shape.num_ffn_channels
        num_trained += recipe.lora_rank * shape.num_layers * sides
    on_gpu = plan.space.slots.gpus_per_worker > 0
    precision = plan.space.recovery.precision
    return MemoryRequirements(
        num_params=counts.total(shape),
        num_trained=num_trained,
        bytes_per_param=2 if precision == "bf16" or (precision == "auto" and on_gpu) else 4,
        num_layers=shape.num_layers,
        hidden=counts.hidden_size,
        layer_width=layer_width(counts.hidden_size, heads, shape.num_ffn_channels),
        vocabulary=counts.vocab_size if recipe.sft or recipe.logits_kd else 0,
        online_bytes=0 if on_gpu else plan.dense.size_bytes,
    )


def _gpu_bytes() -> int:
    """Memory of this machine's smallest GPU; 0 without one."""
    if shutil.which("nvidia-smi") is None:
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
    return min(sizes, default=0) * 2**20


def _host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _disk(plan: StudyPlan, drawn: Sequence[Sequence[Recipe]]) -> str:
    """Checkpoints: the front's are kept, the others deleted."""
    sizes = [plan.size_of(recipe) for recipes in drawn for recipe in recipes]
    largest = max(size.size_bytes for size in sizes if size)
    trials, quota_gb = plan.space.search.trials, plan.space.recovery.checkpoint_quota_gb
    return (
        f"one checkpoint per recipe on the front, of at most {size_text(largest)}; "
        f"{size_text(trials * largest)} if all {trials} trials were on it"
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
            f"{pace.per_scoring:.2g} s a scoring and {pace.per_sample:.2g} s a sample in {pace.basis}. "
            f"With N trials at a time {seconds_text(pace.seconds(stopped))} / N, and the loading"
        )
    rate = OPERATIONS_PER_SECOND[unit]
    hours, every = (work.operations / rate / 3600 for work in (stopped, whole))
    return (
        f"at most {_about(hours, 1)} {unit}-hours of training, {_about(every, 1)} without early stopping; not measured "
        f"but counted, as if every row had {plan.space.recovery.max_length} tokens and a {unit} did {rate:.0e} "
        "operations a second. Scoring and loading come on top. --like DIR takes the pace of an earlier study"
    )


def _about(value: float, digits: int = 2) -> str:
    """A number with no more digits than are known."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
