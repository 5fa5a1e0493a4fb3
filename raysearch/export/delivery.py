"""Hand over the checkpoint of a front point: copied, then proven in a process that has transformers alone."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from raysearch.errors import InputError
from raysearch.files import replace_folder
from raysearch.front import FrontPoint

CHECK = Path(__file__).parent / "stock_check.py"


def deliver(study: Path, point: FrontPoint, to: Path) -> str:
    """Copy a point's checkpoint to `to`, whole or not at all.

    Returns:
        What the model generated when it was loaded from there by transformers alone.

    Raises:
        InputError: the point has no checkpoint, `to` is taken, or the checkpoint does not load as what it should be.
    """
    checkpoint = _checkpoint_of(study, point)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: exists and is not an empty folder; choose another")
    to = to.resolve()
    to.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
        copy.chmod(0o755)
        num_params, text = load_alone(copy)
        if num_params != point.num_params:
            raise InputError(
                f"{checkpoint}: has {num_params} parameters, front.json says {point.num_params}; "
                "the study's files don't belong together"
            )
        replace_folder(copy, to)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return text


def load_alone(folder: Path) -> tuple[int, str]:
    """Load a checkpoint in a fresh process that knows transformers and not raysearch, and let it generate.

    Returns:
        Its number of parameters, and what it generated.

    Raises:
        InputError: it does not load or does not generate.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    done = subprocess.run(
        [sys.executable, "-I", str(CHECK), str(folder)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"{folder}: transformers can't use this checkpoint ({reason}); choose another budget"
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["num_params"], found["text"]


def _checkpoint_of(study: Path, point: FrontPoint) -> Path:
    if point.checkpoint is None:
        raise InputError(
            f"{study}: recipe {point.key} has no checkpoint in front.json; choose another budget"
        )
    checkpoint = (study / point.checkpoint).resolve()
    if not checkpoint.is_relative_to(study.resolve()):
        raise InputError(
            f"{study}/front.json: checkpoint {point.checkpoint} lies outside the study; correct it"
        )
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint}: no such checkpoint; copy the whole folder of the study")
    return checkpoint
