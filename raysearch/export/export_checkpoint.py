"""Export the checkpoint of a front point: copied, then loaded and measured in a process without raysearch."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from raysearch.errors import InputError
from raysearch.export.card import front_card
from raysearch.files import check_free, open_to_readers, read_json
from raysearch.models.checkpoint_files import model_folder
from raysearch.study.front import Front, FrontPoint, Speed

CHECK = Path(__file__).parent / "stock_check.py"


def export_checkpoint(
    study: Path, point: FrontPoint, to: Path, front: Front | None = None, note: str = ""
) -> FrontPoint:
    """Copy a point's checkpoint to `to`, whole or not at all, once it loads and generates in a clean process.

    Args:
        front: the study's, for a complete model card; None leaves the checkpoint's own card.
        note: goes into that card.

    Returns:
        The point with its speed on this machine.

    Raises:
        InputError: the point has no checkpoint, `to` is not empty, or the checkpoint does not load or has another size.
    """
    checkpoint = checkpoint_of(study, point)
    to = check_free(to, "--to", checkpoint)
    to.parent.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
        open_to_readers(copy)
        num_params, speed = load_in_clean_process(copy, speed=True, num_params=point.num_params)
        if num_params != point.num_params:
            raise InputError(
                f"{checkpoint}: has {num_params} parameters, front.json says {point.num_params}; "
                "the study's files don't match; copy the whole folder of the study again"
            )
        point = point.model_copy(update={"measured": speed})
        if front:
            multimodal = "vision_config" in read_json(copy / "config.json")
            (copy / "README.md").write_text(front_card(front, point, multimodal, note))
        os.replace(copy, to)  # fails if the folder has come to hold anything
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return point


def measure_front(study: Path) -> Front:
    """Measure the dense model and every checkpoint of a front on this machine, one by one, into `front.json`.

    Raises:
        InputError: the folder is no study, or a checkpoint is missing or does not load.
    """
    front = Front.load(study)
    dense = model_folder(front.model)
    _, speed = load_in_clean_process(dense if dense.is_dir() else front.model, speed=True)
    front = front.model_copy(update={"baseline": front.baseline.model_copy(update={"measured": speed})})
    points = list(front.points)
    for number, point in enumerate(points):
        if point.checkpoint:
            _, speed = load_in_clean_process(checkpoint_of(study, point), speed=True)
            points[number] = point.model_copy(update={"measured": speed})
            front = front.model_copy(update={"points": list(points)})
            front.save(study)
    return front


def load_in_clean_process(
    model: Path | str, speed: bool = False, num_params: int | None = None
) -> tuple[int, Speed | None]:
    """Load a checkpoint in a clean process, by transformers and without raysearch, and let it generate.

    Args:
        num_params: the speed of a model of another size is not measured.

    Returns:
        Its number of parameters, and its speed if `speed`.

    Raises:
        InputError: it does not load or does not generate.
    """
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **quiet}
    command = [sys.executable, "-I", str(CHECK), str(model), *(["--speed"] if speed else [])]
    command += [] if num_params is None else [str(num_params)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{model}: transformers can't use this checkpoint ({reason}); choose another budget")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["num_params"], Speed(**found["speed"]) if "speed" in found else None


def checkpoint_of(study: Path, point: FrontPoint) -> Path:
    """The folder of a point's checkpoint.

    Raises:
        InputError: it has none, it lies outside the study, or it is missing.
    """
    path = point.checkpoint_path(study)
    if path is None:
        raise InputError(
            f"{study}: recipe {point.key} has no checkpoint, since recovery.checkpoint_quota_gb was reached; add "
            "--rebuild to make it again, or choose another budget"
        )
    checkpoint = path.resolve()
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint}: no such checkpoint; copy the whole folder of the study")
    return checkpoint
