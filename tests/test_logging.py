"""What is logged, from which level on, and that it reaches stderr."""

import io
import logging
import threading
import time

import pytest
from rich.console import Console
from rich.live import Live

from raysearch.backend.coordinator import Coordinator
from raysearch.backend.tuner import relay_log
from raysearch.errors import InputError
from raysearch.logging import LEVEL_VARIABLE, configure, logger
from scripts.testing.local_coordinator import LocalCoordinator


@pytest.fixture(autouse=True)
def logger_as_before():
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.mark.parametrize(
    ("variable", "verbosity", "level"),
    [
        (None, 0, logging.WARNING),
        ("", 0, logging.WARNING),
        ("error", 0, logging.ERROR),
        ("INFO", 0, logging.INFO),
        ("ERROR", 1, logging.INFO),
        (None, 2, logging.DEBUG),
        (None, 3, logging.DEBUG),
    ],
)
def test_the_option_counts_before_the_variable(variable, verbosity, level, monkeypatch):
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(LEVEL_VARIABLE, variable)
    assert configure(verbosity) == verbosity
    assert logger.level == level


@pytest.mark.parametrize("verbosity", [0, 1])
def test_a_level_that_does_not_exist_is_refused(verbosity, monkeypatch):
    monkeypatch.setenv(LEVEL_VARIABLE, "LOUD")
    with pytest.raises(InputError, match=r"RAYSEARCH_LOG_LEVEL 'LOUD': no such level; known are DEBUG, INFO"):
        configure(verbosity)


def test_a_warning_is_one_line_however_often_it_is_given(capsys):
    configure()
    configure()
    for _ in range(2):
        logging.getLogger("raysearch.data.samples").warning("left out %d rows\n(%s)", 3, "0: no answer")
    logger.info("not shown")
    assert capsys.readouterr() == ("", "raysearch: warning: left out 3 rows (0: no answer)\n")


def test_warnings_appear_above_the_live_view_while_it_is_on(capsys):
    terminal = io.StringIO()
    configure()
    with Live("progress", console=Console(file=terminal, force_terminal=True), auto_refresh=False):
        logger.warning("while it is on")
    logger.warning("after it")
    assert "raysearch: warning: while it is on" in terminal.getvalue()
    assert capsys.readouterr().err == "raysearch: warning: after it\n"


def test_what_workers_log_reaches_stderr_at_its_level(capsys):
    configure()
    coordinator = LocalCoordinator()
    threading.Thread(target=relay_log, args=(coordinator,), daemon=True).start()
    for level, message in ((logging.INFO, "loaded"), (logging.WARNING, "100% full"), (logging.ERROR, "lost")):
        coordinator.call(Coordinator.log, level, message)
    shown, deadline = "", time.monotonic() + 30
    while "lost" not in shown and time.monotonic() < deadline:
        time.sleep(0.01)
        shown += capsys.readouterr().err
    assert shown == "raysearch: warning: 100% full\nraysearch: error: lost\n"
