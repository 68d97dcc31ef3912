"""The task open-bandit on the stand-in and on made-up logs: all engines and backends agree, and the trees use what the data have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from buzzer.datasets.contract import silent
from buzzer.datasets.open_bandit import logs
from buzzer.engine import infer
from buzzer.errors import DataError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.open_bandit import task
from buzzer.suite import registry
from buzzer.suite.run.plan import engine_works
from tests.bandit_logs import write_logs

Run = Callable[..., Any]
MakeContext = Callable[..., RunContext]
NAME = "open-bandit"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "folder", lambda: None)
        found = task.TASK.prepare(None, tmp_path_factory.mktemp("cache"), 1.0, 0, silent)
    assert found.source == "generated" and found.notes == (task.STAND_IN,)
    return found


def test_the_trees_beat_the_rate_of_the_item(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    scores = []
    for engine in filter(engine_works, registry.task(NAME).engines):
        work = tmp_path / engine
        work.mkdir()
        fitted, _ = run(task.TASK.fit(make_context(NAME, data, work, work, engine, "xgboost")))
        assert fitted.details["clicks"] == pl.read_csv(data.folder / "train.csv")["click"].sum()
        for backend in filter(infer.installed, ("xgboost", "forest")):
            out = tmp_path / f"{engine}-{backend}"
            out.mkdir()
            result, phases = run(task.TASK.predict(make_context(NAME, data, work, out, engine, backend)))
            scores.append(result.scores)
            assert phases[-1] == "score" and result.work.trees == registry.task(NAME).params["rounds"]
    assert scores[0]["RCE"] > scores[0]["RCE_item"] + 1 > 1 and scores[0]["AP"] > scores[0]["AP_item"]
    for others in scores[1:]:
        assert others == pytest.approx(scores[0], abs=0.01)


def test_rates_are_those_of_a_loop_over_the_rows(
    data: Data, tmp_path: Path, make_context: MakeContext, run: Run
) -> None:
    """The score of the item's rate alone, from plain sums: it has no part in the trees and follows from the files."""
    context = make_context(NAME, data, tmp_path, tmp_path, "polars", "xgboost", rounds=1, latency=0)
    run(task.TASK.fit(context))
    found = run(task.TASK.predict(context))[0].scores
    train, test = (pl.read_csv(data.folder / name) for name in ("train.csv", "test.csv"))
    clicks, rows = dict[tuple[str, int], int](), dict[tuple[str, int], int]()
    for campaign, item, click in train.select("campaign", "item", "click").iter_rows():
        clicks[campaign, item] = clicks.get((campaign, item), 0) + click
        rows[campaign, item] = rows.get((campaign, item), 0) + 1
    prior, weight = train["click"].mean(), context.params["smoothing"]
    shown = test.select("campaign", "item").rows()
    rate = np.array(
        [(clicks.get(k, 0) + weight * prior) / (rows.get(k, 0) + weight) for k in shown], dtype=np.float32
    )
    truth = pl.read_csv(data.folder / "truth.csv")["click"].to_numpy()
    mean = truth.mean()
    loss = -np.where(truth == 1, np.log(rate), np.log1p(-rate.astype(np.float64))).mean()
    naive = -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    assert found["RCE_item"] == pytest.approx(100 * (1 - loss / naive), abs=1e-3)


def test_a_fit_reports_each_table_of_its_features(
    data: Data, tmp_path: Path, make_context: MakeContext, shares_of: Any
) -> None:
    context = make_context(NAME, data, tmp_path, tmp_path, "polars", "xgboost", rounds=1)
    features = dict(shares_of(task.TASK.fit(context))[1])["features"]
    tables = len(list(tmp_path.glob("rates-*.parquet")))
    assert features == pytest.approx([task.RATES * (i + 1) / tables for i in range(tables)] + [task.RATES])


@pytest.mark.parametrize("given", [True, False])
def test_logs_of_a_folder_or_of_the_package_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    write_logs(tmp_path / "raw")
    monkeypatch.setattr(logs, "folder", lambda: None if given else tmp_path / "raw")
    found = task.TASK.prepare(tmp_path / "raw" if given else None, tmp_path / "cache", 1.0, 0, silent)
    assert found.source == "official" and found.notes == (task.REAL.format("18 impressions"), task.SPLIT)
    assert found.rows == {"train": 12, "test": 6, "truth": 6}
    again = task.TASK.prepare(found.folder, tmp_path / "cache", 1.0, 0, silent)  # the tables themselves
    assert again.fingerprint == found.fingerprint


def test_a_changed_log_is_mapped_again(tmp_path: Path) -> None:
    write_logs(tmp_path / "raw")
    before = task.TASK.prepare(tmp_path / "raw", tmp_path / "cache", 1.0, 0, silent)
    file = tmp_path / "raw" / "bts" / "men" / "men.csv"
    file.write_text(file.read_text().replace(",0,1,1,", ",0,1,0,"))
    after = task.TASK.prepare(tmp_path / "raw", tmp_path / "cache", 1.0, 0, silent)
    assert after.folder != before.folder and after.fingerprint != before.fingerprint


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train\.csv") as error:
        task.TASK.prepare(tmp_path, tmp_path / "cache", 1.0, 0, silent)
    assert "random/all/all.csv" in error.value.hint
