"""docs/recsys2021.md names every column."""

import re
from pathlib import Path

from buzzer.models.recsys2021.feature_sets import BASIC

TEXT = (Path(__file__).parents[3] / "docs" / "recsys2021.md").read_text()


def test_every_column_is_in_the_docs() -> None:
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert set(BASIC.plain) <= named
    assert {
        *BASIC.keys,
        *BASIC.reversed,
        *BASIC.raw,
        *BASIC.week,
        *BASIC.counted,
    } <= named
    assert len(BASIC.names()) == len(set(BASIC.names())) == int(re.findall(r"(\d+) columns", TEXT)[0])
