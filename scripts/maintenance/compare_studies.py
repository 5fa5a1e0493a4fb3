"""Compare two studies key by key: the same trials in the same order, the same decisions, the same front.

    python scripts/maintenance/compare_studies.py runs/before runs/after

Left out are times, names of trials, paths of checkpoints and MLflow's ids. Prints one line if the studies are the same,
else the first differences; exit status 1 if there are any.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysearch.files import read_json_lines

LEFT_OUT = {"started", "seconds", "seconds_training", "seconds_evaluating"}
LEFT_OUT |= {"trial", "checkpoint", "mlflow_run_id", "measured"}
NUM_SHOWN = 10


def read(folder: Path) -> dict[str, Any]:
    """The trials, decisions and front of a study, as its files have them."""
    decisions = folder / "decisions.jsonl"
    return {
        "trials": read_json_lines(folder / "trials.jsonl"),
        "decisions": read_json_lines(decisions) if decisions.exists() else [],
        "front": json.loads((folder / "front.json").read_text(encoding="utf-8")),
    }


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """One line for each value that differs, with its path."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [key for key in first | second if key not in LEFT_OUT]:
            if key in first and key in second:
                yield from differences(first[key], second[key], f"{path}.{key}".lstrip("."))
            else:
                yield f"{path}.{key}: only in the {'first' if key in first else 'second'} study".lstrip(".")
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            yield f"{path}: {len(first)} entries, {len(second)} in the second study"
        for number, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from differences(one, other, f"{path}[{number}]")
    elif first != second and not (first != first and second != second):  # NaN equals NaN here
        yield f"{path}: {first!r}, {second!r} in the second study"


def main() -> None:
    """Compare, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of a study")
    parser.add_argument("second", type=Path, help="folder of the other one")
    options = parser.parse_args()
    for folder in (options.first, options.second):
        if not (folder / "front.json").exists() or not (folder / "trials.jsonl").exists():
            parser.error(f"{folder}: no front.json or no trials.jsonl, so no finished study")
    first = read(options.first)
    found = list(itertools.islice(differences(first, read(options.second)), NUM_SHOWN))
    print(
        "\n".join(found)
        or "same: {} trials, {} decisions, {} front points".format(
            len(first["trials"]), len(first["decisions"]), len(first["front"]["points"])
        )
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
