"""A proof that a converted checkpoint computes in its runtime what it computes in transformers.

Both get the same pictures and the same tokens, so that a difference is one of weights or arithmetic. Whether the
runtime splits texts into the same tokens is compared apart from that.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from raysearch import models
from raysearch.config.benchmarks import BenchmarkEntry
from raysearch.config.budget import rate_text, size_text
from raysearch.data.encoding import Encoder
from raysearch.data.pictures import open_image
from raysearch.data.samples import Sample
from raysearch.errors import InputError, first_line
from raysearch.evaluation.benchmarks import load_benchmarks
from raysearch.export.card import speed_rows
from raysearch.export.stock_check import device_name
from raysearch.logging import quiet
from raysearch.runtimes.environments import Environment, run
from raysearch.study.front import Speed

NUM_QUESTIONS = 20
MAX_ANSWER_TOKENS = 16
NUM_DECODED = 32
_MIN_SIDE = 256
"""Pixels; smaller pictures are enlarged by whole factors, since runtimes have least sizes of their own."""
_ROOM = 64
_MAX_LENGTH = 2**20


@dataclass(frozen=True)
class Reference:
    """Questions as tokens and pictures, and what transformers answers in fp32.

    Attributes:
        questions: for the driver: `ids`, `text` with its `text_ids`, `pictures` and `tensors` (files).
        answers: greedy tokens of each.
        logits: (num_questions, vocabulary), of each answer's first token.
        ends: tokens that end an answer.
    """

    questions: list[dict[str, Any]]
    answers: list[list[int]]
    logits: np.ndarray
    ends: list[int]
    image_token: int | None

    def request(self, files: dict[str, str | None], num_questions: int = NUM_QUESTIONS) -> dict[str, Any]:
        """What a driver is asked."""
        asked = self.questions[:num_questions]
        return files | {
            "questions": asked,
            "num_tokens": MAX_ANSWER_TOKENS,
            "num_decoded": NUM_DECODED,
            "num_context": max(len(one["ids"]) for one in asked) + NUM_DECODED + _ROOM,
            "num_threads": torch.get_num_threads(),
            "ends": self.ends,
            "image_token": self.image_token,
        }


@dataclass(frozen=True)
class Proof:
    """What a runtime answers, beside transformers.

    Attributes:
        package: the runtime's package and version.
        num_same: questions with the same greedy answer, token for token.
        num_same_tokens: questions whose text the runtime splits into the same tokens; None if it has no tokenizer.
        largest_difference: of a logit of an answer's first token; `logit_std` is the logits' own standard deviation.
        with_pictures: whether the questions have pictures.
        dense: the speed of the dense model in the same runtime.
        note: what the runtime can't do, if anything.
    """

    package: str
    num_questions: int
    num_same: int
    num_same_tokens: int | None
    largest_difference: float
    logit_std: float
    with_pictures: bool
    speed: Speed
    dense: Speed | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is the same model: half of the answers are the same, or no logit differs by more than a quarter of
        the logits' standard deviation. Arithmetic of 16 bits stays below a ninth of it; pictures that a runtime resizes
        in its own way may not."""
        return 2 * self.num_same >= self.num_questions or self.largest_difference <= self.logit_std / 4

    def rows(self) -> dict[str, str]:
        """Lines for the model card, by name."""
        asked = "questions about pictures" if self.with_pictures else "questions without pictures"
        rows = {
            "runtime": self.package,
            "same greedy answers as transformers": f"{self.num_same} of {self.num_questions} {asked}",
            "largest difference of a logit": f"{self.largest_difference:.3g}; their standard deviation is "
            f"{self.logit_std:.3g}",
        }
        if self.num_same_tokens is not None:
            rows["texts with the same tokens"] = f"{self.num_same_tokens} of {self.num_questions}"
        return rows | ({"not possible": self.note} if self.note else {}) | speed_rows(self.speed, self.dense)

    def describe(self) -> str:
        """One line for people."""
        faster = ""
        if self.dense:
            ratio = self.speed.decode_tokens_per_second / self.dense.decode_tokens_per_second
            faster = f" ({ratio:.2f} times the dense model's)"
        return (
            f"{self.package}: {self.num_same} of {self.num_questions} answers as in transformers, largest difference "
            f"of a logit {self.largest_difference:.3g}; {rate_text(self.speed.decode_tokens_per_second)}{faster}, "
            f"peak memory {size_text(self.speed.peak_memory_bytes)}"
        )


def questions_of(benchmarks: str | Sequence[BenchmarkEntry] = "pocket") -> list[Sample]:
    """Held-out questions for a proof, from all benchmarks in turn.

    Raises:
        InputError: they can't be read.
    """
    found = [[question.sample for question in of.questions] for of in load_benchmarks(benchmarks, "heldout")]
    in_turn = [sample for turn in zip_longest(*found) for sample in turn if sample is not None]
    return in_turn[:NUM_QUESTIONS]


def ask_transformers(checkpoint: Path, samples: Sequence[Sample], with_pictures: bool, folder: Path) -> Reference:
    """Ask a checkpoint in fp32.

    Args:
        with_pictures: else the questions' text alone is asked.
        folder: where the pictures and tensors are put.

    Raises:
        InputError: it can't be loaded or asked.
    """
    folder.mkdir(parents=True)
    try:
        with quiet(), torch.inference_mode():
            config = AutoConfig.from_pretrained(str(checkpoint))
            model = models.model_class(config).from_pretrained(str(checkpoint), dtype=torch.float32).eval()
            family, processor = models.family_for(model), models.load_processor(checkpoint)
            encoder = Encoder(processor, family, _MAX_LENGTH, cache_bytes=0)
            asked = [
                _ask(model, encoder, _prepared(sample, with_pictures, folder / str(number)), folder / str(number))
                for number, sample in enumerate(samples)
            ]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{checkpoint}: can't be asked in transformers ({first_line(error)})") from None
    ends = model.generation_config.eos_token_id
    image_token = family.image_token_id(config) if with_pictures else None
    return Reference(
        [question for question, _, _ in asked],
        [answer for _, answer, _ in asked],
        np.stack([logits for _, _, logits in asked]),
        ends if isinstance(ends, list) else [ends],
        image_token,
    )


def _prepared(sample: Sample, with_pictures: bool, folder: Path) -> Sample:
    """The sample with its pictures as files, large enough; or without them."""
    folder.mkdir()
    if not with_pictures:
        texts = [
            {**turn, "content": [part for part in turn["content"] if part["type"] == "text"]}
            for turn in sample.messages
        ]
        return replace(sample, images=(), messages=texts)
    paths = []
    for number, picture in enumerate(sample.images):
        image = open_image(picture)
        factor = -(-_MIN_SIDE // min(image.size))
        if factor > 1:
            image = image.resize((image.width * factor, image.height * factor), resample=0)
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    return replace(sample, images=tuple(paths))


def _ask(model: Any, encoder: Encoder, sample: Sample, folder: Path) -> tuple[dict[str, Any], list[int], np.ndarray]:
    text, inputs = encoder.prompt_text(sample), encoder.collate([encoder.encode_prompt(sample)])
    num = inputs["input_ids"].shape[1]
    made = model.generate(
        **inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    tensors = folder / "tensors.npz"
    np.savez(tensors, **{name: value.numpy() for name, value in inputs.items()})
    question = {
        "ids": inputs["input_ids"][0].tolist(),
        "text": text,
        "text_ids": encoder.tokenizer(text, add_special_tokens=False)["input_ids"],
        "pictures": [str(path) for path in sample.images],
        "tensors": str(tensors),
    }
    return question, made.sequences[0, num:].tolist(), made.logits[0][0].float().numpy()


def prove(
    runtime: Environment, driver: Path, files: dict[str, str | None], reference: Reference, folder: Path
) -> Proof:
    """Ask the runtime what transformers was asked, and measure it.

    Args:
        files: of the converted model, as the driver takes them.
        folder: for files in passing.

    Raises:
        InputError: the runtime can't load or evaluate the model.
    """
    found, logits = ask_runtime(runtime, driver, reference.request(files), folder)
    same = [given == wanted for given, wanted in zip(found["answers"], reference.answers, strict=True)]
    return Proof(
        runtime.version,
        len(same),
        sum(same),
        sum(found["same_tokens"]) if found["same_tokens"] else None,
        float(np.abs(logits - reference.logits).max()),
        float(reference.logits.std(axis=1).mean()),
        with_pictures=any(question["pictures"] for question in reference.questions),
        speed=speed_in(found, files),
    )


def ask_runtime(
    runtime: Environment, driver: Path, request: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """What a runtime's driver answers to a request, and its logits (num_questions, vocabulary).

    Raises:
        InputError: it fails.
    """
    asked, result = folder / "request.json", folder / "result.npz"
    asked.write_text(json.dumps(request))
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    said = run([runtime.python, "-I", driver, asked, result], f"asking {runtime.name}", variables)
    with np.load(result, allow_pickle=False) as stored:
        logits = np.stack([stored[str(number)] for number in range(len(request["questions"]))])
    return json.loads(said.strip().splitlines()[-1]), logits


def speed_in(found: dict[str, Any], files: dict[str, str | None]) -> Speed:
    """The speed that a driver has measured."""
    paths = [Path(path) for path in files.values() if path]
    weights = {part for path in paths for part in ([path] if path.is_file() else path.iterdir())}
    num_bytes = sum(part.stat().st_size for part in weights)
    return Speed(
        device=device_name(_Cpu()), dtype=paths[0].stem.rpartition("-")[2], checkpoint_bytes=num_bytes, **found["speed"]
    )


class _Cpu:
    """What `device_name` takes: runtimes are measured on the CPU."""

    device = torch.device("cpu")
