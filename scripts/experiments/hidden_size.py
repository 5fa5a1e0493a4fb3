"""What a smaller hidden size keeps against fewer heads and FFN channels, as many parameters removed, recovered equally.

    python scripts/experiments/hidden_size.py --out runs/hidden-size             # goes on if repeated
    python scripts/experiments/hidden_size.py --out runs/hidden-size --seeds 1 --data-fraction 0.02   # a short try
    python scripts/experiments/hidden_size.py --out runs/hidden-size --report    # what there is so far

On the embedded LVLM, at the ratio that `--hidden-ratio` of the hidden size alone gives. Scores are of held-out
questions; differences from heads and channels are paired by question, over the mean of all seeds and for each. The
seeds are those of the order of the data.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import Results, difference, load_results, retention, save_results
from raysearch.models.param_count_cache import counts_of_model
from raysearch.models.shape import ParamCounts
from raysearch.replication.table import percent

TRAINING = {"trained": "projector+decoder", "sft": 1.0, "logits_kd": 0.5, "temperature": 2.0, "lr": 5e-4}
WIDTHS = "heads and channels"
ARMS = {
    WIDTHS: {"criterion": "taylor", "attention_share": 1.0},
    "channels alone": {"criterion": "taylor", "attention_share": 0.0},
    "hidden size by activation": {"criterion": "taylor", "hidden_criterion": "activation"},
    "hidden size by magnitude": {"criterion": "taylor", "hidden_criterion": "magnitude"},
    "hidden size at random": {"criterion": "taylor", "hidden_criterion": "random"},
}


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hidden-ratio", type=float, default=0.15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-fraction", type=float, default=0.5)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        measure(options)
    report(options)


def ratio_of(counts: ParamCounts, hidden_ratio: float) -> float:
    """The share of the decoder that a smaller hidden size alone removes."""
    kept = round((1 - hidden_ratio) * counts.dense.hidden_size / counts.hidden_step) * counts.hidden_step
    return counts.removed_share(replace(counts.dense, hidden_size=kept))


def measure(options: argparse.Namespace) -> None:
    """Prune, recover and score what has no file yet."""
    import torch

    from raysearch.recovery.deepspeed_engine import start_distributed

    torch.set_num_threads(1)
    start_distributed()
    from raysearch.trials.context import TrialContext
    from raysearch.trials.trial import Trial

    named = {"mode": ["widthwise"], "ratio": [0.1], "criterion": ["taylor"], "trained": ["projector+decoder"]}
    named |= {"hidden_ratio": [options.hidden_ratio], "hidden_criterion": ["activation", "magnitude", "random"]}
    named |= {"logits_kd": [0.5]}
    written = SearchSpace.load(EMBEDDED_SPACE).model_dump(mode="json")
    space = SearchSpace.model_validate(written | {"recipe": named})
    context = TrialContext(space)
    save_results(options.out / "dense.npz", context.heldout_baseline)
    ratio = ratio_of(context.counts, options.hidden_ratio)
    for seed in range(options.seeds):
        for arm, fields in ARMS.items():
            path = path_of(options, arm, seed)
            if path.exists():
                continue
            hidden = {"hidden_ratio": options.hidden_ratio} if "hidden_criterion" in fields else {}
            amount = {"data_fraction": options.data_fraction, "epochs": options.epochs, "seed": seed}
            recipe = Recipe(mode="widthwise", ratio=ratio, **fields, **hidden, **TRAINING, **amount)
            trial = Trial(recipe, context)
            for score in trial.scores([]):
                print(
                    f"{arm}, seed {seed}: {trial.size.num_params:,} parameters, keeps {score.retention:.3f}", flush=True
                )
            save_results(path, trial.heldout_results())
            trial.close()


def path_of(options: argparse.Namespace, arm: str, seed: int) -> Path:
    """Where the results of a trial are; the settings are part of its name."""
    settings = json.dumps([options.hidden_ratio, options.data_fraction, options.epochs]).strip("[]").replace(", ", "-")
    return options.out / f"{arm.replace(' ', '-')}-{settings}-{seed}.npz"


def report(options: argparse.Namespace) -> None:
    """Print the table."""
    counts = counts_of_model("pocket")
    print(f"\n{ratio_of(counts, options.hidden_ratio):.2%} of the decoder removed\n")
    found = {arm: [path_of(options, arm, seed) for seed in range(options.seeds)] for arm in ARMS}
    seeds = [seed for seed in range(options.seeds) if all(paths[seed].exists() for paths in found.values())]
    if not seeds:
        return
    dense = load_results(options.out / "dense.npz")
    results = {arm: [load_results(paths[seed]) for seed in seeds] for arm, paths in found.items()}
    print(f"| {len(seeds)} seeds | kept | against {WIDTHS} | by seed |\n|---|---|---|---|")
    for arm, runs in results.items():
        cells = [arm, percent(retention(mean(runs), dense)), "", ""]
        if arm != WIDTHS:
            cells[2] = percent(difference(mean(runs), mean(results[WIDTHS]), dense), signed=True)
            pairs = zip(runs, results[WIDTHS], strict=True)
            cells[3] = ", ".join(f"{100 * difference(run, other, dense).value:+.1f}" for run, other in pairs)
        print(f"| {' | '.join(cells)} |")


def mean(runs: list[Results]) -> Results:
    """Each question's mean score over seeds."""
    scores = {name: np.mean([run.scores[name] for run in runs], axis=0) for name in runs[0].scores}
    return replace(runs[0], scores=scores)


if __name__ == "__main__":
    main()
