"""A study's folder as a search leaves it: recipes, records, stopping rule and front are real, scores from a formula."""

import base64
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.files import write_json
from raysearch.report.outlook import FORECAST
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.study.examples import Example, Examples
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Baseline, Measured, Speed
from raysearch.study.provenance import STARTS, Start
from raysearch.study.records import Score

POCKET = Path(__file__).parents[2] / "search_spaces" / "pocket.yaml"
BASELINE = Baseline(
    num_params=5_000_000, size_bytes=10_000_000, scores={"easy_vqa": 0.97, "digits": 0.88, "scenes": 0.8}
)
NUM_SAMPLES = 8000


class RandomSuggester:
    """Suggests values uniformly at random."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def choice(self, name, choices):
        return self.random.choice(choices)

    def number(self, name, low, high, log, step):
        drawn = self.random.uniform(*((np.log(low), np.log(high)) if log else (low, high)))
        return float(np.exp(drawn)) if log else drawn


def space(**changes):
    loaded = SearchSpace.load(POCKET)
    # The formula knows no split between heads and FFN: one dimension less that explains nothing.
    dimensions = {field: cases for field, cases in loaded.recipe.items() if field != "attention_share"}
    search = loaded.search.model_copy(update={"runs": None, "trials": 40})
    return loaded.model_copy(update={"name": "synthetic", "recipe": dimensions, "search": search, **changes})


def retention_after(recipe: Recipe, samples_seen: int) -> float:
    """Retention falls with the ratio and rises with recovery, by width more than by depth."""
    lost = recipe.ratio ** (1.6 if recipe.mode == "widthwise" else 1.2)
    share = {"projector": 0.25, "projector+lora": 0.6, "projector+decoder": 0.75, "decoder": 0.7}.get(recipe.trained, 0)
    share += 0.1 * bool(recipe.hidden_kd)
    return 1 - lost * (1 - share * (1 - np.exp(-samples_seen / 900)))


def make(folder: Path, num_trials: int = 40, seed: int = 0, fail: bool = True) -> StudyFolder:
    """A finished study of `num_trials` trials; some stopped, one failed if `fail`."""
    study = StudyFolder(folder, space())
    study.create()
    suggester, noise = RandomSuggester(seed), np.random.default_rng(seed)
    bracket = AshaBracket(max_t=NUM_SAMPLES, grace_period=NUM_SAMPLES // 9)
    free = [1_790_000_000.0, 1_790_000_000.0]  # when each of two slots is
    for number in range(num_trials):
        recipe, trial = study.space.suggest(suggester), f"{number:05d}"
        study.trial_started(trial, recipe)
        slot = free.index(min(free))
        if fail and number == 3:
            record = study.ending(trial, "failed", {}, "FloatingPointError: the loss is not finite")
            study.record(record.model_copy(update={"started": free[slot]}))
            continue
        free[slot] += run(study, bracket, trial, recipe, noise, free[slot])
    study.write_front(BASELINE)
    return study


def illustrate(study):
    """Add what a real search leaves beside trials and front: speeds, examples, a forecast and its start."""
    baseline = BASELINE.model_copy(update={"measured": speed(1.0)})
    points = [p.model_copy(update={"measured": speed(p.size_ratio)}) for p in study.front.points]
    study.front = study.front.model_copy(update={"points": points, "baseline": baseline})
    study.front.save(study.folder)
    for number, key in enumerate(key for key in dict.fromkeys(study.front.budgets.values()) if key):
        examples(number).save(study.folder, key)
    gains = {budget: {"points": 0.4, "high": 2.0} for budget, key in study.front.budgets.items() if key}
    forecast = {"num_ended": len(study.records), "seconds": 1800.0, "next_runs": 22, "num_runs": 10.0}
    write_json(study.folder / FORECAST, forecast | {"front": {"points": 0.3, "high": 1.8}, "at_budgets": gains})
    began = study.records[0].started
    write_json(study.folder / STARTS, [Start(began=began, ended=began + 900, num_slots=2).model_dump()])


def speed(size_ratio):
    return Speed(
        device="a processor",
        dtype="float32",
        num_prompt_tokens=64,
        prefill_seconds=0.02 * size_ratio,
        decode_tokens_per_second=100 / size_ratio,
        peak_memory_bytes=500_000_000,
        checkpoint_bytes=int(10_000_000 * size_ratio),
        kv_cache_bytes_per_1000_tokens=1_000_000,
    )


def examples(seed):
    draw = random.Random(seed)
    found = []
    for number in range(10):
        shape, colour = draw.choice(["circle", "square"]), draw.choice(["red", "blue", "green"])
        picture = Image.new("RGB", (64, 64), "white")
        getattr(ImageDraw.Draw(picture), {"circle": "ellipse", "square": "rectangle"}[shape])((12, 12, 50, 50), colour)
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        says = [shape, "triangle"] if number % 4 else ["triangle", shape]
        found.append(
            Example(
                benchmark="scenes",
                question="What shape is in the picture? Answer with a single word.",
                expected=[shape],
                dense=says[0],
                pruned=says[1],
                dense_score=float(says[0] == shape),
                pruned_score=float(says[1] == shape),
                picture=f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}",
            )
        )
    return Examples(num_questions=600, num_better=9, num_worse=31, examples=found)


def run(study, bracket, trial, recipe, noise, started):
    """Its seconds."""
    ratio = 1 - 0.88 * recipe.ratio
    sizes = {"num_params": int(BASELINE.num_params * ratio), "size_bytes": 2 * int(BASELINE.num_params * ratio)}
    end = recipe.samples_to_see(NUM_SAMPLES)
    for seen in [*(int(level) for level in bracket.levels if level < end), end]:
        score = scored(recipe, seen, noise)
        study.rung(trial, score)
        verdict = bracket.decide(trial, ratio, score.retention, score.retention_se, seen)
        if not verdict.go_on and seen < end:
            record = study.ending(trial, "stopped", sizes, f"behind at the rung of {seen} samples")
            study.record(record.model_copy(update={"seconds": 5 + seen / 100, "started": started}))
            return 5 + seen / 100
    bracket.finish(trial, ratio, score.retention, score.retention_se, end)
    times = {"seconds": 5 + end / 100, "started": started}
    record = study.ending(trial, "finished", sizes).model_copy(update=times)
    study.record(record)
    checkpoint = study.folder / "checkpoints" / recipe.key
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    heldout = Measured(
        retention=score.retention - 0.01,
        retention_ci=(score.retention - 0.04, score.retention + 0.02),
        scores=score.scores,
        scores_ci={name: (value - 0.02, value + 0.02) for name, value in score.scores.items()},
        num_questions=600,
    )
    study.offer(record, BASELINE, f"checkpoints/{recipe.key}", heldout)
    return times["seconds"]


def scored(recipe, seen, noise):
    retention = retention_after(recipe, seen) + noise.normal(0, 0.008)
    losses = {"sft": 0.4 + 2 * np.exp(-seen / 500)}
    losses |= {name: float(np.exp(-seen / 700)) for name in ("logits_kd", "hidden_kd") if getattr(recipe, name)}
    return Score(
        samples_seen=seen,
        retention=retention,
        retention_se=0.012,
        num_questions=300 if seen < recipe.samples_to_see(NUM_SAMPLES) else 1000,
        scores={
            name: max(0.0, value * (1 - share * (1 - retention)))
            for (name, value), share in zip(BASELINE.scores.items(), (0.3, 1.0, 1.7), strict=True)
        },
        losses=losses,
    )
