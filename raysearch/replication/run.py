"""Run the grid of a space through the same slots as a search, without stopping any trial; then write its page."""

from pathlib import Path

from raysearch.replication.page import write_page
from raysearch.replication.probes import measure
from raysearch.search.grid import grid
from raysearch.space import SearchSpace
from raysearch.study import Study


def as_grid(space: SearchSpace) -> SearchSpace:
    """The space as a study without search: every recipe, whatever its size, to its own end.

    Raises:
        InputError: a dimension is a range.
    """
    changes = {"sampler": "grid", "early_stopping": False, "keep_scores": True, "trials": len(grid(space))}
    return space.model_copy(update={"search": space.search.model_copy(update=changes), "budgets": []})


def run_study(space: SearchSpace, folder: Path) -> Path:
    """Run what the study in `folder` lacks, and write DIR/study.md.

    Args:
        space: of `as_grid`.

    Raises:
        InputError: as `pareto.run`.
    """
    from raysearch.pareto import run
    from raysearch.plan import plan

    planned = plan(space)
    if len(Study(folder, space).records) < space.search.trials:
        run(planned, folder)
    measure(space, folder, grid(space))
    return write_page(folder, space, planned.dense)
