"""Tables on terminals of 80 and 120 columns, and in a pipe."""

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from buzzer.suite import registry
from buzzer.suite.analysis import comparison
from buzzer.suite.bench import groups
from buzzer.suite.records.collection import Records, load_records
from buzzer.suite.records.repetitions import boards
from buzzer.suite.report import bench_table, compare_text, leaderboard, record_text
from buzzer.suite.report.console import UNLIMITED, show
from buzzer.suite.report.table import Column, Table, table

ROOT = Path(__file__).resolve().parents[3]
LONG = "a text that is long enough to be broken between its words"
# Columns: 5 + 5 + 4 characters, two between them, one before and one after.
SMALL = table("small", ["name", "empty", "wall s"], [["first", "", "1.50"], ["other", "", "2.50"]])


def printed(tables: Table | list[Table], width: int) -> list[str]:
    """The lines of tables on a console of this width."""
    console = Console(file=io.StringIO(), width=width, no_color=True)
    for each in tables if isinstance(tables, list) else [tables]:
        show(each, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_table_that_fits_has_columns_without_the_empty_ones() -> None:
    assert printed(SMALL, 40) == [
        "small",
        "",
        " name   wall s",
        " ──────────────",
        " first  1.50",
        " other  2.50",
        "",
    ]


def test_a_table_that_does_not_fit_becomes_blocks() -> None:
    assert printed(SMALL, 15) == ["small", "", "first", "  wall s 1.50", "", "other", "  wall s 2.50", ""]


def test_a_block_breaks_between_cells_and_is_named_by_all_leading_columns() -> None:
    header = [Column("#", "rank"), "engine", Column("backend", "name"), "score", "wall s", "peak MB"]
    wide = table(
        "", header, [["1", "polars", "onnxruntime", "0.5", "1.50", "300"]], notes=["a note"], caption="facts"
    )
    assert printed(wide, 26) == [
        *("", "1 polars onnxruntime", "  score 0.5 · wall s 1.50", "  peak MB 300", ""),
        *("facts", "- a note", ""),
    ]


def test_long_texts_are_wrapped_between_words_and_columns_stay() -> None:
    lines = printed(table("", ["name", "summary"], [["polars-gpu", LONG]]), 50)
    assert lines[0].split() == ["name", "summary"] or lines[1].split() == ["name", "summary"]
    assert all(word in " ".join(lines) for word in LONG.split())
    assert max(map(cell_len, lines)) <= 50


def test_in_a_pipe_a_row_is_a_line() -> None:
    lines = printed(table("", ["name", "summary"], [["polars-gpu", LONG * 9]]), UNLIMITED)
    assert any(LONG * 9 in line for line in lines)


def test_markup_and_control_characters_are_printed_as_they_are() -> None:
    strange = table("[b]t[/b]", ["name", "wall s"], [["[red]x\x1b[31m", "1" * 30]])
    for width in (20, 80):
        text = "\n".join(printed(strange, width))
        assert "[red]x" in text and "\x1b" not in text


@pytest.fixture(scope="module")
def records() -> Records:
    """The published records."""
    return load_records(ROOT / "results")


@pytest.mark.parametrize("width", [80, 120])
def test_published_tables_fit_a_terminal(records: Records, width: int) -> None:
    """Leaderboards, comparisons and single records: no line is wider than the terminal, no cell is lost, no word is broken."""
    tables = [leaderboard.board(group) for group in boards(records).values()]
    tables += [bench_table.board(group) for group in groups.boards(records).values()]
    for task in ("booking", "recsys2021"):
        for group in comparison.groups(records, task):
            compared = comparison.compare(group, registry.task(task), None, {}, records)
            tables += compare_text.tables(compared, [])
    tables += [each for r in records[:40] for each in record_text.tables(r)]
    assert len(tables) > 100
    for each in tables:
        lines = printed(each, width)
        assert max(map(cell_len, lines)) <= width, each.title
        words = set(" ".join(lines).split())
        missing = {word for line in each.lines for cell in line for word in cell.split()} - words
        assert not missing, each.title
