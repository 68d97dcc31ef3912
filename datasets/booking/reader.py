"""Checks of the official files, and their conversion to Parquet. The timed pipelines read the CSV files."""

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from buzzer.datasets.booking.schema import EXTRA, HIDDEN, NAMES, OFFICIAL_ROWS, TEST, TRAIN, TRUTH, WHERE
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import (
    Files,
    csv_blocks,
    find,
    fingerprint,
    need,
    new_folder,
    origin,
    refuse_rows,
    scan,
)
from buzzer.datasets.lines import shown
from buzzer.errors import DataError


class Stays(NamedTuple):
    """The number of rows of a file of stays, and the ids of its cities."""

    rows: int
    cities: set[int]


def paths(folder: Path) -> dict[str, Path]:
    """The files train, test and, if there is one, truth, of either distribution, plain or gzipped.

    Raises DataError if train or test is missing.
    """
    files = {part: need(folder, NAMES[part], WHERE) for part in ("train", "test")}
    truth = find(folder, NAMES["truth"])
    return files if truth is None else files | {"truth": truth}


def check(folder: Path, progress: Progress) -> Files:
    """Check every line of the official files. Memory grows by one 64-bit number per row.

    Raises DataError that names file, line and column: for a missing file, a wrong header, a field of the wrong kind, a
    file that is cut or empty, a stay that ends before it begins, a row that occurs twice, a test trip without its
    one hidden last city, and a truth with other trips than the test.
    """
    files = paths(folder)
    progress(0.0, "checking the training trips")
    train = check_stays(files["train"], TRAIN, hidden=False)
    progress(0.6, "checking the test trips")
    test = check_stays(files["test"], TEST, hidden=True)
    trips = check_hidden(files["test"])
    rows = {"train": train.rows, "test": test.rows}
    if "truth" in files:
        progress(0.9, "checking the truth")
        rows["truth"] = check_truth(files["truth"], trips, files["test"])
    progress(0.95, "fingerprint")
    facts = {"test_cities_unknown_to_train": len(test.cities - train.cities - {HIDDEN})}
    source = origin(folder, rows["test"], OFFICIAL_ROWS["test"])
    return Files(folder, fingerprint(list(files.values()), folder), rows, facts, **vars(source))


def check_stays(path: Path, kinds: dict[str, str], hidden: bool) -> Stays:
    """Check every line of a file of stays. hidden: whether last cities are hidden, as in the test."""
    rows, cities, hashes = 0, set[int](), []
    empty = ["hotel_country"] if hidden else []
    for line, block in csv_blocks(path, kinds, optional=EXTRA, empty=empty):
        refuse_rows(
            path, line, block, pl.col("checkout") < pl.col("checkin"), "checkout", "before the checkin"
        )
        refuse_rows(
            path, line, block, pl.col("city_id") < (0 if hidden else 1), "city_id", "not a valid city"
        )
        if hidden:
            mismatch = (pl.col("city_id") == HIDDEN) != pl.col("hotel_country").is_null()
            refuse_rows(
                path,
                line,
                block,
                mismatch,
                "hotel_country",
                "wrong: it must be empty if and only if city_id is 0",
            )
        rows += block.height
        cities.update(block["city_id"].unique().to_list())
        hashes.append(block.hash_rows())
    if pl.concat(hashes).n_unique() < rows:
        refuse_duplicate(path, kinds, pl.concat(hashes), empty)
    return Stays(rows, cities)


def refuse_duplicate(path: Path, kinds: dict[str, str], hashes: pl.Series, empty: list[str]) -> None:
    """Raises DataError if two rows are equal. Rows with equal hashes are compared, because different rows can have the same hash."""
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
    """The trips of the test. Raises DataError unless each hides the city of its last stay and no other city."""
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
            trip = bad.row(0, named=True)
            raise DataError(
                f"{path}: trip {shown(trip['utrip_id'])} has {trip['n']} {what} ({bad.height} such trips)",
                "the last stay of each test trip, and only it, has city_id 0 and no hotel_country; the file may be cut",
            )
    return trips["utrip_id"]


def check_truth(path: Path, trips: pl.Series, test: Path) -> int:
    """The number of rows of the truth. Raises DataError unless it has the trips of the test."""
    ids = pl.concat([block["utrip_id"] for _, block in csv_blocks(path, TRUTH)])
    if ids.n_unique() < len(ids):
        raise DataError(
            f"{path}: trip {shown(ids.filter(ids.is_duplicated())[0])} occurs in it more than once"
        )
    odd = pl.concat([ids.filter(~ids.is_in(trips.implode())), trips.filter(~trips.is_in(ids.implode()))])
    if len(odd):
        raise DataError(
            f"{path}: {len(odd)} trips are not in both it and {test.name}, such as {shown(odd[0])}"
        )
    return len(ids)


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the official files and write them as Parquet into the new folder `out`, in bounded memory."""
    check(folder, lambda share, what: progress(share / 2, what))
    kinds = {"train": TRAIN, "test": TEST, "truth": TRUTH}
    with new_folder(out) as partial:
        for i, (part, path) in enumerate(paths(folder).items()):
            progress(0.5 + i / 6, f"writing {part}.parquet")
            scan(path, kinds[part]).sink_parquet(partial / f"{part}.parquet")
