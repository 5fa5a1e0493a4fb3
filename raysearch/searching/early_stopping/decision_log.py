"""The verdicts of early stopping, one line of JSON each with its reason."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysearch.files import append_json, read_json_lines, write_text
from raysearch.searching.early_stopping.asha import Decision


class DecisionLog:
    """Appends verdicts to a file.

    Args:
        path: of the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, decision: Decision) -> None:
        """Append a verdict at a rung, or on a value that is no number; others are passed over.

        Args:
            number: of the verdict, from 1.
        """
        if decision.rung is None and math.isfinite(decision.retention):
            return
        line: dict[str, Any] = {"decision": number}
        for key, value in asdict(decision).items():
            line[key] = None if isinstance(value, float) and not math.isfinite(value) else value
        append_json(self._path, line, flush=False)

    def cut(self, num_decisions: int) -> None:
        """Delete verdicts after `num_decisions`, which a resumed search gives again."""
        if self._path.exists():
            rows = [row for row in read_json_lines(self._path) if row["decision"] <= num_decisions]
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
