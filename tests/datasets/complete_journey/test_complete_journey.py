"""Complete Journey: the mapping of a few made-up transactions, and the real package if it is installed."""

import datetime
import importlib.util
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from buzzer.datasets import complete_journey
from buzzer.datasets.complete_journey import mapping
from buzzer.datasets.contract import silent
from buzzer.datasets.sigir_ecom.schema import TESTS
from buzzer.errors import UnsupportedError


def transactions() -> pl.DataFrame:
    def row(
        household: int, basket: int, product: int, quantity: int, value: float, week: int
    ) -> dict[str, Any]:
        time = datetime.datetime(2017, 1, 1, 12) + datetime.timedelta(weeks=week - 1)
        names = (
            "household_id",
            "basket_id",
            "product_id",
            "quantity",
            "sales_value",
            "week",
            "transaction_timestamp",
        )
        return dict(zip(names, (household, basket, product, quantity, value, week, time), strict=True))

    return pl.DataFrame(
        [
            row(1, 10, 100, 2, 2.0, 1),
            row(1, 10, 200, 1, 9.0, 1),
            row(2, 20, 100, 1, 1.0, 1),
            row(1, 11, 300, 1, 5.0, 45),
            row(1, 11, 100, 1, 1.0, 45),
            row(1, 11, 200, 1, 9.0, 45),
        ]
    )


def products() -> pl.DataFrame:
    paths = [("A", "B", "C"), ("A", "B", None), ("A", "D", "C")]
    rows = [
        dict(zip(("product_id", *mapping.CATEGORY_LEVELS), (n, *p), strict=True))
        for n, p in zip((100, 200, 300), paths, strict=True)
    ]
    return pl.DataFrame(rows)


def test_mapping_by_hand(tmp_path: Path) -> None:
    mapping.write(tmp_path / "out", transactions(), products(), 1.0, 0, silent)
    files = complete_journey.check(tmp_path / "out", silent)
    assert files.rows == {"browsing": 3, "search": 0, "content": 3, "rec": 1}
    pages = pl.read_csv(tmp_path / "out" / "browsing_train.csv")
    assert pages["session_id_hash"].n_unique() == 2 and pages["product_sku_hash"].n_unique() == 2
    assert pages["server_timestamp_epoch_ms"].to_list()[:2] == [
        1_546_344_000_000,
        1_546_344_000_001,
    ]  # 2019-01-01 12:00
    content = pl.read_csv(tmp_path / "out" / "sku_to_content.csv")
    assert content["price_bucket"].to_list() == [1.0, 7.0, 4.0]  # prices 1, 9, 5
    paths = [path.split("/") for path in content["category_hash"]]
    assert paths[0][:2] == paths[1][:2] and paths[0][2] != paths[1][2]
    assert paths[0][0] == paths[2][0] and paths[0][1] != paths[2][1] and paths[0][2] != paths[2][2]
    (query,) = json.loads((tmp_path / "out" / TESTS["rec"][0]).read_text())
    skus = dict(zip((100, 200, 300), content["product_sku_hash"], strict=True))
    bought = [event["product_sku_hash"] for event in query["query"]] + query["label"]
    assert bought == [skus[300], skus[100], skus[200]]


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "PACKAGE", "no_such_package")
    with pytest.raises(UnsupportedError) as error:
        mapping.tables()
    assert "buzzer[real-data]" in error.value.hint


@pytest.mark.skipif(importlib.util.find_spec(mapping.PACKAGE) is None, reason="needs the real-data extra")
def test_real_baskets_pass_the_checks(tmp_path: Path) -> None:
    complete_journey.generate(tmp_path / "out", 0.004, 0, silent)
    files = complete_journey.check(tmp_path / "out", silent)
    assert (
        files.rows["browsing"] > 1000
        and files.rows["rec"] > 20
        and files.facts["labelled"] == files.rows["rec"]
    )
