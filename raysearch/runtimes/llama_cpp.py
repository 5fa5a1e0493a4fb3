"""llama.cpp: a checkpoint as GGUF files, by llama.cpp's own converter."""

import json
from pathlib import Path
from typing import Any

from raysearch.errors import InputError
from raysearch.runtimes.environments import Environment, run

DRIVER = Path(__file__).parent / "llama_cpp_driver.py"
_CONVERTER = Path(__file__).parent / "gguf_converter.py"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_PICTURES = "vision_config"


def convert(runtime: Environment, checkpoint: Path, to: Path) -> tuple[dict[str, str | None], str]:
    """Write the decoder, and the vision tower with the projector if llama.cpp has its class, to the folder `to`.

    Weights keep their type. Packed int8 and int4 weights are unpacked to fp16: llama.cpp's own formats of 8 and 4 bits
    choose scales of their own, and would round a second time.

    Returns:
        The files as the driver takes them, and what is not possible.

    Raises:
        InputError: llama.cpp's converter refuses the decoder.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    kind = _type_of(config)
    model, note = to / f"model-{kind}.gguf", ""
    _run_converter(runtime, checkpoint, model, kind)
    files: dict[str, str | None] = {"model": str(model), "mmproj": None}
    if _PICTURES in config:
        projector = to / f"mmproj-{kind}.gguf"
        try:
            _run_converter(runtime, checkpoint, projector, kind, "--mmproj")
            files["mmproj"] = str(projector)
        except InputError as error:
            projector.unlink(missing_ok=True)
            note = f"pictures: the decoder alone is converted ({error})"
    return files, note


def usage(files: dict[str, str | None]) -> str:
    """How to run the files, in Markdown."""
    names = {name: Path(path).name for name, path in files.items() if path}
    command = f"llama-server -m {names['model']}"
    if "mmproj" in names:
        command += f" --mmproj {names['mmproj']}"
    return f"```\n{command}\n```"


def _run_converter(runtime: Environment, checkpoint: Path, to: Path, kind: str, *options: str) -> None:
    run(
        [*runtime.converter(_CONVERTER), checkpoint, "--outfile", to, "--outtype", kind, *options],
        "converting for llama.cpp",
    )


def _type_of(config: dict[str, Any]) -> str:
    packed = config.get("quantization_config")
    if packed:
        return "f16"
    dtype = config.get("dtype") or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    return _TYPES.get(str(dtype), "f16")
