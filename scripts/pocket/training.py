"""What the embedded LVLM and its relative on SmolLM2 are trained with: packed rows, their attention, losses, scores."""

import collections
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, LlavaForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from raysearch.config.settings import EMBEDDED_BENCHMARKS
from raysearch.pocket.drawing import CELL, GRID, Draw, easy_vqa_image, easy_vqa_questions
from raysearch.pocket.model import PATCH_SIZE
from raysearch.pocket.question_templates import PocketQuestion, published_questions
from raysearch.pocket.splits import annotated_easy_vqa, annotated_images, labeled_images, question_draw, split_questions
from scripts.pocket.packing import IGNORED, PackedBatch, Packer, Row, batch_rows

PER_STEP = {"scenes": 5, "digits": 4, "easy-vqa": 1}
NUM_SHORT, NUM_LISTS, NUM_EASY_PAIRS = 9, 3, 3
NUM_EASY_IMAGES = 4000
CHAINED_PERCENT = 30
FEW_THINGS_STEPS = 150
STEPS_PER_CHUNK = 50
GROUNDING_BATCH = 96
ATTENTION = "binned"


def binned_attention(module, query, key, value, attention_mask=None, scaling=1.0, **_):
    """Attention of packed rows: a token sees the prefix and its own bin, so nothing else is computed.

    Without a mask (the vision tower) it is plain attention. Written as matrix products, since on CPUs the bfloat16
    backward of PyTorch's fused attention is several times slower.

    Args:
        attention_mask: what `PackedBatch.visible_in_bins` says, as (batch, bins, size, size) to be added to the scores.
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    query = (query * scaling).reshape(batch, groups, heads // groups, length, size)
    if attention_mask is None:
        seen = torch.softmax(query.flatten(2, 3) @ key.transpose(-1, -2), -1) @ value
        return seen.reshape(batch, heads, length, size).transpose(1, 2).contiguous(), None
    num_bins, bin_size = attention_mask.shape[1:3]
    prefix_size = length - num_bins * bin_size
    early, late = query[..., :prefix_size, :], query[..., prefix_size:, :]
    causal = torch.full((prefix_size, prefix_size), -1e9, dtype=query.dtype).triu(1)
    first_keys, first_values = key[:, :, None, :prefix_size], value[:, :, None, :prefix_size]
    prefix = torch.softmax(early @ first_keys.transpose(-1, -2) + causal, -1) @ first_values

    # (batch, groups, queries of a group, bins, bin_size, size); a bin's keys are shared by the queries of a group
    late = late.unflatten(3, (num_bins, bin_size)).transpose(2, 3)
    per_bin = late.flatten(3, 4)  # (batch, groups, bins, queries of a group * bin_size, size)
    bin_keys = key[:, :, prefix_size:].unflatten(2, (num_bins, bin_size))
    bin_values = value[:, :, prefix_size:].unflatten(2, (num_bins, bin_size))
    own = (per_bin @ bin_keys.transpose(-1, -2)).unflatten(3, (heads // groups, bin_size))
    own = (own + attention_mask[:, None, :, None]).flatten(3, 4)
    shared = per_bin.flatten(2, 3) @ first_keys[:, :, 0].transpose(-1, -2)
    weights = torch.softmax(torch.cat([shared.unflatten(2, own.shape[2:4]), own], -1), -1)
    seen = weights[..., prefix_size:] @ bin_values
    seen = seen + (weights[..., :prefix_size].flatten(2, 3) @ first_values[:, :, 0]).unflatten(2, own.shape[2:4])
    seen = seen.unflatten(3, (heads // groups, bin_size)).transpose(2, 3).flatten(3, 4)
    return torch.cat([prefix, seen], 3).reshape(batch, heads, length, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, binned_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


AttentionInterface.register(ATTENTION, binned_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def rate_factor(done: float, flat_until: float = 0.4, warm_up: float = 0.02, least: float = 0.01) -> float:
    """Warm up, stay, then fall linearly; `done` runs from 0 to 1."""
    return min(1.0, done / warm_up) * min(1.0, max(least, (1 - done) / (1 - flat_until)))


def to_pixels(images: np.ndarray, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """(batch, 48, 48, 3) uint8 -> (batch, 3, 48, 48) in [-1, 1], as the processor does it."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)


def labelled_pictures(num_steps: int) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """`GROUNDING_BATCH` images for every step, and the attributes of their patches, flat (batch * 36,)."""
    cells, half = np.arange(GRID * GRID), GROUNDING_BATCH // 2
    for step in range(num_steps):
        if step % STEPS_PER_CHUNK == 0:
            size = half * STEPS_PER_CHUNK
            chunk = 100_000 + step // STEPS_PER_CHUNK  # far from the chunks of the second stage
            drawn = [labeled_images(source, "train", chunk, size) for source in ("scenes", "digits")]
        rows = slice(step % STEPS_PER_CHUNK * half, (step % STEPS_PER_CHUNK + 1) * half)
        images = np.concatenate([each.images[rows] for each in drawn])
        labels = {name: np.concatenate([each.labels[name][rows] for each in drawn]) for name in drawn[0].labels}
        labels["row"] = np.tile(cells // GRID, (len(images), 1))
        labels["column"] = np.tile(cells % GRID, (len(images), 1))
        yield images, patch_labels(labels)


def patch_labels(labels: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Cell labels (batch, 9) spread over the cells' patches: flat (batch * 36,), IGNORED where there is none."""
    per_side = CELL // PATCH_SIZE
    spread = {}
    for name, label in labels.items():
        grid = label.reshape(-1, GRID, GRID).repeat(per_side, axis=1).repeat(per_side, axis=2)
        flat = torch.from_numpy(grid.reshape(-1))
        spread[name] = torch.where(flat < 0, IGNORED, flat)
    return spread


def accuracy(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of right answers among the targets that are not IGNORED."""
    known = targets != IGNORED
    return float((scores.argmax(-1) == targets)[known].float().mean())


def training_rows(
    packer: Packer, step: int, per_step: dict[str, int] = PER_STEP
) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """Images and rows of every step from `step` on; what a step holds depends on its number alone.

    Args:
        per_step: pictures of a step, by source.
    """
    chunk = step // STEPS_PER_CHUNK
    while True:
        few = chunk * STEPS_PER_CHUNK < FEW_THINGS_STEPS
        draw = Draw(77, chunk)
        by_source = {}
        for source, count in per_step.items():
            size = count * STEPS_PER_CHUNK
            if source == "easy-vqa":
                easy_draw = question_draw(source, "train", 1 + chunk)
                numbers = (easy_draw.below(NUM_EASY_IMAGES) for _ in range(size))
                asked = [annotated_easy_vqa("train", number, NUM_EASY_PAIRS, easy_draw) for number in numbers]
            else:
                num_things = (2, 4) if few else None
                stream = annotated_images(source, "train", 1 + chunk, size, NUM_SHORT, NUM_LISTS, num_things)
                asked = list(stream)
            by_source[source] = asked
        for index in range(STEPS_PER_CHUNK):
            chosen = [a for s, count in per_step.items() for a in by_source[s][index * count : (index + 1) * count]]
            rows = []
            for asked in chosen:
                questions = draw.shuffled(asked.short + asked.lists)
                described = [asked.description] if asked.description else []
                rows.append(packer.pack(as_conversations(questions, described, draw)))
            if chunk * STEPS_PER_CHUNK + index >= step:
                yield np.stack([asked.pixels for asked in chosen]), rows
        chunk += 1


def as_conversations(
    questions: list[PocketQuestion], described: list[PocketQuestion], draw: Draw
) -> list[list[PocketQuestion]]:
    """Questions that each stand alone, or, for `CHAINED_PERCENT` of the pictures, conversations of up to four turns."""
    if draw.below(100) >= CHAINED_PERCENT or not questions:
        return [[question] for question in questions + described]
    chained = [questions[at : at + 4] for at in range(0, len(questions), 4)]
    chained[-1] = chained[-1][:3] + described
    return chained


def hidden_states(model: LlavaForConditionalGeneration, images: np.ndarray, batch: PackedBatch) -> torch.Tensor:
    """Last hidden states of packed rows, (batch, seq, hidden)."""
    dtype = model.lm_head.weight.dtype
    hidden_from = torch.from_numpy(~batch.visible_in_bins())
    mask = torch.zeros(hidden_from.shape, dtype=dtype).masked_fill_(hidden_from, -1e9)
    return model.model(
        input_ids=torch.from_numpy(batch.tokens),
        pixel_values=to_pixels(images, dtype),
        attention_mask=mask,
        position_ids=torch.from_numpy(batch.positions),
        use_cache=False,
    ).last_hidden_state


def answer_loss(model: LlavaForConditionalGeneration, images: np.ndarray, batch: PackedBatch) -> torch.Tensor:
    """Weighted cross-entropy of the answers' tokens."""
    known = torch.from_numpy(batch.labels != IGNORED)
    labels, weights = torch.from_numpy(batch.labels)[known], torch.from_numpy(batch.weights)[known]
    logits = model.lm_head(hidden_states(model, images, batch)[known]).float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


Picture = tuple[np.ndarray, list[PocketQuestion]]


@torch.no_grad()
def exact_matches(model: LlavaForConditionalGeneration, packer: Packer, asked: list[Picture]) -> dict[str, list[bool]]:
    """Whether each answer is right to the last word, by kind and under "all", with questions packed by picture."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for at in range(0, len(asked), 50):
        chosen = asked[at : at + 50]
        rows = [packer.pack([[question] for question in questions]) for _, questions in chosen]
        batch = batch_rows(rows, packer.bin_size)
        hidden = hidden_states(model, np.stack([image for image, _ in chosen]), batch)
        known = batch.labels != IGNORED
        matches = np.zeros_like(known)
        matches[known] = model.lm_head(hidden[torch.from_numpy(known)]).argmax(-1).numpy() == batch.labels[known]
        for row, (_, questions) in enumerate(chosen):
            for turn, question in enumerate(questions, 1):
                match = bool(matches[row][batch.turns[row] == turn].all())
                right[question.kind].append(match)
                right["all"].append(match)
    return right


def right_shares(right: dict[str, list[bool]]) -> dict[str, float]:
    """Share of right answers by kind."""
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


def evaluate(
    model: LlavaForConditionalGeneration, packer: Packer, split: str, num: int | None = None
) -> dict[str, dict[str, float]]:
    """Exact match per benchmark and kind, and over "all" of it; on the first `num` questions of each."""
    scores = {}
    for benchmark in EMBEDDED_BENCHMARKS:
        by_image: dict[str, Picture] = {}
        for asked, question in split_questions(benchmark, split)[:num]:
            by_image.setdefault(asked.image_id, (asked.pixels, []))[1].append(question)
        scores[benchmark] = right_shares(exact_matches(model, packer, list(by_image.values())))
    return scores


def easy_vqa_accuracy(model: LlavaForConditionalGeneration, packer: Packer) -> dict[str, float]:
    """Accuracy on all published test questions of easy-VQA, unbalanced as they are."""
    asked = [
        (easy_vqa_image("test", image_id), list(published_questions("test", image_id)))
        for image_id in easy_vqa_questions("test")
    ]
    return right_shares(exact_matches(model, packer, asked))


def report(scores: dict[str, dict[str, float]]) -> str:
    """One line per benchmark."""
    lines = []
    for benchmark, kinds in scores.items():
        shares = " ".join(f"{kind} {share:.2f}" for kind, share in kinds.items() if kind != "all")
        lines.append(f"  {benchmark:12} {kinds['all']:.3f}  {shares}")
    return "\n".join(lines)
