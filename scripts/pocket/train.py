"""Train the embedded LVLM from scratch, or teach its questions to SmolLM2-135M.

    python scripts/pocket/train.py --to raysearch/pocket/weights
    python scripts/pocket/train.py --to runs/pocket --work runs/look --grounding-steps 40 --looks-steps 20 --steps 20
    python scripts/pocket/train.py --decoder smollm2 --to raysearch/pocket/smollm2_deltas.safetensors

The first is the run that made the shipped weights; on one core of an AMD EPYC its three stages take 1.5 minutes, 1.5
minutes, and 0.55 to 0.75 s for each of 3,000 steps, about 35 minutes in all. The second is a short run
of it, the third is `train_smollm2.py`.

1. The vision tower, the projector and the word embeddings learn to name what each patch shows, and the first layer's
   attention to find the patches that a word is true of.
2. Questions that name a thing by its looks, alone, until the decoder uses that attention.
3. Questions of all kinds, lists and descriptions, behind one copy of the picture's tokens.

Pictures are drawn as training goes, so that none but easy-VQA's occurs twice. Matrices take Muon, the rest AdamW; the
model computes in bfloat16 beside weights kept in float32.

Every number of the schedule counts steps, and every choice comes from a fixed seed. The run writes a checkpoint and a
loadable folder every few hundred steps; `--resume` goes on from the checkpoint.
"""

import argparse
import collections
import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from raysearch.pocket import SPLITS
from raysearch.pocket.drawing import ATTRIBUTES, Draw
from raysearch.pocket.model import BOS, NUM_IMAGE_TOKENS, USER, make_processor
from raysearch.pocket.question_templates import SHORT, make_questions
from raysearch.pocket.splits import labeled_images
from scripts.pocket.architecture import make_model, make_tokenizer
from scripts.pocket.packing import IGNORED, PREFIX, Packer, Row, batch_rows
from scripts.pocket.training import (
    ATTENTION,
    accuracy,
    answer_loss,
    easy_vqa_accuracy,
    evaluate,
    labelled_pictures,
    rate_factor,
    report,
    to_pixels,
    training_rows,
)

LOOKS_BATCH = 12
POINTING_GROUPS = 3


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (https://kellerjordan.github.io/posts/muon/), batched by shape.

    The update's RMS is 0.2 * lr, like AdamW's.
    """

    def __init__(self, params: list, lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape = collections.defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"])
                tall = update if param.shape[0] >= param.shape[1] else update.T
                by_shape[tall.shape].append((param, tall))
            for shape, pairs in by_shape.items():
                updates = newton_schulz(torch.stack([update for _, update in pairs])).float()
                scale = -0.2 * group["lr"] * math.sqrt(max(shape))
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update if param.shape[0] >= param.shape[1] else update.T, alpha=scale)


def newton_schulz(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrices with all singular values about 1; (batch, tall, narrow)."""
    first, second, third = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = x.mT @ x
        x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), beta=first)
    return x


class Trained:
    """Weights in float32, their copy in bfloat16 that computes, and the optimizers."""

    def __init__(self, model: torch.nn.Module, rates: dict[str, float]) -> None:
        """`rates` maps a part of parameter names to the learning rate; the first that fits counts."""
        self.model = model
        self.fast = copy.deepcopy(model)  # buffers, such as the rotary frequencies, stay in float32
        for param in self.fast.parameters():
            param.data = param.data.to(torch.bfloat16)
        self.optimizers: list[torch.optim.Optimizer] = []
        self._rates: list[float] = []
        groups: dict[str, list] = {part: [] for part in rates}
        for name, param in model.named_parameters():
            part = next((part for part in rates if part in name), None)
            if part is not None:
                groups[part].append((name, param))
        for part, named in groups.items():
            matrices = [p for n, p in named if p.ndim == 2 and not any(w in n for w in ("embed", "head"))]
            chosen = {id(p) for p in matrices}
            others = [p for _, p in named if id(p) not in chosen]
            if matrices:
                self._add(Muon(matrices, rates[part]), rates[part])
            if others:
                rate = 0.5 * rates[part]
                adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
                self._add(adam, rate)

    def _add(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        self.optimizers.append(optimizer)
        self._rates.append(rate)

    def step(self, loss: torch.Tensor, factor: float) -> float:
        """One update with all learning rates times `factor`; returns the gradient's norm."""
        loss.backward()
        for param, fast in zip(self.model.parameters(), self.fast.parameters(), strict=True):
            if fast.grad is not None:
                param.grad, fast.grad = fast.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.copy_to_fast()
        return float(norm)

    @torch.no_grad()
    def copy_to_fast(self) -> None:
        torch._foreach_copy_(list(self.fast.parameters()), list(self.model.parameters()))

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.copy_to_fast()


@torch.no_grad()
def initialise(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Fan-in initialisation of projector and decoder, which learns faster here than a fixed standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if "vision_tower" in name:
            continue
        if "embed_tokens" in name:
            param.normal_(0, 0.5, generator=generator)
        elif param.ndim == 2 and "lm_head" not in name:
            param.normal_(0, param.shape[1] ** -0.5, generator=generator)


# --- first stage: naming what each patch shows


class Grounding(torch.nn.Module):
    """Tower, projector and word embeddings, which name the patches, and attention that finds the patches of a word.

    The first decoder layer's query and key projections learn with them: in `POINTING_GROUPS` of its KV groups a word's
    token is to attend to the patches that it is true of, and to <bos> where there are none. Without this start,
    questions that name a thing by its looks stayed near chance.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        decoder = model.model.language_model
        self.vision_tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.embed_tokens = decoder.embed_tokens
        self.norm = decoder.layers[0].input_layernorm
        self.q_proj, self.k_proj = decoder.layers[0].self_attn.q_proj, decoder.layers[0].self_attn.k_proj
        self.head_dim = model.config.text_config.head_dim
        self.num_queries = self.q_proj.out_features // self.k_proj.out_features
        self.present_head = torch.nn.Linear(model.config.text_config.hidden_size, 2)
        self._rotary = [decoder.rotary_emb]  # in a list, so that its float32 buffer is not cast

    def name(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores of every word for every patch (batch, 36, words), of presence (batch, 36, 2), and the features."""
        # LLaVA takes the last layer's output before the tower's closing norm
        features = self.projector(self.vision_tower(pixels, output_hidden_states=True).hidden_states[-1])
        normed = F.rms_norm(features, features.shape[-1:], eps=1e-5)
        return 0.5 * (normed @ self.embed_tokens.weight.T), self.present_head(normed), features

    def point(self, features: torch.Tensor, prefix: torch.Tensor, words: torch.Tensor, place: int) -> torch.Tensor:
        """Log attention of words to the tokens of the prefix, (batch, groups, queries of a group, words, 38).

        Args:
            features: (batch, 36, hidden), the projected patches.
            prefix: the ids of the tokens before them, <bos> first.
            words: (num,) token ids.
            place: the words' position in the text.
        """
        before = self.embed_tokens(prefix).expand(len(features), -1, -1)
        keys = self.k_proj(self.norm(torch.cat([before, features], 1))).unflatten(-1, (-1, self.head_dim))
        queries = self.q_proj(self.norm(self.embed_tokens(words))).unflatten(-1, (-1, self.head_dim))[None]
        at = torch.cat([torch.arange(keys.shape[1]), torch.tensor([place])])[None]
        cos, sin = self._rotary[0](features, at)
        keys = rotate(keys, cos[:, :-1, None], sin[:, :-1, None])[:, :, :POINTING_GROUPS]
        queries = rotate(queries, cos[:, -1:, None], sin[:, -1:, None]).unflatten(2, (-1, self.num_queries))
        scores = torch.einsum("wgqd,bkgd->bgqwk", queries[0, :, :POINTING_GROUPS], keys) * self.head_dim**-0.5
        return F.log_softmax(scores.float(), -1)


def rotate(vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding."""
    first, second = vectors.chunk(2, -1)
    return vectors * cos + torch.cat([-second, first], -1) * sin


def ground(model: LlavaForConditionalGeneration, num_steps: int, vocab: dict[str, int], rate: float) -> None:
    """Train tower, projector and embeddings so that a projected patch scores the words true of its cell."""
    trained = Trained(Grounding(model), {"": rate})
    word_ids = {name: torch.tensor([vocab[word] for word in words]) for name, words in ATTRIBUTES.items()}
    all_words = torch.cat(list(word_ids.values()))
    prefix, draw = torch.tensor([vocab[BOS], vocab[USER]]), Draw(78)
    started = time.time()
    for step, (images, targets) in enumerate(labelled_pictures(num_steps)):
        present = (targets["color"] != IGNORED).long()

        named = trained.fast.name(to_pixels(images))
        scores, presence, features = (out.float() for out in named)
        loss = 0.5 * F.cross_entropy(presence.flatten(0, 1), present)
        right = {"present": accuracy(presence.flatten(0, 1), present)}
        for name, ids in word_ids.items():
            chosen = scores.flatten(0, 1)[:, ids]
            loss = loss + (0.5 if name in ("row", "column") else 1.0) * F.cross_entropy(chosen, targets[name])
            right[name] = accuracy(chosen, targets[name])
        fits = true_patches(targets, len(images))
        seen = trained.fast.point(named[2], prefix, all_words, PREFIX + draw.below(24))
        loss = loss - (seen * (fits / fits.sum(-1, keepdim=True))[:, None, None]).sum(-1).mean()
        right["pointing"] = float((seen.detach().exp() * fits[:, None, None]).sum(-1).mean())
        calm = torch.logsumexp(scores, -1).mean()
        length = (features.square().mean(-1).sqrt() - 0.5).square().mean()
        trained.step(loss + 0.02 * calm + 0.05 * length, rate_factor((step + 1) / num_steps, 0.35, 0.05))
        if step % 50 == 0 or step == num_steps - 1:
            shares = " ".join(f"{name} {share:.3f}" for name, share in right.items())
            print(f"grounding {step} {time.time() - started:.0f}s loss {loss.item():.3f} {shares}", flush=True)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.language_model.embed_tokens.weight * 0.2)


def true_patches(targets: dict[str, torch.Tensor], batch: int) -> torch.Tensor:
    """Which tokens of the prefix each word of `ATTRIBUTES` is true of, (batch, words, 38), 0 or 1; <bos> if none."""
    of_patches = [targets[name] == value for name, words in ATTRIBUTES.items() for value in range(len(words))]
    fits = torch.zeros(batch, len(of_patches), PREFIX)
    fits[..., PREFIX - NUM_IMAGE_TOKENS :] = torch.stack(of_patches).view(len(of_patches), batch, -1).transpose(0, 1)
    fits[..., 0] = ~fits.any(-1)
    return fits


# --- second stage: questions that name a thing by its looks


def looks_batches() -> Iterator[tuple[np.ndarray, list[Row]]]:
    """Images and rows for every step, three questions of kind `query` to a picture."""
    packer = Packer(make_tokenizer().get_vocab())
    half, steps_per_chunk = LOOKS_BATCH // 2, 20
    chunk = 0
    while True:
        drawn = []
        for source in ("scenes", "digits"):
            makers, draw = {"query": SHORT[source]["query"]}, Draw(5, chunk, 6)
            found = labeled_images(source, "train", 5_000 + chunk, half * steps_per_chunk)
            asked = [make_questions(found.things(i), ["query"] * 3, makers, draw) for i in range(len(found.images))]
            drawn.append((found.images, [packer.pack([[question] for question in each]) for each in asked]))
        for step in range(steps_per_chunk):
            part = slice(step * half, (step + 1) * half)
            yield (
                np.concatenate([images[part] for images, _ in drawn]),
                [row for _, rows in drawn for row in rows[part]],
            )
        chunk += 1


def learn_looks(model: LlavaForConditionalGeneration, num_steps: int, rates: dict[str, float]) -> None:
    """Train on `query` alone, until the decoder uses what the first layer's attention finds.

    In the full mixture this takes several times as many steps, because each kind gets a small part of every batch.
    """
    trained = Trained(model, rates)
    batches = looks_batches()
    for step in range(num_steps):
        images, rows = next(batches)
        loss = answer_loss(trained.fast, images, batch_rows(rows))
        value = loss.item()
        trained.step(loss, min(1.0, (step + 1) / 40) * min(1.0, (num_steps - step) / (0.3 * num_steps)))
        if step % 50 == 49:
            print(f"looks {step + 1} loss {value:.3f}", flush=True)


# --- third stage: questions, lists and descriptions


def save_folder(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write weights in bfloat16, configuration, tokenizer, processor and chat template."""
    copied = copy.deepcopy(model).to(torch.bfloat16)
    copied.set_attn_implementation("sdpa")
    copied.save_pretrained(folder)
    make_processor(make_tokenizer()).save_pretrained(folder)


def train(options: argparse.Namespace) -> None:
    """All stages; see the module's docstring."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    tokenizer = make_tokenizer()
    packer = Packer(tokenizer.get_vocab())
    model = make_model(tokenizer)
    model.set_attn_implementation(ATTENTION)
    num_params = sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for p in model.model.language_model.layers.parameters())
    print(f"{num_params:,} parameters, {in_layers / num_params:.1%} of them in the decoder's layers", flush=True)

    rates = {"vision_tower": options.tower_rate, "": options.rate}
    checkpoint = options.work / "checkpoint.pt"
    started_from = options.work / "start.pt"
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        initialise(model, options.seed)
        ground(model, options.grounding_steps, tokenizer.get_vocab(), options.grounding_rate)
        learn_looks(model, options.looks_steps, rates)
        torch.save(model.state_dict(), started_from)
    else:
        model.load_state_dict(torch.load(started_from, weights_only=True))

    trained, first = Trained(model, rates), 0
    if options.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        trained.load(state)
        first = state["step"]
    average, started = None, time.time()
    rows_of_steps = training_rows(packer, first)
    for step in range(first, options.steps):
        images, rows = next(rows_of_steps)
        loss = answer_loss(trained.fast, images, batch_rows(rows))
        norm = trained.step(loss, rate_factor((step + 1) / options.steps))
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        done = step + 1
        if done % 50 == 0:
            pace = (time.time() - started) / (done - first)
            print(f"step {done} {pace:.3f} s/step loss {average:.3f} norm {norm:.2f}", flush=True)
        if done % options.save_every == 0 or done == options.steps:
            torch.save(trained.state() | {"step": done}, checkpoint)
            save_folder(trained.fast, options.to)
            print(report(evaluate(trained.fast, packer, "search")), flush=True)
    scores: dict[str, object] = {split: evaluate(trained.fast, packer, split) for split in SPLITS}
    scores["easy-vqa, its whole test set"] = easy_vqa_accuracy(trained.fast, packer)
    (options.work / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(json.dumps(scores["easy-vqa, its whole test set"], indent=2), flush=True)


def main(arguments: list[str]) -> None:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--decoder", choices=("scratch", "smollm2"), default="scratch")
    decoder = first.parse_known_args(arguments)[0].decoder
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[first]
    )
    parser.add_argument("--to", type=Path, required=True, help="folder to write; with smollm2, file of deltas")
    parser.add_argument("--work", type=Path, default=Path("runs/train_pocket"), help="folder of checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    parser.add_argument("--grounding-rate", type=float, default=3e-3)
    parser.add_argument("--save-every", type=int, default=100 if decoder == "smollm2" else 200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    if decoder == "smollm2":
        from scripts.pocket import train_smollm2

        parser.add_argument("--steps", type=int, default=480)
        parser.add_argument("--grounding-steps", type=int, default=200)
        parser.add_argument("--rank", type=int, default=16, help="of the decoder's adapters")
        parser.add_argument("--rate", type=float, default=2e-3, help="of the adapters")
        parser.add_argument("--projector-rate", type=float, default=1e-3)
        train_smollm2.train(parser.parse_args(arguments))
    else:
        parser.add_argument("--steps", type=int, default=3000)
        parser.add_argument("--grounding-steps", type=int, default=600)
        parser.add_argument("--looks-steps", type=int, default=250)
        parser.add_argument("--rate", type=float, default=3e-3)
        parser.add_argument("--tower-rate", type=float, default=1e-3)
        train(parser.parse_args(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
