"""Questions a second of an evaluation: questions about one picture in one row, against each in a row of its own.

    python scripts/benchmarks/evaluation.py                    # the embedded LVLM, dense and pruned: a minute
    python scripts/benchmarks/evaluation.py --repeats 1        # a short run

Both ways ask the same model the same questions with the same code, in one process, in turns, and the pairs are
compared; the first turn of each is a warm-up. The last column counts answers that come out differently: two tokens
that are equally likely but for rounding.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation import shared_prefix
from raysearch.evaluation.retention import Results
from raysearch.trials.context import TrialContext
from scripts.benchmarks.recovery import clock, compare

RATIOS = (0.0, 0.3, 0.6)


def main() -> None:
    """Print a row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=EMBEDDED_SPACE, help="names the model and the benchmarks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = TrialContext(SearchSpace.load(options.space))
    questions = [question for benchmark in context.questions for question in benchmark.questions]
    print(f"{len(questions)} questions about {len({q.image_id for q in questions})} pictures\n")
    print("| widths less | questions/s | each alone | times as fast, median (range) | other answers |")
    print("|---|---|---|---|---|")
    random = {"random": context.importance("random", 0)}
    for ratio in RATIOS:
        recipe = Recipe(mode="widthwise", ratio=ratio, criterion="random")
        model = context.prune(recipe, random) if ratio else context.model
        answers: dict[bool, Results] = {}

        def timed(are_joined: bool, model=model, answers=answers) -> float:
            started = clock()
            if are_joined:
                answers[True] = context.evaluate(model, context.questions)
            else:
                with patch.object(shared_prefix, "is_heeded", return_value=False):
                    answers[False] = context.evaluate(model, context.questions)
            return clock() - started

        row = compare(f"{ratio:.0%}", lambda: timed(True), lambda: timed(False), len(questions), options.repeats)
        num_other = sum(
            int(np.sum(joined != answers[False].scores[name])) for name, joined in answers[True].scores.items()
        )
        print(f"{row} {num_other} |", flush=True)


if __name__ == "__main__":
    main()
