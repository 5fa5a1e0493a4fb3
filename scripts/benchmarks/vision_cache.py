"""A training step with the vision tower run once per picture against one that runs it every time.

    python scripts/benchmarks/vision_cache.py                             # the embedded LVLM, a minute on one core
    python scripts/benchmarks/vision_cache.py --model smolvlm-256m --batch-size 1 --steps 1 --repeats 3   # ten minutes

`smolvlm-256m` has the shape of SmolVLM-256M with random weights, and rows of one 512 x 512 tile (64 image tokens) and
64 words; how long a step takes does not depend on what weights and pictures hold. Both sides are the same model in one
process, in turns: forward, backward, and AdamW on the projector and the decoder, in bf16 where it is fast. The first
turn of each is a warm-up, in which all pictures become known.
"""

import argparse
import statistics
import time

import torch
import transformers as hf
from transformers import PreTrainedModel

from raysearch import models
from raysearch.data.encoding import Batch, Encoder
from raysearch.data.loading import load_samples
from raysearch.models.vision_cache import VisionCache
from raysearch.recovery.deepspeed_engine import compute_dtype, start_distributed

NUM_WORDS, NUM_IMAGE_TOKENS, IMAGE_SIZE = 64, 64, 512


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket, smolvlm-256m, or a model's folder")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start_distributed()  # as training does, which also keeps freed memory
    dtype = compute_dtype("auto")
    model, batches = prepared(options.model, dtype, options.batch_size, options.steps)
    family = models.family_for(model)
    if not torch.cuda.is_available():
        family.decoder(model).set_attn_implementation("eager")  # as in training
    model.requires_grad_(False)
    for module in (*family.projector(model), family.decoder(model)):
        module.requires_grad_(True)
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    cache = VisionCache(family, 2e9)

    def steps() -> float:
        started = time.perf_counter()
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    def once() -> float:
        with cache.serving(model):
            return steps()

    once(), steps()
    pairs = [(once(), steps()) for _ in range(options.repeats)]
    assert cache.num_images, "the tower of this model can't be cached"
    quotients = sorted(each / known for known, each in pairs)
    num_samples = options.batch_size * len(batches)
    once_ms, each_ms = (1000 * statistics.median(side) / num_samples for side in zip(*pairs, strict=True))
    precision = str(dtype).removeprefix("torch.")
    print(
        f"{options.model}, {precision}, batch {options.batch_size}, {options.threads} threads: {once_ms:.1f} ms a "
        f"sample with the tower's output known, {each_ms:.1f} without; {statistics.median(quotients):.2f} times as "
        f"fast ({quotients[0]:.2f} to {quotients[-1]:.2f} in {options.repeats} pairs)"
    )


def prepared(name: str, dtype: torch.dtype, batch_size: int, num_steps: int) -> tuple[PreTrainedModel, list[Batch]]:
    """A model, and the batches of so many steps."""
    if name == "smolvlm-256m":
        model = hf.SmolVLMForConditionalGeneration._from_config(_smolvlm_256m(), dtype=dtype)
        return model.train(), [_random_batch(model, batch_size, dtype) for _ in range(num_steps)]
    model, processor = models.load(name, dtype)
    encoder = Encoder(processor, models.family_for(model), 2048)
    rows = [encoder.encode(sample) for sample in load_samples("pocket")[: batch_size * num_steps]]
    batches = [encoder.collate(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    for batch in batches:
        batch["pixel_values"] = batch["pixel_values"].to(dtype)
    return model.train(), batches


def _smolvlm_256m() -> hf.SmolVLMConfig:
    """Of the size of SmolLM2-135M behind SigLIP-B/16 for 512 pixels; token ids are arbitrary."""
    text = hf.LlamaConfig(
        vocab_size=49280,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        pad_token_id=2,
    )
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
    }
    return hf.SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=49190, scale_factor=4, tie_word_embeddings=False
    )


def _random_batch(model: PreTrainedModel, batch_size: int, dtype: torch.dtype) -> Batch:
    words = torch.randint(3, 49000, (batch_size, NUM_WORDS))
    images = torch.full((batch_size, NUM_IMAGE_TOKENS), model.config.image_token_id)
    ids = torch.cat([images, words], 1)
    labels = ids.masked_fill(ids == model.config.image_token_id, -100)
    pixels = torch.randn(batch_size, 1, 3, IMAGE_SIZE, IMAGE_SIZE).to(dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


if __name__ == "__main__":
    main()
