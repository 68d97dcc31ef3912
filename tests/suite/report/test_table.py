"""One table in three forms: each has the same cells, and no text is interpreted as markup."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from buzzer.suite.escape import code
from buzzer.suite.report import console
from buzzer.suite.report.table import Cell, Column, Row, Table, table

EVIL = "[red]a[/red] | <b>*x*</b>\x1b[2J"


@pytest.fixture
def shown() -> Table:
    """A table that uses every feature of tables."""
    header = (Column("#", "rank"), Column("run", "name"), Column("wall s", "number", field="wall"), "outcome")
    first = Row(
        (
            "1",
            Cell("polars", link="r.json", chip="GPU"),
            Cell("1.50", small="/3", title="of 3"),
            Cell("ok", badge="good"),
        ),
        "cuda",
        {"engine": "polars"},
        "a1",
    )
    return table("a title", header, [first, ("", "pandas", "", EVIL)], ["a note", EVIL], "some facts")


class Cells(HTMLParser):
    """Tags, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def on_terminal(shown: Table) -> str:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    console.show(shown, terminal)
    assert isinstance(terminal.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.file.getvalue())


def test_markdown_has_title_facts_cells_and_notes(shown: Table) -> None:
    lines = shown.markdown().splitlines()
    assert lines[0] == "## a title"
    assert lines[2] == "some facts"
    assert lines[4:7] == [
        "| # | run | wall s | outcome |",
        "| --- | --- | --- | --- |",
        "| 1 | polars | 1.50 | ok |",
    ]
    assert lines[7] == r"|  | pandas |  | \[red]a\[/red] \| &lt;b>\*x\*&lt;/b>\x1b\[2J |".replace(
        r"\x1b", r"\\x1b"
    )
    assert lines[9] == "- a note"
    assert shown.markdown(level=0).startswith("a title:\n")


def test_text_that_is_already_markdown_is_not_escaped() -> None:
    assert table("", ["task"], [[code("a_b*")]]).grid().splitlines()[-1] == "| `a_b*` |"


def test_a_terminal_gets_no_markup(shown: Table) -> None:
    text = on_terminal(shown)
    assert EVIL.replace("\x1b", "\\x1b") in text
    assert "\x1b" not in text
    for part in ("a title", "some facts", "- a note", "polars", "1.50"):
        assert part in text


def test_html_has_the_attributes_that_filters_and_links_need(shown: Table) -> None:
    html = shown.html()
    assert '<tr class="cuda" data-item data-engine="polars" data-row data-run="a1">' in html
    assert '<a href="r.json" title="the record">polars</a> <span class="chip">GPU</span>' in html
    assert '<td class="n" data-field="wall">1.50<small title="of 3">/3</small></td>' in html
    assert '<span class="outcome good">ok</span>' in html
    cells = Cells(html)
    assert cells.texts[:5] == ["a title", "#", "run", "wall s", "outcome"]
    assert "[red]a[/red] | &lt;b&gt;*x*&lt;/b&gt;" in html
    assert cells.tags.count("b") == 1  # the coloured dot of the first row


def test_every_form_has_the_same_cells(shown: Table) -> None:
    assert shown.names == ("#", "run", "wall s", "outcome")
    assert shown.lines == [("1", "polars", "1.50", "ok"), ("", "pandas", "", EVIL)]
