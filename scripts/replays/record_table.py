"""Record a table of real trials of the embedded LVLM: every recipe runs to its end, every rung's scores are kept.

    python scripts/replays/record_table.py                                   # 330 trials, hours; resumable
    python scripts/replays/record_table.py --worker 0/2 &                    # the same on two cores,
    python scripts/replays/record_table.py --worker 1/2                      # with this
    python scripts/replays/record_table.py --trials 4 --to /tmp/table.parquet    # a minute, to see what it does

Recipes are points of a scrambled Sobol' sequence over search_spaces/pocket-table.yaml, so the first n of them cover the
joint space evenly for every n. Every tenth is run a second time under another seed. What has ended is kept in
runs/table, one line per trial; the Parquet file is made from those lines. docs/measurements/table.md
describes its columns.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.stats.qmc import Sobol

from raysearch.config.recipe import LOSS_FIELDS, Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.files import append_json, read_json_lines
from raysearch.search.early_stopping.asha import AshaBracket
from raysearch.study.plan import StudyPlan, plan_study

SPACE = Path(__file__).parents[2] / "search_spaces" / "pocket-table.yaml"
REPEAT_EVERY = 10
MAX_DIMENSIONS = 32
RECIPE_FIELDS = tuple(Recipe.model_fields)


class SobolAsk:
    """An `Ask` that answers with the coordinates of one point; a name keeps its coordinate from point to point."""

    def __init__(self, point: np.ndarray, columns: dict[str, int]) -> None:
        self._point, self._columns = point, columns

    def choice(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """The choice whose equal share of [0, 1) holds the coordinate."""
        return choices[int(self._at(name) * len(choices))]

    def number(self, name: str, low: float, high: float, log: bool, step: float | None) -> float:
        """The coordinate stretched over the range."""
        assert step is None, name
        at = self._at(name)
        return low * (high / low) ** at if log else low + (high - low) * at

    def _at(self, name: str) -> float:
        return float(self._point[self._columns.setdefault(name, len(self._columns))])


def recipes(planned: StudyPlan, num_trials: int) -> list[Recipe]:
    """The first `num_trials` different recipes, each tenth of them twice.

    Two recipes that differ in nothing but a ratio that gives the same shape are one recipe.
    """
    columns: dict[str, int] = {}
    found: list[Recipe] = []
    made: set[tuple[Any, ...]] = set()
    sobol = Sobol(MAX_DIMENSIONS, scramble=True, rng=planned.space.search.seed)
    for point in _points(sobol):
        try:
            recipe = planned.space.suggest(SobolAsk(point, columns))
        except ValidationError:  # all three loss weights 0
            continue
        size = planned.size_of(recipe)
        what = (size, recipe.key_without_ratio)
        if size is None or what in made:
            continue
        made.add(what)
        found.append(recipe)
        if len(found) == num_trials:
            break
    again = [recipe.model_copy(update={"seed": 1}) for recipe in found[::REPEAT_EVERY]]
    return found + again


def _points(sobol: Sobol) -> Iterator[np.ndarray]:
    while True:
        yield from sobol.random(64)


def record(planned: StudyPlan, wanted: Sequence[Recipe], folder: Path, name: str) -> None:
    """Run what no worker has run yet, and append a line per trial to this worker's file."""
    done = {line["key"] for line in read_lines(folder)}
    missing = [recipe for recipe in wanted if recipe.key not in done]
    if not missing:
        return
    import torch

    from raysearch.recovery.deepspeed_engine import start_distributed
    from raysearch.trials.context import TrialContext
    from raysearch.trials.trial import Trial

    torch.set_num_threads(1)
    start_distributed()
    context = TrialContext(planned.space)
    settings = planned.space.search
    rungs = AshaBracket(
        planned.max_samples, round(settings.first_rung * planned.max_samples), settings.reduction_factor
    )
    folder.mkdir(parents=True, exist_ok=True)
    for number, recipe in enumerate(missing, 1):
        started = time.monotonic()
        trial = Trial(recipe, context)
        try:
            scores, answers = [], []
            for score in trial.scores([round(level) for level in rungs.levels]):
                scores.append(score)
                answers.append(_packed(trial.latest_results.scores))
            end = {"end": "finished", "num_params": trial.size.num_params, "size_bytes": trial.size.size_bytes}
        except FloatingPointError as error:
            end = {"end": "failed", "reason": str(error)}
        finally:
            trial.close()
        line = {"key": recipe.key, "recipe": recipe.as_dict(), "seconds": round(time.monotonic() - started, 2)}
        line |= end | {"dense_bytes": context.dense_size.size_bytes, "answers": answers}
        line["rungs"] = [score.model_dump() for score in scores]
        append_json(folder / f"{name}.jsonl", line)
        last = f"{scores[-1].retention:.3f}" if scores else "failed"
        print(f"{number}/{len(missing)} {recipe.describe()}: {last} in {line['seconds']:.0f} s", flush=True)


def _packed(scores: dict[str, np.ndarray]) -> str:
    """Right or wrong per question, benchmark after benchmark, eight to the byte, in hexadecimal."""
    return np.packbits(np.concatenate([values > 0 for values in scores.values()])).tobytes().hex()


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of all workers."""
    return [line for path in sorted(folder.glob("*.jsonl")) for line in read_json_lines(path)]


def write_table(lines: Sequence[dict[str, Any]], order: Sequence[Recipe], path: Path) -> int:
    """Replace the Parquet file by the trials that have ended, in the order of the sequence; how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    by_key = {line["key"]: line for line in lines}
    rows = []
    for recipe in order:
        line = by_key.get(recipe.key)
        if line is None:
            continue
        rungs = line["rungs"]
        row = {field: line["recipe"].get(field) for field in RECIPE_FIELDS}
        row |= {name: line.get(name) for name in ("key", "end", "num_params", "size_bytes", "seconds")}
        row["size_ratio"] = (line.get("size_bytes") or 0) / line["dense_bytes"]
        for name in ("samples_seen", "retention", "retention_se"):
            row[name] = [score[name] for score in rungs]
        for name in rungs[0]["scores"] if rungs else ():
            row[f"score.{name}"] = [score["scores"][name] for score in rungs]
        for name in LOSS_FIELDS:
            row[f"loss.{name}"] = [score["losses"].get(name) for score in rungs]
        row["right"] = [bytes.fromhex(text) for text in line["answers"]]
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(pa.Table.from_pylist(rows), unfinished, compression="zstd")
    os.replace(unfinished, path)
    return len(rows)


def main() -> None:
    """Record what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300, help="recipes; a tenth of them is run twice")
    parser.add_argument("--folder", type=Path, default=Path("runs/table"))
    parser.add_argument("--to", type=Path, default=Path("docs/data/pocket-trials.parquet"))
    parser.add_argument("--worker", default="0/1", help="i/n: run every n-th recipe from the i-th on")
    options = parser.parse_args()
    planned = plan_study(SearchSpace.load(SPACE))
    worker, num_workers = map(int, options.worker.split("/"))
    wanted = recipes(planned, options.trials)
    record(planned, wanted[worker::num_workers], options.folder, f"worker-{worker}-of-{num_workers}")
    num_rows = write_table(read_lines(options.folder), wanted, options.to)
    print(f"{options.to}: {num_rows} of {len(wanted)} trials")


if __name__ == "__main__":
    main()
