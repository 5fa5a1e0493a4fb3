"""The model card of a checkpoint: README.md with the metadata block that the Hugging Face hub reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raysearch.config.budget import rate_text, size_text
from raysearch.config.quantization import describe
from raysearch.config.recipe import Recipe
from raysearch.study.front import Front, FrontPoint, Speed, retention_text

Rows = Mapping[str, Any]
_PACKED = (
    "They are packed in the format of compressed-tensors, so `pip install compressed-tensors`. Transformers unpacks "
    "them at the first pass: the files are small, the running model is not."
)


def model_card(multimodal: bool, recipe: Recipe | None, sections: Mapping[str, Rows], card: Rows) -> str:
    """The text of a card.

    Args:
        multimodal: whether the model takes pictures.
        recipe: how it was pruned and recovered.
        sections: titles, and tables of names and values below them; empty ones are left out.
        card: facts in the order to be shown; `base_model`, `title` and `note` are used specially.
    """
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
    facts = {name: value for name, value in card.items() if name not in ("base_model", "title", "note")}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {card.get('title') or 'Pruned model'}",
        f"Made by raysearch from {Path(base).name}." if base else "",
        card.get("note", ""),
        _table(facts),
        *(f"## {title}\n\n{_table(rows)}" for title, rows in sections.items() if rows),
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe.as_dict(), sort_keys=False)}```" if recipe else "",
        f"{describe(recipe.quantization)}. {_PACKED}" if recipe and recipe.quantization != "none" else "",
        f"## Use\n\n```python\nfrom transformers import {auto}, {processor}\n\n"
        f'model = {auto}.from_pretrained("FOLDER")\nprocessor = {processor}.from_pretrained("FOLDER")\n```',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_card(front: Front, point: FrontPoint, multimodal: bool, note: str = "") -> str:
    """The card of a recipe on a front: sizes, quality with intervals, speed if it was measured, and the recipe.

    Args:
        note: what else happened to the checkpoint, in a sentence or two.
    """
    dense, kept = front.baseline, point.heldout or point
    facts = {
        "parameters": f"{point.num_params:,} of {dense.num_params:,}",
        "bytes": f"{point.size_bytes:,} of {dense.size_bytes:,} ({point.size_ratio:.1%})",
        "recovery": f"{point.samples_seen:,} samples seen" if point.samples_seen else "none",
        "retention on the search's questions [95%]": retention_text(point),
    }
    if point.heldout:
        facts["retention on held-out questions [95%]"] = retention_text(point.heldout)
    where = "held-out questions" if point.heldout else "the search's questions"
    scores = {}
    for name, score in kept.scores.items():
        interval = kept.scores_ci.get(name)
        scores[name] = f"{score:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
        if name in dense.scores:
            scores[name] += f"; dense model, on the search's questions: {dense.scores[name]:.3f}"
    sections = {f"Scores on {where} [95%]": scores, "Speed and memory": speed_rows(point.measured, dense.measured)}
    how = (
        f"Found by the study {front.study}: of all recipes that it ran to their end, none of at most this size kept "
        "more. How it was made is under Recipe."
    )
    card = {"base_model": front.model, "title": f"{Path(front.model).name} at {point.size_ratio:.0%} of its size"}
    return model_card(multimodal, point.recipe, sections, {**card, "note": f"{how} {note}".strip(), **facts})


def speed_rows(speed: Speed | None, dense: Speed | None) -> dict[str, str]:
    """A measurement as names and values, each beside the dense model's where the same machine measured both."""
    if speed is None:
        return {}

    def beside(value: Any) -> str:
        same = dense is not None and (dense.device, dense.dtype) == (speed.device, speed.dtype)
        return f"{value(speed)}; dense model {value(dense)}" if same else str(value(speed))

    return {
        "on": f"{speed.device}, {speed.dtype}",
        f"prefill of {speed.num_prompt_tokens} tokens": beside(lambda s: f"{1000 * s.prefill_seconds:.3g} ms"),
        "decoding": beside(lambda s: rate_text(s.decode_tokens_per_second)),
        "peak memory": beside(lambda s: size_text(s.peak_memory_bytes)),
        "files with weights": beside(lambda s: size_text(s.checkpoint_bytes)),
        "KV cache of 1,000 tokens": beside(lambda s: size_text(s.kv_cache_bytes_per_1000_tokens)),
    }


def flat(values: Rows, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_shown(value)} |" for name, value in rows.items())])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
