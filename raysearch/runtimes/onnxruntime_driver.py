"""Ask ONNX graphs in ONNX Runtime; runs in its own environment and is imported by nothing.

    python -I raysearch/runtimes/onnxruntime_driver.py REQUEST.json RESULT.npz

The request is that of `raysearch.runtimes.proof`, the graphs those of `onnx_converter`. Prints one JSON line.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

sys.path.append(str(Path(__file__).parent))
from ask_model import main


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

    def prepare(self, question: dict[str, Any]) -> str:
        """The file with the question's pictures; empty for a model that sees none."""
        return "" if self.image_token is None else str(question["tensors"])

    def tokenize(self, text: str) -> None:
        """ONNX Runtime has no tokenizer."""

    def _embed(self, ids: Sequence[int], tensors: str = "") -> np.ndarray:
        """(1, tokens, hidden) embeddings, with the features of pictures in place of the image tokens."""
        (found,) = self.graphs["embeddings"].run(None, {"tokens": np.array([ids])})
        if tensors and "pictures" in self.graphs:
            graph = self.graphs["pictures"]
            with np.load(tensors, allow_pickle=False) as stored:
                given = {one.name: stored[one.name] for one in graph.get_inputs()}
            (features,) = graph.run(None, given)
            found[np.array([ids]) == self.image_token] = features
        return found

    def _append(self, embeddings: np.ndarray) -> np.ndarray:
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

    def prefill(self, ids: Sequence[int], pictures: str) -> np.ndarray:
        """(vocabulary,) logits behind a prompt, from an empty cache."""
        self.past = {one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in self.past_inputs}
        self.num_past = 0
        return self._append(self._embed(ids, pictures))

    def step(self, token: int) -> np.ndarray:
        """(vocabulary,) logits behind one further token."""
        return self._append(self._embed([token]))

    def cache_bytes(self) -> int:
        """Of the sequence's keys and values."""
        return sum(value.nbytes for value in self.past.values())


if __name__ == "__main__":
    main(Model)
