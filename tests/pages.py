"""Tables in pages of the documentation, and the records that they link."""

import re

from buzzer.suite.records import record
from buzzer.suite.records.schema import Record
from tests.recipes import ROOT


def table_of(page: str, head: str) -> dict[str, list[str]]:
    """The cells of each row by its first cell, of the first table in docs/`page` whose head begins with `head`."""
    table = (ROOT / "docs" / page).read_text().partition(head)[2].partition("\n\n")[0]
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[2:]]
    return {first: others for first, *others in rows}


def linked_records(text: str) -> list[Record]:
    """The records that a text of a page in docs/ links, in order."""
    return [record.read(ROOT / path) for path in re.findall(r"\(\.\./(results/[^)]*\.json)\)", text)]
