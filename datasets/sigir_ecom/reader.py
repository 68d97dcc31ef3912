"""Checks of the official files, their conversion to Parquet, and local test files for folders without the organisers'."""

import os
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import numpy as np
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import (
    Files,
    csv_blocks,
    find,
    fingerprint,
    need,
    new_folder,
    opened,
    origin,
    refuse_rows,
    scan,
)
from buzzer.datasets.pieces import Lines, temporary
from buzzer.datasets.sigir_ecom import json_file
from buzzer.datasets.sigir_ecom.metric import write_records
from buzzer.datasets.sigir_ecom.schema import (
    ACTIONS,
    BROWSING,
    BUCKETS,
    CONTENT,
    DIMS,
    EMPTY,
    KINDS,
    NAMES,
    OFFICIAL_ROWS,
    SEARCH,
    TESTS,
    WHERE,
)
from buzzer.datasets.sigir_ecom.sessions import intention, merged, recommendation
from buzzer.errors import DataError

HELD_OUT_DAYS = (
    7  # the last days become the local test, because the organisers' test comes after the training files
)
DAY_MS = 86_400_000


def paths(folder: Path) -> dict[str, Path]:
    """The files browsing, search, content and, if they exist, the tests rec and cart. Raises DataError for a missing file."""
    files = {part: need(folder, names, WHERE) for part, names in NAMES.items()}
    tests = {task: find(folder, names) for task, names in TESTS.items()}
    return files | {task: path for task, path in tests.items() if path is not None}


def check(folder: Path, progress: Progress) -> Files:
    """Check every line and query of the official files, in bounded memory.

    Raises DataError that names file, line and column: for a missing file, a wrong header, a field that is not of its kind, a
    file that is cut or empty, an unknown event or action, a product event without product, and a query off the schema.
    """
    files, rows = paths(folder), dict[str, int]()
    for number, part in enumerate(KINDS):
        progress(number / 4, f"checking {files[part].name}")
        rows[part] = sum(block.height for _, block in blocks(files[part], part))
    labels = 0
    for task in set(TESTS) & set(files):
        progress(0.8, f"checking {files[task].name}")
        rows[task], labelled = check_test(files[task], cart=task == "cart")
        labels += labelled
    progress(0.95, "fingerprint")
    source = origin(folder, rows["browsing"], OFFICIAL_ROWS["browsing"])
    prints = fingerprint(list(files.values()), folder)
    return Files(folder, prints, rows, {"labelled": labels}, **vars(source))


def blocks(path: Path, part: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """A CSV file in checked blocks: pairs of (line number of the first row, typed columns). Raises DataError."""
    for line, block in csv_blocks(path, KINDS[part], empty=EMPTY[part], rowless=part == "search"):
        if part == "browsing":
            known_type = pl.col("event_type").is_in(["pageview", "event_product"])
            refuse_rows(path, line, block, ~known_type, "event_type", "neither pageview nor event_product")
            action = pl.col("product_action")
            refuse_rows(
                path, line, block, ~action.is_in(ACTIONS), "product_action", f"none of {', '.join(ACTIONS)}"
            )
            product = pl.col("event_type") == "event_product"
            lacking = product & (pl.col("product_sku_hash").is_null() | action.is_null())
            refuse_rows(
                path, line, block, lacking, "event_type", "without product_sku_hash or product_action"
            )
        if part == "content":
            price = pl.col("price_bucket")
            refuse_rows(
                path, line, block, (price < 0) | (price > BUCKETS), "price_bucket", f"not 0 to {BUCKETS}"
            )
        for name in (name for name, kind in KINDS[part].items() if kind == "vector"):
            wrong = pl.col(name).str.count_matches(",", literal=True) != DIMS - 1
            refuse_rows(path, line, block, wrong, name, f"not {DIMS} numbers")
        yield line, block


def check_test(path: Path, cart: bool) -> tuple[int, int]:
    """The number of queries, and of queries with a label. Raises DataError if only some have one."""
    queries, labelled = 0, 0
    for record in json_file.checked(path, cart):
        queries += 1
        labelled += "label" in record
    if not queries:
        raise DataError(f"{path}: no queries", "copy it again")
    if labelled not in (0, queries):
        raise DataError(
            f"{path}: {labelled} of {queries} queries have a label", "either all or none must have a label"
        )
    return queries, labelled


def csv_pieces(path: Path, folder: Path, rows: int) -> Iterator[Path]:
    """A CSV file as plain files of at most `rows` lines after the header, written into `folder`.

    A piece is deleted when the next one is requested. Fields must not contain line breaks (official files have none).
    """
    with opened(path) as file:
        head, lines, numbers = file.readline(), Lines(file), count()
        while lines.more():
            piece = folder / f".{path.name}.{os.getpid()}.{next(numbers)}.piece"
            with temporary(piece, chain([head], lines.take(rows))):
                yield piece


def convert(folder: Path, out: Path, progress: Progress) -> None:
    """Check the official files and write them as Parquet into the new folder `out`.

    Without the organisers' test files, it also writes `out`/local: the files without their last days, and test files from
    those days (see `split`).
    """
    check(folder, lambda share, what: progress(share / 2, what))
    files = paths(folder)
    with new_folder(out) as partial:
        for number, part in enumerate(KINDS):
            progress(0.5 + number / 10, f"writing {part}.parquet")
            scan(files[part], KINDS[part]).sink_parquet(partial / f"{part}.parquet")
        if not set(TESTS) <= set(files):
            split(folder, partial / "local", 0, lambda share, what: progress(0.8 + share / 5, what))


def split(folder: Path, out: Path, seed: int, progress: Progress) -> None:
    """Write a data set with local tests into the new folder `out`: sessions that begin in the last HELD_OUT_DAYS days become
    test files in the organisers' JSON, the others training files.

    Only one id and time per session and the events of the held-out days are in memory. Raises DataError if no session is left.
    """
    files = paths(folder)
    browsing, search = scan(files["browsing"], BROWSING), scan(files["search"], SEARCH)
    key, time = "session_id_hash", "server_timestamp_epoch_ms"
    progress(0.0, "finding the last days' sessions")
    both = pl.concat([t.select(key, time) for t in (browsing, search)])
    starts = both.group_by(key).agg(pl.col(time).min()).collect(engine="streaming")
    last = int(starts.select(pl.col(time).max()).item() or 0)
    late = starts.filter(pl.col(time) > last - HELD_OUT_DAYS * DAY_MS)
    if late.height == starts.height:
        raise DataError(
            f"{folder}: all sessions begin within {HELD_OUT_DAYS} days, so a local test would leave none to train on",
            "add the organisers' test files, or sessions of more days",
        )
    held = late.select(key).lazy()
    with new_folder(out) as partial:
        for part, t in (("browsing", browsing), ("search", search)):
            progress(0.2, f"writing {NAMES[part][0]}")
            t.join(held, on=key, how="anti", maintain_order="left").sink_csv(partial / NAMES[part][0])
        scan(files["content"], CONTENT).sink_csv(partial / NAMES["content"][0])
        progress(0.6, "writing test files")
        parts = [t.join(held, on=key, how="semi").collect(engine="streaming") for t in (browsing, search)]
        write_tests(partial, parts[0], parts[1], seed)


def write_tests(folder: Path, browsing: pl.DataFrame, search: pl.DataFrame, seed: int) -> None:
    """Write both test files from complete sessions."""
    for number, (task, make) in enumerate((("rec", recommendation), ("cart", intention))):
        rng = np.random.default_rng([seed, number])
        queries = (make(session, rng) for session in merged(browsing, search))
        write_records(folder / TESTS[task][0], (query for query in queries if query is not None))
