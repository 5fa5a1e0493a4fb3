"""Record a table of real trials of the embedded LVLM: every recipe runs to its end, every rung's scores are kept.

    python scripts/replays/record_table.py                                   # 330 trials, hours; resumable
    python scripts/replays/record_table.py --worker 0/2 &                    # the same on two cores,
    python scripts/replays/record_table.py --worker 1/2                      # with this
    python scripts/replays/record_table.py --trials 4 --to /tmp/table.parquet    # a minute, to see what it does
    nohup python scripts/replays/record_table.py --heads > runs/table-heads.log &    # 200 more; resumable, one core

Recipes are points of a scrambled Sobol' sequence over search_spaces/pocket-table.yaml, so the first n of them cover the
joint space evenly for every n. Every tenth is run a second time under another seed. They cut heads by the same share as
FFN channels. With --heads the recipes are points of another sequence, over raysearch/pocket/space.yaml, where the share
of heads varies and layers alone are left out; no second seeds. What has ended is kept in runs/table, or
runs/table-heads, one line per trial. The Parquet file is made from those lines; the rows that it has of other recipes
stay. docs/measurements/table.md describes its columns.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError
from scipy.stats.qmc import Sobol

import raysearch.pocket
from raysearch.config.recipe import LOSS_FIELDS, Mode, Recipe
from raysearch.config.settings import Scalar
from raysearch.config.space import SearchSpace
from raysearch.files import append_json, read_json_lines
from raysearch.searching.early_stopping.asha import AshaBracket
from raysearch.study.plan import StudyPlan, plan_study

SPACE = Path(__file__).parents[2] / "search_spaces" / "pocket-table.yaml"
HEADS_SPACE = Path(raysearch.pocket.__file__).with_name("space.yaml")
REPEAT_EVERY = 10
MAX_DIMENSIONS = 32
MODES = get_args(Mode)
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


def first_space() -> SearchSpace:
    """SPACE as it was when the table was begun, without a share of heads: a field more would move all points."""
    space = SearchSpace.load(SPACE)
    return space.model_copy(update={"recipe": {k: v for k, v in space.recipe.items() if k != "attention_share"}})


def recipes(
    planned: StudyPlan, num_trials: int, repeat_every: int = REPEAT_EVERY, modes: Sequence[str] = MODES
) -> list[Recipe]:
    """The first `num_trials` different recipes of some modes, each tenth of them twice.

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
        if recipe.mode not in modes:
            continue
        size = planned.size_of(recipe)
        what = (size, recipe.key_without_ratio)
        if size is None or what in made:
            continue
        made.add(what)
        found.append(recipe)
        if len(found) == num_trials:
            break
    repeated = found[::repeat_every] if repeat_every else []
    return found + [recipe.model_copy(update={"seed": 1}) for recipe in repeated]


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
    """Put the trials that have ended into the Parquet file; how many there are.

    They come in the order of the sequence, behind the rows that the file has of other recipes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    by_key = {line["key"]: line for line in lines}
    keys = {recipe.key for recipe in order}
    kept = [row for row in pq.read_table(path).to_pylist() if row["key"] not in keys] if path.exists() else []
    for row in kept:  # of an earlier version, maybe, which had fewer fields
        made = Recipe(**{field: row[field] for field in RECIPE_FIELDS if row.get(field) is not None})
        row |= {field: made.as_dict().get(field) for field in RECIPE_FIELDS if field not in row}
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
    names = dict.fromkeys(name for row in [*rows, *kept] for name in row)
    columns = {name: [row.get(name) for row in [*kept, *rows]] for name in names}
    pq.write_table(pa.table(columns), unfinished, compression="zstd")
    os.replace(unfinished, path)
    return len(rows)


def main() -> None:
    """Record what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, help="recipes: 300, of which a tenth is run twice; with --heads 200")
    parser.add_argument("--heads", action="store_true", help="more recipes, whose share of heads varies")
    parser.add_argument("--folder", type=Path, help="runs/table, or runs/table-heads")
    parser.add_argument("--to", type=Path, default=Path("docs/data/pocket-trials.parquet"))
    parser.add_argument("--worker", default="0/1", help="i/n: run every n-th recipe from the i-th on")
    options = parser.parse_args()
    if options.heads:
        planned = plan_study(SearchSpace.load(HEADS_SPACE))
        wanted = recipes(planned, options.trials or 200, repeat_every=0, modes=("widthwise", "both"))
    else:
        planned = plan_study(first_space())
        wanted = recipes(planned, options.trials or 300)
    folder = options.folder or Path("runs/table-heads" if options.heads else "runs/table")
    worker, num_workers = map(int, options.worker.split("/"))
    record(planned, wanted[worker::num_workers], folder, f"worker-{worker}-of-{num_workers}")
    num_rows = write_table(read_lines(folder), wanted, options.to)
    print(f"{options.to}: {num_rows} of {len(wanted)} trials")


if __name__ == "__main__":
    main()
