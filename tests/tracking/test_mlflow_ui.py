"""A study in MLflow's own pages, in a real browser: `pytest -m slow tests/tracking/test_mlflow_ui.py`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raysearch.report.plots import write_pictures
from raysearch.tracking.tracker import Tracker, tracking_uri
from scripts.maintenance import take_screenshots as screen
from tests.support import synthetic_study

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(screen.CHROMIUM is None, reason="no chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose trials were all sent to MLflow."""
    made = synthetic_study.make(tmp_path_factory.mktemp("study") / "run")
    write_pictures(made.folder, made.front, made.records)
    Tracker(made).close(seconds=300)
    return made


@pytest.fixture(scope="module")
def server(study):
    """The address of `mlflow ui` over the study's store."""
    with screen.mlflow_server(tracking_uri(study.folder)) as address:
        yield address


@pytest.fixture
def page():
    """A page that must cause no error."""
    errors = []
    with screen.browser_page(errors) as page:
        yield page
    assert errors == []


def test_compare_page_plots_size_against_retention(study, server, page):
    experiment, _, children = screen.runs_of(study.folder)
    screen.open_comparison(page, server, experiment, children)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data.flatMap("
        "trace => trace.y ? trace.x.map((x, i) => [Number(x), Number(trace.y[i])]) : []))"
    )
    scored = [record for record in study.records if record.rungs]
    expected = [
        (record.size_bytes / synthetic_study.BASELINE.size_bytes, record.rungs[-1].retention) for record in scored
    ]
    assert len(drawn) == len(expected) == len(children)
    for got, wanted in zip(sorted(map(tuple, drawn)), sorted(expected), strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)


def test_parent_run_holds_the_front(study, server, page):
    experiment, parent, _ = screen.runs_of(study.folder)
    screen.open_artifacts(page, server, experiment, parent)
    files = {file.path for file in MlflowClient(tracking_uri(study.folder)).list_artifacts(parent)}
    assert files == {"front.html", "front.json", "front.png", "space.json", "trials.jsonl"}
    for name in files:
        assert page.get_by_text(name, exact=True).count() >= 1, name
    sizes = page.evaluate("[...document.querySelectorAll('img')].map(i => [i.naturalWidth, i.naturalHeight])")
    assert [1440, 896] in sizes, "the picture of the front itself"


def test_the_script_opens_it(study):
    """`scripts/mlflow_ui` finds the store beside the study's folder, and says so when there is none."""
    command = ["bash", str(ROOT / "scripts" / "mlflow_ui")]
    nowhere = subprocess.run([*command, "/nonexistent"], capture_output=True, text=True)
    assert nowhere.returncode == 2
    assert "no mlflow.db in or beside /nonexistent" in nowhere.stderr
    port = screen.free_port()
    arguments = [str(study.folder), "--port", str(port), "--workers", "1"]
    with subprocess.Popen([*command, *arguments], stdout=sys.stderr, stderr=subprocess.DEVNULL) as process:
        try:
            screen.wait_for(f"http://127.0.0.1:{port}/health")
        finally:
            process.terminate()
