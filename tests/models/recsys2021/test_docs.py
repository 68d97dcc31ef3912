"""docs/recsys2021.md names every column."""

import re
from pathlib import Path

import pytest

from buzzer.models.recsys2021.feature_sets import FEATURE_SETS, FeatureSet

TEXT = (Path(__file__).parents[3] / "docs" / "recsys2021.md").read_text()


@pytest.mark.parametrize("columns", FEATURE_SETS.values(), ids=list(FEATURE_SETS))
def test_every_column_is_in_the_docs(columns: FeatureSet) -> None:
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert set(columns.plain) <= named
    keys = {*columns.keys, *columns.reversed, *columns.raw, *columns.week, *columns.counted}
    assert keys <= named
    assert len(columns.names()) == len(set(columns.names()))
    assert str(len(columns.names())) in re.findall(r"(\d+) columns", TEXT)
    assert columns.name in named
