"""Open Bandit: mapping of the package's logs, checks, scores and the stand-in, compared with cases computed by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, log_loss

from buzzer.datasets import open_bandit
from buzzer.datasets.contract import silent
from buzzer.datasets.open_bandit import logs, schema
from buzzer.errors import DataError, UnsupportedError
from tests.bandit_logs import HASH, write_logs


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("open_bandit") / "data"
    open_bandit.generate(out, 0.2, 0, silent)
    return out


@pytest.fixture
def copy(stand_in: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stand_in, tmp_path / "copy"))


def test_logs_are_mapped_and_split_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_logs(tmp_path / "raw")
    monkeypatch.setattr(logs, "folder", lambda: tmp_path / "raw")
    logs.generate(tmp_path / "out", 1.0, 0, silent)
    files = open_bandit.check(tmp_path / "out", silent)
    assert files.rows == {"train": 12, "test": 6, "truth": 6} and files.facts == {"clicks": 12}
    train = pl.read_csv(tmp_path / "out" / "train.csv")
    first = train.row(0, named=True)
    assert first["time"] == 1_574_553_634_762 and (first["policy"], first["campaign"]) == ("random", "all")
    assert (first["item"], first["item_0"], first["affinity"], first["affinities"]) == (1, 1.5, 5.0, 7.0)
    assert [first[name] for name in schema.USER] == [HASH[name] for name in "aabc"]
    assert train["time"].is_sorted() and train["click"].to_list() == [0] * 6 + [1] * 6
    assert (pl.read_csv(tmp_path / "out" / "test.csv")["item"] == 1).all()
    assert pl.read_csv(tmp_path / "out" / "truth.csv")["click"].to_list() == [1] * 6
    logs.generate(tmp_path / "half", 0.5, 0, silent)
    halved = open_bandit.check(tmp_path / "half", silent)
    assert halved.rows["train"] + halved.rows["test"] == 9


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("all/all.csv", ",click,", ",clicks,", "all.csv, line 1: no column click in the header"),
        ("all/all.csv", "affinity_", "affinities_", "all.csv, line 1: no column user-item_affinity_0"),
        ("men/men.csv", ",0,1,1,", ",0,1,yes,", "men.csv, line 3, column click: 'yes' is not 0 or 1"),
        ("men/men.csv", "2019-11-28", "28 Nov", "men.csv, line 3, column timestamp: '28 Nov 23:59:59+00:00'"),
        (
            "men/men.csv",
            ",0,1,1,",
            ",7,1,1,",
            "men.csv, line 3, column item_id: 7 is not in item_context.csv",
        ),
        ("women/item_context.csv", "0.5", "high", "item_context.csv, line 2, column item_feature_0: 'high'"),
        ("women/item_context.csv", "", "", "women: no item_context.csv"),
    ],
)
def test_logs_of_another_form_are_refused(
    tmp_path: Path, name: str, old: str, new: str, expected: str
) -> None:
    write_logs(tmp_path / "raw")
    file = tmp_path / "raw" / "bts" / name
    if old:
        file.write_text(file.read_text().replace(old, new))
    else:
        file.unlink()
    with pytest.raises(DataError) as error:
        logs.generate(tmp_path / "out", 1.0, 0, silent, root=tmp_path / "raw")
    assert expected in error.value.message and not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="logs, not tables"):
        open_bandit.check(tmp_path / "raw", silent)


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PACKAGE", "no_such_package")
    assert logs.folder() is None
    with pytest.raises(UnsupportedError) as error:
        logs.generate(tmp_path / "out", 1.0, 0, silent)
    assert "obp==0.4.1" in error.value.hint


@pytest.mark.skipif(logs.folder() is None, reason="needs obp 0.4.1")
def test_real_logs_have_the_published_sizes(tmp_path: Path) -> None:
    logs.generate(tmp_path / "out", 1.0, 0, silent)
    files = open_bandit.check(tmp_path / "out", silent)
    assert files.rows["train"] + files.rows["test"] == schema.ROWS and files.facts["clicks"] == 287


def test_the_stand_in_has_about_the_real_marginals(stand_in: Path, tmp_path: Path) -> None:
    train = pl.read_csv(stand_in / "train.csv")
    assert train.columns == list(schema.TRAIN)
    assert 0.002 < train["click"].mean() < 0.015  # type: ignore[operator]  # real: .0048
    assert train.group_by("position").len()["len"].to_numpy() / train.height == pytest.approx(1 / 3, abs=0.03)
    assert dict(train.group_by("campaign").agg(pl.col("item").max() + 1).rows()) == schema.CAMPAIGNS
    test = pl.read_csv(stand_in / "test.csv")
    assert train["time"].max() < schema.FIRST_DAY_MS + 5 * schema.DAY_MS <= test["time"].min()  # type: ignore[operator]
    for seed in (0, 1):
        open_bandit.generate(tmp_path / f"{seed}", 0.2, seed, silent)
        same = [
            (tmp_path / f"{seed}" / path.name).read_bytes() == path.read_bytes()
            for path in stand_in.iterdir()
        ]
        assert all(same) if seed == 0 else not any(same)


def replace(old: str, new: str) -> Callable[[str], str]:
    return lambda line: line.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "train.csv",
            lambda x: x.replace("random", "best").replace("bts", "best"),
            "column policy: 'best' is none of",
        ),
        ("train.csv", lambda x: x.replace(",all,", ",kids,").replace("men", "kids"), "column campaign"),
        (
            "test.csv",
            lambda x: ",".join([*x.split(",")[:3], "80", *x.split(",")[4:]]),
            "column item: 80 is not of",
        ),
        (
            "test.csv",
            lambda x: ",".join([*x.split(",")[:4], "4", *x.split(",")[5:]]),
            "column position: 4 is not",
        ),
        ("truth.csv", replace("2,", "7,"), "rows are not 0, 1, 2"),
        ("truth.csv", lambda x: "", "rows"),
    ],
)
def test_damaged_files_are_refused(
    copy: Path, name: str, change: Callable[[str], str], expected: str
) -> None:
    lines = (copy / name).read_text().splitlines(keepends=True)
    lines[3] = change(lines[3])
    (copy / name).write_text("".join(lines))
    with pytest.raises(DataError) as error:
        open_bandit.check(copy, silent)
    assert name in error.value.message and expected in error.value.message


def test_scores_equal_those_of_scikit_learn(copy: Path, tmp_path: Path) -> None:
    truth = pl.read_csv(copy / "truth.csv")["click"].to_numpy()
    chance = np.random.default_rng(0).uniform(0, 0.02, len(truth)).round(3)
    open_bandit.write_submission(tmp_path / "s.csv", {"row": np.arange(len(truth)), "chance": chance})
    found = open_bandit.score(tmp_path / "s.csv", copy / "truth.csv")
    naive = log_loss(truth, np.full(len(truth), truth.mean()))
    clipped = np.clip(chance, 1e-15, 1)
    assert found["AP"] == pytest.approx(average_precision_score(truth, chance))
    assert found["RCE"] == pytest.approx(100 * (1 - log_loss(truth, clipped) / naive))
    (tmp_path / "s.csv").write_text("row,chance\n0,1.5\n")
    with pytest.raises(DataError, match=r"line 2, column chance: '1\.5' is not a number from 0 to 1"):
        open_bandit.score(tmp_path / "s.csv", copy / "truth.csv")
    (tmp_path / "s.csv").write_text("row,chance\n0,0.5\n")
    with pytest.raises(DataError, match=r"each row of truth\.csv exactly once"):
        open_bandit.score(tmp_path / "s.csv", copy / "truth.csv")
