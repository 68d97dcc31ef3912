"""The organisers' test files, read one query at a time; and their events as columns."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from buzzer.datasets.files import opened
from buzzer.datasets.sigir_ecom.schema import ACTIONS, DIMS, EVENT
from buzzer.errors import DataError

CHUNK = 1 << 20  # characters


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, in memory for one of them and a chunk.

    Raises DataError for a file that is missing, cut, or no list of objects.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    decoder = json.JSONDecoder()
    with opened(path) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8", errors="replace")
        text, at, number, began = file.read(CHUNK), 0, 0, False
        while True:
            at = skip(text, at, " \t\r\n" + ("," if number else "") if began else " \t\r\n")
            if at < len(text) and text[at] == ("]" if began else "["):
                if began:
                    return
                began, at = True, at + 1
                continue
            try:
                if at < len(text) and not began:
                    raise DataError(f"{path}: not a list of queries", "is it the organisers' test file?")
                found, at = decoder.raw_decode(text, at)
            except ValueError as error:
                more = file.read(CHUNK)
                if not more:
                    raise DataError(
                        f"{path}: cut or damaged after {number} queries: {error}", "copy or download it again"
                    ) from error
                text, at = text[at:] + more, 0
                continue
            if not isinstance(found, dict):
                raise DataError(f"{path}: query {number} is not an object")
            yield found
            number += 1


def skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


class Writer:
    """A JSON list, one object a line, that is written as it comes."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self.items = file, 0

    def add(self, item: Mapping[str, Any]) -> None:
        self._file.write((",\n" if self.items else "[\n") + json.dumps(item, separators=(",", ":")))
        self.items += 1


@contextmanager
def written(path: Path) -> Iterator[Writer]:
    """A list to add to, whole when the block ends."""
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file)
        yield writer
        file.write("\n]\n" if writer.items else "[]\n")


def check_record(path: Path, number: int, record: dict[str, Any]) -> None:
    """Raises DataError for a query that is off the schema."""
    events = record.get("query")
    if not isinstance(events, list) or not events:
        raise DataError(f"{path}, query {number}: no events in `query`")
    for at, event in enumerate(events):
        where = f"{path}, query {number}, event {at}"
        if not isinstance(event, dict) or not isinstance(event.get("server_timestamp_epoch_ms"), int):
            raise DataError(f"{where}: no server_timestamp_epoch_ms")
        if missing := [name for name in EVENT if name not in event and name != "hashed_url"]:
            raise DataError(f"{where}: no {missing[0]}", f"expected: {', '.join(EVENT)}")
        vector = event["query_vector"]
        if vector is not None and (not isinstance(vector, list) or len(vector) != DIMS):
            raise DataError(f"{where}: query_vector is not a list of {DIMS} numbers")
        if (event["product_action"] or "detail") not in ACTIONS:
            raise DataError(
                f"{where}: product_action {event['product_action']!r} is none of {', '.join(ACTIONS)}"
            )


def pieces(path: Path, queries: int) -> Iterator[list[dict[str, Any]]]:
    """The queries in lists of at most `queries`."""
    source = records(path)
    while piece := list(islice(source, queries)):
        yield piece


def events(piece: list[dict[str, Any]]) -> Any:
    """The piece's events as a pyarrow.Table: row, session (number of the query in the piece), searched (0 or 1), event_type,
    product_action, product_sku_hash, hashed_url, server_timestamp_epoch_ms, and vector_0 .. vector_49 (0 without a query)."""
    import numpy as np
    import pyarrow as pa

    flat = [event for record in piece for event in record["query"]]
    lengths = [len(record["query"]) for record in piece]
    vectors = np.zeros((len(flat), DIMS), dtype=np.float32)
    for row, event in enumerate(flat):
        if event["query_vector"] is not None:
            vectors[row] = event["query_vector"]
    columns: dict[str, Any] = {
        "row": np.arange(len(flat)),
        "session": np.repeat(np.arange(len(piece)), lengths),
        "searched": np.array([bool(event["is_search"]) for event in flat], dtype=np.int64),
        "server_timestamp_epoch_ms": np.array(
            [event["server_timestamp_epoch_ms"] for event in flat], dtype=np.int64
        ),
    }
    for name in ("event_type", "product_action", "product_sku_hash", "hashed_url"):
        columns[name] = pa.array([event.get(name) for event in flat], pa.string())
    return pa.table(columns | {f"vector_{i}": vectors[:, i] for i in range(DIMS)})
