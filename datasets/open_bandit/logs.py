"""The logs in the installed package `obp`, as one table of impressions. Its code is not imported."""

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.open_bandit.reader import write
from buzzer.datasets.open_bandit.schema import CAMPAIGNS, ITEM, POLICIES, TRAIN, USER
from buzzer.errors import DataError, UnsupportedError

VERSION = 1
PACKAGE = "obp"
FOLDER = Path("dataset", "obd")  # in the package


def folder() -> Path | None:
    """The folder of the logs; None if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent / FOLDER
    return found if found is not None and found.is_dir() else None


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write the impressions of the package as the files of `reader.write` into the new folder `out`.

    scale: share of the impressions, which the seed selects; all from 1 on. Raises UnsupportedError if the package is not installed.
    """
    root = folder()
    if root is None:
        raise UnsupportedError("the Open Bandit data are not installed", "pip install --no-deps obp==0.4.1")
    progress(0.0, "reading Open Bandit")
    table = pl.concat([read(root, policy, campaign) for policy in POLICIES for campaign in CAMPAIGNS])
    if scale < 1:
        n = max(round(table.height * scale), 1)
        table = table[np.sort(np.random.default_rng([seed, 8]).permutation(table.height)[:n]).tolist()]
    facts: dict[str, object] = {"source": PACKAGE, "version": VERSION, "scale": min(scale, 1.0), "seed": seed}
    write(out, table, "source.json", facts)


def read(root: Path, policy: str, campaign: str) -> pl.DataFrame:
    """The impressions of one log, with the columns TRAIN. Raises DataError for a file of another form."""
    log = root / policy / campaign / f"{campaign}.csv"
    try:
        t = pl.read_csv(log, infer_schema_length=None)
        items = pl.read_csv(log.with_name("item_context.csv"))
        return mapped(t, items, policy, campaign)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{log}: {error}", "install obp==0.4.1 again") from error


def mapped(t: pl.DataFrame, items: pl.DataFrame, policy: str, campaign: str) -> pl.DataFrame:
    """A log and its table of items, with the columns TRAIN."""
    affinities = [name for name in t.columns if name.startswith("user-item_affinity_")]
    values = t.select(affinities).to_numpy()
    own = [affinities.index(f"user-item_affinity_{item}") for item in t["item_id"].to_list()]
    t = t.join(items.drop("", strict=False), on="item_id", how="left", maintain_order="left")
    time = pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="ms").dt.epoch("ms")
    return t.with_columns(
        time.alias("time"),
        pl.lit(policy).alias("policy"),
        pl.lit(campaign).alias("campaign"),
        pl.col("item_id").alias("item"),
        pl.col("item_feature_0").alias("item_0"),
        *(pl.col(f"user_feature_{i}").alias(name) for i, name in enumerate(USER)),
        *(pl.col(f"item_feature_{i}").alias(name) for i, name in enumerate(ITEM, 1)),
        pl.Series("affinity", values[np.arange(len(values)), own].astype(np.float64)),
        pl.Series("affinities", values.sum(axis=1).astype(np.float64)),
    ).select(list(TRAIN))
