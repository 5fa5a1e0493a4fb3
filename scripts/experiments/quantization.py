"""What quantisation costs on the embedded LVLM without recovery, against pruning alone to as many bytes.

    python scripts/experiments/quantization.py        # a Markdown table; about ten minutes on one core

Each quantised model stands beside the one of 16 bits and no more bytes that kept most on the search's questions; what
is shown is measured on held-out questions, and the difference is paired.
"""

import argparse
from dataclasses import dataclass

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import Results, difference, retention
from raysearch.replication.table import percent
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial

CRITERION = {"layerwise": "block_influence", "widthwise": "taylor"}
RATIOS = (0.0, 0.13, 0.26, 0.39, 0.52, 0.65, 0.78)  # layerwise, 0 to 6 of the 7 layers
HEAD = ("model", "of dense bytes", "kept", "16 bits in no more bytes", "of dense bytes", "kept", "difference")


@dataclass(frozen=True)
class Measurement:
    """A model without recovery."""

    recipe: Recipe
    share: float
    heldout: Results
    on_search: float = 0.0


def measure(context: TrialContext, recipe: Recipe) -> Measurement:
    """Prune, quantise, score; on the search's questions only what is chosen by them."""
    trial = Trial(recipe, context)
    share = trial.size.size_bytes / context.dense_size.size_bytes
    if recipe.quantization != "none":
        return Measurement(recipe, share, trial.heldout_results())
    (score,) = trial.scores([])
    return Measurement(recipe, share, trial.heldout_results(), score.retention)


def recipes(quantization: str, most: float = 1.0) -> list[Recipe]:
    """Layers and widths, from nothing removed to `most` of the decoder."""
    return [
        Recipe(mode=mode, quantization=quantization, ratio=ratio, criterion=criterion, trained="nothing")
        for mode, criterion in CRITERION.items()
        for ratio in RATIOS
        if ratio <= most and (ratio or mode == "layerwise")
    ]


def row(rounded: Measurement, plain: list[Measurement], dense: Results) -> tuple[str, ...]:
    """One line of the table."""
    fitting = [other for other in plain if other.share <= rounded.share]
    left = (name(rounded.recipe), f"{rounded.share:.1%}", percent(retention(rounded.heldout, dense)))
    if not fitting:
        return (*left, "none", "", "", "")
    best = max(fitting, key=lambda other: other.on_search)
    gap = percent(difference(rounded.heldout, best.heldout, dense), signed=True)
    return (*left, name(best.recipe), f"{best.share:.1%}", percent(retention(best.heldout, dense)), gap)


def name(recipe: Recipe) -> str:
    """Short."""
    kind = "" if recipe.quantization == "none" else f", {recipe.quantization}"
    return f"{recipe.mode} {recipe.ratio:.0%}{kind}" if recipe.ratio else f"whole{kind}"


def main() -> None:
    """Measure, and print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    context = TrialContext(SearchSpace.load(EMBEDDED_SPACE))
    plain = [measure(context, recipe) for recipe in recipes("none")]
    dense = context.heldout_baseline
    print("\n".join(("| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|")))
    for quantization in ("int8", "int4"):
        for recipe in recipes(quantization, most=0.4):
            print("| " + " | ".join(row(measure(context, recipe), plain, dense)) + " |", flush=True)


if __name__ == "__main__":
    main()
