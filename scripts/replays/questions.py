"""The embedded LVLM's search questions, and what recorded trials come to on some of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from raysearch import models
from raysearch.data.encoding import Encoder
from raysearch.evaluation.benchmarks import load_benchmarks
from raysearch.evaluation.evaluator import evaluate
from raysearch.evaluation.questions import early_subset
from raysearch.evaluation.retention import Results, retention


class Questions:
    """The embedded LVLM's search questions, and what the dense model answers to them."""

    def __init__(self) -> None:
        self.benchmarks = load_benchmarks("pocket", "search")
        model, processor = models.load("pocket")
        family = models.family_for(model)
        self._parts: dict[float, dict[str, np.ndarray]] = {}
        self.dense = evaluate(model, family, Encoder(processor, family, 256), self.benchmarks)

    def part(self, share: float) -> dict[str, np.ndarray]:
        """Per benchmark, which of its questions are asked."""
        if share not in self._parts:
            asked = {b.name: {q.id for q in early_subset(b.questions, share)} for b in self.benchmarks}
            self._parts[share] = {
                b.name: np.array([question.id in asked[b.name] for question in b.questions]) for b in self.benchmarks
            }
        return self._parts[share]

    def retention(self, right: bytes, share: float) -> tuple[float, float]:
        """Retention and its standard error on a share of the questions, from one bit per question."""
        sizes = [len(benchmark.questions) for benchmark in self.benchmarks]
        bits = np.unpackbits(np.frombuffer(right, np.uint8))[: sum(sizes)].astype(float)
        scores = dict(zip(self.dense.scores, np.split(bits, np.cumsum(sizes)[:-1]), strict=True))
        found = retention(self._on_part(scores, share), self._on_part(self.dense.scores, share))
        return found.value, found.se

    def early_values(self, rows: Iterable[Mapping[str, Any]], share: float) -> list[dict[float, tuple[float, float]]]:
        """Retention and standard error of recorded trials on a share of the questions, by samples seen.

        Args:
            rows: of the table, with `samples_seen` and `right`.
            share: of each benchmark's questions.
        """
        return [
            {seen: self.retention(right, share) for seen, right in zip(row["samples_seen"], row["right"], strict=True)}
            for row in rows
        ]

    def _on_part(self, scores: Mapping[str, np.ndarray], share: float) -> Results:
        part, dense = self.part(share), self.dense
        chosen, images = (
            {name: values[name][rows] for name, rows in part.items()} for values in (scores, dense.images)
        )
        return Results(chosen, images, dense.chance)
