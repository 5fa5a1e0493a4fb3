"""Export a checkpoint for a runtime: converted, asked there and in transformers, and written whole or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.export.card import table
from raysearch.files import check_free
from raysearch.models.checkpoint_files import stored_folder
from raysearch.runtimes import llama_cpp, onnx_runtime
from raysearch.runtimes.environments import Environment, RuntimeName, environment
from raysearch.runtimes.proof import Proof, ask_runtime, ask_transformers, prove, questions_of, speed_in

_NOT_WEIGHTS = ("recipe.yaml", "scores.json")
_PROCESSOR_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_LICENCES = re.compile(r"(licen[cs]e|notice|copying)", re.IGNORECASE)


@dataclass(frozen=True)
class Runtime:
    """A runtime that checkpoints are exported for.

    Attributes:
        convert: writes a checkpoint's files to a folder; returns them as the driver takes them, and what can't be.
        driver: the script that asks them in the runtime's own Python.
        usage: says in Markdown how to run the files.
        keeps_processor: whether the person's program needs the checkpoint's configuration and processor files.
    """

    convert: Callable[[Environment, Path, Path], tuple[dict[str, str | None], str]]
    driver: Path
    usage: Callable[[dict[str, str | None]], str]
    keeps_processor: bool


RUNTIMES: dict[RuntimeName, Runtime] = {
    "llama.cpp": Runtime(llama_cpp.convert, llama_cpp.DRIVER, llama_cpp.usage, keeps_processor=False),
    "onnxruntime": Runtime(onnx_runtime.convert, onnx_runtime.DRIVER, onnx_runtime.usage, keeps_processor=True),
}


def export_for(
    name: RuntimeName, checkpoint: Path, to: Path, dense: str | None = None, samples: Sequence[Sample] | None = None
) -> Proof:
    """Write the runtime's files of a Hugging Face checkpoint to `to`, with a model card that has the proof.

    Args:
        dense: model whose speed in the runtime is measured, too.
        samples: questions of the proof; None takes embedded ones.

    Raises:
        InputError: the runtime isn't installed, refuses the model or computes something else; or `to` is not empty.
    """
    runtime, kind = environment(name), RUNTIMES[name]
    to = check_free(to, "--to", checkpoint)
    to.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        made = work / "made"
        made.mkdir()
        files, note = kind.convert(runtime, checkpoint, made)
        with_pictures = bool(files["mmproj"])
        asked = ask_transformers(checkpoint, samples or questions_of(), with_pictures, work / "questions")
        proof = replace(prove(runtime, kind.driver, files, asked, work), note=note)
        if not proof.holds:
            raise InputError(
                f"{name}: computes something else than transformers: {proof.describe()}; it doesn't support this model"
            )
        if dense:
            (work / "dense").mkdir()
            dense_files, _ = kind.convert(runtime, stored_folder(dense), work / "dense")
            found, _ = ask_runtime(runtime, kind.driver, asked.request(dense_files, num_questions=1), work)
            proof = replace(proof, dense=speed_in(found, dense_files))
        _copy_rest(checkpoint, made, kind.keeps_processor)
        (made / "README.md").write_text(_card(name, checkpoint, proof, kind.usage(files)))
        made.chmod(0o755)
        os.replace(made, to)  # fails if the folder has come to hold anything
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return proof


def _copy_rest(checkpoint: Path, to: Path, with_processor: bool) -> None:
    """Recipe, scores and licence, and if wanted everything else but weights."""
    for path in checkpoint.iterdir():
        is_processor = path.suffix in _PROCESSOR_SUFFIXES and ".safetensors." not in path.name
        is_kept = path.name in _NOT_WEIGHTS or _LICENCES.match(path.name) or (with_processor and is_processor)
        if path.is_file() and is_kept:
            shutil.copy(path, to / path.name)


def _card(name: str, checkpoint: Path, proof: Proof, usage: str) -> str:
    """The checkpoint's own card with the proof in place of how to use it in transformers."""
    path = checkpoint / "README.md"
    own = path.read_text(encoding="utf-8") if path.is_file() else f"# {checkpoint.resolve().name}\n"
    before, found, _ = own.rpartition("## Use\n")
    text = before if found else own
    return f"{text.rstrip()}\n\n## In {name}\n\n{table(proof.rows())}\n\n## Use\n\n{usage}\n"
