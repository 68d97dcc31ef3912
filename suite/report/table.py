"""One table with three renderers: a terminal (rich), Markdown and HTML. All of them escape the texts of a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from buzzer.suite.escape import Markdown, printable
from buzzer.suite.escape import markdown as escaped

if TYPE_CHECKING:
    import rich.table
    from rich.text import Text

Role = Literal["text", "number", "rank", "name"]
PROSE = 28  # characters above which a terminal may break the cells of a column between words


@dataclass(frozen=True)
class Column:
    """The header of a column, and the format of its cells."""

    name: str
    role: Role = "text"  # `name` is the cell that identifies a row
    wrap: bool = True  # whether a terminal may break its cells
    field: str = ""  # `data-field` of its cells in HTML

    def wraps(self, width: int) -> bool:
        """Whether a terminal may break its cells, the longest of which has `width` characters."""
        return self.wrap and self.role == "text" and width > PROSE


@dataclass(frozen=True)
class Cell:
    """A cell, with attributes that only HTML shows."""

    text: str
    link: str = ""
    chip: str = ""  # a label after the text
    badge: str = ""  # CSS class of an outcome: good, unranked, bad
    small: str = ""  # smaller text after the text
    title: str = ""  # tooltip of the smaller text


@dataclass(frozen=True)
class Row:
    """Cells, and the values by which HTML filters and colours them."""

    cells: tuple[str | Cell, ...]
    kind: str = ""  # CSS class: cpu, cuda, published, failed
    filters: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""  # run_id of its record; rows with a run_id are counted

    @property
    def content(self) -> list[Cell]:
        """The cells with their attributes. Text that is already Markdown is not changed."""
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

    def without_empty_columns(self) -> "Table":
        """The table without columns of empty cells. A table without rows keeps its columns."""
        kept = [i for i in range(len(self.header)) if any(line[i] for line in self.lines)]
        if not self.rows or len(kept) == len(self.header):
            return self
        rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in self.rows)
        return replace(self, header=tuple(self.header[i] for i in kept), rows=rows)

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The texts of all cells, a tuple per row."""
        return [tuple(cell.text for cell in row.content) for row in self.rows]

    @property
    def widths(self) -> list[int]:
        """For each column the characters of its longest cell, the header included."""
        from rich.cells import cell_len

        columns = zip(self.names, *self.lines, strict=True)
        return [max(cell_len(plain_text(cell).plain) for cell in cells) for cells in columns]

    @property
    def least_width(self) -> int:
        """The characters of the narrowest form of the table on a terminal, in which long texts are wrapped between words."""
        pairs = zip(self.header, self.widths, strict=True)
        return 1 + sum(2 + (PROSE if column.wraps(width) else width) for column, width in pairs)

    def rich(self) -> "rich.table.Table":
        """The table for a terminal, without caption and notes. Only long texts are wrapped."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        table = RichTable(
            title=plain_text(self.title) if self.title else None,
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column, width in zip(self.header, self.widths, strict=True):
            prose = column.wraps(width)
            least = PROSE if prose else width
            table.add_column(plain_text(column.name), overflow="fold", no_wrap=not prose, min_width=least)
        for line in self.lines:
            table.add_row(*map(plain_text, line))
        return table

    def grid(self) -> str:
        """Header and rows as Markdown. Cells that are already Markdown are not escaped."""
        lines = ["| " + " | ".join(map(escaped, self.names)) + " |", "|" + " --- |" * len(self.header)]
        lines += ["| " + " | ".join(map(escaped, line)) + " |" for line in self.lines]
        return "\n".join(lines)

    def markdown(self, level: int = 2) -> str:
        """Title, caption, table and notes as Markdown. The title is a heading of this level, or a sentence if the level is 0."""
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
