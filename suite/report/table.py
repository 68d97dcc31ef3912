"""One table, three renderers: a terminal (rich), Markdown and HTML. No text in a table takes effect as markup in any of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from buzzer.suite.escape import Markdown, printable
from buzzer.suite.escape import markdown as escaped

if TYPE_CHECKING:
    import rich.table
    from rich.text import Text

Role = Literal["text", "number", "rank", "name"]


@dataclass(frozen=True)
class Column:
    """Head of a column and how its cells are set."""

    name: str
    role: Role = "text"  # `name` is the cell that says what a row is about
    wrap: bool = True  # whether a terminal may break its cells
    field: str = ""  # `data-field` of its cells in HTML


@dataclass(frozen=True)
class Cell:
    """A cell with what only HTML shows of it."""

    text: str
    link: str = ""
    chip: str = ""  # a label behind the text
    badge: str = ""  # CSS class of an outcome: good, unranked, bad
    small: str = ""  # smaller text behind it
    title: str = ""  # tooltip of the smaller text


@dataclass(frozen=True)
class Row:
    """Cells, and by what HTML filters and colours them."""

    cells: tuple[str | Cell, ...]
    kind: str = ""  # CSS class: cpu, cuda, published, failed
    filters: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""  # of the record behind it; rows that have one are counted

    @property
    def content(self) -> list[Cell]:
        """The cells with their attributes. Text that is Markdown already stays so."""
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells]


@dataclass(frozen=True)
class Table:
    """A title, a line of facts, rows under a header, and notes for the reader."""

    title: str
    header: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    caption: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.header)

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The texts of all cells, a tuple per row."""
        return [tuple(cell.text for cell in row.content) for row in self.rows]

    def rich(self) -> "rich.table.Table":
        """The table for a terminal, without caption and notes."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        table = RichTable(
            title=plain_text(self.title) if self.title else None,
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in self.header:
            table.add_column(plain_text(column.name), overflow="fold", no_wrap=not column.wrap)
        for line in self.lines:
            table.add_row(*map(plain_text, line))
        return table

    def grid(self) -> str:
        """Header and rows as Markdown. Cells that are Markdown already are not escaped."""
        lines = ["| " + " | ".join(map(escaped, self.names)) + " |", "|" + " --- |" * len(self.header)]
        lines += ["| " + " | ".join(map(escaped, line)) + " |" for line in self.lines]
        return "\n".join(lines)

    def markdown(self, level: int = 2) -> str:
        """Title, caption, table and notes as Markdown; the title is a heading of that level, or with 0 a sentence."""
        heading = Markdown(f"{'#' * level} {escaped(self.title)}" if level else f"{escaped(self.title)}:")
        notes = "\n".join(f"- {escaped(note, block=True)}" for note in self.notes)
        parts = [heading if self.title else "", escaped(self.caption, block=True), self.grid(), notes]
        return "\n\n".join(part for part in parts if part)

    def html(self) -> str:
        """The table as an HTML element, without caption and notes."""
        from buzzer.suite.report import templates

        return str(templates.macro("table.html.j2", "table")(self))


def plain_text(text: str) -> "Text":
    """Text for a terminal, without markup; control characters are written out."""
    from rich.text import Text

    return Text(printable(text, keep="\n"))


def table(
    title: str,
    header: Iterable[str | Column],
    rows: Iterable[Sequence[str | Cell] | Row],
    notes: Iterable[str] = (),
    caption: str = "",
) -> Table:
    """A `Table` of plain names and cells, or of columns and rows with attributes.

    >>> print(table("", ["engine", "wall s"], [["polars", "1.50"]]).markdown())
    | engine | wall s |
    | --- | --- |
    | polars | 1.50 |
    """
    return Table(
        title,
        tuple(column if isinstance(column, Column) else Column(column) for column in header),
        tuple(row if isinstance(row, Row) else Row(tuple(row)) for row in rows),
        tuple(notes),
        caption,
    )
