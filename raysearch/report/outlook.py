"""What further trials of a study are expected to add, in words and as `forecast.json`."""

import math
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat

from raysearch.files import write_json
from raysearch.report.terminal import own_command, shell_path
from raysearch.searching.forecast import NUM_RUNS, Forecast, Gain
from raysearch.searching.pace import seconds_per_run
from raysearch.searching.searcher import Searcher
from raysearch.study.folder import StudyFolder
from raysearch.study.records import Printable, read_document, seconds_text

FORECAST = "forecast.json"


class SavedForecast(BaseModel):
    """`forecast.json`: a `Forecast` with what it rests on.

    Attributes:
        num_ended: trials that had ended.
        seconds: time that the further runs would take; None where the pace isn't known.
        next_runs: the limit, in full runs, of a search that goes on for so many.
    """

    model_config = ConfigDict(frozen=True)

    num_ended: int
    seconds: FiniteFloat | None = None
    next_runs: int | None = None
    num_runs: FiniteFloat
    front: Gain
    at_budgets: dict[Printable, Gain]
    unanswered: list[Printable] = []


def read_forecast(folder: Path) -> SavedForecast | None:
    """The forecast of a study's search; None if none was written.

    Raises:
        InputError: the file holds something else.
    """
    return read_document(folder / FORECAST, SavedForecast, "forecast")


class Outlook:
    """The forecast of a running search.

    Args:
        num_slots: trials at a time, for the time that further runs would take.
    """

    def __init__(self, study: StudyFolder, searcher: Searcher, num_slots: int = 1) -> None:
        self._study, self._searcher, self._num_slots = study, searcher, num_slots
        self._known: tuple[int, Forecast | None] = -1, None

    @property
    def forecast(self) -> Forecast | None:
        """As of the trials that have ended."""
        num = len(self._study.records)
        if self._known[0] != num:
            self._known = num, self._searcher.forecast()
        return self._known[1]

    def seconds(self) -> float | None:
        """Time that another `NUM_RUNS` full runs would take."""
        each = seconds_per_run(self._study.records, self._searcher.full_run)
        return None if each is None else NUM_RUNS * each / max(1, self._num_slots)

    def text(self) -> str:
        """One line; empty while there are too few trials to tell."""
        expected = self.forecast
        if expected is None:
            return ""
        seconds = self.seconds()
        took = f" (about {seconds_text(seconds)})" if seconds else ""
        gains = expected.at_budgets.items()
        parts = [f"{_points(gain)} at {budget}" for budget, gain in gains]
        parts += [] if parts else [f"{_points(expected.front)} of hypervolume"]
        return f"another {NUM_RUNS:g} full runs{took} are expected to add {', '.join(parts)}"

    def points(self) -> dict[str, float]:
        """The expected gains in points: of the hypervolume, and by budget."""
        expected = self.forecast
        if expected is None:
            return {}
        return {"hypervolume": expected.front.points} | {b: gain.points for b, gain in expected.at_budgets.items()}

    def advice(self) -> str:
        """The line, and the command that goes on; empty while there are too few trials to tell."""
        text = self.text()
        if not text:
            return ""
        command = f"{own_command()} search --resume {shell_path(self._study.folder)} --runs {self._next_runs()}"
        return f"{text[0].upper()}{text[1:]}; go on with {command}"

    def _next_runs(self) -> int:
        """The limit, in full runs, of a search that goes on for another `NUM_RUNS`."""
        return math.ceil(self._searcher.num_samples / self._searcher.full_run + NUM_RUNS)

    def save(self) -> bool:
        """Write `forecast.json` into the study's folder; False while there are too few trials to tell."""
        expected = self.forecast
        if expected is not None:
            content = {"schema": 1, "num_ended": len(self._study.records), "seconds": self.seconds()}
            write_json(self._study.folder / FORECAST, content | {"next_runs": self._next_runs()} | asdict(expected))
        return expected is not None


def _points(gain: Gain) -> str:
    return f"{gain.points:.1f} points (80%: up to {gain.high:.1f})"
