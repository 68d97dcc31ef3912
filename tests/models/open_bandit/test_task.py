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
from buzzer.errors import UsageError
from buzzer.models.api.context import Data, RunContext
from buzzer.models.open_bandit import task
from buzzer.suite import registry
from buzzer.suite.run.plan import engine_works

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


def test_installed_logs_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    table = pl.concat([pl.read_csv(data.folder / "train.csv").head(60)])
    monkeypatch.setattr(logs, "folder", lambda: tmp_path)
    late = pl.col("time").max() + 6 * 86_400_000
    both = pl.concat([table, table.with_columns(time=late)])
    monkeypatch.setattr(logs, "read", lambda root, policy, campaign: both)
    found = task.TASK.prepare(None, tmp_path / "cache", 1.0, 0, silent)
    assert found.source == "official" and found.notes == task.REAL and found.rows["test"] == 360
    with pytest.raises(UsageError, match="installed package"):
        task.TASK.prepare(tmp_path, tmp_path, 1.0, 0, silent)
