"""What a search prints: the live view, tables, the summary at its end."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import rich.console

from raysearch.config.budget import Size
from raysearch.report.live_view import SYMBOLS, LiveView, ended_line, is_interactive, sketch
from raysearch.report.terminal import POINT_COLUMNS, front_table, own_command, print_result, state_text, unscored_text
from raysearch.study.front import Measured, retention_text
from tests.support import synthetic_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return synthetic_study.make(tmp_path_factory.mktemp("study") / "run")


def view_of(study):
    plan = SimpleNamespace(space=study.space, dense=synthetic_study.BASELINE.size)
    return LiveView(plan, study)


def test_without_a_terminal_the_view_is_one_line_per_trial(study, capsys):
    with view_of(study) as view:
        for record in study.records[:5]:
            view.trial_started(record.trial, record.recipe, Size(record.num_params, record.size_bytes))
            for score in record.rungs:
                view.rung(record.trial, score)
            view.trial_ended(record)
        view.front_changed(study.front)
        assert view.seconds_left() is not None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 + 1
    assert "\x1b" not in "".join(lines)
    assert study.records[0].recipe.describe() in lines[1]
    assert "the loss is not finite" in lines[4]
    assert f"hypervolume {study.front.hypervolume:.3f}" in lines[-1]


def scored(front, num):
    """The front with held-out scores of its first `num` points alone."""
    heldout = Measured(retention=0.9, retention_ci=(0.8, 1.0), scores={})
    points = [
        point.model_copy(update={"heldout": heldout if number < num else None, "checkpoint": "checkpoints/x"})
        for number, point in enumerate(front.points)
    ]
    return front.model_copy(update={"points": points})


def test_the_view_counts_the_points_that_were_asked_held_out_questions(study, capsys):
    num = len(study.front.points)
    with view_of(study) as view:
        for asked in range(num + 1):
            view.front_changed(scored(study.front, asked))
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [f"  held-out questions asked of {asked} of {num} points" for asked in range(1, num + 1)]


def test_points_that_were_not_asked_held_out_questions_are_said_so(study):
    folder, num = Path("/runs/mine"), len(study.front.points)
    assert unscored_text(scored(study.front, num), folder) == ""
    text = f"2 points were not asked held-out questions yet; finish with {own_command()} search --resume /runs/mine"
    assert unscored_text(scored(study.front, num - 2), folder) == text
    assert unscored_text(scored(study.front, num - 1), folder).startswith("1 point was not asked")


def test_the_live_view_holds_what_runs_and_what_was_found(study):
    from rich.console import Console

    view = view_of(study)
    record = study.records[0]
    view.trial_started("new", record.recipe, Size(record.num_params, record.size_bytes))
    view.rung("new", record.rungs[0])
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view.render())
    shown = console.export_text()
    assert f"{record.rungs[0].retention:.1%}" in shown
    assert "hypervolume" in shown
    assert SYMBOLS["front"] in shown
    assert all(f"{budget}: " in shown for budget in study.front.budgets)


def test_ctrl_c_tells_what_is_kept_and_how_to_go_on(study, capsys):
    with pytest.raises(KeyboardInterrupt), view_of(study):
        raise KeyboardInterrupt
    out = capsys.readouterr().out
    assert f"raysearch search --resume {study.folder}" in out
    assert study.front.points[0].key in out


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_build_servers_get_lines(monkeypatch, name, value):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_interactive()
    monkeypatch.setenv(name, value)
    assert not is_interactive()


def test_the_last_line_of_a_search_offers_what_can_be_had(study, capsys):
    front = study.front
    first = next(budget for budget, key in front.budgets.items() if key)
    unmet = front.model_copy(update={"budgets": {"1%": None}})
    empty = unmet.model_copy(update={"points": []})
    for shown, budget in ((front, first), (unmet, "100%"), (empty, None)):
        print_result(shown, study.folder)
        said = capsys.readouterr().out
        assert f"raysearch export {study.folder} --budget {budget} --to" in said or budget is None
        assert ("export" in said) == bool(budget)


def test_sketch_of_two_points():
    # 16 columns less 6 for the axis; sizes from .5 - .02 to 1, retentions from .8 to 1.
    lines = sketch({"front": [(0.5, 0.8), (1.0, 1.0)]}, width=16, height=4)
    assert lines == [" 100%          ●", " " * 16, "  80% ●─────────", "      48%   100%"]
    assert sketch({"front": [], "finished": []}, 20, 5) == []


def test_an_ended_line_without_a_score(study):
    failed = next(record for record in study.records if record.end == "failed")
    assert "the loss is not finite" in ended_line(failed, synthetic_study.BASELINE.size)


def test_which_state_was_handed_over_is_said():
    assert state_text(None) == ""
    assert state_text(0) == ", as it was before recovery, which harmed it"
    assert state_text(1200) == ", as it was after 1,200 samples"


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (60, {"mode", "size", "trained", "losses", "data"}),
        (80, {"size", "trained", "losses", "data"}),
        (120, {"losses", "data"}),
        (200, set()),
    ],
)
def test_tables_lose_columns_instead_of_breaking_cells(width, left_out, synthetic, monkeypatch):
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(width))
    front = synthetic.front
    out = io.StringIO()
    rich.console.Console(file=out, width=width, color_system=None).print(front_table(front.points))
    lines = out.getvalue().splitlines()
    assert {name for name in POINT_COLUMNS if f" {name} " not in f" {lines[1].replace('  ', '   ')} "} == left_out
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if any(point.key in line for point in front.points)]
    assert len(rows) == len(front.points) == len(lines) - 4, "one line per row, beside the head and two empty ones"
    assert all(retention_text(point) in row for point, row in zip(front.points, rows, strict=True))
    assert "…" not in out.getvalue()
