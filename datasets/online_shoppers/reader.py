"""Checks of the official file, its conversion to Parquet, and synthetic files in its schema."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import (
    Files,
    csv_blocks,
    fingerprint,
    need,
    new_folder,
    opened,
    origin,
    refuse_rows,
    scan,
)
from buzzer.datasets.lines import header_line

FILE = "online_shoppers_intention.csv"
SEPARATORS = ";,"
COUNTS = ("Administrative", "Informational", "ProductRelated")
RATES = ("BounceRates", "ExitRates", "PageValues", "SpecialDay")
CODED = ("Month", "OperatingSystems", "Browser", "Region", "TrafficType", "VisitorType", "Weekend")
COLUMNS = {
    **{
        column: kind for name in COUNTS for column, kind in ((name, "int64"), (f"{name}_Duration", "float64"))
    },
    **dict.fromkeys(RATES, "float64"),
    "Month": "str",
    **dict.fromkeys(("OperatingSystems", "Browser", "Region", "TrafficType"), "int64"),
    "VisitorType": "str",
    "Weekend": "str",
    "Revenue": "str",
}
OFFICIAL_ROWS = 12_330
VERSION = 1
WHERE = "`buzzer data info online_shoppers` says where to get the official file"


def check(folder: Path, progress: Progress) -> Files:
    """Check every line of the official file. Raises DataError that names file, line and column."""
    path = need(folder, (FILE,), WHERE)
    progress(0.0, f"checking {path.name}")
    rows, bought = 0, 0
    for line, block in csv_blocks(path, COLUMNS, separator=separator_of(path)):
        for name in ("Weekend", "Revenue"):
            refuse_rows(path, line, block, ~pl.col(name).is_in(["TRUE", "FALSE"]), name, "not TRUE or FALSE")
        rows, bought = rows + block.height, bought + int((block["Revenue"] == "TRUE").sum())
    source = origin(folder, rows, OFFICIAL_ROWS)
    return Files(folder, fingerprint([path], folder), {"sessions": rows}, {"bought": bought}, **vars(source))


def separator_of(path: Path) -> str:
    """The separator that occurs more often in the header: the official file has semicolons, most copies have commas."""
    with opened(path) as file:
        line = header_line(path, file)
    return max(SEPARATORS, key=line.count)


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the official file and write it as Parquet into the new folder `out`."""
    check(folder, progress)
    path = need(folder, (FILE,), WHERE)
    with new_folder(out) as partial:
        scan(path, COLUMNS, separator_of(path)).sink_parquet(partial / "sessions.parquet")


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write a synthetic file and generator.json into the new folder `out`.

    The columns have about the official ranges. Purchases are more likely with page values, in October and November, for new visitors,
    and less likely with exits. Raises DataError if the files cannot be written.
    """
    n, rng = max(round(OFFICIAL_ROWS * scale), 200), np.random.default_rng([seed, 7])
    progress(0.0, "generating shop sessions")
    values = np.where(rng.random(n) < 0.22, rng.exponential(25, n), 0.0)
    exits, month, visitor = rng.beta(0.8, 18, n).clip(0, 0.2), rng.integers(0, 10, n), rng.random(n)
    log_odds = (
        -2.9
        + 0.1 * np.minimum(values, 40)
        - 12 * exits
        + 0.9 * np.isin(month, (7, 8))
        + 0.5 * (visitor > 0.85)
    )
    bought = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    months = pl.Series(["Feb", "Mar", "May", "June", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"])
    columns: dict[str, pl.Series | np.ndarray] = {}
    for name, mean in zip(COUNTS, (2.3, 0.5, 31.7), strict=True):
        columns[name] = rng.geometric(1 / (1 + mean), n) - 1
        columns[f"{name}_Duration"] = np.round(columns[name] * rng.exponential(36, n), 4)
    columns |= {
        "BounceRates": np.round(exits * rng.random(n), 6),
        "ExitRates": np.round(exits, 6),
        "PageValues": np.round(values, 6),
        "SpecialDay": rng.choice([0.0, 0.2, 0.6, 1.0], n, p=[0.9, 0.04, 0.03, 0.03]),
        "Month": months.gather(month),
        "OperatingSystems": rng.integers(1, 9, n),
        "Browser": rng.integers(1, 14, n),
        "Region": rng.integers(1, 10, n),
        "TrafficType": rng.integers(1, 21, n),
        "VisitorType": pl.Series(["Returning_Visitor", "New_Visitor"]).gather((visitor > 0.85).astype(int)),
        "Weekend": pl.Series(["FALSE", "TRUE"]).gather((rng.random(n) < 0.23).astype(int)),
        "Revenue": pl.Series(["FALSE", "TRUE"]).gather(bought.astype(int)),
    }
    with new_folder(out) as partial:
        pl.DataFrame(columns).select(list(COLUMNS)).write_csv(partial / FILE, separator=SEPARATORS[0])
        facts = {"generator": "online_shoppers", "version": VERSION, "scale": scale, "seed": seed}
        (partial / "generator.json").write_text(json.dumps(facts, indent=1) + "\n")
