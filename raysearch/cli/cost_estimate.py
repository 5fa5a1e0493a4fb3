"""Estimate of the work, memory, disk and hours of a search before it starts, with the basis of each number."""

import operator
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import astuple, dataclass
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
"""Simulated random searches whose work is averaged."""
SCATTER = 0.1
"""Standard deviation of a simulated retention about the size ratio; decides how many simulated trials are stopped."""
OPERATIONS_PER_SECOND = {"GPU": 1e14, "core": 2e10}
"""Assumed: a data-centre GPU in bf16 at a third of its peak, one CPU core in fp32."""


@dataclass(frozen=True)
class Work:
    """Work of trials, summed.

    Attributes:
        samples: recovery samples trained on.
        evaluations: one per rung that a trial reaches; one on a share of the questions counts as that share.
        operations: floating-point operations of the training alone, if every row had the greatest length.
    """

    samples: float = 0
    evaluations: float = 0
    operations: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(operator.add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Pace:
    """Speed of an earlier study's trials."""

    seconds_per_evaluation: float
    seconds_per_sample: float
    basis: str

    def seconds(self, work: Work) -> float:
        """Seconds of the work, one trial at a time."""
        return self.seconds_per_evaluation * work.evaluations + self.seconds_per_sample * work.samples


def measured_pace(folder: Path) -> Pace:
    """The pace of an earlier study's trials, pruning and evaluation included.

    Fits a line to seconds per evaluation over samples per evaluation by the median of all slopes (Theil-Sen), which the
    first trial of a slot, the one that loads the model, doesn't bias.

    Raises:
        InputError: the folder is no study, or has too few trials of different length.
    """
    records = [record for record in read_trials(folder) if record.rungs and record.end != "failed"]
    evaluations = _num_evaluations(records)
    samples = np.array([record.rungs[-1].samples_seen for record in records]) / evaluations
    seconds = np.array([record.seconds for record in records]) / evaluations
    first, second = np.triu_indices(len(records), 1)
    apart = samples[first] != samples[second]
    if apart.sum() < 3:
        raise InputError(f"--like {folder}: has too few trials of different length; name another study")
    rises = (seconds[second] - seconds[first])[apart] / (samples[second] - samples[first])[apart]
    slope = max(0.0, float(np.median(rises)))
    level = max(0.0, float(np.median(seconds - slope * samples)))
    return Pace(level, slope, f"the {len(records)} trials of {folder}")


def _num_evaluations(records: Sequence[TrialRecord]) -> np.ndarray:
    """(trials,): evaluations of each trial's rungs; one on a share of the questions counts as that share."""
    asked = [[score.num_questions or 1 for score in record.rungs] for record in records]
    return np.array([sum(nums) for nums in asked]) / max((max(nums) for nums in asked), default=1)


def estimate_lines(plan: StudyPlan, like: Path | None = None) -> list[str]:
    """The estimate as text: a line each for work, memory, disk and time.

    Args:
        like: a study of the same model and data on the same machines, whose trials give the pace.

    Raises:
        InputError: no recipe of the space fits a budget, no trial fits into memory, or `like` gives no pace.
    """
    pace = measured_pace(like) if like else None
    drawn = [draw_recipes(plan, seed) for seed in range(NUM_REPLAYS)]
    whole = _mean([total_work(plan, recipes, stopping=False) for recipes in drawn])
    stopped = _mean([total_work(plan, recipes, stopping=True) for recipes in drawn])
    if not plan.space.search.early_stopping:
        stopped = whole
    return [
        f"work       about {_about(stopped.samples)} samples and {_about(stopped.evaluations)} evaluations; "
        f"{_about(whole.samples)} and {_about(whole.evaluations)} without early stopping; for recipes drawn at random, "
        f"at the very most {plan.space.search.trials * plan.max_samples:,} samples",
        f"memory     {_memory(plan, [recipe for recipes in drawn for recipe in recipes])}",
        f"disk       {_disk(plan, drawn)}",
        f"time       {_time(plan, stopped, whole, pace)}",
    ]


class _RandomSuggester:
    """Suggests values uniformly at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._random.choice(choices)

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        drawn = self._random.uniform(0, 1)
        return low * (high / low) ** drawn if log else low + (high - low) * drawn


def draw_recipes(plan: StudyPlan, seed: int) -> list[Recipe]:
    """As many random recipes as there will be trials, each within one of the budgets.

    Raises:
        InputError: hardly any recipe of the space is.
    """
    suggester, recipes = _RandomSuggester(seed), []
    for _ in range(100 * plan.space.search.trials):
        try:
            recipe = plan.space.suggest(suggester)
        except ValidationError:  # values that exclude each other
            continue
        size = plan.size_of(recipe)
        if size and (not plan.budgets or any(b.admits(size, plan.dense) for b in plan.budgets)):
            recipes.append(recipe)
        if len(recipes) == plan.space.search.trials:
            return recipes
    raise InputError("recipe: hardly any recipe of the space fits a budget; widen recipe.ratio or budgets")


def total_work(plan: StudyPlan, recipes: Sequence[Recipe], stopping: bool) -> Work:
    """Work of these trials, one after another; with `stopping`, ASHA stops them on simulated retentions."""
    scatter = random.Random(0)
    budgets = [budget.size_ratio(plan.dense) for budget in plan.budgets]
    bracket = AshaBracket(plan.max_samples, plan.first_rung, plan.space.search.reduction_factor, budgets)
    total = Work()
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
        total += Work(seen, evaluations, seen * _operations_per_sample(plan, recipe, size.num_params))
    return total


def _operations_per_sample(plan: StudyPlan, recipe: Recipe, num_params: int) -> float:
    """6 per parameter and token for the student, forward and backward, and 2 for the teacher's forward pass."""
    taught = any(LOSS_FIELDS[name].needs_teacher for name in recipe.loss_weights)
    per_token = 6 * num_params + 2 * plan.dense.num_params * taught
    return float(per_token * plan.space.recovery.max_length)


def _mean(works: Sequence[Work]) -> Work:
    return Work(*np.mean([astuple(work) for work in works], axis=0).tolist())


def _memory(plan: StudyPlan, recipes: Sequence[Recipe]) -> str:
    """Memory plan of the most demanding of `recipes`."""
    slots, settings = plan.space.slots, plan.space.recovery
    trained = [recipe for recipe in recipes if recipe.trained != "nothing"]
    if not trained:
        return "no recovery, so none beyond the models"
    needs = max((memory_needs(plan, recipe) for recipe in trained), key=lambda n: n.state_bytes(1, slots.workers))
    free = _gpu_bytes() if slots.gpus_per_worker else _host_bytes()
    fitted = plan_memory(needs, settings, free or 2**60, slots.workers).describe()
    where = "of a GPU's memory" if slots.gpus_per_worker else "available here"
    known = f"{free / GIB:.1f} GiB {where}" if free else "no GPU here to fit it into"
    return f"{fitted}, for the most demanding recipe; {known}"


def memory_needs(plan: StudyPlan, recipe: Recipe) -> MemoryRequirements:
    """Memory requirements from parameter counts, with adapters on seven projections in every layer."""
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
    need_logits = any(LOSS_FIELDS[name].inputs == "logits" for name in recipe.loss_weights)
    return MemoryRequirements(
        num_params=counts.total(shape),
        num_trained=num_trained,
        bytes_per_param=2 if precision == "bf16" or (precision == "auto" and on_gpu) else 4,
        num_layers=shape.num_layers,
        hidden=counts.hidden_size,
        layer_width=layer_width(counts.hidden_size, heads, shape.num_ffn_channels),
        vocabulary=counts.vocab_size if need_logits else 0,
        online_bytes=0 if on_gpu else plan.dense.size_bytes,
    )


def _gpu_bytes() -> int:
    """Memory of this machine's smallest GPU in bytes; 0 without one."""
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
    """Size of the checkpoints on the front; others are deleted."""
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
