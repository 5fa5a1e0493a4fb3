"""A study as MLflow's own pages show it, in a real browser: `pytest -m slow tests/test_mlflow_ui.py`."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest
import synthetic_study
from mlflow import MlflowClient

from raysearch.report.plots import write_pictures
from raysearch.tracking.tracker import Tracker, tracking_uri

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240_000  # ms; MLflow's pages are heavy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose trials were all told to MLflow."""
    made = synthetic_study.make(tmp_path_factory.mktemp("study") / "run")
    write_pictures(made.folder, made.front, made.records)
    Tracker(made).close(seconds=300)
    return made


@pytest.fixture(scope="module")
def server(study):
    """The address of `mlflow ui` over the study's store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking_uri(study.folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health")
        yield address
        process.terminate()


def wait_for(url, seconds=300):
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            assert time.monotonic() < until, url
            time.sleep(1)


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE)
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # MLflow's own page asks who is logged in and gets a 404 when nobody can log in.
        page.on(
            "response",
            lambda got: (
                complaints.append(got.url) if got.status >= 400 and "/users/current" not in got.url else None
            ),
        )
        yield page
        browser.close()
        assert complaints == []


def test_compare_page_plots_size_against_retention(study, server, page, tmp_path):
    client = MlflowClient(tracking_uri(study.folder))
    experiment = client.get_experiment_by_name(study.space.name).experiment_id
    scored = client.search_runs([experiment], "metrics.retention > 0", max_results=200)
    runs = urllib.parse.quote(json.dumps([run.info.run_id for run in scored]))
    where = urllib.parse.quote(json.dumps([experiment]))
    page.goto(f"{server}/#/compare-runs?runs={runs}&experiments={where}", timeout=PATIENCE)
    page.get_by_text("Scatter Plot").first.click()
    for axis, name in enumerate(("size_ratio", "retention")):
        page.get_by_role("combobox").nth(axis).click()
        page.get_by_role("option", name=name, exact=True).first.click()
    # MLflow draws the points by WebGL, so they are asked for where plotly keeps them.
    drawn = (
        "[...document.querySelectorAll('.js-plotly-plot')].some(plot => JSON.stringify(plot.layout).includes("
        "'size_ratio') && plot.data.some(trace => trace.y && trace.y.length == COUNT))"
    )
    page.wait_for_function(drawn.replace("COUNT", str(len(scored))), timeout=PATIENCE)
    page.screenshot(path=tmp_path / "compare.png")


def test_parent_run_holds_the_front(study, server, page, tmp_path):
    client = MlflowClient(tracking_uri(study.folder))
    experiment = client.get_experiment_by_name(study.space.name).experiment_id
    parent = next(
        run
        for run in client.search_runs([experiment], max_results=200)
        if "mlflow.parentRunId" not in run.data.tags
    )
    page.goto(f"{server}/#/experiments/{experiment}/runs/{parent.info.run_id}/artifacts", timeout=PATIENCE)
    for name in ("front.html", "front.json", "front.png", "space.json", "trials.jsonl"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.screenshot(path=tmp_path / "parent.png")
