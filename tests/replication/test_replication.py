"""Tables and claims of a grid, on simulated answers with known accuracy; and one small study on the embedded LVLM."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from raysearch.cli.app import app
from raysearch.config.budget import Size
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import Estimate, Results, difference, load_results, retention, save_results
from raysearch.replication.claims import CLAIMS, Check, joint, projector, untrained, verdict
from raysearch.replication.figure import curves, write_figure
from raysearch.replication.markdown_page import page
from raysearch.replication.probes import Probes
from raysearch.replication.table import Cell, Table, cell_of, gap_over_seeds, percent, retention_over_seeds
from raysearch.study.folder import StudyFolder

ROOT = Path(__file__).parents[2]
W, L = "widthwise", "layerwise"
NUM = 2000
CHANCE = {"words": 0.3, "lists": 0.0}
NOTHING = Probes(None, {}, None, {}, {})
BY_NUMBER = {claim.number: claim for claim in CLAIMS}


def answers(kept, seed=0):
    """Two benchmarks of 500 images; the dense model is always right, this one with probability `kept`."""
    random = np.random.default_rng(seed)
    scores = {name: (random.random(NUM) < kept).astype(float) for name in CHANCE}
    return Results(scores, {name: np.arange(NUM) // 4 for name in CHANCE}, CHANCE)


def table(cells, num_seeds=2):
    made = {cell: [answers(kept, seed) for seed in range(num_seeds)] for cell, kept in cells.items()}
    return Table(answers(1.0), made, {cell: Size(10, round(100 * (1 - cell.ratio))) for cell in cells})


def found(number, made, probes=NOTHING):
    return verdict(BY_NUMBER[number].checks(made, probes))


def test_cells_of_recipes():
    def cell(**fields):
        return cell_of(Recipe(**{"mode": L, "ratio": 0.15, "criterion": "deepest", **fields}))

    assert cell(trained="nothing") == untrained(L, 0.15) == Cell(L, 0.15, "none", "", 1.0)
    assert cell(trained="projector") == projector(L, 0.15)
    assert cell(trained="projector+lora", seed=3) == cell(trained="projector+decoder") == joint(L, 0.15)
    assert cell(logits_kd=0.5, hidden_kd=1.0, kl="reverse", data_fraction=0.2) == joint(L, 0.15, "sft+rkl+l2", 0.2)
    assert cell(sft=0.0, logits_kd=0.5) == joint(L, 0.15, "kl")
    assert cell(trained="nothing", quantization="int8") == Cell(L, 0.15, quantization="int8")


def test_results_survive_their_file(tmp_path):
    results = answers(0.5)
    save_results(tmp_path / "new" / "a.npz", results)
    again = load_results(tmp_path / "new" / "a.npz")
    assert again.chance == results.chance
    for name in CHANCE:
        assert again.scores[name].tolist() == results.scores[name].tolist()
        assert again.images[name].tolist() == results.images[name].tolist()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npz"]


def test_one_seed_is_plain_retention():
    dense, one, other = answers(1.0), answers(0.8, 1), answers(0.7, 2)
    assert retention_over_seeds([one], dense) == retention(one, dense)
    assert gap_over_seeds([one], [other], dense) == difference(one, other, dense)


def test_the_spread_of_seeds_widens_the_interval():
    dense = answers(1.0)
    same, apart = [answers(0.7, 1)] * 2, [answers(0.6, 1), answers(0.8, 1)]
    assert retention_over_seeds(same, dense).value == pytest.approx(retention_over_seeds(apart, dense).value, abs=0.02)
    values = [retention(run, dense).value for run in apart]
    spread = abs(values[0] - values[1]) / 2  # the standard error of a mean of two
    reach = retention_over_seeds(apart, dense).value - retention_over_seeds(apart, dense).interval[0]
    assert reach == pytest.approx(12.706 * spread, rel=0.01)  # Student's quantile for one degree of freedom
    # One run, where nothing is drawn, is set against each of several.
    gap = gap_over_seeds([same[0]], apart, dense)
    assert gap.value == pytest.approx(np.mean([difference(same[0], run, dense).value for run in apart]))


@pytest.mark.parametrize(("kept", "expected"), [(0.9, "holds"), (0.8, "fails")])
def test_int8_is_held_against_the_same_recipe_in_16_bits(kept, expected):
    """4-bit models and int8 ones without a counterpart take no part."""
    rounded = [Cell(L, 0.3, quantization=how) for how in ("int8", "int4")]
    alone = Cell(L, 0.6, quantization="int8")
    assert found(22, table({untrained(L, 0.3): 0.9, rounded[0]: kept, rounded[1]: 0.1, alone: 0.1})) == expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (Estimate(0.5, 0.1), 0.0, np.inf, "holds"),
        (Estimate(-0.5, 0.1), 0.0, np.inf, "fails"),
        (Estimate(0.1, 0.1), 0.0, np.inf, "can't tell"),
        (Estimate(-0.1, 0.1), 0.0, np.inf, "can't tell"),
        (Estimate(0.0, 0.01), -0.03, 0.03, "holds"),
        (Estimate(0.0, 0.1), -0.03, 0.03, "can't tell"),
        (Estimate(0.2, 0.01), -0.03, 0.03, "fails"),
        (Estimate(0.03, 0.0), -0.03, 0.03, "holds"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(value, low, high, expected):
    assert Check("it", value, low, high).verdict() == expected


def test_all_must_hold_one_may_fail_and_many_looks_cost():
    holds, fails, unclear = (Check("", Estimate(value, 0.1), low=0) for value in (1.0, -1.0, 0.0))
    barely = Check("", Estimate(-0.2, 0.1), low=0)  # two standard errors out
    assert verdict([]) == "can't tell"
    assert verdict([holds, holds]) == "holds"
    assert verdict([holds, unclear]) == "can't tell"
    assert verdict([unclear, fails, holds]) == "fails"
    assert verdict([barely]) == "fails"
    assert verdict([barely, holds, holds]) == "can't tell"


def test_claims_on_answers_whose_truth_is_known():
    truth = {
        untrained(W, 0.15): 0.93,
        untrained(L, 0.15): 0.7,
        untrained(W, 0.45): 0.3,
        untrained(L, 0.45): 0.35,
        projector(W, 0.15): 0.97,
        joint(W, 0.15): 0.97,
        projector(W, 0.45): 0.7,
        joint(W, 0.45): 0.85,
        joint(L, 0.45): 0.95,
        joint(W, 0.45, "sft+l2"): 0.8,
        joint(W, 0.45, "sft+l2", 0.05): 0.76,
        joint(W, 0.45, "rkl"): 0.8,
        joint(W, 0.45, "kl"): 0.75,
        joint(W, 0.45, "l2"): 0.7,
    }
    made = table(truth)
    expected = {1: "holds", 2: "holds", 4: "holds", 6: "holds", 8: "holds", 10: "fails", 11: "holds", 12: "holds"}
    expected |= {13: "fails", 15: "holds", 17: "fails", 3: "can't tell", 22: "can't tell"}
    assert {number: found(number, made) for number in expected} == expected


def test_claims_without_their_cells_cannot_be_told():
    made = table({untrained(W, 0.2): 0.9})
    assert [claim.number for claim in CLAIMS] == list(range(1, 23))
    assert {verdict(claim.checks(made, NOTHING)) for claim in CLAIMS} == {"can't tell"}


def test_claims_on_probes():
    cells = {untrained(W, 0.15): 0.8, untrained(L, 0.15): 0.8}
    made = table(cells)
    wide, deep = cells
    many = answers(0.8)
    probes = Probes(
        search_dense=answers(1.0),
        calibration={(10, wide): many, (50, wide): many, (1, wide): answers(0.5)},
        text_dense=answers(1.0),
        text={wide: answers(0.96)},
        seconds={wide: Estimate(0.2, 0.001), deep: Estimate(0.1, 0.001), None: Estimate(0.3, 0.001)},
    )
    assert [found(number, made, probes) for number in (18, 19, 20)] == ["holds"] * 3
    drifting = Probes(answers(1.0), {(10, wide): answers(0.5), (50, wide): many}, answers(1.0), {wide: many}, {})
    assert [found(number, made, drifting) for number in (18, 19)] == ["fails"] * 2


def test_probes_are_those_of_recipes_that_only_prune(tmp_path):
    base = {"mode": L, "ratio": 0.15, "criterion": "deepest", "trained": "nothing"}
    recipes = [Recipe(**base), Recipe(**base, quantization="int8"), Recipe(**base | {"trained": "projector"})]
    save_results(tmp_path / "probes" / "text-layerwise-0.15.npz", answers(0.5))
    (tmp_path / "probes" / "seconds.json").write_text(json.dumps({"dense": [0.3, 0.1], "layerwise-0.15": [0.2, 0.1]}))
    found = Probes.load(tmp_path, recipes)
    assert list(found.text) == [untrained(L, 0.15)]
    assert found.seconds == {None: Estimate(0.3, 0.1), untrained(L, 0.15): Estimate(0.2, 0.1)}


def test_relative_to_another_recipe():
    made = table({joint(W, 0.3, "sft+l2"): 0.8, joint(W, 0.3, "sft+l2", 0.05): 0.4}, num_seeds=1)
    share = made.relative(joint(W, 0.3, "sft+l2", 0.05), joint(W, 0.3, "sft+l2"))
    assert share.value == pytest.approx(0.5, abs=0.03)
    assert share.interval[0] < 0.5 < share.interval[1]


def test_seeds_are_pooled_over_the_recipes_of_a_ratio():
    dense = answers(1.0)
    apart, same = [answers(0.6, 1), answers(0.8, 2)], [answers(0.7, 3)] * 3
    calm, wild = joint(W, 0.3), joint(L, 0.3)
    made = Table(dense, {wild: apart, calm: same, untrained(W, 0.3): apart[:1], joint(W, 0.15): same})
    values = [retention(run, dense).value for run in apart]
    pooled = np.sqrt(np.var(values, ddof=1) * 1 / (1 + 2))  # one degree of freedom with a spread, two without
    assert made.retention(calm).se == pytest.approx(np.hypot(retention(same[0], dense).se, pooled / np.sqrt(3)))
    gap = made.gap(calm, untrained(W, 0.3))
    questions = difference(same[0], apart[0], dense)
    assert gap.value == pytest.approx(questions.value)
    assert gap.se == pytest.approx(np.hypot(questions.se, pooled / np.sqrt(3)))
    assert made.gap_to(apart[0], calm) == Estimate(-gap.value, gap.se)
    assert made.retention(untrained(W, 0.3)) == retention(apart[0], dense)
    assert made.retention(joint(W, 0.15)) == retention(same[0], dense)
    share = made.relative(calm, calm)
    assert share.value == 1
    assert share.se == pytest.approx(np.sqrt(2) * pooled / np.sqrt(3) / made.retention(calm).value)


def test_a_gap_on_some_benchmarks():
    dense = answers(1.0)
    first, second = answers(0.8), answers(0.8)
    second.scores["lists"][:] = 0
    made = Table(dense, {untrained(W, 0.15): [first], untrained(L, 0.15): [second]})
    gaps = [made.gap(untrained(W, 0.15), untrained(L, 0.15), names) for names in (["words"], ["lists"], None)]
    assert gaps[0] == Estimate(0.0, 0.0)
    assert gaps[1].value == pytest.approx(first.scores["lists"].mean())
    assert gaps[2].value == pytest.approx(gaps[1].value / 2)
    assert found(3, made) == "holds"


def test_the_page_has_the_papers_tables_and_all_claims():
    recipe = {"mode": [W, L], "ratio": [0.15], "criterion": ["deepest", "magnitude"], "seed": [0, 1]}
    space = SearchSpace(name="a", model="mine", recipe=recipe)
    cells = {untrained(W, 0.15): 0.9, untrained(L, 0.15): 0.8, joint(W, 0.15): 0.95, joint(W, 0.15, "l2"): 0.9}
    made = table(cells)
    text = page(space, made, NOTHING, {"words": 100.0, "lists": 2000.0}, Size(10, 100))
    for title in ("The paper's claims", "T2.", "T3.", "T3c.", "T5a.", "T5b."):
        assert f"## {title}" in text
    assert "## T6" not in text
    assert "## T7" not in text
    lists = made.scores(untrained(W, 0.15))["lists"]
    assert f"| widthwise | 15% | {100 * made.scores(untrained(W, 0.15))['words']:.1f} | {2000 * lists:.1f} |" in text
    assert percent(made.retention(joint(W, 0.15))) in text
    assert text.count("\n| 1 |") == text.count("\n| 22 |") == 1
    assert "Warning" not in text
    better = Table(answers(0.5), {untrained(W, 0.15): [answers(0.9)]})
    assert "**Warning:** 1 of the recipes retain significantly more than 100%" in page(
        space, better, NOTHING, {"words": 100.0, "lists": 100.0}, Size(1, 1)
    )


def test_the_picture_shows_what_was_measured(tmp_path):
    cells = {untrained(W, 0.3): 0.6, untrained(W, 0.15): 0.9, joint(W, 0.15): 0.95, joint(W, 0.15, "sft+l2", 0.2): 0.9}
    made = table(cells)
    panels = curves(made)
    assert {title: list(found) for title, found in panels.items()} == {
        "What is trained, by SFT": [f"{W}, none", f"{W}, joint"],
        "Losses, widthwise, joint": ["sft"],
        "Share of the data, widthwise, SFT with hidden states": ["20%"],
    }
    ratios, kept = zip(*panels["What is trained, by SFT"][f"{W}, none"], strict=True)
    assert ratios == (0.15, 0.3)
    assert kept[0] == made.retention(untrained(W, 0.15))
    write_figure(made, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "replicate: needs SPACE.yaml; start from search_spaces/pocket-study.yaml"),
        (["search_spaces/pocket.yaml"], "recipe.ratio: a range from 0.08 to 0.92; a grid needs a list"),
        (["--resume", "{search}"], "holds a search; resume it with raysearch search --resume"),
        (["--resume", "{empty}"], "no space.json; give the --out folder"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(arguments, said, tmp_path, capsys, monkeypatch):
    search, empty = tmp_path / "search", tmp_path / "empty"
    StudyFolder(search, SearchSpace.load(ROOT / "search_spaces" / "pocket.yaml")).create()
    empty.mkdir()
    monkeypatch.chdir(ROOT)
    before = sorted(ROOT.glob("runs/*"))
    with pytest.raises(SystemExit) as ended:
        app(["replicate", *(argument.format(search=search, empty=empty) for argument in arguments)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert sorted(ROOT.glob("runs/*")) == before
    assert [path.name for path in search.iterdir()] == ["space.json"]


def test_a_dry_run_counts_the_grid(capsys):
    with pytest.raises(SystemExit) as ended:
        app(["replicate", str(ROOT / "search_spaces" / "pocket-study.yaml"), "--dry-run"])
    assert ended.value.code == 0
    assert "202 trials; by grid, seed 0, all run to their end" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_study_and_its_resumption(run_module, tmp_path):
    space = {
        "name": "small",
        "model": "pocket",
        "num_samples": 16,
        "benchmarks": ["easy-vqa", "lists"],
        "recipe": {
            "mode": [W, L],
            "ratio": [0.15, 0.45],
            "criterion": ["deepest", "magnitude"],
            "trained": ["nothing", "projector"],
            "lr": 1e-3,
        },
        "recovery": {"batch_size": 4, "max_length": 256, "zero_stage": 1},
        "slots": {"num": 1},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))

    def study(*arguments):
        done = run_module("raysearch", "replicate", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    study("space.yaml", "--out", "study")
    folder = tmp_path / "study"
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert [row["end"] for row in rows] == ["finished"] * 8
    assert {path.stem for path in (folder / "scores").iterdir()} == {"dense", *(row["key"] for row in rows)}
    text = (folder / "study.md").read_text()
    assert (folder / "study.png").exists()
    for title in ("## T2.", "## T3.", "## T3c.", "## T7."):
        assert title in text
    again = study("--resume", "study")
    assert again.strip().endswith("study.md")
    assert (folder / "study.md").read_text() == text
