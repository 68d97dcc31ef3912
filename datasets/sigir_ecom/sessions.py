"""Makes test queries in the organisers' JSON from complete sessions.

The organisers did not release their labels. They describe in README_DC_2021.md how they made the queries. First task: each
session is cut at a random place, and the products of its later events are the label; searches are input only. Second task:
sessions with a product in the cart are cut before the first purchase, 0, 2, 4, 6, 8 or 10 events after the first add.
"""

import ast
import json
from collections.abc import Iterator
from typing import cast

import numpy as np
import polars as pl

from buzzer.datasets.sigir_ecom.schema import AFTER_ADD, EVENT, MOST_LABELS, EventRecord, QueryRecord

Session = list[EventRecord]


def merged(browsing: pl.DataFrame, search: pl.DataFrame) -> Iterator[Session]:
    """All sessions in the order of their ids, each with its browsing and search events in the order of time.

    At equal times a search comes first, and a product event before the pageview of its page.
    """
    pages = browsing.with_columns(is_search=pl.lit(False), first=pl.col("event_type") != "event_product")
    queries = search.with_columns(is_search=pl.lit(True), first=pl.lit(False))
    both = pl.concat([queries, pages], how="diagonal").with_row_index("at")
    both = both.sort(
        "session_id_hash", "server_timestamp_epoch_ms", pl.col("is_search").not_(), "first", "at"
    ).select(EVENT)
    session: Session = []
    for row in both.iter_rows(named=True):
        if session and session[0]["session_id_hash"] != row["session_id_hash"]:
            yield session
            session = []
        session.append(event_of(row))
    if session:
        yield session


def event_of(row: dict[str, object]) -> EventRecord:
    """A row of `merged` as an event: its lists are parsed in place."""
    if row["is_search"]:
        for name in ("query_vector", "clicked_skus_hash", "product_skus_hash"):
            text = row[name]
            row[name] = literal(str(text)) if text else None
    return cast(EventRecord, row)


def literal(text: str) -> object:
    """A list of numbers or hashes as Python writes it. JSON's reader is faster than Python's."""
    try:
        return json.loads(text.replace("'", '"'))
    except ValueError:  # numbers with zeros before them, such as 01.5
        return ast.literal_eval(text)


def recommendation(session: Session, rng: np.random.Generator) -> QueryRecord | None:
    """A query of the first task: the session up to a random place before its last product event; None if there is no such place.

    The label has the different products of the later events in their order, at most 20.
    """
    products = [at for at, event in enumerate(session) if event["product_sku_hash"]]
    if not products or products[-1] == 0:
        return None
    cut = int(rng.integers(1, products[-1] + 1))
    later = dict.fromkeys(str(session[at]["product_sku_hash"]) for at in products if at >= cut)
    return {"query": session[:cut], "label": list(later)[:MOST_LABELS]}


def intention(session: Session, rng: np.random.Generator) -> QueryRecord | None:
    """A query of the second task; None for a session without an add before its first purchase.

    The number of events after the add is drawn from the numbers in AFTER_ADD that fit before the purchase.
    """
    actions = [event["product_action"] for event in session]
    bought = actions.index("purchase") if "purchase" in actions else len(actions)
    if "add" not in actions[:bought]:
        return None
    added = actions.index("add")
    possible = [n for n in AFTER_ADD if n <= bought - added - 1]
    n = possible[int(rng.integers(len(possible)))]
    label = int(bought < len(actions))
    return {"query": session[: added + n + 1], "label": label, "nb_after_add": n}
