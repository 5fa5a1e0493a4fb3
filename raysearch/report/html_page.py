"""One self-contained page about a study: front, findings, learning curves, benchmarks, importance, cost, recipes."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from raysearch.config.budget import params_text, size_text
from raysearch.errors import InputError
from raysearch.files import write_text
from raysearch.report import charts, param_importance
from raysearch.report.charts import figure_part
from raysearch.report.findings import Finding, findings
from raysearch.report.front_info import MAX_TRIALS_DRAWN, front_info, thinned_text, trial_points
from raysearch.report.plots import front_figure
from raysearch.report.terminal import POINT_COLUMNS, SPEED_COLUMNS, point_row, speed_rows
from raysearch.study.folder import is_study, read_layer_importance, read_trials
from raysearch.study.front import Baseline, Front, FrontPoint, retention_text
from raysearch.study.records import TrialRecord, seconds_text
from raysearch.study.secrets import mask

STYLE = """
:root { --ink: #222; --faint: #667; --line: #e3e3e8; --significant: #0072B2; --inconclusive: #8a8a8a; --fact: #009E73; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1180px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 40px 0 8px; }
p.note { color: var(--faint); max-width: 80ch; margin: 4px 0 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 18px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; }
.card b { display: block; font-size: 21px; } .card span { color: var(--faint); font-size: 13px; }
.wide { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(460px, 1fr)); gap: 12px; }
.pair > div { min-width: 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 600; }
td { font-variant-numeric: tabular-nums; } td:nth-child(-n+4) { white-space: nowrap; }
ul.findings { list-style: none; padding: 0; }
ul.findings li { border-left: 4px solid var(--fact); padding: 2px 12px; margin: 10px 0; }
ul.findings li.significant { border-color: var(--significant); }
ul.findings li.inconclusive { border-color: var(--inconclusive); }
ul.findings small { display: block; color: var(--faint); }
code, pre { font: 12.5px/1.45 ui-monospace, monospace; } pre { margin: 6px 0; white-space: pre-wrap; }
summary { cursor: pointer; color: var(--faint); }
"""


MAX_ROWS = 500


def write_report(folder: Path) -> Path:
    """Write `report.html` into a study's folder, and return its path.

    Raises:
        InputError: the folder holds no study, or one without a front.
    """
    if not is_study(folder):
        raise InputError(f"{folder}: no study; give the --out folder of a search")
    front, records = Front.load(folder), read_trials(folder)
    write_text(folder / "report.html", report_html(front, records, read_layer_importance(folder)))
    return folder / "report.html"


def report_html(
    front: Front, records: Sequence[TrialRecord], layers: Mapping[str, Sequence[float]] | None = None
) -> str:
    """The page in HTML, with plotly included, so that it needs no network.

    Args:
        layers: (num_layers,) scores of the dense model's decoder layers, by criterion.
    """
    from plotly.offline import get_plotlyjs

    trials = trial_points(records, front.baseline)
    sections = [
        _header(front, records),
        _section(
            "Front",
            figure_part(front_figure(front_info(front), trials), "front"),
            thinned_text(MAX_TRIALS_DRAWN, records),
        ),
        _section("Best recipe per budget", _answers(front)),
        _section("Findings", _findings(findings(front, records))),
        _speeds(front),
        _section(
            "Learning curves",
            figure_part(charts.learning_curves(records), "curves"),
            f"{_CURVES_NOTE} {thinned_text(charts.MAX_CURVES, records)}",
        ),
        _section("Benchmarks", figure_part(charts.benchmark_lines(front), "benchmarks"), _BENCHMARKS_NOTE),
        _section("Importance of each dimension", _importance(records, front.baseline)),
        _section("Layer importance", figure_part(charts.layer_lines(layers), "layers"), _LAYERS_NOTE) if layers else "",
        _section("Hypervolume", figure_part(charts.hypervolume_history(front, records), "progress"), _PROGRESS_NOTE),
        _section("Cost", _cost(records)),
        _section("Stopped and failed trials", _unfinished(records, front.baseline)),
        _section("Recipes on the front", "".join(_recipe(point) for point in front.points)),
    ]
    title = f"{html.escape(front.study)}: report"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(sections)}</body></html>\n"
    )


_CURVES_NOTE = (
    "Retention at every rung, over recovery samples seen. Dotted: stopped early. Click a name in the legend to hide "
    "it, double-click to show it alone."
)
_BENCHMARKS_NOTE = "Score of each front point as a share of the dense model's score on the same questions."
_LAYERS_NOTE = (
    "Importance of each decoder layer of the dense model by each criterion, as a share of that criterion's highest "
    "score; for a width criterion, the mean over the layer's FFN channels."
)
_PROGRESS_NOTE = "Hypervolume of the front, which is the mean retention over all budgets, after each trial."


def _header(front: Front, records: Sequence[TrialRecord]) -> str:
    ends = [record.end for record in records]
    dense = front.baseline
    cards = [
        (f"{front.hypervolume:.3f}", "hypervolume: mean retention over all budgets"),
        (str(len(front.points)), "recipes on the front"),
        (f"{len(records)}", "trials: " + ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))),
        (seconds_text(sum(record.seconds for record in records)), "total time of all trials"),
        (size_text(dense.size_bytes), f"dense model, {params_text(dense.num_params)} parameters"),
    ]
    boxes = "".join(f'<div class="card"><b>{_text(b)}</b><span>{_text(s)}</span></div>' for b, s in cards)
    scores = ", ".join(f"{name} {score:.3f}" for name, score in dense.scores.items())
    return (
        f'<h1>{_text(front.study)}</h1><p class="note">Pruned models of {_text(mask(front.model))}. '
        f'Scores of the dense model: {_text(scores)}.</p><div class="cards">{boxes}</div>'
    )


def _answers(front: Front) -> str:
    points = {point.key: point for point in front.points}
    rows = [
        [budget, *point_row(points[key], criterion=True)] if key in points else [budget, "no recipe that small"]
        for budget, key in front.budgets.items()
    ]
    every = _table(["", *POINT_COLUMNS], [["", *point_row(point, criterion=True)] for point in front.points])
    answers = _table(["budget", *POINT_COLUMNS], rows) if rows else ""
    return f"{answers}<details><summary>The whole front</summary>{every}</details>"


def _speeds(front: Front) -> str:
    """The section on speed and memory, once they are measured."""
    rows = speed_rows(front)
    if not rows:
        return ""
    machines = sorted({f"{p.measured.device}, {p.measured.dtype}" for p in front.points if p.measured})
    note = f"Batch of one, an image and a short question, on {'; '.join(machines)}. The KV cache is of 1,000 tokens."
    return _section("Speed and memory", _table(SPEED_COLUMNS, rows), _text(note))


def _findings(found: Sequence[Finding]) -> str:
    items = "".join(
        f'<li class="{f.verdict}">{_text(f.sentence)}<small>{_text(f.evidence)}</small></li>' for f in found
    )
    note = (
        "Blue: significant; of such sentences 5% at most are expected to be wrong. Trials are compared at equal size, "
        "and only those that were trained to their end: how much a stopped one would have retained is unknown. A "
        "search samples promising recipes more often, so these are observations, not an experiment."
    )
    return f'<p class="note">{note}</p><ul class="findings">{items}</ul>'


def _importance(records: Sequence[TrialRecord], baseline: Baseline) -> str:
    parts = []
    for title, name, found in (
        ("For reaching the front (PED-ANOVA)", "importance-front", param_importance.for_front(records, baseline)),
        ("For retention alone (fANOVA)", "importance-retention", param_importance.for_retention(records, baseline)),
    ):
        if found:
            parts.append(figure_part(charts.importance_bars(title, found), name))
    if not parts:
        return f'<p class="note">Fewer than {param_importance.MIN_TRIALS} trials were scored: too few to estimate.</p>'
    note = (
        "Share of each dimension; error bars span the middle 80% over resampled trials. Stopped trials count with "
        "their last retention. Dimensions that only some recipes have are in the first chart only. "
        + thinned_text(param_importance.MAX_TRIALS, param_importance.scored_trials(records), "counted")
    )
    return f'<p class="note">{note}</p><div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _cost(records: Sequence[TrialRecord]) -> str:
    rows = []
    for end in ("finished", "stopped", "failed"):
        group = [record for record in records if record.end == end]
        if group:
            seconds = [record.seconds for record in group]
            seen = sum(record.rungs[-1].samples_seen for record in group if record.rungs)
            mean = sum(seconds) / len(seconds)
            rows.append([end, f"{len(group)}", seconds_text(sum(seconds)), seconds_text(mean), f"{seen:,}"])
    return _table(["end", "trials", "time", "per trial", "samples seen"], rows)


def _unfinished(records: Sequence[TrialRecord], baseline: Baseline) -> str:
    unfinished = [record for record in records if record.end != "finished"]
    rows = []
    for record in unfinished[-MAX_ROWS:]:
        last = record.rungs[-1] if record.rungs else None
        rows.append(
            [
                record.key,
                record.end,
                f"{record.size_bytes / baseline.size_bytes:.1%}" if record.size_bytes else "",
                f"{last.retention:.1%}" if last else "",
                f"{last.samples_seen:,}" if last else "",
                str(mask(record.reason)),
                record.recipe.describe(),
            ]
        )
    if not rows:
        return '<p class="note">None.</p>'
    head = ["key", "end", "of dense", "retention", "samples", "reason", "recipe"]
    left_out = f"; the newest {MAX_ROWS:,} are listed, trials.jsonl has all" if len(unfinished) > MAX_ROWS else ""
    return f"<details><summary>{len(unfinished):,} trials{left_out}</summary>{_table(head, rows)}</details>"


def _recipe(point: FrontPoint) -> str:
    text = yaml.safe_dump(point.recipe.as_dict(), sort_keys=False)
    title = f"{point.key}: {point.size_ratio:.1%} of the dense size, retention {retention_text(point)}"
    return f"<details><summary>{_text(title)}</summary><pre>{_text(text)}</pre></details>"


def _section(title: str, body: str, note: str = "") -> str:
    return f"<section><h2>{title}</h2>{f'<p class=note>{note}</p>' if note else ''}{body}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _text(value: object) -> str:
    return html.escape(str(value))
