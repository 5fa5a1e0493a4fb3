"""A study's folder as a search leaves it: recipes, records, stopping rule and front are real, scores from a formula."""

import random
from pathlib import Path

import numpy as np

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.study.folder import StudyFolder
from raysearch.study.front import Baseline, Measured
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
    for number in range(num_trials):
        recipe, trial = study.space.suggest(suggester), f"{number:05d}"
        study.trial_started(trial, recipe)
        if fail and number == 3:
            study.record(study.ending(trial, "failed", {}, "FloatingPointError: the loss is not finite"))
            continue
        run(study, bracket, trial, recipe, noise)
    study.write_front(BASELINE)
    return study


def run(study, bracket, trial, recipe, noise):
    ratio = 1 - 0.88 * recipe.ratio
    sizes = {"num_params": int(BASELINE.num_params * ratio), "size_bytes": 2 * int(BASELINE.num_params * ratio)}
    end = recipe.samples_to_see(NUM_SAMPLES)
    for seen in [*(int(level) for level in bracket.levels if level < end), end]:
        score = scored(recipe, seen, noise)
        study.rung(trial, score)
        verdict = bracket.decide(trial, ratio, score.retention, score.retention_se, seen)
        if not verdict.go_on and seen < end:
            record = study.ending(trial, "stopped", sizes, f"behind at the rung of {seen} samples")
            study.record(record.model_copy(update={"seconds": 5 + seen / 100}))
            return
    bracket.finish(trial, ratio, score.retention, score.retention_se, end)
    record = study.ending(trial, "finished", sizes).model_copy(update={"seconds": 5 + end / 100})
    study.record(record)
    checkpoint = study.folder / "checkpoints" / recipe.key
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    heldout = Measured(
        retention=score.retention - 0.01,
        retention_ci=(score.retention - 0.04, score.retention + 0.02),
        scores=score.scores,
        scores_ci={name: (value - 0.02, value + 0.02) for name, value in score.scores.items()},
    )
    study.offer(record, BASELINE, f"checkpoints/{recipe.key}", heldout)


def scored(recipe, seen, noise):
    retention = retention_after(recipe, seen) + noise.normal(0, 0.008)
    losses = {"sft": 0.4 + 2 * np.exp(-seen / 500)}
    losses |= {name: float(np.exp(-seen / 700)) for name in ("logits_kd", "hidden_kd") if getattr(recipe, name)}
    return Score(
        samples_seen=seen,
        retention=retention,
        retention_se=0.012,
        scores={
            name: max(0.0, value * (1 - share * (1 - retention)))
            for (name, value), share in zip(BASELINE.scores.items(), (0.3, 1.0, 1.7), strict=True)
        },
        losses=losses,
    )
