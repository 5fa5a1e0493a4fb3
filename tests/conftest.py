"""Fixtures that several packages' tests share."""

import gc
import os
import subprocess
import sys

import pytest

from tests.support import synthetic_study


def pytest_collection_finish():
    """Keep what is imported by now out of every later collection: a trial's end collects, which would take .7 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def run_module():
    """Run `python -m MODULE ARGUMENTS` in a folder, without a live view."""

    def run(module, *arguments, cwd, **environment):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "CI": "true", **environment},
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A finished synthetic study of 40 trials, to read only."""
    return synthetic_study.make(tmp_path_factory.mktemp("synthetic") / "run")
