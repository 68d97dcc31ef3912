"""Writes, checks and reads the organisers' JSON test files one query at a time, and converts their events to a table."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from buzzer.datasets.lines import shown
from buzzer.datasets.sigir_ecom.schema import DIMS, QueryRecord
from buzzer.datasets.strict_json import numbered, objects
from buzzer.errors import DataError

if TYPE_CHECKING:
    from pydantic import ValidationError


class Writer:
    """Writes a JSON list, one object per line."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self.items = file, 0

    def add(self, item: Mapping[str, object]) -> None:
        """Write one more object."""
        self._file.write((",\n" if self.items else "[\n") + json.dumps(item, separators=(",", ":")))
        self.items += 1


@contextmanager
def written(path: Path) -> Iterator[Writer]:
    """A JSON list to add objects to. It is complete when the block ends."""
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file)
        yield writer
        file.write("\n]\n" if writer.items else "[]\n")


def checked(path: Path, cart: bool) -> Iterator[QueryRecord]:
    """The queries of a test file, each checked by the schema in `queries.py`. cart: whether it is a file of the second task.

    Raises DataError that names line, query, event and key.
    """
    from pydantic import ValidationError

    from buzzer.datasets.sigir_ecom.queries import Intention, Recommendation

    schema = Intention if cart else Recommendation
    for number, (line, record) in enumerate(numbered(path)):
        try:
            schema.model_validate(record)
        except ValidationError as error:
            raise DataError(f"{path}, line {line}, query {number}{place(error)}") from error
        yield cast(QueryRecord, record)


def place(error: "ValidationError") -> str:
    """The place and the text of the first fault of a pydantic error, for a message."""
    first = error.errors(include_url=False, include_context=False)[0]
    where: list[int | str] = list(first["loc"])
    inside = ""
    if where[:1] == ["query"] and len(where) > 1:
        inside, where = f", event {where[1]}", where[2:]
    inside += f", {where[0]}" if where else ""
    text = f"{shown(first['input'])}: {first['msg']}"
    match first["type"]:
        case "missing":
            text = "is missing"
        case "value_error":
            text = first["msg"].removeprefix("Value error, ")
    return f"{inside}: {text}"


def pieces(path: Path, queries: int) -> Iterator[list[QueryRecord]]:
    """The queries of a checked file in lists of at most `queries`."""
    source = cast(Iterator[QueryRecord], objects(path, checked=True))
    while piece := list(islice(source, queries)):
        yield piece


def events(piece: list[QueryRecord]) -> Any:
    """The events of some queries as a pyarrow.Table.

    Columns: row, session (index of the query in the piece), searched (0 or 1), event_type, product_action, product_sku_hash,
    hashed_url, server_timestamp_epoch_ms, and vector_0 to vector_49 (float32; 0 without a search).
    """
    import numpy as np
    import polars as pl

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
        columns[name] = pl.Series([event.get(name) for event in flat], dtype=pl.String)
    # Not by pyarrow.array, which imports pandas.
    return pl.DataFrame(columns | {f"vector_{i}": vectors[:, i] for i in range(DIMS)}).to_arrow()
