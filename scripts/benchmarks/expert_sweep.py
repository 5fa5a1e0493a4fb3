"""What a search adds to what an expert does without one: a sensible recipe swept over sizes.

    python scripts/benchmarks/expert_sweep.py --seeds 3              # 9 minutes of search, sweeps and guide, a seed
    python scripts/benchmarks/expert_sweep.py --sides sweep-ffn      # one of the sweeps alone
    python scripts/benchmarks/expert_sweep.py --without shapes       # the search without one of its parts
    python scripts/benchmarks/expert_sweep.py --space pocket-smollm2 --runs 24     # needs the extra smollm2

The sides: `search` is the space as it stands, for `--minutes` or `--runs`. On the embedded LVLM `sweep-equal` is one
recipe at nine sizes that narrows heads and FFN by the same share, on all data; `sweep-ffn` keeps all heads, at seven
sizes, on a quarter of the data; `sweep-ffn-long` is the same on all data, with the search's three smallest sizes as
well. On pocket-smollm2 both sweeps narrow at seven sizes, with heads or without. `guide` is the decision guide of arXiv
2604.24380 at its four ratios: layers up to 30%, widths beyond, projector and decoder by SFT and hidden states. All run
through the same trials, questions and slots.

Prints the hypervolume after 3 minutes and at the end, the held-out retention of each budget's answer (a sweep has none
below its smallest size), samples trained and minutes per side and seed; the search's hypervolume when it had trained as
many samples as each sweep; paired differences with their 95% intervals; and what each side's front keeps of the
held-out questions at the guide's sizes. With `--out`, sides and seeds that stand in the file aren't run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

from raysearch.config.budget import Budget
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.files import append_json
from raysearch.searching.samplers.suggesters import RandomSuggester
from raysearch.study.folder import TRIALS, read_trials
from raysearch.study.front import Front
from raysearch.study.multi_objective import hypervolume
from raysearch.study.plan import StudyPlan, plan_study
from raysearch.study.records import TrialRecord

LOSSES = {"sft": 1.0, "logits_kd": 0.5, "hidden_kd": 0.5, "temperature": 2.0, "trained": "projector+decoder"}
POCKET = {**LOSSES, "mode": "both", "criterion": "greedy_loss+taylor", "lr": 5e-4}
SMOLLM2 = {**LOSSES, "criterion": "taylor", "mode": "widthwise", "lr": 5e-5, "data_fraction": 1.0}
SWEEPS: dict[str, dict[str, tuple[tuple[float, ...], dict[str, Any]]]] = {
    "pocket": {
        "sweep-equal": (
            (0.36, 0.42, 0.48, 0.54, 0.60, 0.68, 0.76, 0.84, 0.92),
            {**POCKET, "depth_share": 0.75, "attention_share": 1.0, "data_fraction": 1.0},
        ),
        "sweep-ffn": (
            (0.36, 0.40, 0.44, 0.48, 0.54, 0.60, 0.75),
            {**POCKET, "depth_share": 0.5, "attention_share": 0.0, "data_fraction": 0.25},
        ),
        "sweep-ffn-long": (
            (0.22, 0.27, 0.31, 0.36, 0.40, 0.44, 0.48, 0.54, 0.60, 0.75),
            {**POCKET, "depth_share": 0.5, "attention_share": 0.0, "data_fraction": 1.0},
        ),
    },
    "pocket-smollm2": {
        "sweep-equal": ((0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90), {**SMOLLM2, "attention_share": 1.0}),
        "sweep-ffn": ((0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90), {**SMOLLM2, "attention_share": 0.0}),
    },
}
"""By space, size ratios and recipe of each sweep; what they rest on is in docs/measurements/log.md, 2026-11-29."""
GUIDE = {
    ratio: Recipe(
        mode=mode,
        criterion=criterion,
        ratio=ratio,
        trained="projector+decoder",
        sft=1.0,
        hidden_kd=1.0,
        hidden_match="mse",
        lr=3e-4,
        data_fraction=1.0,
    )
    for ratio, mode, criterion in (
        (0.15, "layerwise", "block_influence"),
        (0.30, "layerwise", "block_influence"),
        (0.45, "widthwise", "taylor"),
        (0.60, "widthwise", "taylor"),
    )
}
"""By the share of the decoder that goes; criteria and rate as in search_spaces/pocket-study.yaml."""


def without_long_training(content: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """Trials of at most a part of the data, with a first rung after as many samples."""
    fractions = sorted(map(float, space.values_of("data_fraction")))
    shorter = fractions[-2] / (fractions[-1] * max(map(float, space.values_of("epochs")), default=1))
    recipe = {**content["recipe"], "data_fraction": fractions[:-1], "epochs": 1}
    first_rung = min(1.0, content["search"]["first_rung"] / shorter)
    return {**content, "recipe": recipe, "search": {**content["search"], "first_rung": first_rung}}


def without_openers(content: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """One random recipe in place of the openers."""
    return {**content, "start": [space.suggest(RandomSuggester(np.random.default_rng(7))).as_dict()]}


def without_shapes(content: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """No shapes judged before training."""
    return {**content, "search": {**content["search"], "shapes": 0}}


def without_unrecovered(content: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """No trial without recovery."""
    trained = [value for value in space.values_of("trained") if value != "nothing"]
    return {**content, "recipe": {**content["recipe"], "trained": trained}}


PARTS = {
    "shapes": without_shapes,
    "openers": without_openers,
    "long-training": without_long_training,
    "unrecovered": without_unrecovered,
}
SPACES = Path(__file__).parents[2] / "search_spaces"


def recipe_at(plan: StudyPlan, size_ratio: float, fields: dict[str, Any]) -> Recipe:
    """The largest recipe with these fields within a share of the dense model's bytes."""
    low, high = 0.0, 0.99
    for _ in range(20):
        middle = (low + high) / 2
        size = plan.size_of(Recipe(ratio=middle, **fields))
        fits = size is None or size.size_bytes <= size_ratio * plan.dense.size_bytes
        low, high = (low, middle) if fits else (middle, high)
    return Recipe(ratio=high, **fields)


def recipes_of(side: str, plan: StudyPlan) -> list[Recipe]:
    """What an expert would train."""
    if side == "guide":
        return list(GUIDE.values())
    sizes, fields = SWEEPS[plan.space.name][side]
    return [recipe_at(plan, size, fields) for size in sizes]


def space_of(side: str, content: dict[str, Any], plan: StudyPlan) -> dict[str, Any]:
    """The embedded space with an expert's recipes alone, never stopped early."""
    recipes = [recipe.as_dict() for recipe in recipes_of(side, plan)]
    every = {key: sorted({recipe[key] for recipe in recipes}, key=str) for key in recipes[0] if key != "criterion"}
    search = {**content["search"], "runs": None, "trials": len(recipes), "early_stopping": False, "shapes": 0}
    criteria = sorted({name for recipe in recipes for name in str(recipe["criterion"]).split("+")})
    return {**content, "recipe": {**every, "criterion": criteria}, "start": recipes, "search": search}


def run(side: str, content: dict[str, Any], plan: StudyPlan, seed: int, until: Sequence[str]) -> dict[str, Any]:
    """One study in processes of its own, and what came of it.

    Args:
        until: options of `raysearch.pareto` that end the search; a sweep ends with its recipes.

    Returns:
        Figures, and under `curve` (seconds, samples trained, hypervolume) after each trial, as the file grew.
    """
    space = content if side == "search" else space_of(side, content, plan)
    with tempfile.TemporaryDirectory() as name:
        path, out, started = Path(name) / "space.yaml", Path(name) / "study", time.monotonic()
        path.write_text(yaml.safe_dump(json.loads(json.dumps(space))))
        command = [sys.executable, "-m", "raysearch.pareto", str(path), "--out", str(out), "--seed", str(seed)]
        if side == "search":
            command += until
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        curve: list[tuple[float, float, float]] = []
        while process.poll() is None:
            time.sleep(0.5)
            records = read_trials(out) if (out / TRIALS).exists() else []
            if len(records) > len(curve):
                curve += [(time.monotonic() - started, *reached(records, plan))] * (len(records) - len(curve))
        assert process.returncode == 0, command
        front, records = Front.load(out), read_trials(out)
        took = (time.monotonic() - started) / 60
    points = {point.key: point for point in front.points}
    answers = {budget: points[key].heldout for budget, key in front.budgets.items() if key}
    heldout = {budget: found.retention for budget, found in answers.items() if found}
    samples, area = reached(records, plan)
    return {
        "at 3 min": max((area for seconds, _, area in curve if seconds <= 180), default=0.0),
        "hypervolume": area,
        "held out": heldout,
        "at the guide's sizes": at_sizes_of_guide(front, plan),
        "samples": samples,
        "minutes": took,
        "trials": len(records),
        "earlier states": sum(record.rungs[-1].best_at is not None for record in records if record.end == "finished"),
        "curve": curve,
    }


def at_sizes_of_guide(front: Front, plan: StudyPlan) -> dict[str, float]:
    """What the front's answer keeps of the held-out questions, by the share of the decoder that the guide removes."""
    answers = {}
    for ratio, recipe in GUIDE.items():
        size = plan.size_of(recipe)
        point = front.pick(Budget.parse(f"{size.size_bytes / 1e6:.6f}MB")) if size else None
        if point and point.heldout:
            answers[f"{ratio:.0%}"] = point.heldout.retention
    return answers


def reached(records: Sequence[TrialRecord], plan: StudyPlan) -> tuple[float, float]:
    """Samples trained by these trials, and the hypervolume of the finished ones."""
    done = [record for record in records if record.end == "finished"]
    sizes = [record.size_bytes / plan.dense.size_bytes for record in done]
    area = hypervolume(sizes, [record.rungs[-1].retention for record in done]) if done else 0.0
    return sum(record.rungs[-1].samples_seen for record in records if record.rungs), area


def main() -> None:
    """Run all sides under every seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--space", choices=SWEEPS, default="pocket")
    parser.add_argument("--minutes", type=float, default=9, help="of the search")
    parser.add_argument("--runs", type=float, help="full runs of the search, in place of minutes")
    parser.add_argument("--sides", help="default: all of the space")
    parser.add_argument("--without", choices=PARTS, help="a part of the search to leave out")
    parser.add_argument("--out", type=Path, help="a file that takes every row as a line of JSON, and is gone on with")
    options = parser.parse_args()
    space = SearchSpace.load(SPACES / f"{options.space}.yaml")
    content, plan = space.model_dump(mode="json"), plan_study(space)
    content = PARTS[options.without](content, space) if options.without else content
    kept = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    done = {(row["side"], row["seed"]): row for row in map(json.loads, kept)}
    until = ("--runs", f"{options.runs:g}") if options.runs else ("--time", f"{options.minutes:g}m")
    sides = options.sides.split(",") if options.sides else ("search", *SWEEPS[options.space], "guide")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    print(
        "| side | seed | hypervolume after 3 minutes | at the end | held out at the budgets | samples | trials | min |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for side, rows in found.items():
            row = done.get((side, seed)) or run(side, content, plan, seed, until)
            rows.append(row)
            answers = ", ".join(f"{100 * kept:.1f}" for kept in row["held out"].values())
            cells = f"{row['at 3 min']:.3f} | {row['hypervolume']:.3f} | {answers} | {row['samples']:,.0f}"
            print(f"| {side} | {seed} | {cells} | {row['trials']} | {row['minutes']:.1f} |", flush=True)
            if options.out and (side, seed) not in done:
                append_json(options.out, {"side": side, "seed": seed, **row})
    if "search" in found and len(found) > 1:
        compare(found)


def compare(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print the search against each sweep: at its end, and when it had trained as many samples."""
    print("\n| against | at the end | with as many samples |\n|---|---|---|")
    for side in (side for side in found if side != "search"):
        at_end, alike = [], []
        for ours, theirs in zip(found["search"], found[side], strict=True):
            at_end.append(ours["hypervolume"] - theirs["hypervolume"])
            before = [area for _, samples, area in ours["curve"] if samples <= theirs["samples"]]
            alike.append(max(before, default=0.0) - theirs["hypervolume"])
        print(f"| {side} | {_gap(at_end)} | {_gap(alike)} |")
    print("\nHeld out at the guide's sizes, by the share of the decoder that goes: points ahead of each side.")
    print(f"\n| against | {' | '.join(f'{ratio:.0%}' for ratio in GUIDE)} |\n|{'---|' * (len(GUIDE) + 1)}")
    for side in (side for side in found if side != "search"):
        cells = []
        for ratio in (f"{ratio:.0%}" for ratio in GUIDE):
            pairs = [
                (a["at the guide's sizes"], b["at the guide's sizes"])
                for a, b in zip(found["search"], found[side], strict=True)
            ]
            gaps = [100 * (ours[ratio] - theirs[ratio]) for ours, theirs in pairs if ratio in ours and ratio in theirs]
            cells.append(_gap(gaps, 1) if gaps else "nothing so small")
        print(f"| {side} | {' | '.join(cells)} |")


def _gap(gaps: list[float], digits: int = 3) -> str:
    if len(gaps) == 1:
        return f"{gaps[0]:+.{digits}f}"
    half = student.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / len(gaps) ** 0.5
    return f"{np.mean(gaps):+.{digits}f} +- {half:.{digits}f} ({', '.join(f'{gap:+.{digits}f}' for gap in gaps)})"


if __name__ == "__main__":
    main()
