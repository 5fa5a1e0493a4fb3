"""The table of architectures: every type has a row, and a slow test tries each again."""

import pytest

from scripts.maintenance.document_families import DECODERS, HEADING, LVLMS, PAGE, is_right, page, row, rows_of

ROWS = rows_of(PAGE.read_text(encoding="utf-8").partition(HEADING)[2])


def test_every_vision_language_type_has_a_row_and_most_are_right() -> None:
    assert ROWS.keys() >= set(LVLMS)
    assert sum(is_right(ROWS[name]) for name in LVLMS) >= 60


def test_a_row_is_a_verdict_or_a_reason() -> None:
    for name, found in ROWS.items():
        cells = [cell.strip() for cell in found.strip("|").split(" | ")]
        assert len(cells) == 6, found
        assert "Traceback" not in found
        assert all(len(cell) > 3 for cell in cells[1:5]), found
        assert cells[5].strip() in ("yes", "no"), name


def test_the_page_is_that_of_its_rows() -> None:
    assert PAGE.read_text(encoding="utf-8").partition(HEADING)[2] == page(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LVLMS, *DECODERS])
def test_a_row_is_what_trying_gives(name: str) -> None:
    if name in ROWS:
        assert row(name) == ROWS[name]
