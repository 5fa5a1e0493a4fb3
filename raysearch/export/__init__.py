"""Write a pruned model as a folder that transformers alone can load, with its recipe, scores and model card."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.families import ProcessorLike, family_for, quiet
from raysearch.files import replace_folder
from raysearch.recipe import Recipe

MAX_SHARD_SIZE = "5GB"


def save(
    model: PreTrainedModel,
    processor: ProcessorLike | None,
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    scores: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write the folder whole or not at all: sharded safetensors, configurations, processor, recipe, scores, card.

    Args:
        model: a stock model; tied weights are written once.
        processor: what turns images and text into inputs, or a tokenizer; None writes none.
        folder: where to; an earlier checkpoint there is replaced.
        recipe: goes to `recipe.yaml`.
        scores: goes to `scores.json`, and to the card but for what is under `pruning`.
        card: facts for the model card, in the order to be shown; `base_model` and `title` are used specially.

    Raises:
        InputError: `folder` is a file, or holds something that is no checkpoint.
    """
    folder = Path(folder)
    check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    built = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet():
            model.save_pretrained(built, max_shard_size=MAX_SHARD_SIZE)
        if processor is not None:
            processor.save_pretrained(built)
        if recipe is not None:
            (built / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
        if scores is not None:
            (built / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        (built / "README.md").write_text(model_card(model, recipe, scores, card or {}))
        os.chmod(built, 0o755)
        for path in built.rglob("*"):
            os.chmod(path, 0o755 if path.is_dir() else 0o644)  # safetensors writes 0600
        replace_folder(built, folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)


def model_card(
    model: PreTrainedModel, recipe: Recipe | None, scores: dict[str, Any] | None, card: dict[str, Any]
) -> str:
    """The text of README.md, with the metadata block that the Hugging Face hub reads."""
    multimodal = family_for(model).is_multimodal
    auto = "AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM"
    processor = "AutoProcessor" if multimodal else "AutoTokenizer"
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if multimodal else "text-generation",
        "tags": ["pruning", "raysearch"],
    }
    base = str(card.get("base_model", ""))
    if "/" in base and not Path(base).exists():  # a hub id
        metadata["base_model"] = base
    measured = _flat({name: part for name, part in (scores or {}).items() if name != "pruning"})
    facts = {name: value for name, value in card.items() if name not in ("base_model", "title")}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {card.get('title') or 'Pruned model'}",
        f"Made by raysearch from {Path(str(card['base_model'])).name}." if card.get("base_model") else "",
        _table(facts),
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe.as_dict(), sort_keys=False)}```" if recipe else "",
        "## Scores\n\n" + _table(measured) if measured else "",
        f"## Use\n\n```python\nfrom transformers import {auto}, {processor}\n\n"
        f'model = {auto}.from_pretrained("FOLDER")\nprocessor = {processor}.from_pretrained("FOLDER")\n```',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def check_target(folder: Path) -> None:
    """Check that a checkpoint may be written to `folder`.

    Raises:
        InputError: it is a file, or holds something that is no checkpoint.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; name a folder to write to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds files that are no checkpoint; name a new or empty folder")


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {_shown(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) if rows else ""


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
