"""Prints tables on a terminal, or renders them as a picture of a terminal.

A table that is too wide for the terminal is printed as blocks: a line that names the row, and below it the other cells with their
headers. Empty columns are left out. In a file or a pipe a row is always one line.
"""

import io
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from buzzer.suite.records.repetitions import boards
from buzzer.suite.records.schema import Record
from buzzer.suite.report import leaderboard
from buzzer.suite.report.table import Table, plain_text

UNLIMITED = 10_000  # columns of what is written to a file or a pipe
PICTURE = 120  # columns of a picture
BETWEEN = " · "  # between the cells of a block
INDENT = "  "


def terminal() -> Console:
    """Standard output: as wide as the terminal, or `UNLIMITED` in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else UNLIMITED)


def show(table: Table, console: Console | None = None) -> None:
    """Print a table, its caption and its notes, by default on standard output."""
    to, shown = terminal() if console is None else console, table.without_empty_columns()
    if shown.least_width <= to.width:
        to.print(shown.rich())
    else:
        for block_line in blocks(shown, to.width):
            to.print(block_line)
    below = [*filter(None, [table.caption]), *(f"- {note}" for note in table.notes)]
    for line in [*below, *([""] if below else [])]:
        to.print(plain_text(line))


def blocks(table: Table, width: int) -> Iterator[Text]:
    """The lines of a table as blocks. width: columns of the terminal."""
    if table.title:
        yield Text.assemble((plain_text(table.title).plain, "italic"))
    first = 1 + max((i for i, column in enumerate(table.header) if column.role == "name"), default=0)
    for line in table.lines:
        yield Text()
        yield Text.assemble((plain_text(" ".join(filter(None, line[:first]))).plain, "bold"))
        named = zip(table.names[first:], line[first:], strict=True)
        yield from flowed([(name, cell) for name, cell in named if cell], width)
    yield Text()


def flowed(cells: Sequence[tuple[str, str]], width: int) -> Iterator[Text]:
    """Cells after their names, as many to a line as fit."""
    line = Text()
    for name, cell in cells:
        pair = Text.assemble((plain_text(name).plain, "dim"), " ", plain_text(cell))
        if line and cell_len(line.plain) + len(BETWEEN) + cell_len(pair.plain) > width:
            yield line
            line = Text()
        line = Text.assemble(line, BETWEEN, pair) if line else Text.assemble(INDENT, pair)
    if line:
        yield line


def show_boards(records: Iterable[Record], console: Console | None = None) -> None:
    """Print the leaderboard, by default on standard output."""
    to = terminal() if console is None else console
    for group in boards(records).values():
        show(leaderboard.board(group), to)


def picture(records: Iterable[Record]) -> str:
    """The leaderboard's tables as an SVG image."""
    console = Console(record=True, width=PICTURE, file=io.StringIO())
    show_boards(records, console)
    return console.export_svg(title="buzzer report", unique_id="buzzer")
