"""Prints tables on a terminal, or renders them as a picture of a terminal."""

import io
import sys
from collections.abc import Iterable

from rich.console import Console

from buzzer.suite.records.repetitions import boards
from buzzer.suite.records.schema import Record
from buzzer.suite.report import leaderboard
from buzzer.suite.report.table import Table, plain_text

WIDE = 200  # columns of tables that are written to a file or a pipe
PICTURE = 120  # columns of a picture


def terminal() -> Console:
    """Standard output: as wide as the terminal, or `WIDE` in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def show(table: Table, console: Console | None = None) -> None:
    """Print a table, its caption and its notes, by default on standard output."""
    to = terminal() if console is None else console
    to.print(table.rich())
    for line in (*([table.caption] if table.caption else []), *(f"- {note}" for note in table.notes)):
        to.print(plain_text(line))


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
