"""The leaderboard as tables on a terminal, or as a picture of one."""

import io
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from buzzer.suite.escape import printable
from buzzer.suite.records import machine
from buzzer.suite.records.record import Record
from buzzer.suite.report import leaderboard

WIDE = 120  # columns of tables that go into a file or a pipe


def cells(line: Iterable[str]) -> list[Text]:
    """The cells of a table, without markup."""
    return [Text(printable(cell, keep="\n")) for cell in line]


def show_boards(records: Iterable[Record], console: Console) -> None:
    """The leaderboard as tables for people."""
    for group in leaderboard.boards(records).values():
        first = group[0]
        title = f"{first.task}, scale {first.scale:g}: {first.metric}"
        caption = "; ".join([machine.describe(first.machine), *leaderboard.rules_of(group)])
        table = Table(title=Text(title), caption=Text(caption), box=SIMPLE_HEAD, padding=0)
        for name in leaderboard.COLUMNS:
            table.add_column(name, overflow="fold", no_wrap=name in ("engine", "backend", "score"))
        for line in leaderboard.table(group):
            table.add_row(*cells(line))
        console.print(table)


def picture(records: Iterable[Record]) -> str:
    """The leaderboard's tables as an SVG image."""
    console = Console(record=True, width=WIDE, file=io.StringIO())
    show_boards(records, console)
    return console.export_svg(title="buzzer report", unique_id="buzzer")
