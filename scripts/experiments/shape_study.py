"""How well shapes judged without training rank those that are recovered, by size, on the embedded LVLM.

    python scripts/experiments/shape_study.py --out runs/shape-study  # goes on if repeated
    python scripts/experiments/shape_study.py --out runs/shape-study --report   # what there is so far

At each size, shapes are drawn at random from the space, judged in two ways (divergence from the dense model, and
unrecovered retention on the search questions), then recovered with the same settings and scored. Printed per size:
Spearman's rank correlation with the recovered retention and its 95% interval by bootstrap over shapes, and the seconds
a judgement takes; and what the best of those judged keeps, against the best of all and the mean.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import retention
from raysearch.files import append_json, read_json_lines
from raysearch.searching.samplers.sized_space import SizedSpace
from raysearch.searching.samplers.suggesters import RandomSuggester

SIZES = (0.36, 0.45, 0.54, 0.66, 0.8)
TRAINING = {
    "trained": "projector+decoder",
    "sft": 1.0,
    "logits_kd": 0.5,
    "hidden_kd": 0.5,
    "lr": 5e-4,
    "data_fraction": 0.25,
}
JUDGEMENTS = ("divergence", "unrecovered")


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path("raysearch/pocket/space.yaml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", type=int, default=16, help="per size")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "shapes.jsonl"
    if not options.report:
        measure(options.space, path, options.shapes)
    report(read_json_lines(path))


def measure(space_path: Path, path: Path, num_shapes: int) -> None:
    """Judge and recover the shapes that `path` has no row of."""
    import torch

    from raysearch.recovery.deepspeed_engine import start_distributed

    torch.set_num_threads(1)
    start_distributed()
    from raysearch.trials.context import TrialContext
    from raysearch.trials.trial import Trial

    space = SearchSpace.load(space_path)
    context = TrialContext(space)
    sized = SizedSpace(space, context.size_of, context.dense_size)
    dense, form = context.baselines.search, space.retention
    known = {(row["size"], row["index"]) for row in read_json_lines(path)}
    for index, size in itertools.product(range(num_shapes), SIZES):
        if (size, index) in known:
            continue
        draw = np.random.default_rng((7, round(100 * size), index))
        candidate = None
        while candidate is None or candidate.size_ratio < size - 0.02:
            candidate = sized.candidate(RandomSuggester(draw), size)
        fields = {name: value for name, value in candidate.recipe.as_dict().items() if name in STRUCTURE}
        recipe = Recipe.model_validate({**fields, **TRAINING})
        with context.judging_shapes() as judge:
            judge(recipe)  # the first one also runs the dense model
            started = time.perf_counter()
            divergence = judge(recipe)
            seconds = time.perf_counter() - started
        trial = Trial(recipe, context)
        started = time.perf_counter()
        unrecovered = retention(trial.evaluate(context.questions), dense, form).value
        seconds_evaluating = time.perf_counter() - started
        *_, score = trial.scores([])
        trial.close()
        append_json(
            path,
            {
                "size": size,
                "index": index,
                "recipe": recipe.as_dict(),
                "size_ratio": candidate.size_ratio,
                "divergence": divergence,
                "unrecovered": unrecovered,
                "recovered": score.retention,
                "seconds": seconds,
                "seconds_evaluating": seconds_evaluating,
            },
        )


STRUCTURE = ("mode", "ratio", "criterion", "depth_share", "attention_share")


def report(rows: list[dict]) -> None:
    """Print the table."""
    print("| size | shapes | divergence | unrecovered retention | least divergent keeps | best of all | mean |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        chosen = [row for row in rows if row["size"] == size]
        if len(chosen) < 4:
            continue
        recovered = np.array([row["recovered"] for row in chosen])
        cells = []
        for name in JUDGEMENTS:
            values = np.array([row[name] for row in chosen]) * (1 if name == "unrecovered" else -1)
            low, high = interval(values, recovered)
            cells.append(f"{spearmanr(values, recovered).statistic:.2f} [{low:.2f}, {high:.2f}]")
        least = recovered[int(np.argmin([row["divergence"] for row in chosen]))]
        print(
            f"| {size:.0%} | {len(chosen)} | {' | '.join(cells)} | {least:.3f} | {recovered.max():.3f} | "
            f"{recovered.mean():.3f} |"
        )
    if rows:
        mean, other = (np.mean([row[name] for row in rows]) for name in ("seconds", "seconds_evaluating"))
        print(f"\nseconds: divergence {mean:.2f}, unrecovered retention {other:.2f}")


def interval(values: np.ndarray, recovered: np.ndarray) -> tuple[float, float]:
    """95% of Spearman's correlation, by bootstrap over shapes."""
    draw, found = np.random.default_rng(0), []
    for _ in range(1000):
        at = draw.integers(len(values), size=len(values))
        if len(set(values[at])) > 1 and len(set(recovered[at])) > 1:
            found.append(spearmanr(values[at], recovered[at]).statistic)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
