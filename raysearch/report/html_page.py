"""One self-contained page about a study, `report.html`: the answers first, then what they rest on."""

import base64
import gzip
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from raysearch.config.budget import params_text, size_text
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.files import write_text
from raysearch.report import charts, dimensions, param_importance, plots
from raysearch.report.findings import findings
from raysearch.report.front_info import front_info, thinned_text, trial_points
from raysearch.report.next_space import changes
from raysearch.report.outlook import SavedForecast, read_forecast
from raysearch.report.palette import DARK
from raysearch.report.terminal import POINT_COLUMNS, SPEED_COLUMNS, own_command, point_row, speed_rows, state_text
from raysearch.study.examples import Examples, read_examples
from raysearch.study.folder import SPACE, TRIALS, is_study, read_layer_importance, read_space, read_trials
from raysearch.study.front import Front, FrontPoint, retention_text
from raysearch.study.provenance import Start, read_starts
from raysearch.study.records import TrialRecord, seconds_text
from raysearch.study.secrets import mask

REPORT = "report.html"
MAX_SHOWN_EXAMPLES = 3
"""Answers to budgets whose examples are shown, ten pictures each."""
MAX_REASON_CHARS = 200


@dataclass(frozen=True)
class PageContent:
    """All that the page shows of a study.

    Attributes:
        folder: of the study, for the commands on the page.
        space: None where it isn't known.
        layers: (num_layers,) scores of the dense model's decoder layers, by criterion.
        examples: by recipe key, questions that its model answers otherwise than the dense one.
        starts: of the search, the first one first.
    """

    front: Front
    records: Sequence[TrialRecord]
    folder: Path = Path("DIR")
    space: SearchSpace | None = None
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    examples: Mapping[str, Examples] = field(default_factory=dict)
    forecast: SavedForecast | None = None
    starts: Sequence[Start] = ()

    @classmethod
    def read(cls, folder: Path, empty: Front | None = None) -> "PageContent":
        """What a study's folder holds.

        Args:
            empty: the front of a study that has none yet.

        Raises:
            InputError: it holds no study, or one without a front, or a damaged file.
        """
        if not is_study(folder):
            raise InputError(f"{folder}: no study; give the --out folder of a search")
        front = empty if empty and not (folder / "front.json").exists() else Front.load(folder)
        answers = [key for key in dict.fromkeys(front.budgets.values()) if key] or [p.key for p in front.points[-1:]]
        found = {key: read_examples(folder, key) for key in answers[:MAX_SHOWN_EXAMPLES]}
        return cls(
            front=front,
            records=read_trials(folder) if (folder / TRIALS).exists() else [],
            folder=folder.resolve(),
            space=read_space(folder) if (folder / SPACE).exists() else None,
            layers=read_layer_importance(folder),
            examples={key: examples for key, examples in found.items() if examples},
            forecast=read_forecast(folder),
            starts=read_starts(folder),
        )


def write_report(folder: Path) -> Path:
    """Write `report.html` into a study's folder, and return its path.

    Raises:
        InputError: as `PageContent.read`.
    """
    write_text(folder / REPORT, report_html(PageContent.read(folder)))
    return folder / REPORT


def report_html(content: PageContent, is_live: bool = False, is_update: bool = False) -> str:
    """The page in HTML, with all that it needs, so that it needs no network.

    Args:
        is_live: whether a server sends its changes (`live_page`).
        is_update: leave out plotly, for a browser that has it.
    """
    import jinja2

    # Text is escaped; the page's own style, script and packed data are marked as safe in the template.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    files = {name: _page_file(name) for name in ("report.html", "report.css", "report.js")}
    values = _values(content) | {"css": files["report.css"], "js": files["report.js"], "is_live": is_live}
    figures, texts, num_axes = _figures(content, values["importances"])
    data = {"figures": figures, "dark": DARK, "trials": _trial_table(content)}
    slices = [name for name in figures if name.startswith("slice-")]
    values |= {"figures": set(figures), "slices": slices, "texts": texts, "num_axes": num_axes}
    packed = {"data": _packed(json.dumps(data, separators=(",", ":"))), "plotly": "" if is_update else _packed_plotly()}
    return environment.from_string(files["report.html"]).render(**values, **packed)


@cache
def _page_file(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


@cache
def _packed_plotly() -> str:
    """Plotly's code takes 4.8 MB as it is and 2 MB packed; browsers unpack it in a tenth of a second."""
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _values(content: PageContent) -> dict[str, Any]:
    """What the template shows beside the figures and the table of trials."""
    front, records = content.front, content.records
    found = findings(front, records)
    for_front = param_importance.for_front(records, front.baseline)
    for_retention = param_importance.for_retention(records, front.baseline)
    changed = changes(content.space, front, found) if content.space else []
    answers = [_answer(content, budget, key) for budget, key in front.budgets.items()]
    speeds = speed_rows(front)
    return {
        "title": front.study,
        "model": str(mask(front.model)),
        "summary": _summary(content),
        "answers": answers,
        "examples": [
            (key, " and ".join(b for b, answer in front.budgets.items() if answer == key) or key, examples)
            for key, examples in content.examples.items()
        ],
        "front": (("budget", "key", *POINT_COLUMNS[:-1]), [_front_row(front, point) for point in front.points]),
        "findings": [f for f in found if f.verdict != "inconclusive"],
        "open_findings": [f for f in found if f.verdict == "inconclusive"],
        "forecast": content.forecast and _forecast_rows(content),
        "changes": changed,
        "importances": {"front": for_front, "retention": for_retention},
        "min_trials": param_importance.MIN_TRIALS,
        "speeds": (SPEED_COLUMNS, speeds) if speeds else None,
        "machines": "; ".join(sorted({f"{p.measured.device}, {p.measured.dtype}" for p in front.points if p.measured})),
        "costs": (("end", "trials", "time", "per trial", "samples seen"), _costs(records)),
        "provenance": _provenance(content),
        "recipes": [(_recipe_title(p), yaml.safe_dump(p.recipe.as_dict(), sort_keys=False)) for p in front.points],
        "modes": sorted({record.recipe.mode for record in records}),
        "ends": sorted({record.end for record in records}),
    }


def _summary(content: PageContent) -> list[tuple[str, str]]:
    front, records = content.front, content.records
    ends = Counter(record.end for record in records)
    counted = ", ".join(f"{ends[end]:,} {end}" for end in ("finished", "stopped", "failed") if ends[end])
    scores = ", ".join(f"{name} {score:.1%}" for name, score in front.baseline.scores.items())
    dense = f"{size_text(front.baseline.size_bytes)}, {params_text(front.baseline.num_params)} parameters"
    return [
        ("dense model", f"{dense}; on the search's questions: {scores}" if scores else dense),
        ("trials", f"{len(records):,}: {counted}" if records else "none has ended"),
        (
            "front",
            f"{len(front.points)} recipes; hypervolume {front.hypervolume:.3f}, the mean retention over all sizes",
        ),
    ]


def _answer(content: PageContent, budget: str, key: str | None) -> dict[str, Any]:
    """What the page says of one budget."""
    front = content.front
    point = next((p for p in front.points if p.key == key), None)
    if point is None:
        return {"budget": budget, "point": None}
    where = shlex.quote(str(content.folder))
    to = re.sub(r"[^A-Za-z0-9.]+", "-", f"{front.study}-{budget}".replace("%", "pct"))
    commands = [f"{own_command()} export {where} --budget {shlex.quote(budget)} --to {shlex.quote(to)}"]
    heldout = point.heldout
    return {
        "budget": budget,
        "point": point,
        "kept": heldout and f"{heldout.retention:.1%}",
        "interval": heldout and "{:.1f} to {:.1f}%".format(*(100 * bound for bound in heldout.retention_ci)),
        "questions": f"{heldout.num_questions:,} questions" if heldout and heldout.num_questions else "questions",
        "search": retention_text(point),
        "size": f"{size_text(point.size_bytes)}, {point.size_ratio:.1%} of the dense model's "
        f"{size_text(front.baseline.size_bytes)}: {1 / point.size_ratio:.2f} times smaller",
        "speed": _speed(front, point),
        "measure": f"{own_command()} benchmark {where}",
        "resume": f"{own_command()} search --resume {where}",
        "recipe": point.recipe.describe() + state_text(point.best_at),
        "commands": commands,
        "is_gone": point.checkpoint is None,
    }


def _speed(front: Front, point: FrontPoint) -> str:
    """How much faster than the dense model, both measured on one machine; empty if they weren't."""
    dense, own = front.baseline.measured, point.measured
    if dense is None or own is None or (dense.device, dense.dtype) != (own.device, own.dtype):
        return ""
    prefill = dense.prefill_seconds / own.prefill_seconds
    decoding = own.decode_tokens_per_second / dense.decode_tokens_per_second
    return f"prefill {prefill:.2f} times as fast as the dense model, decoding {decoding:.2f} times, on {own.device}"


def _front_row(front: Front, point: FrontPoint) -> list[str]:
    budgets = ", ".join(budget for budget, key in front.budgets.items() if key == point.key)
    *cells, key = point_row(point, criterion=True)
    return [budgets, key, *cells]


def _recipe_title(point: FrontPoint) -> str:
    return f"{point.key}: {point.size_ratio:.1%} of the dense size, retention {retention_text(point)}"


def _forecast_rows(content: PageContent) -> dict[str, Any]:
    """What further runs are expected to add, per budget and per hour."""
    found = content.forecast
    assert found is not None
    hours = found.seconds and found.seconds / 3600
    gains = [*found.at_budgets.items(), ("the hypervolume", found.front)]
    rows = [
        [name, f"{gain.points:.2f}", f"{gain.high:.1f}", f"{gain.points / hours:.2g}" if hours else "not known"]
        for name, gain in gains
    ]
    command = f"{own_command()} search --resume {shlex.quote(str(content.folder))}"
    return {
        "table": (("at", "expected gain, points", "80%: up to", "points per hour"), rows),
        "runs": f"{found.num_runs:g}",
        "time": seconds_text(found.seconds) if found.seconds else "a time that is not known",
        "unanswered": found.unanswered,
        "command": command + (f" --runs {found.next_runs}" if found.next_runs else ""),
        "num_ended": found.num_ended,
        "is_old": found.num_ended != len(content.records),
    }


def _costs(records: Sequence[TrialRecord]) -> list[list[str]]:
    rows = []
    for end in ("finished", "stopped", "failed"):
        group = [record for record in records if record.end == end]
        if group:
            seconds = [record.seconds for record in group]
            seen = sum(record.rungs[-1].samples_seen for record in group if record.rungs)
            mean = sum(seconds) / len(seconds)
            rows.append([end, f"{len(group):,}", seconds_text(sum(seconds)), seconds_text(mean), f"{seen:,}"])
    return rows


def _provenance(content: PageContent) -> list[tuple[str, str]]:
    """Rows of name and value: what it takes to run the study again, and to know what its figures hold for."""
    space = content.space
    rows = [("folder", str(content.folder))]
    if space:
        rows += [
            ("data", f"{mask(space.data_text)}; seed {space.search.seed} of the sampler and the data order"),
            ("limits", f"{space.search.limits_text()}; sampler {space.search.sampler}"),
        ]
    for number, start in enumerate(content.starts, 1):
        name = "run" if len(content.starts) == 1 else f"start {number}"
        began = f"{datetime.fromtimestamp(start.began).astimezone():%Y-%m-%d %H:%M %Z}"
        took = f"took {seconds_text(start.ended - start.began)}" if start.ended else "its end was not noted"
        gpus = Counter(start.gpus).items()
        machine = [f"{start.num_cpus} CPUs", size_text(start.memory_bytes), *(f"{num} x {gpu}" for gpu, num in gpus)]
        rows += [
            (name, f"{began}, {took}, {start.num_slots} trials at a time"),
            ("command", start.command),
            ("machine", f"{start.host}: {', '.join(machine)}; {start.platform}"),
            ("versions", ", ".join(f"{package} {version}" for package, version in start.versions.items())),
        ]
    return rows


def _figures(content: PageContent, importances: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], int]:
    """The figures as plotly's JSON by the id of their place; a sentence for each from which some are left out; and the
    number of parallel axes."""
    front, records, info = content.front, content.records, front_info(content.front)
    trials = trial_points(records, front.baseline)
    made = {
        "front-plot": plots.front_figure(info, trials).update_layout(title=None),
        "curves": charts.learning_curves(records),
        "benchmarks": charts.benchmark_lines(front),
        "progress": charts.hypervolume_history(front, records),
    }
    if any(trial.end == "stopped" for trial in trials):
        made["stopped"] = plots.stopped_figure(info, trials)
    axes, lines = dimensions.parallel_lines(front, records)
    if len(axes) > 2:
        made["parallel"] = charts.parallel_coordinates(axes, lines)
    for found in dimensions.slices(records, front.baseline):
        made[f"slice-{found.axis.name}"] = charts.slice_plot(found)
    for name, estimated in importances.items():
        if estimated and estimated.dimensions:
            made[f"importance-{name}"] = charts.importance_bars(estimated)
    if content.layers:
        made["layers"] = charts.layer_lines(content.layers)
    if any(record.started is not None for record in records):
        made["timeline"] = charts.timeline(records)
    num_scored = [record for record in records if record.rungs and record.end != "failed"]
    texts = {
        "front-plot": thinned_text(len(trials), num_scored),
        "curves": thinned_text(charts.MAX_CURVES, records),
        "timeline": f"The newest {charts.MAX_BARS:,} trials are shown." if len(records) > charts.MAX_BARS else "",
    }
    return {name: json.loads(figure.to_json()) for name, figure in made.items()}, texts, len(axes)


def _trial_table(content: PageContent) -> dict[str, list[Any]]:
    """The trials by column, as few characters as possible: there may be 20,000 of them."""
    dense = content.front.baseline.size_bytes
    on_front = {point.key for point in content.front.points}
    rows = [
        (
            record.key,
            "on the front" if record.key in on_front else record.end,
            record.recipe.mode,
            round(record.size_bytes / dense, 4) if record.size_bytes else None,
            round(record.rungs[-1].retention, 4) if record.rungs and record.end == "finished" else None,
            round(record.rungs[-1].retention, 4) if record.rungs and record.end != "finished" else None,
            record.rungs[-1].num_questions if record.rungs else None,
            record.rungs[-1].samples_seen if record.rungs else None,
            round(record.seconds, 1),
            record.recipe.describe(),
            str(mask(record.reason))[:MAX_REASON_CHARS] if record.end == "failed" else "",
        )
        for record in content.records
    ]
    names = (
        "key",
        "end",
        "mode",
        "size",
        "retention",
        "preliminary",
        "questions",
        "samples",
        "seconds",
        "recipe",
        "reason",
    )
    return {
        name: list(column) for name, column in zip(names, zip(*rows, strict=True) if rows else [[]] * 11, strict=True)
    }
