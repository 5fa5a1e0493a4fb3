"""Measure the headline effects of arXiv 2604.24380 on the embedded LVLM: writes docs/measurements/effects.md.

    python scripts/experiments/paper_effects.py                  # 3 seeds, about half an hour on one core; resumable
    for i in 0 1; do python scripts/experiments/paper_effects.py --seeds 1 --worker $i/2 & done    # on two cores

Every comparison is paired and joins two sources of error, as raysearch/replication/table.py says. What was measured is
kept in runs/effects, one file per recipe.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np
import torch

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.benchmarks import load_benchmarks
from raysearch.evaluation.retention import Estimate, Results, retention
from raysearch.files import write_text
from raysearch.recovery.deepspeed_engine import start_distributed
from raysearch.replication.table import gap_over_seeds, percent, retention_over_seeds
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial

CRITERION = {"layerwise": "block_influence", "widthwise": "taylor"}
FULL = {"trained": "projector+decoder", "lr": 3e-4}


def recipe(mode: str, ratio: float, seed: int = 0, **fields: object) -> Recipe:
    """A recipe of the paper's kinds."""
    return Recipe(mode=mode, ratio=ratio, criterion=CRITERION[mode], seed=seed, **fields)


def comparisons() -> list[tuple[str, str, dict, dict]]:
    """(group, what is compared, recipe A, recipe B) without their seeds."""
    rows: list[tuple[str, str, dict, dict]] = []
    for ratio in (0.15, 0.30):
        wide, deep = ({"mode": mode, "ratio": ratio, "trained": "nothing"} for mode in ("widthwise", "layerwise"))
        rows.append(("Width against depth, no recovery", f"{ratio:.0%}: widthwise - layerwise", wide, deep))
    for mode in CRITERION:
        base = {"mode": mode, "ratio": 0.15}
        projector = base | {"trained": "projector", "lr": 1e-3}
        rows.append(("Projector only against full, SFT", f"{mode} 15%: projector - full", projector, base | FULL))
    for mode in CRITERION:
        for ratio in (0.15, 0.30):
            base = {"mode": mode, "ratio": ratio} | FULL
            what = f"{mode} {ratio:.0%}: SFT+hidden - SFT"
            rows.append(("Hidden-state match on top of SFT", what, base | {"hidden_kd": 1.0}, base))
    for mode in CRITERION:
        for ratio in (0.15, 0.30):
            base = {"mode": mode, "ratio": ratio} | FULL
            what = f"{mode} {ratio:.0%}: 5% - 100%"
            rows.append(("5% of the data against all of it, SFT", what, base | {"data_fraction": 0.05}, base))
    control = {"mode": "layerwise", "ratio": 0.0} | FULL
    dense = {"mode": "layerwise", "ratio": 0.0, "trained": "nothing"}
    rows.append(("Control: recovery of the unpruned model, SFT", "trained - untouched", control, dense))
    return rows


def recipes(num_seeds: int) -> list[Recipe]:
    """Every recipe that a comparison needs, each once."""
    wanted = [side for _, _, first, second in comparisons() for side in (first, second)]
    found = {r.key: r for side in wanted for r in seeds_of(side, num_seeds)}
    return list(found.values())


def seeds_of(fields: dict, num_seeds: int) -> list[Recipe]:
    """The recipe under each seed; one is enough where nothing is drawn."""
    return [recipe(**fields, seed=seed) for seed in range(1 if fields.get("trained") == "nothing" else num_seeds)]


def measure(wanted: list[Recipe], folder: Path) -> None:
    """Run what isn't there yet; a result is the (benchmark -> scores per question) of the held-out split."""
    missing = [r for r in wanted if not (folder / f"{r.key}.npz").exists()]
    if not missing:
        return
    torch.set_num_threads(1)
    start_distributed()
    context = TrialContext(SearchSpace.load(EMBEDDED_SPACE))
    folder.mkdir(parents=True, exist_ok=True)
    for number, wanted_recipe in enumerate(missing, 1):
        trial = Trial(wanted_recipe, context)
        trial.keeps_best = False
        *_, score = trial.scores([])
        results = trial.evaluate(context.heldout)
        trial.close()
        np.savez(folder / f"{wanted_recipe.key}.npz", **results.scores)
        kept = retention(results, context.heldout_baseline)
        print(f"{number}/{len(missing)} {wanted_recipe.describe()}: {kept.value:.3f} (search {score.retention:.3f})")
    np.savez(folder / "dense.npz", **context.heldout_baseline.scores)


class Effects:
    """Comparisons from the stored results."""

    def __init__(self, folder: Path, num_seeds: int) -> None:
        benchmarks = load_benchmarks("pocket", "heldout")
        self.images = {b.name: np.array([q.image_id for q in b.questions]) for b in benchmarks}
        self.chance = {b.name: b.chance for b in benchmarks}
        self.folder, self.num_seeds = folder, num_seeds
        self.dense = self._read("dense")

    def kept(self, fields: dict) -> Estimate:
        """Retention of a recipe, averaged over its seeds."""
        return retention_over_seeds(self._runs(fields), self.dense)

    def gap(self, first: dict, second: dict) -> Estimate:
        """Retention of `first` minus that of `second`."""
        return gap_over_seeds(self._runs(first), self._runs(second), self.dense)

    def _runs(self, fields: dict) -> list[Results]:
        return [self._read(r.key) for r in seeds_of(fields, self.num_seeds)]

    def _read(self, name: str) -> Results:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
            return Results(dict(stored), self.images, self.chance)


def report(table: Effects) -> str:
    """docs/measurements/effects.md."""
    num = sum(len(values) for values in table.dense.scores.values())
    lines = [
        "# The paper's headline effects on the embedded LVLM",
        "",
        f"Measured {date.today().isoformat()} by `scripts/experiments/paper_effects.py`, {table.num_seeds} seeds,",
        f"{num} held-out questions, layers by block influence, widths by first-order Taylor. Retention in % of the",
        "dense (ratio of averages), differences in points, 95% intervals over questions (paired, clustered by image)",
        "and seeds.",
        "",
        "| effect | A | B | A - B |",
        "|---|---|---|---|",
    ]
    for group, what, first, second in comparisons():
        gap = table.gap(first, second)
        told = "" if gap.interval[0] <= 0 <= gap.interval[1] else " *"
        kept = f"{percent(table.kept(first))} | {percent(table.kept(second))}"
        lines.append(f"| {group}: {what} | {kept} | {percent(gap, signed=True)}{told} |")
    return "\n".join([*lines, "", "`*`: the interval leaves out 0.", ""])


def main() -> None:
    """Measure what is missing, then write the table (the first worker does)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/effects"))
    parser.add_argument("--to", type=Path, default=Path("docs/measurements/effects.md"))
    parser.add_argument(
        "--worker", default="0/1", help="i/n: measure every n-th recipe from the i-th on; write nothing"
    )
    options = parser.parse_args()
    worker, num_workers = map(int, options.worker.split("/"))
    measure(recipes(options.seeds)[worker::num_workers], options.folder)
    if num_workers == 1:
        write_text(options.to, report(Effects(options.folder, options.seeds)))
        print(options.to.read_text())


if __name__ == "__main__":
    main()
