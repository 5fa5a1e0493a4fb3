"""Real searches of the embedded LVLM for the same wall-clock time: raysearch against the documented Ray pattern.

    python scripts/benchmarks/live_search.py                       # 3 seeds, 9 minutes a side: an hour on two cores
    python scripts/benchmarks/live_search.py --minutes 1 --seeds 1 # a short run
    python scripts/benchmarks/live_search.py --given               # the other side starts with these measurements

The pattern is that of Ray's user guides: a Tune function that starts a TorchTrainer per trial, TuneReportCallback,
OptunaSearch with both objectives, ASHAScheduler on retention. Both sides begin with nothing and have the same code for
pruning, training and evaluation, the same rungs, space, data and questions, and one folder of the teacher's states for
all trials. The pattern measures the dense model's scores and the importance of its units once, before its tuner
starts, asks all search questions at every rung, writes no checkpoints and asks no held-out questions.

With `--given` those measurements are there before its time begins, and it asks raysearch's share of the questions below
a trial's end. Counted for both sides is every trial that gave a result; the hypervolume is that of the trials that came
to their own end, on all search questions.
"""

import argparse
import functools
import json
import logging
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.space import SearchSpace
from raysearch.files import append_json, read_json_lines
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.study.multi_objective import hypervolume
from raysearch.study.plan import plan_study

RESULTS, PREPARED = "results.jsonl", "prepared.pickle"


def main() -> None:
    """Run both sides for every seed, alternating, and print one table."""
    options = _options()
    if options.one:
        documented_pattern(options.folder, options.seed, 60 * options.minutes, options.given)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    theirs = functools.partial(_theirs, given=options.given)
    print("| seed | side | trials | trials a minute | hypervolume |\n|---|---|---|---|---|")
    for seed in range(options.seeds):
        for side, run in (("raysearch", _ours), ("Ray, as documented", theirs)):
            num_trials, points = run(options.folder, seed, 60 * options.minutes)
            area = hypervolume([size for size, _ in points], [kept for _, kept in points])
            rate = num_trials / options.minutes
            print(f"| {seed} | {side} | {num_trials} | {rate:.2f} | {area:.3f} |", flush=True)


def _ours(folder: Path, seed: int, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    out = folder / f"ours-{seed}"
    command = [sys.executable, "-m", "raysearch.pareto", "--out", str(out), "--seed", str(seed)]
    _stop_after(subprocess.Popen([*command, "--trials", "1000"], stdout=subprocess.DEVNULL), seconds)
    dense = json.loads((out / "front.json").read_text())["baseline"]["size_bytes"]
    trials = [trial for trial in read_json_lines(out / "trials.jsonl") if trial["rungs"]]
    finished = [trial for trial in trials if trial["end"] == "finished"]
    return len(trials), [(row["size_bytes"] / dense, row["rungs"][-1]["retention"]) for row in finished]


def _theirs(folder: Path, seed: int, seconds: float, given: bool) -> tuple[int, list[tuple[float, float]]]:
    out = folder / f"ray-{seed}"
    out.mkdir(parents=True)
    if given:
        _prepare(out / PREPARED, _space(given))
    command = [sys.executable, __file__, "--one", "--folder", str(out), "--seed", str(seed)]
    command += ["--given"] * given
    _stop_after(subprocess.Popen([*command, "--minutes", str(seconds / 60)]), seconds)
    results = read_json_lines(out / RESULTS)
    points = [(row["size_ratio"], row["retention"]) for row in results if row["is_end"]]
    return len({row["trial"] for row in results}), points


def _stop_after(process: subprocess.Popen, seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # ends as Ctrl-C does
        process.wait(120)


def _prepare(path: Path, space: SearchSpace) -> None:
    """Measure the dense model once, on all cores, in a process that ends."""
    code = (
        "import pickle, sys; from raysearch.recovery.deepspeed_engine import start_distributed; start_distributed();"
        "from raysearch.trials.context import TrialContext; from raysearch.config.space import SearchSpace;"
        "found = TrialContext(SearchSpace.model_validate_json(sys.argv[1])).baselines;"
        "open(sys.argv[2], 'wb').write(pickle.dumps(found))"
    )
    subprocess.run([sys.executable, "-c", code, space.model_dump_json(), str(path)], check=True)


def documented_pattern(folder: Path, seed: int, seconds: float, given: bool) -> None:
    """One search the way Ray documents it; a line per result goes into `folder`."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    started = time.monotonic()
    space = _space(given)
    if not given:
        _prepare(folder / PREPARED, space)
    planned = plan_study(space)
    first_rung = round(space.search.first_rung * planned.max_samples)
    levels = AshaBracket(planned.max_samples, first_rung, space.search.reduction_factor).levels
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)

    class Record(tune.Callback):
        """A line per result that comes while there is time."""

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if time.monotonic() - started < seconds and "retention" in result:
                row = {name: result[name] for name in ("size_ratio", "retention", "samples_seen", "is_end")}
                append_json(folder / RESULTS, {"trial": trial.trial_id, **row})

    # Drivers that took a sliver of a CPU each would leave room for one worker fewer than there are cores.
    no_cpu = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    tuner = tune.Tuner(
        tune.with_resources(_driver_of(folder, space, levels), no_cpu),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(_define_by_run, metric=["size_ratio", "retention"], mode=["min", "max"], seed=seed),
            scheduler=ASHAScheduler(
                "samples_seen",
                "retention",
                "max",
                max_t=planned.max_samples,
                grace_period=first_rung,
                reduction_factor=space.search.reduction_factor,
            ),
            num_samples=1000,
            max_concurrent_trials=int(ray.cluster_resources()["CPU"]),
            time_budget_s=seconds - (time.monotonic() - started),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder.resolve()), callbacks=[Record()], verbose=0),
    )
    tuner.fit()


def _define_by_run(trial: Any) -> dict[str, Any]:
    """At the top of the module, since OptunaSearch is pickled with the experiment."""
    from raysearch.searching.samplers.optuna_samplers import OptunaSuggester

    return {"recipe": _space().suggest(OptunaSuggester(trial)).as_dict()}


@functools.cache
def _space(given: bool = False) -> SearchSpace:
    """The embedded one; all questions are asked at every rung, unless the share is given."""
    space = SearchSpace.load(EMBEDDED_SPACE)
    if given:
        return space
    return space.model_copy(update={"search": space.search.model_copy(update={"early_questions": 1.0})})


def _driver_of(folder: Path, space: SearchSpace, levels: list[float]) -> Any:
    """The Tune function that starts a TorchTrainer for its trial."""
    storage, content = str(folder.resolve()), space.model_dump(mode="json")

    def driver(config: dict[str, Any]) -> None:
        from ray import tune
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        loop = {"recipe": config["recipe"], "space": content, "levels": levels, "folder": storage}
        name = f"train-{tune.get_context().get_trial_id()}"
        TorchTrainer(
            _train,
            train_loop_config=loop,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name=name, storage_path=storage, callbacks=[TuneReportCallback()]),
        ).fit()

    return driver


def _train(config: dict[str, Any]) -> None:
    """A trial's worker: load, prune, recover, report every rung."""
    import torch
    from ray import train

    from raysearch.config.recipe import Recipe
    from raysearch.recovery.deepspeed_engine import start_distributed
    from raysearch.trials.context import TrialContext
    from raysearch.trials.trial import Trial

    torch.set_num_threads(1)
    start_distributed()
    shared = Path(config["folder"])
    prepared = pickle.loads((shared / PREPARED).read_bytes())
    context = TrialContext(SearchSpace.model_validate(config["space"]), prepared, shared / "teacher")
    trial = Trial(Recipe(**config["recipe"]), context)
    trial.keeps_best = False
    for score in trial.scores([round(level) for level in config["levels"]]):
        size_ratio = trial.size.size_bytes / context.dense_size.size_bytes
        metrics = {"size_ratio": size_ratio, "retention": score.retention, "samples_seen": score.samples_seen}
        train.report({**metrics, "is_end": score.samples_seen >= trial.end})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="wall-clock time of each side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--given", action="store_true", help="spare the other side what costs it extra time")
    parser.add_argument("--folder", type=Path, default=Path("runs/live"))
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
