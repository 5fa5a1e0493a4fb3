"""Which pinned packages have known vulnerabilities, by a copy of the Python Packaging Advisory Database; no network.

    git clone --depth 1 https://github.com/pypa/advisory-database
    python scripts/maintenance/audit.py advisory-database

Prints a line per advisory that concerns a pinned version, and how much was compared; exit status 1 if there is one.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

LOCK = Path(__file__).parents[2] / "requirements.lock"


def pins(text: str) -> dict[str, Version]:
    """The exact versions of a requirements file, by normalised name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", text, re.MULTILINE)
    return {normalised(name): Version(version) for name, version in found}


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def affects(advisory: Mapping[str, Any], name: str, version: Version) -> bool:
    """Whether an advisory in OSV's form concerns a version: it is listed, or lies in a range of versions."""
    if advisory.get("withdrawn"):
        return False
    own = [entry for entry in advisory["affected"] if normalised(entry["package"]["name"]) == name]
    return any(
        version.public in entry.get("versions", ())
        or any(inside(version, span["events"]) for span in entry.get("ranges", ()) if span["type"] == "ECOSYSTEM")
        for entry in own
    )


def inside(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    """Whether a version lies in a range: `introduced` opens it, `fixed` closes it before, `last_affected` after."""
    is_in = False
    for event in sorted(events, key=lambda event: _version(*event.values())):
        ((kind, text),) = event.items()
        if kind == "introduced" and version >= _version(text):
            is_in = True
        elif (kind == "fixed" and version >= _version(text)) or (kind == "last_affected" and version > _version(text)):
            is_in = False
    return is_in


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:  # 2.6.0-cu124, say
        return Version(re.match(r"[0-9]+(\.[0-9]+)*", text)[0])  # type: ignore[index]


def advisories(folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The advisories of a package in a copy of the database."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted((folder / "vulns" / name).glob("*.yaml")):
        yield yaml.load(path.read_text(encoding="utf-8"), loader)


def main() -> None:
    """Compare, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path, help="a copy of pypa/advisory-database")
    parser.add_argument("--lock", type=Path, default=LOCK)
    options = parser.parse_args()
    if not (options.database / "vulns").is_dir():
        parser.error(f"{options.database}: no folder vulns, so no copy of pypa/advisory-database")
    num_compared, num_found, newest = 0, 0, ""
    pinned = pins(options.lock.read_text(encoding="utf-8"))
    for name, version in pinned.items():
        for advisory in advisories(options.database, name):
            num_compared, newest = num_compared + 1, max(newest, str(advisory["modified"]))
            if affects(advisory, name, version):
                num_found += 1
                print(f"{name}=={version}:", advisory["id"], *advisory.get("aliases", ()))
    print(f"{len(pinned)} packages against {num_compared} advisories, the newest of {newest}: {num_found} concern them")
    sys.exit(bool(num_found))


if __name__ == "__main__":
    main()
