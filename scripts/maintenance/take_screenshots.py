"""Take screenshots of a finished study: MLflow's compare page, the parent run's artifacts, the report.

    python scripts/maintenance/take_screenshots.py runs/first --to docs/images

Needs Chromium and Playwright. Prints what the pages complained about, if anything.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysearch.report.html_page import write_report
from raysearch.study.folder import read_space
from raysearch.tracking.tracker import tracking_uri

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 600_000  # ms; MLflow's pages are heavy, and the machine may be busy

SHORT_PATH = """(path) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(path, "runs/first");
}"""


def main() -> int:
    """Take every picture; 1 if a page complained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--to", type=Path, default=Path("docs/images"), help="folder for the pictures")
    options = parser.parse_args()
    study = options.study.resolve()
    options.to.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    with mlflow_server(tracking_uri(study)) as server, browser_page(complaints) as page:
        experiment, parent, children = runs_of(study)
        open_comparison(page, server, experiment, children)
        page.screenshot(path=options.to / "mlflow-compare.png")
        open_artifacts(page, server, experiment, parent)
        page.get_by_text("Path:").first.evaluate("line => line.style.visibility = 'hidden'")  # a folder of this machine
        page.screenshot(path=options.to / "mlflow-parent.png")
        page.set_viewport_size({"width": 1250, "height": 1400})
        open_report(page, study)
        page.screenshot(path=options.to / "report.png")
        page.screenshot(path=options.to / "report-whole.png", full_page=True)
    print("\n".join(complaints))
    return bool(complaints)


def runs_of(study: Path) -> tuple[str, str, list[str]]:
    """The experiment of a study, its parent run, and its scored child runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(study))
    experiment = client.get_experiment_by_name(read_space(study).name).experiment_id
    ids = json.loads((study / "mlflow.json").read_text())["runs"]
    scored = client.search_runs([experiment], "metrics.retention > 0", max_results=1000)
    return experiment, ids[""], [run.info.run_id for run in scored if run.info.run_id in ids.values()]


def open_comparison(page: Any, server: str, experiment: str, runs: list[str]) -> None:
    """MLflow's compare page with the scatter of size against retention, once it is drawn."""
    asked = {"runs": runs, "experiments": [experiment]}
    query = "&".join(f"{name}={urllib.parse.quote(json.dumps(value))}" for name, value in asked.items())
    page.goto(f"{server}/#/compare-runs?{query}", timeout=PATIENCE)
    page.get_by_text("Scatter Plot").first.click()
    for axis, name in enumerate(("size_ratio", "retention")):
        page.get_by_role("combobox").nth(axis).click()
        page.get_by_role("option", name=name, exact=True).first.click()
    # MLflow draws the points by WebGL, so they are asked for where plotly keeps them.
    drawn = (
        "[...document.querySelectorAll('.js-plotly-plot')].some(plot => JSON.stringify(plot.layout).includes("
        f"'size_ratio') && plot.data.some(trace => trace.y && trace.y.length == {len(runs)}))"
    )
    page.wait_for_function(drawn, timeout=PATIENCE)
    close_assistant(page)


def open_artifacts(page: Any, server: str, experiment: str, parent: str) -> None:
    """The parent run's artifacts, with the picture of the front chosen."""
    page.goto(f"{server}/#/experiments/{experiment}/runs/{parent}/artifacts", timeout=PATIENCE)
    page.get_by_text("front.png", exact=True).first.click()
    page.wait_for_function(
        "[...document.querySelectorAll('img')].some(image => image.naturalWidth > 1000)", timeout=PATIENCE
    )


def open_report(page: Any, study: Path) -> None:
    """The study's report, written anew, with all of its plots."""
    page.goto(write_report(study).as_uri(), timeout=PATIENCE)
    page.wait_for_selector("body[data-ready]")
    page.evaluate("drawAll()")
    page.evaluate(SHORT_PATH, str(study))  # the study's folder on this machine
    page.locator("#front-plot g.scatterlayer path.point").first.wait_for()


def close_assistant(page: Any) -> None:
    """MLflow opens a chat beside its pages; it takes a quarter of the width."""
    button = page.get_by_role("button", name="Close", exact=True)
    if button.count():
        button.first.click()
        page.wait_for_timeout(2000)  # the plots are drawn anew


@contextmanager
def mlflow_server(store: str) -> Iterator[str]:
    """`mlflow ui` over a store, on this machine only; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, **quiet) as process:
        try:
            wait_for(f"{address}/health")
            yield address
        finally:
            process.terminate()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(url: str, seconds: float = 600) -> None:
    """Until a server answers.

    Raises:
        TimeoutError: it never did.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(url)


@contextmanager
def browser_page(complaints: list[str]) -> Iterator[Any]:
    """A page of a headless Chromium; what goes wrong on it is added to `complaints`."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE)
        listen(page, complaints)
        try:
            yield page
        finally:
            browser.close()


def listen(page: Any, complaints: list[str]) -> None:
    """Note exceptions, console errors and failed requests of a page.

    MLflow's own page asks who is logged in and gets a 404 when nobody can log in; the console repeats that.
    """

    def heard(message: Any) -> None:
        if message.type == "error" and "/users/current" not in str(message.location):
            complaints.append(f"console: {message.text} at {message.location}")

    def answered(response: Any) -> None:
        if response.status >= 400 and "/users/current" not in response.url:
            complaints.append(f"{response.status}: {response.url}")

    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("console", heard)
    page.on("response", answered)


if __name__ == "__main__":
    sys.exit(main())
