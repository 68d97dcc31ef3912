"""docs/recsys2021.md names every column."""

import re
from pathlib import Path

from buzzer.models.recsys2021 import features, second_stage_features

TEXT = (Path(__file__).parents[3] / "docs" / "recsys2021.md").read_text()


def test_every_column_is_in_the_docs() -> None:
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert set(features.PLAIN) <= named
    assert {
        *features.KEYS,
        *features.REVERSED,
        *features.RAW,
        *second_stage_features.ENCODED,
        *second_stage_features.COUNTED,
    } <= named
    assert len(features.names()) == len(set(features.names())) == int(re.findall(r"(\d+) columns", TEXT)[0])
