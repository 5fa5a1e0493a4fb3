"""What the drivers of all runtimes share; runs in a runtime's own environment, where only numpy is sure to be."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MIN_RUNS, MAX_RUNS, SECONDS_TO_MEASURE = 3, 20, 2.0


class Refusal(Exception):
    """A request that the runtime can't answer."""


class Model(Protocol):
    """A converted model with one sequence, as each driver has it."""

    def prepare(self, question: dict[str, Any]) -> Any:
        """What `prefill` needs of a question's pictures."""

    def prefill(self, ids: Sequence[int], pictures: Any) -> np.ndarray:
        """(vocabulary,) logits behind a prompt, from an empty cache."""

    def step(self, token: int) -> np.ndarray:
        """(vocabulary,) logits behind one further token."""

    def cache_bytes(self) -> int:
        """Of the sequence's keys and values."""

    def tokenize(self, text: str) -> list[int] | None:
        """Tokens of a text, special ones included; None if the runtime has no tokenizer."""


def answer(model: Model, ids: Sequence[int], pictures: Any, num: int, ends: Sequence[int]) -> Any:
    """The first logits behind a prompt, and up to `num` greedy tokens, an end of the answer included."""
    first = model.prefill(ids, pictures)
    tokens = [int(first.argmax())]
    while len(tokens) < num and tokens[-1] not in ends:
        tokens.append(int(model.step(tokens[-1]).argmax()))
    return first, tokens


def measure(model: Model, ids: Sequence[int], pictures: Any, num_decoded: int) -> dict[str, Any]:
    """Prefill and decoding of a batch of one; times are medians over the runs of SECONDS_TO_MEASURE."""
    prefill: list[float] = []
    decode: list[float] = []
    answer(model, ids, pictures, num_decoded, ())
    while len(prefill) < MIN_RUNS or (len(prefill) < MAX_RUNS and sum(prefill) + sum(decode) < SECONDS_TO_MEASURE):
        started = time.perf_counter()
        token = int(model.prefill(ids, pictures).argmax())
        prefill.append(time.perf_counter() - started)
        cache_bytes = model.cache_bytes()
        started = time.perf_counter()
        for _ in range(num_decoded):
            token = int(model.step(token).argmax())
        decode.append(time.perf_counter() - started)
    return {
        "num_prompt_tokens": len(ids),
        "prefill_seconds": statistics.median(prefill),
        "decode_tokens_per_second": num_decoded / statistics.median(decode),
        "kv_cache_bytes_per_1000_tokens": round(1000 * cache_bytes / len(ids)),
    }


def peak_bytes() -> int:
    """Peak memory of this process, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(load: Callable[[dict[str, Any]], Model]) -> None:
    """Answer the request in the file that the command line names, write the logits into the second, and print the rest
    as one JSON line; exits with 1 and one line after a refusal."""
    request_path, result_path = sys.argv[1:]
    request = json.loads(Path(request_path).read_text())
    found: dict[str, Any] = {"answers": [], "same_tokens": []}
    logits = {}
    try:
        model = load(request)
        for number, asked in enumerate(request["questions"]):
            pictures = model.prepare(asked)
            logits[str(number)], tokens = answer(model, asked["ids"], pictures, request["num_tokens"], request["ends"])
            found["answers"].append(tokens)
            own = model.tokenize(asked["text"])
            found["same_tokens"] += [] if own is None else [own == asked["text_ids"]]
            if number == 0:
                found["speed"] = measure(model, asked["ids"], pictures, request["num_decoded"])
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(1)
    found["speed"]["peak_memory_bytes"] = peak_bytes()
    np.savez(result_path, **logits)
    print(json.dumps(found))
