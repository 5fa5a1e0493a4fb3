"""The commands of `raysearch`.

Every command imports what it needs when it runs: `--help`, `best` and mistakes load neither torch nor ray nor MLflow.
"""

import functools
import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raysearch.backend import search_job
from raysearch.cli import evaluate, search
from raysearch.cli.exit_codes import App
from raysearch.cli.search import Verbosity
from raysearch.config.budget import Budget, size_text
from raysearch.config.criteria import ExpertCriterion
from raysearch.config.recipe import check_ratio
from raysearch.config.settings import EMBEDDED_MODELS, MAX_SLOTS
from raysearch.errors import InputError
from raysearch.files import check_free
from raysearch.logging import logger
from raysearch.runtimes.environments import RuntimeName

if TYPE_CHECKING:
    from raysearch.study.front import Front, FrontPoint


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"raysearch {version('raysearch')}")
        raise typer.Exit


app = App(no_args_is_help=True, add_completion=True)


@app.callback(help="Search for the pruning and recovery recipe that fits a size budget.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command()(search.search)
app.command()(evaluate.inspect)
app.command()(evaluate.evaluate)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study: the --out of a search.")]
BudgetText = Annotated[str | None, typer.Option("--budget", "-b", help="Largest size: 60%, 3.2GB, 900MiB, 3B.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="Or a recipe of the front by its key.")]


@app.command()
def best(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder of a study.")] = None,
    budget: BudgetText = None,
    key: Key = None,
    mlflow: Annotated[str | None, typer.Option(metavar="EXPERIMENT", help="Newest front in MLflow instead.")] = None,
    uri: Annotated[str | None, typer.Option(help="MLflow server, if not MLFLOW_TRACKING_URI.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Print the best recipe that fits a size budget; without a budget, the whole front.

    Of the front's points no larger than the budget, the one with the highest
    lower bound of retention; ties go to the smaller, then to the one trained
    on fewer samples.

    Examples:

      raysearch best runs/mine

      raysearch best runs/mine --budget 60%

      raysearch best runs/mine --budget 3.2GB --json

      raysearch best --mlflow mine --budget 60% --uri http://127.0.0.1:5000

    Raises:
        InputError: neither DIR nor an experiment is given, or both; it has no front; or no recipe is small enough or
            has this key.
    """
    from raysearch.report.terminal import front_table, print_rich, speed_text, statistically_tied, unscored_text
    from raysearch.study.front import Front, retention_text

    if (folder is None) == (mlflow is None):
        raise InputError("best: needs DIR, the folder of a study, or --mlflow EXPERIMENT; give one of them")
    parsed = _one_of(budget, key)
    if mlflow:
        from raysearch.tracking.lookup import front_of_experiment

        front, folder = front_of_experiment(mlflow, uri)
    else:
        assert folder is not None, mlflow
        front = Front.load(folder)
    if parsed is None and key is None:
        if as_json:
            print(json.dumps(front.model_dump(mode="json", by_alias=True), indent=2))
            return
        print_rich(front_table(front.points))
        for text, answer in front.budgets.items():
            print(f"{text:>8}  {answer or 'no recipe is small enough'}")
        return
    point = _point(front, folder, parsed, key)
    rivals = [other for other in front.points if parsed is None or parsed.admits(other.size, front.baseline.size)]
    tied = statistically_tied(point, rivals)
    checkpoint = point.checkpoint_path(folder)
    if as_json:
        found: dict[str, Any] = {"study": front.study, "budget": budget, **point.model_dump(mode="json")}
        found |= {"recipe": point.recipe.as_dict(), "checkpoint": str(checkpoint) if checkpoint else None}
        print(json.dumps(found | {"not_told_apart": [other.key for other in tied]}, indent=2))
        return
    print_rich(front_table([point]))
    print(f"Size        {point.num_params:,} parameters, {point.size_bytes:,} bytes")
    print(f"Recipe      {json.dumps(point.recipe.as_dict())}")
    print(f"Checkpoint  {checkpoint or 'deleted by the disk quota; export --rebuild makes it again'}")
    if point.measured:
        print(f"Measured    {speed_text(point.measured)}")
    if point.heldout is None and (unscored := unscored_text(front, folder)):
        print(f"Held out    {unscored}")
    for other in tied:
        print(
            f"Statistically tied: {other.key}, {other.recipe.describe()}, {other.size_ratio:.1%} of the dense size, "
            f"retention {retention_text(other)}"
        )


@app.command()
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
    parsed = _one_of(budget, key)
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
    point = _point(front, folder, parsed, key)
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


@app.command()
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


@app.command()
def retry(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="recipe.yaml, or the output of best --json.")],
    space: Annotated[
        Path | None, typer.Argument(metavar="SPACE.yaml", help="Model, data and benchmarks; the embedded ones if none.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the space's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; run nothing.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Train one recipe, here or on another model: one trial, never stopped.

    Examples:

      raysearch best runs/mine --budget 60% --json > best.json

      raysearch retry best.json my-space.yaml --model ./llava-1.5-13b --out runs/larger

    Raises:
        InputError: no recipe or space, or the model can't hold the recipe's shape.
    """
    from raysearch.config.space import SearchSpace, load_recipe

    chosen = load_recipe(recipe)
    loaded = SearchSpace.load(space or search_job.EMBEDDED_SPACE).fixed_to(chosen)
    settings = loaded.search.model_copy(update={"early_stopping": False, "shapes": 0})
    single = loaded.model_copy(update={"search": settings, "start": [], **({"model": model} if model else {})})
    checked = search_job.check(single, None, out, None, {"trials": 1}, None, 1, None, monotonic(), is_silent=dry_run)
    if checked.plan.size_of(chosen) is None:
        raise InputError(f"{recipe}: {single.model} can't hold its shape; change ratio, mode or attention_share")
    if dry_run:
        from raysearch.report.cost_estimate import estimate_lines

        print("\n".join([*checked.plan.describe(), *estimate_lines(checked.plan)]))
        return
    search_job.run(checked.plan, checked.folder)


@app.command()
def benchmark(folder: Folder, verbose: Verbosity = 0) -> None:
    """Measure speed and memory of every recipe on the front, on this machine.

    Prefill, decoding, peak memory, files and KV cache of the dense model and
    of each checkpoint, one after another, each in its own process. The results
    go to front.json, MLflow, the report and the model cards.

    Examples:

      raysearch benchmark runs/mine
    """
    from raysearch.export.export_checkpoint import measure_front
    from raysearch.report.terminal import print_rich, speed_table
    from raysearch.tracking.tracker import log_speeds

    front = measure_front(folder)
    log_speeds(folder, front)
    print_rich(speed_table(front))


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id; or pocket or pocket-smollm2.")],
    to: Annotated[Path, typer.Option(help="New or empty folder for the pruned model.")],
    mode: Annotated[Literal["layerwise", "widthwise", "both"], typer.Option(help="What to prune.")] = "layerwise",
    ratio: Annotated[float | None, typer.Option(help="Share of the decoder's parameters to remove, below 1.")] = None,
    budget: Annotated[str | None, typer.Option(help="Or: largest size of the whole model: 60%, 3.2GB, 3B.")] = None,
    depth_share: Annotated[
        float | None, typer.Option(min=0.01, max=0.99, help="Mode both: share of the removal that dropped layers do.")
    ] = None,
    attention_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Heads against FFN channels: 0 keeps all heads, 1 the same share."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Or exactly: decoder layers to keep.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Exactly: KV heads per layer to keep.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Exactly: query heads per layer to keep.")] = None,
    ffn: Annotated[int | None, typer.Option(min=1, help="Exactly: FFN channels per layer to keep.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, help="Exactly: experts per layer to keep.")] = None,
    expert_ratio: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of the experts to remove, as part of the size.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="Only shapes that so many devices can split.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=N,...", help="Only such shapes: heads_multiple=4,ffn_multiple=64, ..."),
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="Importance: block_influence, taylor, activation, ...")] = None,
    expert_criterion: Annotated[ExpertCriterion | None, typer.Option(help="Importance of experts.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Data to measure importance on: a JSON file, or pocket; none for weights alone.")
    ] = None,
    compensate: Annotated[bool, typer.Option("--compensate", help="Fit earlier FFNs to dropped layers.")] = False,
    quantization: Annotated[Literal["none", "int8", "int4"], typer.Option(help="Of the linear layers.")] = "none",
    verbose: Verbosity = 0,
) -> None:
    """Prune a vision-language or language model without recovery, and write a stock checkpoint.

    --compensate lets the FFNs in front of dropped layers make up for them;
    --quantization rounds the weights of the decoder's linear layers.

    Examples:

      raysearch prune pocket --mode layerwise --ratio 0.3 --to pruned

      raysearch prune ./llava-1.5-7b --mode widthwise --budget 60% --calibration llava.json --to pruned

      raysearch prune ./llava-1.5-7b --mode widthwise --ratio 0.3 --attention-share 0 --to pruned

      raysearch prune ./llava-1.5-7b --layers 28 --ffn 8192 --to pruned

      raysearch prune ./qwen2-vl-2b --mode widthwise --ratio 0.3 --tensor-parallel 2 --to pruned

      raysearch prune ./qwen3-vl-30b-a3b --experts 96 --calibration mine.json --to pruned

      raysearch prune ./llava-1.5-7b --ratio 0 --quantization int4 --to small

    Raises:
        InputError: not just one of a ratio, a budget and an exact shape is given; or the model, the data or the folder
            can't be used.
    """
    names = {"num_layers": layers, "num_kv_heads": kv_heads, "num_heads": heads, "num_ffn_channels": ffn}
    names |= {"num_experts": experts}
    exact = {name: num for name, num in names.items() if num is not None}
    if (ratio, budget, exact or None).count(None) != 2:
        raise InputError(
            "prune: needs one of --ratio, --budget and an exact shape (--layers, --kv-heads, --heads, --ffn, "
            "--experts); give the share to remove, the size to reach, or what is to be kept"
        )
    parsed = Budget.parse(budget) if budget is not None else None
    if ratio is not None:
        check_ratio(ratio)
    from raysearch.pruning.checkpoint import prune_checkpoint

    done = prune_checkpoint(
        model,
        mode=mode,
        to=to,
        ratio=ratio,
        budget=parsed,
        exact=exact,
        depth_share=depth_share,
        attention_share=attention_share,
        criterion=criterion,
        expert_ratio=expert_ratio,
        expert_criterion=expert_criterion,
        shapes=_rules(shapes or [], tensor_parallel),
        calibration=calibration or ("pocket" if model in EMBEDDED_MODELS else None),
        compensate=compensate,
        quantization=quantization,
    )
    print(f"{to}: {size_text(done['size_bytes'])}, {done['size_ratio']:.1%} of the dense model, by {done['criterion']}")


@app.command()
def status(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, verbose: Verbosity = 0
) -> None:
    """Say what a search does, what it has found, and how to go on.

    It also works while another process, on any machine that sees the folder,
    runs the search.

    Examples:

      raysearch status runs/mine
    """
    from raysearch.report.status_text import status_lines, study_status

    print(json.dumps(study_status(folder), indent=2) if as_json else "\n".join(status_lines(folder)))


@app.command()
def report(folder: Folder, verbose: Verbosity = 0) -> None:
    """Write DIR/report.html, one page that needs no network.

    The answer to each budget, questions that dense and pruned models answer
    differently, the front, findings with their evidence, all trials, and
    whether further search is worth it. A study in MLflow gets it as an artifact.

    Examples:

      raysearch report runs/mine
    """
    from raysearch.report.html_page import write_report
    from raysearch.tracking.tracker import log_report

    print(write_report(folder))
    log_report(folder)


@app.command()
def estimate(
    space: Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="Search space.")],
    like: Annotated[Path | None, typer.Option(metavar="DIR", help="Earlier study whose trials give the speed.")] = None,
    verbose: Verbosity = 0,
) -> None:
    """Estimate what a search would take, without starting it.

    Work, memory, disk and hours. The hours come from the trials of an earlier
    study of the same model, data and machines, or else from operation counts.

    Examples:

      raysearch estimate search_spaces/pocket.yaml

      raysearch estimate search_spaces/pocket.yaml --like runs/first
    """
    from raysearch.config.space import SearchSpace
    from raysearch.report.cost_estimate import estimate_lines
    from raysearch.study.plan import plan_study

    plan = plan_study(SearchSpace.load(space))
    print("\n".join([*plan.describe(), *estimate_lines(plan, like)]))


@app.command()
def replicate(
    space: Annotated[Path | None, typer.Argument(metavar="SPACE.yaml", help="Space without ranges: its grid.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME-TIME if left out.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=MAX_SLOTS, help="Trials at a time.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the study in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count; run nothing.")] = False,
    verbose: Verbosity = 0,
) -> None:
    """Run every recipe of a space, and test the claims of arXiv 2604.24380 on them.

    No trial is stopped early. DIR/study.md has the paper's tables for this
    model, with intervals, and the verdict on its claims: holds, fails, can't tell.

    Examples:

      raysearch replicate search_spaces/pocket-study.yaml --out runs/study

      raysearch replicate --resume runs/study

    Raises:
        InputError: the space, an option or the folder can't be used, or no recipe that prunes has finished.
    """
    from raysearch.searching.samplers.grid import as_grid, grid
    from raysearch.study.folder import StudyFolder
    from raysearch.study.plan import plan_study

    if space is None and resume is None:
        raise InputError("replicate: needs SPACE.yaml; start from search_spaces/pocket-study.yaml or paper-grid.yaml")
    loaded, folder = search_job.study_of(space, resume, out)
    if resume and not loaded.search.keep_scores:
        raise InputError(f"--resume {resume}: holds a search; resume it with raysearch search --resume {resume}")
    plan = plan_study(search_job.with_options(as_grid(loaded), None, {}, None, slots))
    search_job.check_architecture(plan)
    if dry_run:
        print("\n".join(plan.describe()))
        return
    recipes = [recipe for recipe in grid(plan.space) if plan.size_of(recipe)]
    if len(StudyFolder(folder, plan.space).records) < len(recipes):
        search_job.run(plan, folder)
    if not any(record.end == "finished" and record.recipe.ratio for record in StudyFolder(folder, plan.space).records):
        raise InputError(f"{folder}: no recipe that prunes has finished; {folder}/trials.jsonl has the reasons")
    from raysearch.replication.markdown_page import write_page
    from raysearch.replication.probes import measure

    measure(plan.space, folder, recipes)
    print(write_page(folder, plan.space, plan.dense))


@app.command()
def sync(
    folder: Folder,
    uri: Annotated[str | None, typer.Option(help="Tracking server; left out, the study's own.")] = None,
    verbose: Verbosity = 0,
) -> None:
    """Send to MLflow the events that could not be sent during the search.

    Examples:

      raysearch sync runs/mine
    """
    from raysearch.tracking.tracker import sync_unsent

    num_sent, num_left = sync_unsent(folder, uri)
    print(f"{folder}: {num_sent} events sent, {num_left} left")


def _rules(texts: list[str], tensor_parallel: int | None) -> dict[str, Any]:
    """Rules on shapes, from `heads_multiple=4,ffn_multiple=64`.

    Raises:
        InputError: no such form.
    """
    rules: dict[str, Any] = {} if tensor_parallel is None else {"tensor_parallel": tensor_parallel}
    for part in filter(None, ",".join(texts).replace(" ", "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--shapes {part}: not KEY=NUMBER, such as heads_multiple=4")
        rules[key] = value
    return rules


def _one_of(budget: str | None, key: str | None) -> Budget | None:
    """The budget, if one is given.

    Raises:
        InputError: both are given, or it is not a budget.
    """
    if budget is not None and key is not None:
        raise InputError("--key: names a recipe by itself; leave out --budget")
    return None if budget is None else Budget.parse(budget)


def _point(front: "Front", folder: Path, budget: Budget | None, key: str | None) -> "FrontPoint":
    """The front's point for a budget or with a key.

    Raises:
        InputError: there is none.
    """
    if budget is not None:
        return front.answer(budget, folder)
    for point in front.points:
        if point.key == key:
            return point
    raise InputError(f"--key {key}: not on the front; raysearch best {shlex.quote(str(folder))} lists its keys")


def _add_old_name(old: str, command: Callable[..., None]) -> None:
    """Keep a renamed command under its old name for one version, out of `--help`."""

    @app.command(old, hidden=True)
    @functools.wraps(command)
    def renamed(**arguments: Any) -> None:
        logger.warning("raysearch %s is now raysearch %s; the next version drops the old name", old, command.__name__)
        command(**arguments)


_add_old_name("measure", benchmark)
_add_old_name("study", replicate)
