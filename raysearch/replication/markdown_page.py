"""The Markdown page of a replication: the paper's tables for this model, and its claims with their verdicts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from raysearch.config.budget import Size, size_text
from raysearch.config.space import SearchSpace
from raysearch.evaluation.retention import retention
from raysearch.files import write_text
from raysearch.replication.claims import CLAIMS, LAYER, WIDTH, joint, projector, untrained, verdict
from raysearch.replication.figure import FIGURE, write_figure
from raysearch.replication.probes import Probes
from raysearch.replication.table import Cell, Table, percent
from raysearch.report.terminal import CHECK_PROMPTS
from raysearch.searching.samplers.grid import grid
from raysearch.study.folder import read_trials

PAGE = "study.md"
MODES = (WIDTH, LAYER)
_ALONE = ("sft", "kl", "rkl", "l2")
_MIXED = ("sft", "sft+kl", "sft+rkl", "sft+l2", "sft+kl+l2", "sft+rkl+l2")
Row = tuple[str, ...]


def write_page(folder: Path, space: SearchSpace, dense: Size) -> Path:
    """Write study.md and its figure from what the study in `folder` has measured so far, and return its path."""
    table = Table.load(folder, read_trials(folder))
    probes = Probes.load(folder, grid(space))
    own = {entry.name: entry.scale for entry in space.benchmarks if not isinstance(entry, str)}
    scales = {name: own.get(name, 100.0) for name in table.dense.scores}
    write_figure(table, folder / FIGURE)
    write_text(folder / PAGE, page(space, table, probes, scales, dense))
    return folder / PAGE


def page(space: SearchSpace, table: Table, probes: Probes, scales: dict[str, float], dense: Size) -> str:
    """The page in Markdown.

    Args:
        scales: by benchmark, the number that its scores are shown as a multiple of; 100 for percent.
    """
    num = sum(len(values) for values in table.dense.scores.values())
    seeds = len(set(space.values_of("seed") or [0]))
    scored = ("mode", "ratio", *scales, "AVG", "retention")
    parts = [
        f"# The study of arXiv 2604.24380 on {space.model}",
        f"{len(table.cells)} recipes, {seeds} {'seeds' if seeds > 1 else 'seed'}, {num:,} held-out questions. "
        "Retention is in % of the dense model (ratio of averages), with 95% intervals over questions (paired, "
        "clustered by image) and seeds. Ratios are shares of the decoder's parameters.",
        *_better_than_dense(table),
        f"![Retention over the ratio]({FIGURE})",
        _section("The paper's claims", ("", "claim", "here", "measured"), _claims(table, probes)),
        _section("T2. Without recovery", scored, _scores(table, scales, _untrained(table))),
        _section(
            "T3. Size, and time to the first token",
            ("mode", "ratio", "size", "of dense", "ms"),
            _sizes(table, probes, dense),
        ),
        _section("T3c. What is trained, by SFT", *_regimes(table)),
        _section("T5. Best recipes of the paper, SFT with hidden states", scored, _scores(table, scales, _best(table))),
        _section("T5a. One loss alone, widthwise", ("ratio", *_ALONE), _losses(table, _ALONE)),
        _section("T5b. Mixes, widthwise", ("ratio", *_MIXED), _losses(table, _MIXED)),
        _section("T6. Share of the data, widthwise, SFT with hidden states, in % of all data", *_fractions(table)),
        _section("T7. Calibration samples, without recovery, search questions", *_calibration(probes)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _better_than_dense(table: Table) -> list[str]:
    cells = [cell for cell in table.cells if table.retention(cell).interval[0] > 1]
    if not cells:
        return []
    return [
        f"**Warning:** {len(cells)} of the recipes retain significantly more than 100% (the first is {cells[0].mode} "
        f"{cells[0].ratio:.0%}, {cells[0].regime}, with {percent(table.retention(cells[0]))}). {CHECK_PROMPTS}"
    ]


def _claims(table: Table, probes: Probes) -> list[Row]:
    rows: list[Row] = []
    for claim in CLAIMS:
        checks = claim.checks(table, probes)
        measured = "; ".join(check.text() for check in checks) or "not measured"
        rows.append((str(claim.number), claim.text, f"**{verdict(checks)}**", measured))
    return rows


def _untrained(table: Table) -> list[Cell]:
    return [untrained(mode, ratio) for mode in MODES for ratio in table.ratios]


def _best(table: Table) -> list[Cell]:
    return [joint(LAYER if ratio <= 0.375 else WIDTH, ratio, "sft+l2") for ratio in table.ratios]


def _scores(table: Table, scales: dict[str, float], cells: Iterable[Cell]) -> list[Row]:
    def row(mode: str, ratio: str, means: dict[str, float], retention: str) -> Row:
        shown = [f"{means[name] * scale:.1f}" for name, scale in scales.items()]
        return (mode, ratio, *shown, f"{100 * sum(means.values()) / len(means):.1f}", retention)

    rows = [row("dense", "0%", table.dense.means(), "100")]
    return rows + [
        row(cell.mode, f"{cell.ratio:.0%}", table.scores(cell), percent(table.retention(cell)))
        for cell in cells
        if cell in table
    ]


def _sizes(table: Table, probes: Probes, dense: Size) -> list[Row]:
    def row(cell: Cell | None, size: Size) -> Row:
        milliseconds = "-"
        if seconds := probes.seconds.get(cell):
            low, high = seconds.interval
            milliseconds = f"{1e3 * seconds.value:.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]"
        named = (cell.mode, f"{cell.ratio:.0%}") if cell else ("dense", "0%")
        return (*named, size_text(size.size_bytes), f"{size.size_bytes / dense.size_bytes:.1%}", milliseconds)

    return [row(None, dense), *(row(cell, table.sizes[cell]) for cell in _untrained(table) if cell in table.sizes)]


def _regimes(table: Table) -> tuple[Row, list[Row]]:
    regimes = {"none": untrained, "projector": projector, "joint": joint}
    header = ("ratio", *(f"{mode}, {name}" for name in regimes for mode in MODES))
    return header, [
        (f"{ratio:.0%}", *(_retention(table, cell(mode, ratio)) for cell in regimes.values() for mode in MODES))
        for ratio in table.ratios
    ]


def _losses(table: Table, losses: Sequence[str]) -> list[Row]:
    return [(f"{r:.0%}", *(_retention(table, joint(WIDTH, r, mix)) for mix in losses)) for r in table.ratios]


def _fractions(table: Table) -> tuple[Row, list[Row]]:
    fractions = sorted({cell.fraction for cell in table.cells if cell.losses == "sft+l2" and cell.mode == WIDTH})
    rows: list[Row] = []
    for ratio in table.ratios:
        whole = joint(WIDTH, ratio, "sft+l2")
        cells = [joint(WIDTH, ratio, "sft+l2", fraction) for fraction in fractions]
        shown = [percent(table.relative(c, whole)) if c in table and whole in table else "-" for c in cells]
        rows.append((f"{ratio:.0%}", *shown))
    return ("ratio", *(f"{fraction:.0%}" for fraction in fractions)), rows


def _calibration(probes: Probes) -> tuple[Row, list[Row]]:
    cells, dense = list(dict.fromkeys(cell for _, cell in probes.calibration)), probes.search_dense
    rows: list[Row] = []
    for num in sorted({num for num, _ in probes.calibration}):
        found = [probes.calibration.get((num, cell)) for cell in cells]
        rows.append((str(num), *(percent(retention(r, dense)) if r and dense else "-" for r in found)))
    return ("samples", *(f"{cell.mode} {cell.ratio:.0%}" for cell in cells)), rows


def _retention(table: Table, cell: Cell) -> str:
    return percent(table.retention(cell)) if cell in table else "-"


def _section(title: str, header: Row, rows: Sequence[Row]) -> str:
    """A titled table, or nothing if all its cells are empty."""
    if not any(cell != "-" for row in rows for cell in row[1:]):
        return ""
    lines = [header, ("---",) * len(header), *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
