"""Does the search beat the decision guide of arXiv 2604.24380? Writes docs/measurements/guide.md.

    raysearch replicate search_spaces/pocket-study.yaml --out runs/study    # the grid, with the guide's recipes
    python scripts/experiments/compare_guide.py --grid runs/study --seeds 3         # searches; resumable

At each of the paper's four ratios the guide's recipe sets the budget: its own size, to the byte. The search answers for
these four budgets at once. Both were chosen without the held-out questions, and are compared on them, paired.
"""

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path

import yaml

from raysearch.backend.search_job import EMBEDDED_SPACE
from raysearch.config.budget import Budget
from raysearch.evaluation.retention import load_results, retention
from raysearch.files import write_text
from raysearch.replication.claims import LAYER, WIDTH, joint, projector
from raysearch.replication.table import SCORES, Cell, Table, percent
from raysearch.study.folder import read_trials
from raysearch.study.front import Front

GUIDE = {
    "15%, projector alone": projector(LAYER, 0.15),
    "15%": joint(LAYER, 0.15, "sft+l2"),
    "30%": joint(LAYER, 0.3, "sft+l2"),
    "45%": joint(WIDTH, 0.45, "sft+l2"),
    "60%": joint(WIDTH, 0.6, "sft+l2"),
}


def budget_of(table: Table, cell: Cell) -> Budget:
    """What the guide's model takes."""
    return Budget.parse(f"{table.sizes[cell].size_bytes / 1e6:.6f}MB")


def search(folder: Path, budgets: list[Budget], seed: int, trials: int) -> None:
    """One search, unless it has been finished."""
    if (folder / "front.json").exists() and len(read_trials(folder)) >= trials:
        return
    space = yaml.safe_load(EMBEDDED_SPACE.read_text())
    space["budgets"] = [budget.text for budget in budgets]
    space["search"] |= {"keep_scores": True, "seed": seed, "trials": trials}
    path = folder.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(space))
    started = ["--resume", str(folder)] if folder.exists() else [str(path), "--out", str(folder)]
    started += ["--trials", str(trials)]
    subprocess.run([sys.executable, "-m", "raysearch.pareto", *started], check=True)


def cost(folder: Path) -> tuple[float, int]:
    """What all trials of a study took, stopped and failed ones too: seconds, and samples to train on."""
    records = read_trials(folder)
    seen = sum(record.rungs[-1].samples_seen for record in records if record.rungs)
    return sum(record.seconds for record in records), seen


def report(grid: Path, searches: list[Path]) -> str:
    """docs/measurements/guide.md."""
    table = Table.load(grid, read_trials(grid))
    whole, parts = cost(grid), [cost(folder) for folder in searches]
    seconds, samples = (max(part[i] for part in parts) / whole[i] for i in range(2))
    trials = max(len(read_trials(folder)) for folder in searches)
    lines = [
        "# The search against the paper's decision guide",
        "",
        f"Measured {date.today().isoformat()} by `scripts/experiments/compare_guide.py` on the embedded LVLM.",
        "The guide of arXiv 2604.24380: up to 30% of the decoder drop layers, beyond that slice widths; recover",
        "projector and decoder by SFT and a match of hidden states (at 15% the projector alone will do).",
        "Its recipes are those of the grid in [the replication](study-pocket.md), three seeds each.",
        f"{len(searches)} searches of the embedded space with",
        f"up to {trials} trials took at most {seconds:.0%} of the grid's time each, and saw at most",
        f"{samples:.0%} of its training samples. Retention is that of held-out questions, in % of the dense model,",
        "differences in points; 95% intervals, paired by question and clustered by image.",
        "",
        "| guide | size | retention of the guide | " + " | ".join(f"search {i}" for i in range(len(searches))) + " |",
        "|---" * (3 + len(searches)) + "|",
        *(row(name, cell, table, searches) for name, cell in GUIDE.items()),
        "",
        "A search's cell has the retention of its answer, and the difference to the guide. Intervals of the guide",
        "are over questions and seeds, those of a difference over questions and the guide's seeds; the variation",
        "between seeds of the search is what the columns differ by.",
        "",
        *(answers(i, folder, table) for i, folder in enumerate(searches)),
    ]
    return "\n".join([*lines, ""])


def row(name: str, cell: Cell, table: Table, searches: list[Path]) -> str:
    """One of the guide's recipes, and how the searches' answers to its size compare."""
    budget = budget_of(table, cell)
    cells = [compared(folder, budget, cell, table) for folder in searches]
    return f"| {name} | {budget.text} | {percent(table.retention(cell))} | {' | '.join(cells)} |"


def compared(folder: Path, budget: Budget, cell: Cell, table: Table) -> str:
    """What a search's answer keeps, and the paired difference to the guide's recipe."""
    point = Front.load(folder).pick(budget)
    if point is None:
        return "nothing so small"
    found = load_results(folder / SCORES / f"{point.key}.npz")
    kept = retention(found, table.dense).value
    return f"{100 * kept:.1f}, {percent(table.gap_to(found, cell), signed=True)}"


def answers(number: int, folder: Path, table: Table) -> str:
    """The recipes that a search answers with."""
    front = Front.load(folder)
    points = [front.pick(budget_of(table, cell)) for cell in GUIDE.values()]
    told = dict.fromkeys(f"{p.size_ratio:.1%} of the size: {p.recipe.describe()}" for p in points if p)
    return f"- Search {number}: " + "; ".join(told)


def main() -> None:
    """Search under every seed, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=Path("runs/study"), help="folder of the study")
    parser.add_argument("--folder", type=Path, default=Path("runs/guide"), help="folder for the searches")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--to", type=Path, default=Path("docs/measurements/guide.md"))
    options = parser.parse_args()
    table = Table.load(options.grid, read_trials(options.grid))
    budgets = [budget_of(table, cell) for cell in GUIDE.values()]
    searches = [options.folder / f"seed-{seed}" for seed in range(options.seeds)]
    for seed, folder in enumerate(searches):
        search(folder, budgets, seed, options.trials)
    write_text(options.to, report(options.grid, searches))
    print(options.to.read_text())


if __name__ == "__main__":
    main()
