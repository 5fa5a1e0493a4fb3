"""The report and the live page as a person uses them: in Chromium, at three widths, in both schemes, by keyboard."""

import http.client
import importlib.util
import json
import shutil
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from raysearch.report import live_page
from raysearch.report.html_page import write_report
from raysearch.report.live_page import LivePage
from raysearch.study.front import Front
from raysearch.study.status import Stage, Status
from tests.support import synthetic_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 180_000  # ms; the machine may be busy
WIDTHS = (390, 820, 1400)

in_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="no Chromium, or no playwright"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = synthetic_study.make(tmp_path_factory.mktemp("study") / "run", num_trials=60)
    synthetic_study.illustrate(study)
    write_report(study.folder)
    return study


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, width=1400, scheme="light"):
    """A page with all plots drawn; it complains of nothing and asks nobody for anything else."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    errors, requested = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address, timeout=PATIENCE)
    page.wait_for_selector("body[data-ready]")
    page.evaluate("drawAll()")
    yield page
    page.close()
    assert errors == []
    origin = address.rsplit("/", 1)[0]
    assert [url for url in requested if not url.startswith((origin, "data:", "blob:"))] == []


@in_browser
@pytest.mark.skipif(importlib.util.find_spec("axe_playwright_python") is None, reason="no axe-playwright-python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_accessible_and_fits(study, browser, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, (study.folder / "report.html").as_uri(), width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        page.evaluate("drawAll()")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is cut off at the side"
        drawn = page.evaluate(
            "[...document.querySelectorAll('.chart')].map((place) => place.querySelectorAll('svg').length)"
        )
        assert len(drawn) > 15
        assert all(drawn)


@in_browser
def test_the_colours_follow_the_system(study, browser):
    with opened(browser, (study.folder / "report.html").as_uri()) as page:

        def line():
            return page.evaluate("document.getElementById('progress').data[0].line.color")

        assert line() == "#0072b2"
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("document.getElementById('progress').data[0].line.color === '#56b4e9'")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"


@in_browser
def test_all_of_it_can_be_used_by_keyboard(study, browser):
    keys = [record.key for record in study.records]
    with opened(browser, (study.folder / "report.html").as_uri()) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"

        page.get_by_role("button", name="key", exact=True).focus()
        page.keyboard.press("Enter")
        shown = page.locator("#trial-table tbody tr td:first-child").all_text_contents()
        assert shown == sorted(keys)[: len(shown)]
        assert page.locator("#trial-table th").first.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")
        assert page.locator("#trial-table tbody td").first.text_content() == max(keys)

        page.locator("#page-on").focus()
        page.keyboard.press("Enter")
        assert page.locator("#page-text").text_content() == f"26 to 50 of {len(keys)} trials"

        page.locator("#filter-text").focus()
        page.keyboard.type("the loss is not finite")
        assert page.locator("#page-text").text_content() == "1 to 1 of 1 trials"
        page.keyboard.press("Control+a")
        page.keyboard.type("no such recipe")
        assert page.locator("#page-text").text_content() == "no trial is like that"
        page.keyboard.press("Control+a")
        page.keyboard.press("Delete")
        page.locator("#filter-end").select_option("stopped")
        num_stopped = sum(record.end == "stopped" for record in study.records)
        assert page.locator("#trial-table tbody tr").count() == min(25, num_stopped)
        page.locator("#filter-end").select_option("")
        page.locator("#filter-size").focus()
        page.keyboard.type("40")
        small = [r for r in study.records if r.size_bytes and r.size_bytes <= 4_000_000]
        assert page.locator("#page-text").text_content().endswith(f"of {len(small)} trials")

        legend = page.locator("#front-plot-legend button", has_text="widthwise, finished")
        legend.focus()
        page.keyboard.press("Space")
        assert legend.get_attribute("aria-pressed") == "false"
        page.wait_for_function("document.getElementById('front-plot').data.some((t) => t.visible === 'legendonly')")

        page.locator("#front summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#front details").first.get_attribute("open") is not None
        page.wait_for_selector("#stopped svg")


@in_browser
def test_a_point_tells_its_recipe(study, browser):
    with opened(browser, (study.folder / "report.html").as_uri()) as page:
        names = page.evaluate("document.getElementById('front-plot').data.map((trace) => trace.name)")
        number = next(i for i, name in enumerate(names) if name.startswith("recipes on the front"))
        points = page.locator("#front-plot g.scatterlayer > g.trace").nth(number).locator("path.point")
        assert points.count() == len(study.front.points)
        points.nth(1).hover(force=True)
        tooltip = page.locator("#front-plot g.hovertext")
        tooltip.wait_for()
        point = study.front.points[1]
        for text in (point.key, f"criterion: {point.recipe.criterion}", f"retention: {point.retention:.1%}"):
            assert text in tooltip.text_content()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A study whose search runs, with two trials so far, and its live page."""
    monkeypatch.setattr(live_page, "SECONDS_BETWEEN_PAGES", 0.0)
    monkeypatch.setattr(live_page, "SHARE_OF_TIME", 1e9)
    monkeypatch.setattr(live_page, "SECONDS_BETWEEN_LOOKS", 0.05)
    study = synthetic_study.make(tmp_path / "run", num_trials=2, fail=False)
    with LivePage(study.folder, study.front) as live:
        yield study, live


def more_trials(study):
    """Let two further trials end."""
    grown = synthetic_study.make(study.folder.parent / "grown", num_trials=12, fail=False)
    for record in grown.records[2:]:
        study.record(record)
    grown.front.save(study.folder)


def asked(live, path, host=None):
    address = urlsplit(live.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", path, headers={"Host": host} if host else {})
    return connection.getresponse()


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("{token}/", None, 200),
        ("{token}/", "localhost:80", 200),
        ("{token}/content", None, 200),
        ("{token}/", "evil.example:80", 404),
        ("", None, 404),
        ("wrong/", None, 404),
        ("{token}", None, 404),
        ("{token}/../trials.jsonl", None, 404),
        ("{token}/trials.jsonl", None, 404),
    ],
)
def test_only_who_knows_the_address_gets_the_page(served, path, host, status):
    _, live = served
    answer = asked(live, "/" + path.format(token=live.token), host)
    body = answer.read().decode()
    assert answer.status == status
    assert ('<h2 id="answers-title">' in body) == (status == 200)
    if status == 200:
        assert ('id="plotly"' in body) == (not path.endswith("content"))
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert live.token not in body


def test_changes_are_told_as_they_come(served):
    study, live = served
    answer = asked(live, f"/{live.token}/events")
    assert answer.headers["Content-Type"] == "text/event-stream"

    def next_event():
        name, data, _ = (answer.readline().decode().strip() for _ in range(3))
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    assert next_event() == ("status", "The search begins.")
    assert next_event() == ("changed", "")
    live.follow(Status(started=0.0, stage=Stage(state="waiting", since=0.0), slots=[]))
    assert next_event()[1].startswith("waiting")
    before = live.page(is_update=True)
    more_trials(study)
    assert next_event()[0] == "changed"
    assert live.page(is_update=True) != before
    ending = threading.Thread(target=live.__exit__, args=(None, None, None))
    ending.start()
    names = [next_event()[0]]
    while names[-1] != "ended":
        names.append(next_event()[0])
    ending.join()


def test_a_study_without_a_front_has_a_live_page(tmp_path):
    study = synthetic_study.make(tmp_path / "run", num_trials=1, fail=False)
    (study.folder / "front.json").unlink()
    empty = Front.build("s", "m", synthetic_study.BASELINE, [], study.budgets)
    with LivePage(study.folder, empty) as live:
        assert "No finished recipe is that small" in live.page(is_update=True)


def test_a_ray_job_says_how_its_page_is_reached(served, monkeypatch):
    _, live = served
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert live.how_to_reach() == [f"live page  {live.url}"]
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    port = urlsplit(live.url).port
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in live.how_to_reach()[1]


@in_browser
def test_the_live_page_follows_the_search_and_keeps_what_was_chosen(served, browser):
    from playwright.sync_api import expect  # waits without eval, which the page's policy forbids

    study, live = served
    with opened(browser, live.url) as page:
        page.locator("#filter-mode").select_option("widthwise")
        page.evaluate("window.marked = true")
        live.follow(Status(started=0.0, stage=Stage(state="training both slots", since=0.0), slots=[]))
        expect(page.locator("#status")).to_contain_text("training both slots", timeout=PATIENCE)
        more_trials(study)
        num = sum(record.recipe.mode == "widthwise" for record in study.records)
        expect(page.locator("#page-text")).to_contain_text(f"of {num} trials", timeout=PATIENCE)
        expect(page.locator("#answers .summary")).to_contain_text("12: ", timeout=PATIENCE)
        assert page.locator("#filter-mode").input_value() == "widthwise"
        assert page.evaluate("window.marked"), "the page was not loaded anew"
        live.__exit__(None, None, None)
        expect(page.locator("#status")).to_contain_text("The search has ended", timeout=PATIENCE)
