"""The model card of a checkpoint: README.md with the metadata that the Hugging Face hub reads."""

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from raysearch.config.budget import rate_text, size_text
from raysearch.config.quantization import describe
from raysearch.config.recipe import Recipe
from raysearch.errors import printable
from raysearch.export.origin import UNKNOWN, card_metadata
from raysearch.study.front import Front, FrontPoint, Speed, retention_text

Rows = Mapping[str, Any]
_PACKED = (
    "They are packed in the format of compressed-tensors: `pip install compressed-tensors`. Transformers unpacks them "
    "in the first forward pass: the files are small, the running model is not."
)


def model_card(multimodal: bool, recipe: Recipe | None, sections: Mapping[str, Rows], card: Rows) -> str:
    """The text of a card.

    Args:
        multimodal: whether the model takes images.
        recipe: how it was pruned and recovered.
        sections: tables of names and values by title; empty ones are left out.
        card: rows of the first table; `base_model`, `title` and `note` go into metadata and text instead.
    """
    auto = "AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM"
    processor = "AutoProcessor" if multimodal else "AutoTokenizer"
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if multimodal else "text-generation",
        "tags": ["pruning", "raysearch"],
    }
    base = str(card.get("base_model", ""))
    if base:
        metadata |= card_metadata(base)
    rows = {name: value for name, value in card.items() if name not in ("base_model", "title", "note")}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {_plain(card.get('title') or 'Pruned model')}",
        f"Made by raysearch from {_plain(Path(base).name)}. {_license_text(metadata)}" if base else "",
        _plain(card.get("note", "")),
        table(rows),
        *(f"## {title}\n\n{table(section)}" for title, section in sections.items() if section),
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe.as_dict(), sort_keys=False)}```" if recipe else "",
        f"{describe(recipe.quantization)}. {_PACKED}" if recipe and recipe.quantization != "none" else "",
        f"## Use\n\n```python\nfrom transformers import {auto}, {processor}\n\n"
        f'model = {auto}.from_pretrained("FOLDER")\nprocessor = {processor}.from_pretrained("FOLDER")\n```',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _license_text(metadata: Rows) -> str:
    if metadata["license"] == UNKNOWN:
        return "The licence of that model is unknown: its card names none; it holds for this model too."
    name = _plain(str(metadata.get("license_name") or metadata["license"]))
    return f"The licence of that model holds for it: {name}."


def front_card(front: Front, point: FrontPoint, multimodal: bool, note: str = "") -> str:
    """The card of a recipe on a front: sizes, scores with intervals, speed if it was measured, and the recipe.

    Args:
        note: further training of the checkpoint, in a sentence or two.
    """
    dense, scored = front.baseline, point.heldout or point
    rows = {
        "parameters": f"{point.num_params:,} of {dense.num_params:,}",
        "bytes": f"{point.size_bytes:,} of {dense.size_bytes:,} ({point.size_ratio:.1%})",
        "recovery": _recovery_text(point),
        "retention on the search's questions [95%]": retention_text(point),
    }
    if point.heldout:
        rows["retention on held-out questions [95%]"] = retention_text(point.heldout)
    where = "held-out questions" if point.heldout else "the search's questions"
    scores = {}
    for name, score in scored.scores.items():
        interval = scored.scores_ci.get(name)
        scores[name] = f"{score:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
        if name in dense.scores:
            scores[name] += f"; dense model, on the search's questions: {dense.scores[name]:.3f}"
    sections = {f"Scores on {where} [95%]": scores, "Speed and memory": speed_rows(point.measured, dense.measured)}
    origin = f"Found by the study {front.study}: none of its finished recipes retains more at this size or below."
    title = f"{Path(front.model).name} at {point.size_ratio:.0%} of its size"
    card = {"base_model": front.model, "title": title, "note": f"{origin} {note}".strip()}
    return model_card(multimodal, point.recipe, sections, card | rows)


def _recovery_text(point: FrontPoint) -> str:
    seen = f"{point.samples_seen:,} samples seen"
    if point.best_at == 0:
        return f"left out: the model before it scored higher than after {seen}"
    if point.best_at:
        return f"{point.best_at:,} of {seen}: the model scored higher there than at the end"
    return seen if point.samples_seen else "none"


def speed_rows(speed: Speed | None, dense: Speed | None) -> dict[str, str]:
    """Speed and memory by name, each with the dense model's if that was measured on the same device and dtype."""
    if speed is None:
        return {}

    comparable = dense is not None and (dense.device, dense.dtype) == (speed.device, speed.dtype)

    def text(value: Callable[[Any], str]) -> str:
        return f"{value(speed)}; dense model {value(dense)}" if comparable else value(speed)

    return {
        "on": f"{speed.device}, {speed.dtype}",
        f"prefill of {speed.num_prompt_tokens} tokens": text(lambda s: f"{1000 * s.prefill_seconds:.3g} ms"),
        "decoding": text(lambda s: rate_text(s.decode_tokens_per_second)),
        "peak memory": text(lambda s: size_text(s.peak_memory_bytes)),
        "files with weights": text(lambda s: size_text(s.checkpoint_bytes)),
        "KV cache of 1,000 tokens": text(lambda s: size_text(s.kv_cache_bytes_per_1000_tokens)),
    }


def flatten(values: Rows, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(flatten(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def table(rows: Rows) -> str:
    """Names and values as a table of Markdown."""
    if not rows:
        return ""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(text)} |" for name, text in texts.items())])


def _plain(text: str) -> str:
    """`text` in one line, without what Markdown or HTML takes for links, tags, code or columns."""
    line = html.escape(printable(" ".join(text.split())), quote=False)
    return line.replace("|", r"\|").replace("](", r"]\(").replace("`", r"\`")
