"""Ask ONNX graphs in ONNX Runtime; runs in its own environment and is imported by nothing.

    python -I raysearch/runtimes/onnxruntime_driver.py REQUEST.json RESULT.npz

The request is that of `raysearch.runtimes.proof`, the graphs those of `onnx_converter`. Prints one JSON line.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

MIN_RUNS, MAX_RUNS, SECONDS_TO_MEASURE = 3, 20, 2.0


class Model:
    """The graphs of a model, and one sequence."""

    def __init__(self, request: dict[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = request["num_threads"]
        options.log_severity_level = 3
        folder = Path(request["model"])
        self.graphs = {
            path.stem: ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in folder.glob("*.onnx")
        }
        decoder = self.graphs["decoder"]
        self.outputs = [output.name for output in decoder.get_outputs()]
        self.past_inputs = [given for given in decoder.get_inputs() if given.name.startswith("past.")]
        self.image_token = request["image_token"]
        self.past: dict[str, np.ndarray] = {}
        self.num_past = 0

    def embed(self, ids: Sequence[int], tensors: str = "") -> np.ndarray:
        """(1, tokens, hidden) embeddings, with the features of pictures in place of the image tokens."""
        (found,) = self.graphs["embeddings"].run(None, {"tokens": np.array([ids])})
        if tensors and "pictures" in self.graphs:
            graph = self.graphs["pictures"]
            with np.load(tensors, allow_pickle=False) as stored:
                given = {one.name: stored[one.name] for one in graph.get_inputs()}
            (features,) = graph.run(None, given)
            found[np.array([ids]) == self.image_token] = features
        return found

    def step(self, embeddings: np.ndarray) -> np.ndarray:
        """(vocabulary,) logits behind further embeddings."""
        num = embeddings.shape[1]
        given = {
            "embeddings": embeddings,
            "mask": np.ones((1, self.num_past + num), np.int64),
            "positions": np.arange(self.num_past, self.num_past + num)[None],
            **self.past,
        }
        found = dict(zip(self.outputs, self.graphs["decoder"].run(None, given), strict=True))
        self.past = {f"past.{name}": value for name, value in found.items() if name != "logits"}
        self.num_past += num
        return found["logits"].reshape(-1)

    def prefill(self, ids: Sequence[int], tensors: str) -> np.ndarray:
        """(vocabulary,) logits behind a prompt, from an empty cache."""
        self.past = {one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in self.past_inputs}
        self.num_past = 0
        return self.step(self.embed(ids, tensors))

    def answer(self, ids: Sequence[int], tensors: str, num: int, ends: Sequence[int]) -> Any:
        """The first logits behind a prompt, and up to `num` greedy tokens, an end of the answer included."""
        first = logits = self.prefill(ids, tensors)
        tokens = [int(logits.argmax())]
        while len(tokens) < num and tokens[-1] not in ends:
            tokens.append(int(self.step(self.embed(tokens[-1:])).argmax()))
        return first, tokens


def measure(model: Model, ids: Sequence[int], tensors: str, num_decoded: int) -> dict[str, Any]:
    """Prefill and decoding of a batch of one; times are medians over the runs of SECONDS_TO_MEASURE."""
    prefill: list[float] = []
    decode: list[float] = []
    model.answer(ids, tensors, num_decoded, ())
    while len(prefill) < MIN_RUNS or (len(prefill) < MAX_RUNS and sum(prefill) + sum(decode) < SECONDS_TO_MEASURE):
        started = time.perf_counter()
        token = int(model.prefill(ids, tensors).argmax())
        prefill.append(time.perf_counter() - started)
        cache_bytes = sum(value.nbytes for value in model.past.values())
        started = time.perf_counter()
        for _ in range(num_decoded):
            token = int(model.step(model.embed([token])).argmax())
        decode.append(time.perf_counter() - started)
    return {
        "num_prompt_tokens": len(ids),
        "prefill_seconds": statistics.median(prefill),
        "decode_tokens_per_second": num_decoded / statistics.median(decode),
        "kv_cache_bytes_per_1000_tokens": round(1000 * cache_bytes / len(ids)),
    }


def main(request_path: str, result_path: str) -> None:
    """Answer a request."""
    request = json.loads(Path(request_path).read_text())
    model = Model(request)
    found: dict[str, Any] = {"answers": [], "same_tokens": []}
    logits = {}
    for number, asked in enumerate(request["questions"]):
        tensors = asked["tensors"] if request["image_token"] is not None else ""
        first, tokens = model.answer(asked["ids"], tensors, request["num_tokens"], request["ends"])
        logits[str(number)] = first
        found["answers"].append(tokens)
        if number == 0:
            found["speed"] = measure(model, asked["ids"], tensors, request["num_decoded"])
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    found["speed"]["peak_memory_bytes"] = 1024 * peak
    np.savez(result_path, **logits)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
