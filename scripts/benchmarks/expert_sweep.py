"""What a search adds to what an expert does without one: a sensible recipe swept over sizes, on the embedded LVLM.

    python scripts/benchmarks/expert_sweep.py --seeds 3            # three studies a seed: half an hour, two idle cores
    python scripts/benchmarks/expert_sweep.py --sides sweep-ffn    # one of the sweeps alone: two minutes

The sides: `search` is the embedded space as it stands; `sweep-equal` is one recipe at nine sizes that narrows heads and
FFN by the same share, on all data; `sweep-ffn` keeps all heads, at seven sizes, on a quarter of the data. All run
through the same trials, questions and slots. Prints hypervolume, the mean held-out retention of the budgets' answers,
samples trained, and minutes; per side and seed, and a paired difference with its 95% interval for several seeds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

from raysearch.cli.search import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.study.folder import read_trials
from raysearch.study.front import Front
from raysearch.study.plan import StudyPlan, plan_study

LOSSES = {
    "sft": 1.0,
    "logits_kd": 0.5,
    "hidden_kd": 0.5,
    "temperature": 2.0,
    "trained": "projector+decoder",
    "lr": 5e-4,
}
SHAPE = {"mode": "both", "criterion": "greedy_loss+taylor"}
SWEEPS: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {
    "sweep-equal": (
        (0.36, 0.42, 0.48, 0.54, 0.60, 0.68, 0.76, 0.84, 0.92),
        {**SHAPE, "depth_share": 0.75, "attention_share": 1.0, "data_fraction": 1.0},
    ),
    "sweep-ffn": (
        (0.36, 0.40, 0.44, 0.48, 0.54, 0.60, 0.75),
        {**SHAPE, "depth_share": 0.5, "attention_share": 0.0, "data_fraction": 0.25},
    ),
}
"""Size ratios and recipe of each sweep; what they rest on is in docs/measurements/log.md, 2026-11-29."""


def recipe_at(plan: StudyPlan, size_ratio: float, fields: dict[str, Any]) -> Recipe:
    """The largest recipe with these fields within a share of the dense model's bytes."""
    low, high = 0.0, 0.99
    for _ in range(20):
        middle = (low + high) / 2
        size = plan.size_of(Recipe(ratio=middle, **fields))
        fits = size is None or size.size_bytes <= size_ratio * plan.dense.size_bytes
        low, high = (low, middle) if fits else (middle, high)
    return Recipe(ratio=high, **fields)


def sweep_space(name: str, content: dict[str, Any], plan: StudyPlan) -> dict[str, Any]:
    """The embedded space with the recipes of a sweep alone, never stopped early."""
    sizes, fields = SWEEPS[name]
    recipes = [recipe_at(plan, size, {**fields, **LOSSES}).as_dict() for size in sizes]
    every = {key: sorted({recipe[key] for recipe in recipes}, key=str) for key in recipes[0] if key != "criterion"}
    search = {**content["search"], "trials": len(recipes), "early_stopping": False}
    criteria = str(recipes[0]["criterion"]).split("+")
    return {**content, "recipe": {**every, "criterion": criteria}, "start": recipes, "search": search}


def run(side: str, content: dict[str, Any], plan: StudyPlan, seed: int) -> dict[str, float]:
    """One study in processes of its own, and what came of it."""
    space = content if side == "search" else sweep_space(side, content, plan)
    with tempfile.TemporaryDirectory() as name:
        path, out, started = Path(name) / "space.yaml", Path(name) / "study", time.monotonic()
        path.write_text(yaml.safe_dump(json.loads(json.dumps(space))))
        command = [sys.executable, "-m", "raysearch.pareto", str(path), "--out", str(out), "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        minutes = (time.monotonic() - started) / 60
        front, records = Front.load(out), read_trials(out)
    answers = [next(point for point in front.points if point.key == key) for key in front.budgets.values() if key]
    heldout = [point.heldout.retention for point in answers if point.heldout]
    samples = sum(record.rungs[-1].samples_seen for record in records if record.rungs)
    return {
        "hypervolume": front.hypervolume,
        "held out": float(np.mean(heldout)),
        "samples": samples,
        "minutes": minutes,
        "trials": len(records),
    }


def main() -> None:
    """Run all sides under every seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", default=f"search,{','.join(SWEEPS)}")
    parser.add_argument("--trials", type=int, help="of the search; left out, as the space says")
    options = parser.parse_args()
    space = SearchSpace.load(EMBEDDED_SPACE)
    content, plan = space.model_dump(mode="json"), plan_study(space)
    if options.trials:
        content["search"]["trials"] = options.trials
    found: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides.split(",")}
    print("| side | seed | hypervolume | held out at the budgets | samples trained | trials | minutes |")
    print("|---|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        for side, rows in found.items():
            row = run(side, content, plan, seed)
            rows.append(row)
            cells = f"{row['hypervolume']:.3f} | {row['held out']:.1%} | {row['samples']:,.0f} | {row['trials']:.0f}"
            print(f"| {side} | {seed} | {cells} | {row['minutes']:.1f} |", flush=True)
    if "search" in found and options.seeds > 1:
        for side in found.keys() - {"search"}:
            gaps = np.array(
                [a["hypervolume"] - b["hypervolume"] for a, b in zip(found["search"], found[side], strict=True)]
            )
            half = student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
            print(f"\nsearch less {side}: hypervolume {gaps.mean():+.3f} +- {half:.3f}")


if __name__ == "__main__":
    main()
