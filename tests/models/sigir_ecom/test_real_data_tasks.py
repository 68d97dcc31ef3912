"""The two tasks on real data, here on stand-ins: online shoppers (generated), Complete Journey (made-up transactions)."""

import datetime
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from buzzer.datasets import online_shoppers
from buzzer.datasets.complete_journey import mapping
from buzzer.datasets.contract import silent
from buzzer.engine import frames
from buzzer.errors import DataError, UsageError
from buzzer.models.bert import bench as bert_bench
from buzzer.models.complete_journey import task as complete_journey
from buzzer.models.online_shoppers import task as shoppers
from buzzer.suite import registry
from buzzer.suite.run.plan import engine_works

BACKENDS = ("torch_eager", "onnxruntime")


def settings_of(name: str, **changes: Any) -> dict[str, Any]:
    return registry.task(name).params | {"latency": 2} | changes


def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Households that buy along fixed lists: what comes next can be learnt."""
    rng, rows, basket = np.random.default_rng(0), [], 0
    for household in range(30):
        for week in range(1, 53, 2):
            basket, start = basket + 1, int(rng.integers(0, 60))
            time = datetime.datetime(2017, 1, 1) + datetime.timedelta(weeks=week - 1, minutes=household)
            rows += [(household, basket, (start + i) % 60, 1, 1.0 + start, week, time) for i in range(6)]
    names = (
        "household_id",
        "basket_id",
        "product_id",
        "quantity",
        "sales_value",
        "week",
        "transaction_timestamp",
    )
    products = {
        "product_id": range(60),
        **{name: [f"{i // 10}" for i in range(60)] for name in mapping.CATEGORY_LEVELS},
    }
    tables = pl.DataFrame(rows, schema=list(names), orient="row"), pl.DataFrame(products)
    monkeypatch.setattr(mapping, "tables", lambda: tables)


def test_complete_journey_learns_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_context: Any, run: Any
) -> None:
    made_up(monkeypatch)
    data = complete_journey.TASK.prepare(None, tmp_path / "cache", 1.0, 0, silent)
    assert data.source == "official" and data.notes == complete_journey.NOTES and data.rows["search"] == 0
    small = settings_of("complete-journey", epochs=8, dim=16, length=8, networks=["gru"], batch=32, lr=0.01)
    results = []
    for engine in filter(engine_works, ("pandas", "polars")):
        work = tmp_path / engine
        work.mkdir()
        fit = make_context("sigir-ecom-task1", data, work, work, engine, "torch_eager", **small)
        run(complete_journey.TASK.fit(fit))
        results.append(run(complete_journey.TASK.predict(fit))[0])
    assert results[0].scores["MRR@20_counts"] > 0.7 and results[0].scores["MRR@20_gru"] > 0.7
    assert results[1].scores == pytest.approx(results[0].scores, abs=0.01)
    with pytest.raises(UsageError, match="installed package"):
        complete_journey.TASK.prepare(tmp_path, tmp_path, 1.0, 0, silent)


def test_online_shoppers_beat_guessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_context: Any, run: Any
) -> None:
    monkeypatch.delenv("BUZZER_DATA", raising=False)
    data = shoppers.TASK.prepare(None, tmp_path / "cache", 0.3, 0, silent)
    assert data.source == "generated" and data.notes == (shoppers.STAND_IN,)
    work, small = tmp_path / "work", settings_of("online-shoppers")
    work.mkdir()
    run(
        shoppers.TASK.fit(
            make_context("sigir-ecom-task2", data, work, work, "polars", "torch_eager", **small)
        )
    )
    results = []
    for engine in filter(engine_works, frames.ENGINES):
        for backend in BACKENDS:
            out = tmp_path / f"{engine}-{backend}"
            out.mkdir()
            settings = make_context("sigir-ecom-task2", data, work, out, engine, backend, **small)
            results.append(run(shoppers.TASK.predict(settings))[0])
    for result in results:
        assert result.scores == pytest.approx(results[0].scores, abs=0.003)
    assert min(results[0].scores[f"AUC{name}"] for name in ("", "_xgboost", "_dlrm")) > 0.65


@pytest.mark.parametrize("sessions", [1, 2, 6])
@pytest.mark.parametrize("engine", ["pandas", "polars"])
def test_too_few_sessions_are_refused(
    sessions: int, engine: str, tmp_path: Path, make_context: Any, run: Any
) -> None:
    online_shoppers.generate(tmp_path / "generated", 0.01, 0, silent)
    lines = (tmp_path / "generated" / shoppers.FILE).read_text().splitlines(keepends=True)
    (tmp_path / shoppers.FILE).write_text("".join(lines[: sessions + 1]))
    data = shoppers.TASK.prepare(tmp_path, tmp_path / "cache", 1.0, 0, silent)
    context = make_context(
        "sigir-ecom-task2", data, tmp_path, tmp_path, engine, "torch_eager", **settings_of("online-shoppers")
    )
    with pytest.raises(DataError, match="too few sessions"):
        run(shoppers.TASK.fit(context))


def installed_file(root: Path, thing: str) -> None:
    """One of several things in the place of the file of online-shoppers below $BUZZER_DATA."""
    folder = root / "online_shoppers"
    online_shoppers.generate(folder, 0.01, 0, silent)
    (folder / "generator.json").unlink()
    file = folder / shoppers.FILE
    if thing == "gzip":
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    if thing != "plain":
        file.unlink()
    if thing == "broken link":
        file.symlink_to(root / "gone")
    if thing == "folder":
        file.mkdir()


@pytest.mark.parametrize("thing", ["plain", "gzip"])
def test_real_sessions_are_found_in_their_place(
    thing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_file(tmp_path, thing)
    monkeypatch.setenv("BUZZER_DATA", str(tmp_path))
    data = shoppers.TASK.prepare(None, tmp_path / "cache", 0.1, 0, silent)
    assert data.folder == tmp_path / "online_shoppers" and shoppers.STAND_IN not in data.notes


@pytest.mark.parametrize("thing", ["broken link", "folder"])
def test_another_thing_in_the_place_of_real_sessions_is_refused(
    thing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_file(tmp_path, thing)
    monkeypatch.setenv("BUZZER_DATA", str(tmp_path))
    with pytest.raises(DataError, match=shoppers.FILE):
        shoppers.TASK.prepare(None, tmp_path / "cache", 0.1, 0, silent)


def test_a_place_of_real_data_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUZZER_DATA", str(tmp_path / "typo"))
    with pytest.raises(UsageError, match=r"BUZZER_DATA=.*typo: no such folder"):
        shoppers.TASK.prepare(None, tmp_path / "cache", 0.1, 0, silent)
    with pytest.raises(UsageError, match=r"BUZZER_DATA=.*typo: no such folder"):
        bert_bench.real_sentences()


def test_a_note_says_that_only_these_real_data_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUZZER_DATA", str(tmp_path))
    data = shoppers.TASK.prepare(None, tmp_path / "cache", 0.1, 0, silent)
    missing = f"BUZZER_DATA has no online_shoppers/{shoppers.FILE}"
    assert data.notes == (missing, shoppers.STAND_IN)
