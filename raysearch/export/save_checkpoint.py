"""Write a pruned model as a folder that transformers alone can load, with its recipe, scores and model card."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from raysearch.config.recipe import Recipe
from raysearch.export.card import flatten, model_card
from raysearch.export.origin import copy_license_files
from raysearch.export.packed import save_packed
from raysearch.files import check_free, open_to_readers, read_json, replace_folder, write_text
from raysearch.logging import quiet
from raysearch.models import ProcessorLike, family_for

MAX_SHARD_SIZE = "5GB"


def save_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorLike | None,
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    scores: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
    replaces: bool = False,
) -> None:
    """Write the folder whole or not at all: sharded safetensors, configurations, processor, recipe, scores and card,
    and the licence's files of the model that the card names.

    Args:
        model: a model of transformers' own classes; tied weights are written once.
        processor: the model's processor or tokenizer; None writes none.
        folder: new or empty; a link is followed.
        recipe: goes to `recipe.yaml`; if it quantises, the decoder's weights are packed.
        scores: go to `scores.json`, and to the card without those under `pruning`.
        card: rows for the model card, as `card` of `model_card`.
        replaces: `folder` may be a checkpoint of the study that writes it, which is then replaced.

    Raises:
        InputError: `folder` is no new or empty folder; or the recipe quantises, and the package that packs the weights
            is missing.
    """
    folder = Path(folder) if replaces else check_free(Path(folder), "--to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet():
            if recipe is None or recipe.quantization == "none":
                model.save_pretrained(unfinished, max_shard_size=MAX_SHARD_SIZE)
            else:
                save_packed(model, recipe.quantization, unfinished, max_shard_size=MAX_SHARD_SIZE)
        if processor is not None:
            processor.save_pretrained(unfinished)
        if recipe is not None:
            (unfinished / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
        for name, text in _score_files(model, recipe, scores, card).items():
            (unfinished / name).write_text(text)
        if card and card.get("base_model"):
            copy_license_files(str(card["base_model"]), unfinished)
        _drop_references_to_code(unfinished)
        open_to_readers(unfinished)
        if replaces:
            replace_folder(unfinished, folder)
        else:
            os.replace(unfinished, folder)  # fails if the folder has come to hold anything
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def replace_scores(
    model: PreTrainedModel, folder: Path, recipe: Recipe, scores: dict[str, Any], card: dict[str, Any]
) -> None:
    """Replace `scores.json` and the model card of the checkpoint of `model` in `folder`; arguments as of `save`."""
    for name, text in _score_files(model, recipe, scores, card).items():
        write_text(folder / name, text)


def _score_files(
    model: PreTrainedModel, recipe: Recipe | None, scores: dict[str, Any] | None, card: dict[str, Any] | None
) -> dict[str, str]:
    """Texts by name of file."""
    measured = flatten({name: part for name, part in (scores or {}).items() if name != "pruning"})
    multimodal = family_for(model).is_multimodal
    texts = {"README.md": model_card(multimodal, recipe, {"Scores": measured}, card or {})}
    return texts if scores is None else texts | {"scores.json": json.dumps(scores, indent=2) + "\n"}


def _drop_references_to_code(folder: Path) -> None:
    """Remove `auto_map` from JSON files: it names Python files of the original, which stock classes don't need."""
    for path in folder.glob("*.json"):
        content = read_json(path)
        if isinstance(content, dict) and content.pop("auto_map", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
