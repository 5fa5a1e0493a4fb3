"""Plots of a front: the values that they show, by hand; then that they are drawn."""

import re
import subprocess
import sys

import pytest
from PIL import Image

from raysearch.config.budget import Budget, Size
from raysearch.config.recipe import Recipe
from raysearch.report.charts import hypervolume_history
from raysearch.report.front_info import front_info, off_front, staircase, thinned, thinned_text, trial_points
from raysearch.report.plots import draw_front, front_html, write_pictures
from raysearch.study.front import Baseline, Front, FrontPoint
from raysearch.study.multi_objective import hypervolume
from tests.support import synthetic_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return synthetic_study.make(tmp_path_factory.mktemp("study") / "run")


def small_front(study="mine", budgets=("1.5KB", "40%")):
    baseline = Baseline(num_params=1000, size_bytes=2000, scores={"qa": 0.8})
    points = [
        FrontPoint(
            key=f"{ratio:.2f}".replace(".", ""),
            recipe=Recipe(mode=mode, ratio=ratio, criterion=criterion),
            num_params=int(1000 * (1 - ratio)),
            size_bytes=int(2000 * (1 - ratio)),
            size_ratio=1 - ratio,
            retention=retention,
            retention_ci=(retention - 0.03, retention + 0.02),
            scores={"qa": 0.8 * retention},
            samples_seen=64,
        )
        for ratio, retention, mode, criterion in (
            (0.25, 0.95, "widthwise", "taylor"),
            (0.5, 0.9, "layerwise", "block_influence"),
        )
    ]
    return Front.build(study, "pocket", baseline, points, [Budget.parse(text) for text in budgets])


def test_front_info_is_what_the_front_holds():
    info = front_info(small_front())
    assert [(point.size_ratio, point.retention, point.mode) for point in info.points] == [
        (0.5, 0.9, "layerwise"),
        (0.75, 0.95, "widthwise"),
    ]
    assert info.points[0].interval == pytest.approx((0.87, 0.92))
    assert info.staircase == ((0.5, 0.9), (0.75, 0.9), (0.75, 0.95), (1.0, 0.95))
    # 1.5 KB of 2,000 bytes is .75 and admits both; of the lower bounds .92 and .87 the first is better.
    assert [(line.text, line.size_ratio, line.answer) for line in info.budgets] == [
        ("40%", 0.4, None),
        ("1.5KB", 0.75, "025"),
    ]
    assert info.dense == Size(1000, 2000)
    tooltip = dict(info.points[0].tooltip)
    assert tooltip["retention"] == "90.0% [87.0, 92.0]"
    assert tooltip["criterion"] == "block_influence"
    assert tooltip["score qa"] == "0.720"


@pytest.mark.parametrize(
    ("points", "corners"),
    [([], ()), ([(1.0, 0.5)], ((1.0, 0.5),)), ([(0.2, 0.5)], ((0.2, 0.5), (1.0, 0.5))), ([(1.1, 0.5)], ((1.1, 0.5),))],
)
def test_staircase_at_its_ends(points, corners):
    assert staircase(points) == corners


def test_trial_points_leave_out_failed_trials(study):
    points = trial_points(study.records, synthetic_study.BASELINE)
    ends = [record.end for record in study.records]
    assert "failed" in ends
    assert sorted(point.end for point in points) == sorted(end for end in ends if end != "failed")
    by_key = {record.key: record for record in study.records}
    for point in points:
        record = by_key[point.key]
        assert point.retention == record.rungs[-1].retention
        assert point.size_ratio == record.size_bytes / 10_000_000


def test_each_recipe_is_drawn_once(study):
    info, points = front_info(study.front), trial_points(study.records, synthetic_study.BASELINE)
    left = off_front(info, points)
    assert len(left) == len(points) - len(info.points)
    assert {point.key for point in left}.isdisjoint(point.key for point in info.points)


def test_pictures_are_written_whole(study, tmp_path):
    write_pictures(tmp_path, study.front, study.records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.html", "front.png"]
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.size == (1440, 896)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert {(0, 0x72, 0xB2), (0x22, 0x22, 0x22)} <= colours, "front points and the staircase"


def test_an_empty_front_is_drawn_too(tmp_path):
    front = small_front().model_copy(update={"points": [], "budgets": {"60%": None}})
    draw_front(front_info(front), tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert "dense model" in front_html(front_info(front))


def test_html_needs_no_network_and_runs_no_foreign_markup():
    front = small_front().model_copy(update={"study": "</script><script>alert(1)</script>"})
    page = front_html(front_info(front))
    assert not re.search(r"<(script|link|img)[^>]+(src|href)\s*=\s*[\"']?http", page)
    assert "<script>alert(1)" not in page
    assert '"showSendToCloud": false' in page


def test_no_display_and_no_pyplot_is_needed(tmp_path):
    """Figures are made without matplotlib's global state, so that a worker thread may draw."""
    code = "import sys, raysearch.report.plots; print([m for m in ('matplotlib', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_are_spread_from_the_first_to_the_last():
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    assert thinned(list(range(11)), 3) == [0, 5, 10]
    assert len(set(thinned(list(range(1000)), 999))) == 999
    assert thinned_text(3, [1, 2, 3]) == ""
    assert thinned_text(3, range(1200)) == "3 of 1,200 trials are shown, evenly spread over the search."


def test_the_history_of_the_hypervolume_has_a_point_for_each_change(tmp_path):
    study = synthetic_study.make(tmp_path / "study", num_trials=60)
    drawn = hypervolume_history(study.front, study.records).data[0]
    sizes, retentions, areas = [], [], {}
    for number, record in enumerate(study.records, 1):
        if record.end == "finished":
            sizes.append(record.size_bytes / study.front.baseline.size_bytes)
            retentions.append(record.rungs[-1].retention)
        areas[number] = hypervolume(sizes, retentions)
    assert len(drawn.x) < 40
    assert drawn.x[-1] == 60
    at = 0
    for number, area in areas.items():
        at = max(index for index, x in enumerate(drawn.x) if x <= number)
        assert drawn.y[at] == pytest.approx(area)
    assert drawn.y[at] == pytest.approx(study.front.hypervolume)
