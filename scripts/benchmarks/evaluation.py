"""Questions a second of an evaluation, three ways of saving work, each against the same without it.

    python scripts/benchmarks/evaluation.py                    # the embedded LVLM, dense and pruned: minutes
    python scripts/benchmarks/evaluation.py --repeats 1        # a short run
    python scripts/benchmarks/evaluation.py joined kept        # some of the parts

- joined: questions about one picture in one row, against each in a row of its own.
- kept: answers generated from a kept KV prefix of picture and question's beginning, against from the whole prompt.
- workers: the questions shared out among two workers, against one that answers all.

Both ways ask the same model the same questions with the same code, in turns, and the pairs are compared in CPU time,
workers by the clock too, which needs idle cores; the first turn of each is a warm-up. The last column counts answers or
scores that come out differently: two tokens that are equally likely but for rounding.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.data.encoding import collate, to_model
from raysearch.evaluation import shared_prefix
from raysearch.evaluation.evaluator import generate_answers
from raysearch.trials.context import TrialContext
from scripts.benchmarks.recovery import clock, compare

RATIOS = (0.0, 0.3, 0.6)
NUM_TOKENS = 16
NUM_WORKERS = 2
NUM_ABOUT_ONE = 8


def rows_of(
    context: TrialContext, model: Any, check: str, ask: Callable[[Any], list[Any]], repeats: int
) -> tuple[str, int]:
    """A row of the table, and the number of other answers: with the shared prefix, and with `check` failing."""
    answers: dict[bool, list[Any]] = {}

    def timed(is_shared: bool) -> float:
        started = clock()
        if is_shared:
            answers[True] = ask(model)
        else:
            with patch.object(shared_prefix, check, return_value=False):
                answers[False] = ask(model)
        return clock() - started

    num_questions = sum(len(benchmark.questions) for benchmark in context.questions)
    row = compare(check, lambda: timed(True), lambda: timed(False), num_questions, repeats)
    return row, sum(one != other for one, other in zip(answers[True], answers[False], strict=True))


def shared(context: TrialContext, parts: list[str], repeats: int) -> None:
    """Rows of the parts `joined` and `kept`."""

    def scored(model: Any) -> list[Any]:
        return np.concatenate(list(context.evaluate(model, context.questions).scores.values())).tolist()

    def generated(model: Any) -> list[Any]:
        with context.vision.serving(model):
            asked = [(b.questions, NUM_TOKENS) for b in context.questions]
            return [answer for one in asked for answer in generate_answers(model, context.encoder, *one)]

    ways = {"joined": ("honours_mask", scored), "kept": ("keeps_prompts", generated)}
    random = {"random": context.importance("random", 0)}
    for ratio in RATIOS:
        recipe = Recipe(mode="widthwise", ratio=ratio, criterion="random")
        model = context.prune(recipe, random) if ratio else context.model
        for part in (part for part in ways if part in parts):
            check, ask = ways[part]
            row, num_other = rows_of(context, model, check, ask, repeats)
            print(f"| {part}, {ratio:.0%} of widths less {row[row.index('|', 2) :]} {num_other} |", flush=True)


def long_pictures(repeats: int) -> None:
    """The row of `kept` for pictures of 576 tokens, as LLaVA-1.5 has them: 32 tokens ask, 8 answer."""
    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    vision.image_size, vision.patch_size = 336, 14
    text = LlamaConfig(vocab_size=1000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8)
    text.num_attention_heads, text.num_key_value_heads = 8, 8
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=999)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    encoder: Any = SimpleNamespace(collate=partial(collate, pad_id=0), pad_id=0)
    picture = torch.full((576,), 999)
    questions = torch.randint(1, 900, (NUM_ABOUT_ONE, 32))
    rows = [{"input_ids": torch.cat([picture, own]), "pixel_values": torch.zeros(1, 3, 336, 336)} for own in questions]
    rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    answers = {}

    @torch.inference_mode()
    def timed(is_kept: bool) -> float:
        started = clock()
        whole = to_model(collate(rows, 0, "left"), model) if not is_kept else None
        inputs = whole or shared_prefix.kept_prompts(model, encoder, [rows])
        made = model.generate(**inputs, do_sample=False, max_new_tokens=8, min_new_tokens=8, pad_token_id=0)
        answers[is_kept] = made[:, inputs["input_ids"].shape[1] :]
        return clock() - started

    row = compare("kept", lambda: timed(True), lambda: timed(False), len(rows), repeats)
    num_other = int((answers[True] != answers[False]).any(1).sum())
    print(
        f"| kept, {NUM_ABOUT_ONE} questions on 576 tokens, random weights {row[row.index('|', 2) :]} {num_other} |",
        flush=True,
    )


def work(rank: int, num_workers: int, folder: str, space: Path, repeats: int) -> None:
    """One worker of a slot: write its CPU seconds, those of the clock, and the scores."""
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    os.environ |= {**address, "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo")
    context = TrialContext(SearchSpace.load(space))
    cpu_seconds, wall_seconds = [], []
    for _ in range(repeats + 1):
        torch.distributed.barrier()
        started = clock(), time.perf_counter()
        results = context.evaluate(context.model, context.questions)
        cpu_seconds.append(clock() - started[0])
        wall_seconds.append(time.perf_counter() - started[1])
    scores = np.concatenate(list(results.scores.values()))
    name = f"{num_workers}-{rank}.npz"
    np.savez(Path(folder) / name, cpu=cpu_seconds[1:], wall=wall_seconds[1:], scores=scores)
    torch.distributed.destroy_process_group()


def workers(space: Path, repeats: int) -> None:
    """The rows of the part `workers`: the busiest worker of two against the only one, and the clock."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for num in (1, NUM_WORKERS):
            torch.multiprocessing.spawn(work, (num, folder, space, repeats), nprocs=num)
            found[num] = [np.load(Path(folder) / f"{num}-{rank}.npz") for rank in range(num)]
        scores = [found[num][0]["scores"] for num in (1, NUM_WORKERS)]
        for seconds, name in (("cpu", "workers, two against one"), ("wall", "workers, by the clock")):
            alone, busiest = found[1][0][seconds], np.max([one[seconds] for one in found[NUM_WORKERS]], axis=0)
            quotients = sorted(alone / busiest)
            speeds = [len(scores[0]) / statistics.median(taken) for taken in (busiest, alone)]
            print(
                f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {statistics.median(quotients):.2f} "
                f"({quotients[0]:.2f} to {quotients[-1]:.2f}) | {int(np.sum(scores[0] != scores[1]))} |",
                flush=True,
            )


def main() -> None:
    """Print a row per part and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help="joined, kept, workers; default all")
    parser.add_argument("--space", type=Path, default=EMBEDDED_SPACE, help="names the model and the benchmarks")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    parts = options.parts or ["joined", "kept", "workers"]
    torch.set_num_threads(1)
    context = TrialContext(SearchSpace.load(options.space))
    questions = [question for benchmark in context.questions for question in benchmark.questions]
    print(f"{len(questions)} questions about {len({q.image_id for q in questions})} pictures\n")
    print("| | questions/s | without it | times as fast, median (range) | other answers |")
    print("|---|---|---|---|---|")
    shared(context, parts, options.repeats)
    if "kept" in parts:
        long_pictures(options.repeats)
    if "workers" in parts:
        workers(options.space, options.repeats)


if __name__ == "__main__":
    main()
