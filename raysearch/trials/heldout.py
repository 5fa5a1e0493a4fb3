"""Score a checkpoint on held-out questions after the search that made it."""

from pathlib import Path
from typing import Any

from raysearch import models
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError, first_line
from raysearch.export.save_checkpoint import replace_scores
from raysearch.files import parse_yaml, read_json
from raysearch.recovery.deepspeed_engine import collective_io, is_rank_zero
from raysearch.study.front import Measured
from raysearch.trials.context import TrialContext
from raysearch.trials.differing_answers import keep_examples
from raysearch.trials.trial import card_rows, checkpoint_scores, quality_of


def score_heldout(folder: Path, context: TrialContext) -> Measured:
    """Retention and scores of a checkpoint on held-out questions; they go to its `scores.json` and model card, too, and
    some differing answers to the study's `examples`.

    They are those that `Trial.finish` would have given. Every worker must call it.

    Args:
        folder: of the checkpoint, as `Trial.export` has written it.

    Raises:
        InputError: there is no such checkpoint, or it can't be used.
    """
    recipe, scores = _written(folder)
    model, _ = models.load(folder)
    results = context.evaluate(model, context.heldout)
    keep_examples(folder, context, model, results)
    heldout = quality_of(results, context.heldout_baseline, context.space.retention)
    scores = checkpoint_scores(scores.get("search"), heldout, scores.get("pruning", {}).get("layers_kept"))
    with collective_io():
        if is_rank_zero():
            replace_scores(model, folder, recipe, scores, card_rows(context, recipe))
    return heldout


def _written(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """`recipe.yaml` and `scores.json` of a checkpoint."""
    try:
        recipe = Recipe(**parse_yaml((folder / "recipe.yaml").read_text()))
        return recipe, dict(read_json(folder / "scores.json"))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: no checkpoint of a search ({first_line(error)})") from None
