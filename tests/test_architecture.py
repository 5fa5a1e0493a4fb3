"""docs/architecture.md names functions that exist, and keeps its walks short."""

import pkgutil
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^## (A .*?)\n\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL))


def stations(walk):
    return re.findall(r"^\d+\. `([\w.]+)`", walk, re.MULTILINE)


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_is_short_and_its_stations_exist(name):
    names = stations(WALKS[name])
    assert 5 <= len(names) <= 12
    assert len(names) == len(re.findall(r"^\d+\. ", WALKS[name], re.MULTILINE))
    for station in names:
        assert callable(pkgutil.resolve_name(station)), station


def test_there_are_two_walks():
    assert list(WALKS) == ["A Recipe, from YAML to checkpoint", "A Score, from a worker to the front"]


def test_every_name_of_the_package_exists():
    for name in set(re.findall(r"`(raysearch\.[\w.]+)`", TEXT)):
        assert pkgutil.resolve_name(name) is not None
