"""Which advisories concern a pinned version, by hand-made ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from scripts.maintenance.audit import affects, inside, pins

RANGES = [
    ([{"introduced": "0"}, {"fixed": "2.52.0"}], {"2.51.9": True, "2.52.0": False, "2.60.0": False}),
    ([{"fixed": "1.2"}, {"introduced": "0"}, {"introduced": "2.0"}, {"fixed": "2.1"}], {"1.5": False, "2.0.3": True}),
    ([{"introduced": "1.0"}, {"last_affected": "1.4"}], {"0.9": False, "1.4": True, "1.4.1": False}),
    ([{"introduced": "0"}], {"99": True}),
    ([{"introduced": "2.6.0-cu124"}], {"2.5": False, "2.6.1": True}),
]  # fmt: skip


@pytest.mark.parametrize(("events", "versions"), RANGES)
def test_ranges(events, versions):
    assert {text: inside(Version(text), events) for text in versions} == versions


def test_pins():
    text = "# all\ntorch==2.13.0\nRay[tune,train]==2.60.0 ; python_version > '3'\nJinja2==3.1.6\n"
    assert pins(text) == {"torch": Version("2.13.0"), "ray": Version("2.60.0"), "jinja2": Version("3.1.6")}


def test_an_advisory_that_was_withdrawn_or_is_of_another_package_does_not_count(tmp_path):
    advisory = {
        "id": "PYSEC-1",
        "modified": "2026-01-01",
        "affected": [{"package": {"name": "Jinja2"}, "versions": ["3.1.0"]}],
    }
    assert affects(advisory, "jinja2", Version("3.1.0"))
    assert not affects(advisory, "jinja2", Version("3.1.1"))
    assert not affects(advisory, "other", Version("3.1.0"))
    assert not affects({**advisory, "withdrawn": "2026-02-01"}, "jinja2", Version("3.1.0"))
    (tmp_path / "vulns" / "jinja2").mkdir(parents=True)
    (tmp_path / "vulns" / "jinja2" / "PYSEC-1.yaml").write_text(yaml.safe_dump(advisory))
    (tmp_path / "lock").write_text("jinja2==3.1.0\n")
    script = Path(__file__).parents[2] / "scripts" / "maintenance" / "audit.py"
    command = [sys.executable, str(script), str(tmp_path), "--lock", str(tmp_path / "lock")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "jinja2==3.1.0: PYSEC-1"
