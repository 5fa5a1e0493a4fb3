"""ONNX Runtime: a checkpoint as ONNX graphs in fp32, by PyTorch's own exporter."""

import json
from pathlib import Path

from raysearch.runtimes.environments import Environment, run

DRIVER = Path(__file__).parent / "onnxruntime_driver.py"
_CONVERTER = Path(__file__).parent / "onnx_converter.py"


def convert(runtime: Environment, checkpoint: Path, to: Path) -> tuple[dict[str, str | None], str]:
    """Write the graphs to the folder `to`/onnx-f32; see `onnx_converter`.

    Returns:
        The files as the driver takes them, and what is not possible.

    Raises:
        InputError: PyTorch can't export the decoder.
    """
    folder = to / "onnx-f32"
    folder.mkdir()
    said = run([*runtime.converter(_CONVERTER), checkpoint, folder], "converting for onnxruntime")
    note = json.loads(said.strip().splitlines()[-1])["note"]
    pictures = folder / "pictures.onnx"
    return {"model": str(folder), "mmproj": str(pictures) if pictures.exists() else None}, note


def usage(files: dict[str, str | None]) -> str:
    """How to run the files, in Markdown."""
    names = sorted(path.name for path in Path(str(files["model"])).glob("*.onnx"))
    return (
        f"`{Path(str(files['model'])).name}/` has the graphs {', '.join(names)}; the processor's files are beside it. "
        "Embed the tokens, put the features of the pictures in place of the image tokens, and give the decoder its own "
        "keys and values back. Of one row, in fp32."
    )
