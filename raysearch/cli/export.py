"""`raysearch export` and `raysearch runtime`: a checkpoint for transformers or another runtime."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from raysearch.cli.search import Verbosity
from raysearch.cli.study import BudgetText, Folder, Key, one_of, point_of
from raysearch.config.budget import size_text
from raysearch.errors import InputError
from raysearch.files import check_free
from raysearch.logging import logger
from raysearch.runtimes.environments import RuntimeName


def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="New or empty folder for the checkpoint.")],
    budget: BudgetText = None,
    key: Key = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", "--retrain", help="Train a deleted checkpoint again.")] = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", "--polish", help="First train it further on all data; export the better one.")
    ] = False,
    epochs: Annotated[float, typer.Option(min=0.001, help="With --finetune: passes over the data.")] = 1.0,
    register: Annotated[str | None, typer.Option(metavar="NAME", help="Registered model in MLflow to extend.")] = None,
    runtime: Annotated[
        Literal["transformers", RuntimeName], typer.Option("--for", help="Runtime that the files are for.")
    ] = "transformers",
    dense: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --for and a checkpoint: compare its speed with this one's."),
    ] = None,
    verbose: Verbosity = 0,
) -> None:
    """Export the best checkpoint for a budget, and check that it loads.

    The folder is a stock Hugging Face checkpoint. A fresh process that imports
    only transformers loads it, generates, and measures its speed first. The
    model card has the recipe, scores with intervals, sizes and speed.

    --for converts it for another runtime, asks it 20 questions there and in
    transformers, and writes how many answers are the same into the card. DIR
    may then be any Hugging Face checkpoint, without a budget.

    Examples:

      raysearch export runs/mine --budget 60% --to small-model

      raysearch export runs/mine --budget 60% --to small-model --finetune --register small-llava

      raysearch export runs/mine --key 0f41c2d9a7b3 --to small-model

      raysearch export runs/mine --budget 60% --to small-gguf --for llama.cpp

      raysearch export ./pruned --to small-gguf --for llama.cpp --dense ./llava-1.5-7b

    Raises:
        InputError: not just one of a budget and a key is given, nothing on the front has it, or its checkpoint can't be
            used.
    """
    parsed = one_of(budget, key)
    is_checkpoint = runtime != "transformers" and (folder / "config.json").is_file()
    if dense and not is_checkpoint:
        raise InputError("--dense: needs --for and the folder of a checkpoint; a study has its own dense model")
    if runtime != "transformers":
        from raysearch.runtimes.environments import environment

        environment(runtime)
        if is_checkpoint:
            if parsed or key or rebuild or finetune or register:
                raise InputError(f"{folder}: is a checkpoint; leave out the options for a study's")
            _export_for(runtime, folder, to, dense)
            return
    if parsed is None and key is None:
        raise InputError("export: needs --budget or --key; raysearch best DIR lists what the front has")
    from raysearch.export.export_checkpoint import export_checkpoint
    from raysearch.report.terminal import speed_text
    from raysearch.study.front import Front, retention_text

    front, note = Front.load(folder), ""
    point = point_of(front, folder, parsed, key)
    check_free(to, "--to")
    if rebuild and point.checkpoint is None:
        from raysearch.trials.rebuild_checkpoint import rebuild_checkpoint

        point = rebuild_checkpoint(folder, point)
    if finetune:
        from raysearch.trials import finetune as finetuning

        finetuned = finetuning.finetune(folder, point, epochs)
        point, note = finetuned.point, finetuned.describe()
        print(note)
    if runtime != "transformers":
        with tempfile.TemporaryDirectory(dir=to.resolve().parent, prefix=f".{to.name}.") as passing:
            export_checkpoint(folder, point, Path(passing) / "checkpoint", front, note)
            _export_for(runtime, Path(passing) / "checkpoint", to, front.model, folder)
        return
    point = export_checkpoint(folder, point, to, front, note)
    print(f"{to}: {size_text(point.size_bytes)}, retention {retention_text(point)}, {point.recipe.describe()}")
    assert point.measured is not None, point.key
    print(f"Loaded by transformers in a fresh process: {speed_text(point.measured)}")
    if register:
        from raysearch.tracking import lookup

        print(f"Registered in MLflow: {register}, version {lookup.register(folder, point, to, register)}")


def _export_for(runtime: RuntimeName, checkpoint: Path, to: Path, dense: str | None, study: Path | None = None) -> None:
    """Write a checkpoint's files for a runtime, and say what they answer there.

    Args:
        study: whose questions are asked; None for embedded ones.
    """
    from raysearch.runtimes.export_for import export_for
    from raysearch.runtimes.proof import questions_of
    from raysearch.study.folder import read_space

    samples = None
    if study:
        try:
            samples = questions_of(read_space(study).benchmarks)
        except InputError as error:
            logger.warning("%s; embedded questions are asked instead", error)
    proof = export_for(runtime, checkpoint, to, dense, samples)
    print(f"{to}: {size_text(proof.speed.checkpoint_bytes)} for {runtime}")
    print(proof.describe())
    if proof.num_same < 0.9 * proof.num_questions:
        logger.warning(
            "%s answers differently than transformers; it prepares pictures and rounds in its own way", runtime
        )
    if proof.note:
        print(f"not possible: {proof.note}")


def runtime(
    action: Annotated[Literal["install", "list"], typer.Argument(help="What to do.")],
    name: Annotated[RuntimeName | None, typer.Argument(help="The runtime to install.")] = None,
    verbose: Verbosity = 0,
) -> None:
    """Install a runtime that export --for needs, or list them.

    Each has an environment of its own in the user's cache folder. llama.cpp is
    compiled from the source package llama-cpp-python: minutes, with a C++
    compiler and CMake.

    Examples:

      raysearch runtime install llama.cpp

      raysearch runtime list

    Raises:
        InputError: no runtime is named, or it can't be installed.
    """
    from raysearch.runtimes.environments import PACKAGES, environment, install

    if action == "install":
        if name is None:
            raise InputError(f"runtime install: needs a name; known are {', '.join(PACKAGES)}")
        found = install(name)
        print(f"{name}: {found.version} in {found.folder}")
        return
    for known in PACKAGES:
        try:
            print(f"{known:12} {environment(known).version}")
        except InputError:
            print(f"{known:12} not installed")
