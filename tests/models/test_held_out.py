"""Held-out rows of tasks as inputs of boosted trees that have a task's columns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from buzzer.models import held_out, tree_file
from buzzer.models.api.bench import BenchSpec
from buzzer.models.held_out import HeldOut, Rows
from buzzer.models.online_shoppers import held_out as shoppers
from buzzer.models.recsys2021.bench import FIRST_STAGE

xgboost = pytest.importorskip("xgboost")
VALUES = np.arange(12, dtype="float32").reshape(4, 3)


def never(spec: BenchSpec) -> Rows:
    raise AssertionError("read again")


def table(*names: str, nameless: bool = True) -> HeldOut:
    return HeldOut("a-task", "its features", lambda: names, lambda spec: Rows(VALUES, "official"), nameless)


def spec(path: Path, work: Path, batch: int = 4) -> BenchSpec:
    return BenchSpec(batch, 0, 3, "fixed", "padded", 0, {"path": str(path)}, work=work)


def trees(path: Path, names: list[str] | None, width: int) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, width)).astype("float32")
    data = xgboost.DMatrix(x, x[:, 0] > 0, feature_names=names)
    xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, 2).save_model(path)
    return path


@pytest.mark.parametrize(
    ("names", "width", "columns"),
    [
        (["c", "a"], 2, (2, 0)),  # by name, in the model's order
        (["a", "b", "c"], 3, (0, 1, 2)),
        (["a", "x"], 2, None),
        (["a", "a"], 2, None),
        ([], 3, (0, 1, 2)),  # as many columns
        ([], 2, None),
    ],
)
def test_columns_fit_by_name_or_else_by_number(
    names: list[str], width: int, columns: tuple[int, ...] | None
) -> None:
    found = held_out.fitting([table("a", "b", "c")], names, width)
    assert (found and found.columns) == columns


def test_a_number_of_columns_that_two_tables_have_says_nothing() -> None:
    assert held_out.fitting([table("a", "b"), table("c", "d")], [], 2) is None
    found = held_out.fitting([table("a", "b", nameless=False), table("c", "d")], [], 2)
    assert found is not None and found.table.columns() == ("c", "d")


def test_rows_are_read_once_and_the_record_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_file, "task_tables", lambda: [table("a", "b", "c")])
    path = trees(tmp_path / "trees.ubj", ["c", "a"], 2)
    model = tree_file.TARGET.load(spec(path, tmp_path, batch=3))
    got = np.concatenate([batch["features"] for batch in model.batches])
    np.testing.assert_array_equal(got, VALUES[np.arange(6) % 4][:, [2, 0]])
    assert (model.source, len(model.notes)) == ("official", 1)
    assert (
        "4 held-out rows of a-task (official data, its features), which has the model's columns by name"
        in model.notes[0]
    )
    monkeypatch.setattr(tree_file, "task_tables", lambda: [replace(table("a", "b", "c"), read=never)])
    again = tree_file.TARGET.load(spec(path, tmp_path, batch=3))
    np.testing.assert_array_equal(again.batches[0]["features"], model.batches[0]["features"])
    other = trees(tmp_path / "other.ubj", ["x", "y"], 2)
    assert tree_file.TARGET.load(spec(other, tmp_path)).notes == (tree_file.RANDOM,)


@pytest.mark.parametrize("source", [shoppers.FILE, shoppers.FEATURES, FIRST_STAGE], ids=lambda s: s.what)
def test_every_table_has_its_columns(
    source: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUZZER_DATA", raising=False)
    rows = source.read(spec(Path(), tmp_path))
    assert rows.source == "generated"
    assert rows.values.dtype == np.float32
    assert rows.values.shape == (len(rows.values), len(source.columns())) and len(rows.values) > 100
    assert (rows.values.std(axis=0) > 0).mean() > 0.5


def test_the_files_columns_are_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth row of the file, read by the csv module."""
    import csv

    monkeypatch.delenv("BUZZER_DATA", raising=False)
    rows = shoppers.FILE.read(spec(Path(), tmp_path))
    (path,) = tmp_path.rglob("online_shoppers_intention.csv")
    with path.open() as lines:
        separator = ";" if ";" in lines.readline() else ","
        lines.seek(0)
        want = [
            [{"TRUE": 1.0, "FALSE": 0.0}.get(row[name]) if name == "Weekend" else float(row[name]) for name in shoppers.raw_columns()]
            for number, row in enumerate(csv.DictReader(lines, delimiter=separator))
            if number % 5 == 0
        ]  # fmt: skip
    np.testing.assert_allclose(rows.values, np.array(want, dtype="float32"), rtol=1e-6)


def test_names_of_lightgbm_files(tmp_path: Path) -> None:
    for line, names in (
        ("feature_names=a b", ["a", "b"]),
        ("feature_names=Column_0 Column_1", []),
        ("other=1", []),
    ):
        (tmp_path / "trees.txt").write_text(f"tree\n{line}\n")
        assert tree_file.lightgbm_names(tmp_path / "trees.txt") == names
