"""The shipped spaces of published models, counted on their public configurations: no weights, no data."""

from pathlib import Path

import pytest

from raysearch.config.space import SearchSpace
from raysearch.models.param_count import counts_of
from raysearch.models.shape_solver import shape_for_ratio
from raysearch.searching.samplers.grid import grid
from raysearch.study import plan
from tests.support.public_configs import PUBLIC

SPACES = Path(__file__).parents[2] / "search_spaces"
RATIOS = (0.15, 0.3, 0.45, 0.6)
# As the published checkpoints count them; tied weights once.
NUM_PARAMS = {
    "llava-1.5-7b": 7_063_427_072,
    "bunny-v1.0-3b": 3_202_127_728,
    "mini-internvl-4b": 4_146_855_936,
    "internvl3": 2_088_957_440,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen3-vl-4b": 4_437_815_808,
    "smolvlm2-2.2b": 2_246_784_880,
    "gemma-3-4b": 4_300_079_472,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_budgets_are_the_ratios_of_the_paper(name):
    """Each admits the recipes of both modes at 15, 30, 45 and 60% of the decoder, and is not two points larger."""
    config, space = PUBLIC[name](), SearchSpace.load(SPACES / f"{name}.yaml")
    dense = counts_of(config).size()
    assert dense.num_params == NUM_PARAMS[name]
    for text, ratio in zip(space.budgets, RATIOS, strict=True):
        budget = float(text.rstrip("%")) / 100
        for mode in ("layerwise", "widthwise"):
            share = (
                counts_of(config).size(shape_for_ratio(counts_of(config), mode, ratio)).size_bytes / dense.size_bytes
            )
            assert budget - 0.02 < share <= budget, (name, mode, ratio, share)


@pytest.mark.parametrize("name", [*PUBLIC, "paper-grid"])
def test_a_dry_run_of_them(name, monkeypatch):
    """As --dry-run does, with the configuration and the rows in the place of downloads."""
    config, space = PUBLIC.get(name, PUBLIC["llava-1.5-7b"])(), SearchSpace.load(SPACES / f"{name}.yaml")
    monkeypatch.setattr(plan, "counts_of_model", lambda model: counts_of(config))
    monkeypatch.setattr(plan, "check_benchmarks", lambda benchmarks: None)
    monkeypatch.setattr(plan, "num_rows", lambda data: 665_298)
    planned = plan.plan_study(space)
    said = "\n".join(planned.describe())
    assert f"{planned.dense.num_params:,} parameters" in said
    assert planned.max_samples == (space.num_samples or 665_298)


def test_the_papers_models_are_asked_its_nine_benchmarks():
    for name in ("llava-1.5-7b", "bunny-v1.0-3b", "mini-internvl-4b", "paper-grid"):
        entries = SearchSpace.load(SPACES / f"{name}.yaml").benchmarks
        assert [entry.name for entry in entries] == [
            "MMMU",
            "SQA",
            "MathVista",
            "AI2D",
            "MME-C",
            "MME-P",
            "POPE",
            "DocVQA",
            "GQA",
        ]
        assert {entry.name: entry.scale for entry in entries if entry.scale != 100} == {"MME-C": 800, "MME-P": 2000}


@pytest.mark.parametrize(("name", "num"), [("paper-grid", 70), ("pocket-study", 202)])
def test_the_grids_of_the_paper(name, num):
    space = SearchSpace.load(SPACES / f"{name}.yaml")
    recipes = grid(space)
    assert len(recipes) == len({recipe.key for recipe in recipes}) == num == space.search.trials
