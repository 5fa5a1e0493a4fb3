"""Which experts can go: half of a small trained decoder's experts, dropped by each criterion, without recovery.

    python scripts/experiments/expert_pruning.py                 # minutes on one core
    python scripts/experiments/expert_pruning.py --steps 100     # quicker, and less trained

A Qwen3-MoE decoder of 8 experts per layer, 2 per token, is trained on the bytes of Python's documentation of itself
(`pydoc_data.topics`, in every installation), and asked about parts that it hasn't seen. Differences from dropping at
random are paired by text; the interval is over texts and random choices.
"""

import argparse
from pydoc_data.topics import topics

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from raysearch.models.param_count import counts_of
from raysearch.models.shape_solver import exact_shape
from raysearch.pruning import prune
from raysearch.pruning.importance import importance

LENGTH, BATCH, NUM_HELDOUT, NUM_CALIBRATION, NUM_RANDOM = 128, 16, 96, 48, 20
CRITERIA = ("frequency", "reap", "taylor", "magnitude")


def texts() -> torch.Tensor:
    """(texts, LENGTH): bytes of the documentation, shuffled."""
    content = "\n".join(topics[name] for name in sorted(topics)).encode()
    rows = torch.tensor(list(content)).unfold(0, LENGTH, LENGTH)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def trained(rows: torch.Tensor, steps: int, seed: int) -> PreTrainedModel:
    """A decoder with experts, trained on the texts."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=256, head_dim=16, **sizes, **experts))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        batch = rows[torch.randint(len(rows), (BATCH,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step} of {steps}", flush=True)
    return model.eval()


@torch.inference_mode()
def losses(model: PreTrainedModel, rows: torch.Tensor) -> np.ndarray:
    """(texts,) nats per byte."""
    logits = model(input_ids=rows).logits[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, rows[:, 1:], reduction="none").mean(-1).numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = texts()
    heldout, calibration, training = rows.split(
        [NUM_HELDOUT, NUM_CALIBRATION, len(rows) - NUM_HELDOUT - NUM_CALIBRATION]
    )
    model = trained(training, options.steps, options.seed)
    shape = exact_shape(counts_of(model.config), {"num_experts": 4})
    mask = torch.ones_like(calibration)
    batches = [{"input_ids": calibration, "attention_mask": mask, "labels": calibration}]

    def without(criterion: str, seed: int = 0) -> np.ndarray:
        return losses(prune(model, shape, {"experts": importance(model, batches, criterion, seed)}), heldout)

    by_chance = np.stack([without("random", seed) for seed in range(NUM_RANDOM)])  # (seeds, texts)
    print(f"dense {losses(model, heldout).mean():.3f} nats per byte, 4 of 8 experts at random {by_chance.mean():.3f}")
    draws = np.random.default_rng(0)
    for criterion in CRITERIA:
        found, means = without(criterion), []
        for _ in range(2000):
            seeds, which = draws.integers(NUM_RANDOM, size=NUM_RANDOM), draws.integers(NUM_HELDOUT, size=NUM_HELDOUT)
            means.append(found[which].mean() - by_chance[seeds][:, which].mean())
        low, high = np.quantile(means, [0.025, 0.975])
        gain = found.mean() - by_chance.mean()
        print(f"{criterion}: {found.mean():.3f}, against random {gain:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
