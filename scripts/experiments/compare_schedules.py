"""Which schedule lets an early rung predict the end: rank correlation over real trials of the embedded LVLM.

    python scripts/experiments/compare_schedules.py                # 64 trials, half an hour on one core; resumable
    python scripts/experiments/compare_schedules.py --recipes 2 --samples 80 --folder runs/small    # short

The same recipes run under warm-up/stable/decay and under cosine, each scored on its weights and on their average. All
see the same samples, so that a rung is the same share of every trial. What has ended is kept in the folder, one line
per trial. Intervals are bootstrapped over recipes.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.files import append_json, read_json_lines
from raysearch.study.plan import plan_study
from scripts.replays.record_table import first_space, recipes

RUNG_SHARES = (1 / 27, 1 / 9, 1 / 3)
ARMS = tuple(itertools.product(("wsd", "cosine"), (False, True)))
TRIALS = "trials.jsonl"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=16)
    parser.add_argument("--samples", type=int, default=600, help="samples that every trial sees")
    parser.add_argument("--folder", type=Path, default=Path("runs/schedules"))
    options = parser.parse_args()
    content = first_space().model_dump(mode="json") | {"num_samples": options.samples}
    content["recipe"] |= {"data_fraction": [1.0], "epochs": [1.0]}
    space = SearchSpace.model_validate(content)
    wanted = [recipe for recipe in recipes(plan_study(space), 2 * options.recipes) if recipe.trained != "nothing"]
    run(space, wanted[: options.recipes], options.folder)
    print(table(read_json_lines(options.folder / TRIALS)))


def run(space: SearchSpace, wanted: list[Recipe], folder: Path) -> None:
    """Append a line per trial: recipe by recipe, so that what there is can be compared at any time."""
    lines = read_json_lines(folder / TRIALS)
    done = {(line["key"], line["schedule"], line["average"]) for line in lines}
    missing = [(recipe, arm) for recipe in wanted for arm in ARMS if (recipe.key, *arm) not in done]
    if not missing:
        return
    import torch

    from raysearch.recovery.deepspeed_engine import start_distributed
    from raysearch.trials.context import TrialContext
    from raysearch.trials.trial import Trial

    torch.set_num_threads(1)
    start_distributed()
    folder.mkdir(parents=True, exist_ok=True)
    context = TrialContext(space, teacher_folder=folder / "teacher")
    rungs = [round(share * len(context.samples)) for share in RUNG_SHARES]
    for recipe, (schedule, average) in missing:
        settings = space.recovery.model_copy(update={"schedule": schedule, "weight_average": average})
        context.space = space.model_copy(update={"recovery": settings})
        trial = Trial(recipe, context)
        trial.keeps_best = False
        try:
            retentions = [score.retention for score in trial.scores(rungs)]
        except FloatingPointError as error:
            print(f"{recipe.key} {schedule}: {error}", flush=True)
            retentions = []
        finally:
            trial.close()
        append_json(
            folder / TRIALS, {"key": recipe.key, "schedule": schedule, "average": average, "retentions": retentions}
        )
        print(recipe.describe(), schedule, average, [round(value, 3) for value in retentions], flush=True)


def table(lines: list[dict[str, Any]]) -> str:
    """Of the recipes that ended under every schedule: mean retention at the end, and rank correlation by rung."""
    by_arm = {
        arm: {line["key"]: line["retentions"] for line in lines if (line["schedule"], line["average"]) == arm}
        for arm in ARMS
    }
    shared = [key for key in by_arm[ARMS[0]] if all(found.get(key) for found in by_arm.values())]
    shares = " | ".join(f"rung at {share:.0%}" for share in RUNG_SHARES)
    rows = [f"{len(shared)} recipes", f"| | mean at the end | {shares} |", "|---" * (2 + len(RUNG_SHARES)) + "|"]
    for schedule, average in ARMS:
        values = np.array([by_arm[schedule, average][key] for key in shared])  # (recipes, rungs and the end)
        cells = [_correlation(values[:, rung], values[:, -1]) for rung in range(len(RUNG_SHARES))]
        name = f"{schedule}{', average of weights' if average else ''}"
        rows.append(f"| {name} | {values[:, -1].mean():.3f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _correlation(early: np.ndarray, end: np.ndarray) -> str:
    """Spearman's, with a 90% interval over resampled recipes."""
    draws = np.random.default_rng(0).integers(len(end), size=(1000, len(end)))
    draws = draws[[len(np.unique(draw)) > 2 for draw in draws]]
    low, high = np.nanquantile([spearmanr(early[draw], end[draw]).statistic for draw in draws], [0.05, 0.95])
    return f"{spearmanr(early, end).statistic:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
