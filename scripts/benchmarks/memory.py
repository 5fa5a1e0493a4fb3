"""Compare the memory that a budget counts for a shape with what PyTorch allocates in a prefill.

    python scripts/benchmarks/memory.py                     # 3 decoders x 20 shapes: 3 minutes on a core

Weights, KV cache and activations of one row, in bf16, with the last token's logits alone, by PyTorch's profiler. The
decoders are small ones of real proportions, with random weights.
"""

import argparse
import random

import torch
import transformers as hf
from torch.profiler import ProfilerActivity, profile

from raysearch import models
from raysearch.config.budget import Budget
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import pruned_config
from raysearch.models.shape import Shape

SIZES = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 8192, "head_dim": 64,
}  # fmt: skip
DECODERS = {
    "llama": hf.LlamaConfig(**SIZES),
    "qwen3": hf.Qwen3Config(**SIZES),
    "mistral, all heads with a KV head": hf.MistralConfig(**SIZES | {"num_key_value_heads": 8}, sliding_window=None),
}


def main() -> None:
    """Print the largest and the mean error by decoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--shapes", type=int, default=20)
    given = parser.parse_args()
    print("| decoder | shapes | largest error | mean error | KV cache and activations, share of the memory |")
    print("|---|---|---|---|---|")
    for name, config in DECODERS.items():
        counts = counts_of(config)
        draw = random.Random(0)
        errors, shares = [], []
        for _ in range(given.shapes):
            kv, heads = draw.choice(counts.attention_choices)
            channels = draw.randrange(counts.dense.num_ffn_channels // 4, counts.dense.num_ffn_channels + 1, 8)
            shape = Shape(draw.randint(3, counts.dense.num_layers), kv, heads, channels)
            size, dense = counts.size(shape), counts.size(counts.dense)
            budget = Budget.parse(f"memory 1GB @ {{tokens: {given.tokens}}}")
            predicted = budget.cost(budget.limits[0], size, dense)
            measured = size.size_bytes + allocated(pruned_config(config, shape), given.tokens)
            errors.append(predicted / measured - 1)
            shares.append(1 - size.size_bytes / measured)
        mean = sum(map(abs, errors)) / len(errors)
        print(
            f"| {name} | {len(errors)} | {max(errors, key=abs):+.1%} | {mean:.1%} | "
            f"{min(shares):.0%} to {max(shares):.0%} |",
            flush=True,
        )


def allocated(config: hf.PretrainedConfig, num_tokens: int) -> int:
    """Most bytes allocated at a time in a prefill, beside the weights."""
    model = models.model_class(config)._from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(5, config.vocab_size, (1, num_tokens))
    with torch.inference_mode():
        model(input_ids=ids[:, :8], use_cache=True, logits_to_keep=1)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


if __name__ == "__main__":
    main()
