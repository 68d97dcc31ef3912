"""Online Shoppers (UCI 468): checks, generator and metrics, compared with scikit-learn; the real file too if available."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from buzzer.datasets import online_shoppers
from buzzer.datasets.contract import silent
from buzzer.datasets.online_shoppers.reader import COLUMNS, FILE, OFFICIAL_ROWS
from buzzer.engine import frames
from buzzer.errors import DataError
from buzzer.models.online_shoppers import task


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    online_shoppers.generate(tmp_path / "generated", 0.1, 0, silent)
    return tmp_path / "generated"


def test_generated_files_have_the_schema_and_repeat(generated: Path, tmp_path: Path) -> None:
    files = online_shoppers.check(generated, silent)
    assert files.rows == {"sessions": 1233} and 0.1 < files.facts["bought"] / 1233 < 0.25
    online_shoppers.generate(tmp_path / "again", 0.1, 0, silent)
    assert (tmp_path / "again" / FILE).read_bytes() == (generated / FILE).read_bytes()
    online_shoppers.convert(generated, tmp_path / "parquet", silent)
    assert pl.read_parquet(tmp_path / "parquet" / "sessions.parquet").columns == list(COLUMNS)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("TRUE", "yes", "not TRUE or FALSE"),
        (";0.0;", ";none;", "is not a number"),
        ("Revenue", "Income", "header"),
    ],
)
def test_damaged_files_are_refused(generated: Path, old: str, new: str, expected: str) -> None:
    text = (generated / FILE).read_text()
    (generated / FILE).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=expected):
        online_shoppers.check(generated, silent)


def test_a_cut_file_is_refused(generated: Path) -> None:
    text = (generated / FILE).read_text()
    (generated / FILE).write_text(text[:-30])
    with pytest.raises(DataError, match="cut"):
        online_shoppers.check(generated, silent)


@pytest.mark.skipif("BUZZER_DATA" not in os.environ, reason="needs BUZZER_DATA")
def test_the_real_file_passes_the_checks() -> None:
    files = online_shoppers.check(Path(os.environ["BUZZER_DATA"]) / "online_shoppers", silent)
    assert files.rows == {"sessions": OFFICIAL_ROWS} and files.facts == {"bought": 1908}


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
@settings(max_examples=100)
def test_roc_auc_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    truth, chance = np.array(rows).T
    got = online_shoppers.roc_auc(truth, chance / 5)
    if 0 < truth.sum() < len(truth):
        assert got == pytest.approx(roc_auc_score(truth, chance))
    else:
        assert np.isnan(got)


def test_submissions_are_scored_by_row(tmp_path: Path) -> None:
    truth, given_ = tmp_path / "truth.csv", tmp_path / "submission.csv"
    online_shoppers.write_submission(truth, {"row": np.array([0, 5, 10]), "bought": np.array([0, 1, 0])})
    online_shoppers.write_submission(
        given_, {"row": np.array([5, 10, 0]), "chance": np.array([0.9, 0.6, 0.1])}
    )
    assert online_shoppers.score(given_, truth) == {"AUC": 1.0, "accuracy": pytest.approx(2 / 3)}
    online_shoppers.write_submission(
        given_, {"row": np.array([5, 5, 0]), "chance": np.array([0.9, 0.6, 0.1])}
    )
    with pytest.raises(DataError, match="must have each row of truth"):
        online_shoppers.score(given_, truth)


def test_both_separators_give_the_same_rows(generated: Path, tmp_path: Path) -> None:
    commas = tmp_path / "commas"
    commas.mkdir()
    (commas / FILE).write_text((generated / FILE).read_text().replace(";", ","))
    assert online_shoppers.check(commas, silent).rows == online_shoppers.check(generated, silent).rows
    for folder in (generated, commas):
        online_shoppers.convert(folder, tmp_path / f"{folder.name}.parquet", silent)
    tables = [
        pl.read_parquet(tmp_path / f"{name}.parquet" / "sessions.parquet") for name in ("generated", "commas")
    ]
    assert tables[0].equals(tables[1])
    for engine in ("pandas", "polars"):
        e = frames.load(engine)
        found = [e.to_numpy(task.read(e, folder), ["PageValues", "Region"]) for folder in (generated, commas)]
        assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_a_truth_with_other_values_than_0_and_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("row,bought\n0,1\n5,7\n")
    (tmp_path / "s.csv").write_text("row,chance\n0,0.5\n5,0.25\n")
    with pytest.raises(DataError, match="line 3, column bought: '7' is not 0 or 1"):
        online_shoppers.score(tmp_path / "s.csv", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("row,bought\n0,1\n5,1\n")
    assert np.isnan(online_shoppers.score(tmp_path / "s.csv", tmp_path / "t.csv")["AUC"])
