"""Checks of the official files, and their conversion to Parquet. The timed pipelines read the CSV themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from buzzer.datasets.booking.schema import EXTRA, HIDDEN, NAMES, OFFICIAL_ROWS, TEST, TRAIN, TRUTH, WHERE
from buzzer.datasets.files import Files, csv_blocks, find, fingerprint, need, new_folder, origin, scan
from buzzer.datasets.lines import shown
from buzzer.errors import DataError

Progress = Callable[[float, str], None]


def paths(folder: Path) -> dict[str, Path]:
    """train, test and, if there, truth; of either distribution, plain or gzipped."""
    found = {part: need(folder, NAMES[part], WHERE) for part in ("train", "test")}
    truth = find(folder, NAMES["truth"])
    return found if truth is None else found | {"truth": truth}


def check(folder: Path, progress: Progress) -> Files:
    """Check every line of the official files, in bounded memory but for one 64-bit number a row.

    Raises DataError that names file, line and column: a missing file, a wrong header, a field of the wrong kind, a
    file that is cut or empty, a stay that ends before it begins, a row that stands twice, a test trip without its
    one hidden last city, a truth that has other trips than the test.
    """
    found = paths(folder)
    progress(0.0, "checking the training trips")
    train = check_stays(found["train"], TRAIN, hidden=False)
    progress(0.6, "checking the test trips")
    test = check_stays(found["test"], TEST, hidden=True)
    trips = check_hidden(found["test"])
    rows = {"train": train["rows"], "test": test["rows"]}
    if "truth" in found:
        progress(0.9, "checking the truth")
        rows["truth"] = check_truth(found["truth"], trips, found["test"])
    progress(0.95, "fingerprint")
    facts = {"test_cities_unknown_to_train": len(test["cities"] - train["cities"] - {HIDDEN})}
    found_in = origin(folder, rows["test"], OFFICIAL_ROWS["test"])
    return Files(folder, fingerprint(list(found.values()), folder), rows, facts, **vars(found_in))


def check_stays(path: Path, kinds: dict[str, str], hidden: bool) -> dict[str, Any]:
    """Rows and cities of a file of stays whose every line is in order."""
    rows, cities, hashes = 0, set[int](), []
    empty = ["hotel_country"] if hidden else []
    for line, block in csv_blocks(path, kinds, optional=EXTRA, empty=empty):
        complain(path, line, block, pl.col("checkout") < pl.col("checkin"), "checkout", "before the checkin")
        complain(
            path, line, block, pl.col("city_id") < (0 if hidden else 1), "city_id", "not the number of a city"
        )
        if hidden:
            open_ = (pl.col("city_id") == HIDDEN) != pl.col("hotel_country").is_null()
            complain(
                path, line, block, open_, "hotel_country", "empty exactly where city_id is 0, or should be"
            )
        rows += block.height
        cities.update(block["city_id"].unique().to_list())
        hashes.append(block.hash_rows())
    if pl.concat(hashes).n_unique() < rows:
        tell_duplicate(path, kinds, pl.concat(hashes), empty)
    return {"rows": rows, "cities": cities}


def complain(path: Path, line: int, block: pl.DataFrame, bad: pl.Expr, column: str, what: str) -> None:
    """Raises DataError for the first row of the block for which `bad` holds."""
    flags = block.select(bad.alias("bad"))["bad"]
    if flags.any():
        at = int(flags.arg_max() or 0)
        value = block[column][at]
        text = shown(value) if isinstance(value, str) else "nothing" if value is None else str(value)
        raise DataError(f"{path}, line {line + at}, column {column}: {text} is {what}")


def tell_duplicate(path: Path, kinds: dict[str, str], hashes: pl.Series, empty: list[str]) -> None:
    """Raises DataError for two equal rows; equal hashes alone are no proof."""
    suspects = hashes.filter(hashes.is_duplicated())
    seen: dict[tuple[Any, ...], int] = {}
    for line, block in csv_blocks(path, kinds, optional=EXTRA, empty=empty):
        among = block.hash_rows().is_in(suspects.implode())
        for at, row in zip(among.arg_true(), block.filter(among).iter_rows(), strict=True):
            if row in seen:
                raise DataError(
                    f"{path}, line {line + at}: the same row as line {seen[row]}", "delete one of them"
                )
            seen[row] = line + at


def check_hidden(path: Path) -> pl.Series:
    """The test's trips, each of which must hide the city of its last stay, and no other."""
    hidden = pl.col("city_id") == HIDDEN
    trips = (
        scan(path, TEST)
        .group_by("utrip_id")
        .agg(
            hidden.sum().alias("n"),
            (pl.col("checkin").filter(hidden).max() == pl.col("checkin").max()).alias("last"),
        )
        .sort("utrip_id")
        .collect()
    )
    for wrong, what in (
        (pl.col("n") != 1, "hidden cities, not one"),
        (~pl.col("last"), "hidden, before its last stay"),
    ):
        bad = trips.filter(wrong)
        if bad.height:
            one = bad.row(0, named=True)
            raise DataError(
                f"{path}: trip {shown(one['utrip_id'])} has {one['n']} {what} ({bad.height} such trips)",
                "the last stay of each test trip, and only it, has city_id 0 and no hotel_country; is the file cut?",
            )
    return trips["utrip_id"]


def check_truth(path: Path, trips: pl.Series, test: Path) -> int:
    """Rows of the truth, whose trips must be the test's."""
    ids = pl.concat([block["utrip_id"] for _, block in csv_blocks(path, TRUTH)])
    if ids.n_unique() < len(ids):
        raise DataError(
            f"{path}: trip {shown(ids.filter(ids.is_duplicated())[0])} stands in it more than once"
        )
    odd = pl.concat([ids.filter(~ids.is_in(trips.implode())), trips.filter(~trips.is_in(ids.implode()))])
    if len(odd):
        raise DataError(f"{path}: {len(odd)} trips are not in both it and {test.name}, as {shown(odd[0])}")
    return len(ids)


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the official files and write them as Parquet under `out`, streaming."""
    check(folder, lambda share, what: progress(share / 2, what))
    kinds = {"train": TRAIN, "test": TEST, "truth": TRUTH}
    with new_folder(out) as aside:
        for i, (part, path) in enumerate(paths(folder).items()):
            progress(0.5 + i / 6, f"writing {part}.parquet")
            scan(path, kinds[part]).sink_parquet(aside / f"{part}.parquet")
