"""Retention of the embedded LVLM after pruning and after brief recovery: the tables of docs/explanation/pocket.md.

    python scripts/experiments/pruning_response.py        # about ten minutes on one core

Everything is measured on the held-out split, which nothing was chosen on.
"""

import argparse
import time
from collections.abc import Iterator

import torch

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import retention
from raysearch.recovery.deepspeed_engine import start_distributed
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial

RATIOS = (0.15, 0.30, 0.45, 0.60)
CRITERION = {"layerwise": "block_influence", "widthwise": "taylor"}
BATCH_SIZE, NUM_STEPS = 16, 150


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    start_distributed()
    space = SearchSpace.load(EMBEDDED_SPACE)
    settings = space.recovery.model_copy(update={"batch_size": BATCH_SIZE})
    context = TrialContext(space.model_copy(update={"num_samples": None, "recovery": settings}))
    names = list(context.heldout_baseline.scores)
    print(f"| | {' | '.join(names)} | retention |\n|{'---|' * (len(names) + 2)}")
    for mode in CRITERION:
        for ratio in RATIOS:
            *means, kept, interval = _measured(Recipe(**_pruned(mode, ratio), trained="nothing"), context)
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            print(f"| {mode} {ratio:.0%} | {cells} | **{kept:.3f}** {interval} |", flush=True)
    print("\n| | before | after | share of the loss brought back | seconds |\n|---|---|---|---|---|")
    epochs = NUM_STEPS * BATCH_SIZE / len(context.samples)
    for name, pruned in _recovered():
        *_, before, _ = _measured(Recipe(**pruned, trained="nothing"), context)
        started = time.monotonic()
        recovery = Recipe(**pruned, trained="projector+decoder", hidden_kd=1.0, lr=3e-4, epochs=epochs)
        *_, after, interval = _measured(recovery, context)
        brought_back = f"{(after - before) / (1 - before):.2f}" if before < 1 else ""
        seconds = time.monotonic() - started
        print(f"| {name} | {before:.3f} | {after:.3f} {interval} | {brought_back} | {seconds:.0f} |", flush=True)


def _measured(recipe: Recipe, context: TrialContext) -> tuple[float | str, ...]:
    """Mean score per benchmark, then retention and its interval, after recovery."""
    trial = Trial(recipe, context)
    trial.keeps_best = False
    for _ in trial.scores([]):
        pass
    results = trial.evaluate(context.heldout)
    trial.close()
    kept = retention(results, context.heldout_baseline)
    low, high = kept.interval
    return *results.means().values(), kept.value, f"[{low:.3f}, {high:.3f}]"


def _recovered() -> Iterator[tuple[str, dict]]:
    for mode in CRITERION:
        for ratio in (0.15, 0.45):
            yield f"{mode} {ratio:.0%}", _pruned(mode, ratio)
    yield "not pruned, the control", _pruned("layerwise", 0.0)


def _pruned(mode: str, ratio: float) -> dict:
    return {"mode": mode, "ratio": ratio, "criterion": CRITERION[mode]}


if __name__ == "__main__":
    main()
