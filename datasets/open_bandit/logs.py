"""The logs as they are distributed, as one table of impressions: those in the installed package `obp`, whose code is not imported, or
those of a folder."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import csv_blocks, fingerprint, need, opened, refuse_rows
from buzzer.datasets.lines import header_line
from buzzer.datasets.open_bandit.reader import write
from buzzer.datasets.open_bandit.schema import CAMPAIGNS, ITEM, POLICIES, TRAIN, USER, WHERE
from buzzer.errors import UnsupportedError

VERSION = 1
PACKAGE = "obp"
FOLDER = Path("dataset", "obd")  # in the package
ITEMS_FILE = "item_context.csv"
LOG = {
    "timestamp": "str",
    "item_id": "int64",
    "position": "int64",
    "click": "bit",
    **{f"user_feature_{i}": "hash" for i in range(len(USER))},
}
ITEMS = {"item_id": "int64", "item_feature_0": "float64"} | {
    f"item_feature_{i}": "hash" for i in range(1, len(ITEM) + 1)
}
UNREAD = ("", "propensity_score")  # columns that a file may also have
AFFINITY = "user-item_affinity_"  # and the number of an item


def folder() -> Path | None:
    """The folder of the logs; None if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent / FOLDER
    return found if found is not None and found.is_dir() else None


def contents(root: Path) -> str:
    """A hash of the files of a folder of logs. Raises DataError if one is missing."""
    return fingerprint([path for paths in files(root).values() for path in paths], root)


def files(root: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    """The log and the items of each policy and campaign. Raises DataError if one is missing."""
    by_log = {}
    for policy in POLICIES:
        for campaign in CAMPAIGNS:
            place = root / policy / campaign
            by_log[policy, campaign] = (
                need(place, (f"{campaign}.csv",), WHERE),
                need(place, (ITEMS_FILE,), WHERE),
            )
    return by_log


def generate(out: Path, scale: float, seed: int, progress: Progress, *, root: Path | None = None) -> None:
    """Write the impressions of the logs as the files of `reader.write` into the new folder `out`.

    scale: share of the impressions, which the seed selects; all from 1 on.  root: the folder of the logs; None = those of the package.
    Raises UnsupportedError if the package is not installed, and DataError for a file that is missing or of another form.
    """
    root = folder() if root is None else root
    if root is None:
        raise UnsupportedError("the Open Bandit data are not installed", "pip install --no-deps obp==0.4.1")
    logs = []
    for number, ((policy, campaign), (log, items)) in enumerate(files(root).items()):
        progress(number / len(POLICIES) / len(CAMPAIGNS), f"reading {policy}/{campaign}/{log.name}")
        logs.append(read(log, items, policy, campaign))
    table = pl.concat(logs)
    if scale < 1:
        n = max(round(table.height * scale), 1)
        table = table[np.sort(np.random.default_rng([seed, 8]).permutation(table.height)[:n]).tolist()]
    facts: dict[str, object] = {"source": PACKAGE, "version": VERSION, "scale": min(scale, 1.0), "seed": seed}
    write(out, table, "source.json", facts)


def read(log: Path, items_file: Path, policy: str, campaign: str) -> pl.DataFrame:
    """The impressions of one log, with the columns TRAIN. Raises DataError that names file, line and column."""
    items = pl.concat([block for _, block in csv_blocks(items_file, ITEMS, optional=UNREAD)])
    with opened(log) as file:
        names = [name.strip('"') for name in header_line(log, file).split(",")]
    affinities = [name for name in names if name.startswith(AFFINITY)]
    kinds: Mapping[str, str] = LOG | dict.fromkeys(affinities or [f"{AFFINITY}0"], "float64")
    known = [item for item in items["item_id"].to_list() if f"{AFFINITY}{item}" in affinities]
    parts = []
    for line, block in csv_blocks(log, kinds, optional=UNREAD):
        unknown = ~pl.col("item_id").is_in(known)
        refuse_rows(log, line, block, unknown, "item_id", f"not in {ITEMS_FILE}, or has no {AFFINITY} column")
        parts.append(mapped(log, line, block, items, affinities))
    both = {"policy": pl.lit(policy), "campaign": pl.lit(campaign)}
    return pl.concat(parts).with_columns(**both).select(list(TRAIN))


def mapped(
    log: Path, line: int, t: pl.DataFrame, items: pl.DataFrame, affinities: Sequence[str]
) -> pl.DataFrame:
    """Rows of a log, from a line on, with the columns TRAIN but for policy and campaign."""
    values = t.select(affinities).to_numpy()
    own = [affinities.index(f"{AFFINITY}{item}") for item in t["item_id"].to_list()]
    time = pl.col("timestamp").str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="ms", strict=False)
    refuse_rows(log, line, t, time.is_null(), "timestamp", "not like 2019-11-24 00:00:34.76+00:00")
    t = t.join(items, on="item_id", how="left", maintain_order="left")
    return t.with_columns(
        time.dt.epoch("ms").alias("time"),
        pl.col("item_id").alias("item"),
        pl.col("item_feature_0").alias("item_0"),
        *(pl.col(f"user_feature_{i}").alias(name) for i, name in enumerate(USER)),
        *(pl.col(f"item_feature_{i}").alias(name) for i, name in enumerate(ITEM, 1)),
        pl.Series("affinity", values[np.arange(len(values)), own].astype(np.float64)),
        pl.Series("affinities", values.sum(axis=1).astype(np.float64)),
    ).select([name for name in TRAIN if name not in ("policy", "campaign")])
