"""Events: from the official files to coded events in the order of their sessions, in the operators of `engine.frames`.

One row for each browsing or search event; a pageview that repeats a product event is dropped, as the winners did
(Moreira et al., SIGIR eCom 2021). Column `item` codes products and other pages in one range, products first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from buzzer.datasets.sigir_ecom.reader import csv_pieces
from buzzer.datasets.sigir_ecom.schema import DIMS
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, UNSEEN, Array, Columns, Expr, stack
from buzzer.models.api import progress

PAGE, DETAIL, ADD, REMOVE, PURCHASE, SEARCH = range(1, 7)  # kinds of events; 0 is left for "no event"
KINDS = 7  # codes of kinds, "no event" among them
ACTIONS = {"detail": DETAIL, "add": ADD, "remove": REMOVE, "purchase": PURCHASE}
NOTHING = "0" * 64  # id that replaces a missing product or page
FIRST_MS = 1_546_300_800_000  # 2019-01-01; times are relative to it, so that time and row fit into one int64
ROWS = 2**27  # an event's order: time * ROWS + row
TEXT = ("event_type", "product_action", "product_sku_hash", "hashed_url")
IDS = {"product_sku_hash": "sku", "hashed_url": "url"}
KEPT = ("session", "sku", "url", "kind", "time")
VECTORS = tuple(f"vector_{i}" for i in range(DIMS))
SECONDS = 1000


@dataclass(frozen=True)
class Vocabulary:
    """The codes of products and pages; fitted once for all engines."""

    tables: Mapping[str, Frame]  # sku, url -> (value, n, code)
    products: int  # number of product codes, 0 and 1 among them; codes of pages follow
    pages: int
    axes: Array  # float64 [DIMS, dims]: principal axes on which search vectors are projected

    @property
    def codes(self) -> int:
        """Number of codes of `item`."""
        return self.products + self.pages


# ---- reading ------------------------------------------------------------------------------------------------------


def browsing(e: Engine, t: Frame) -> Frame:
    """The columns KEPT of a browsing file's rows, ids as numbers, 0 for missing ones."""
    return plain(e, e.hex_id(t, "session_id_hash", "session", digits=64))


def plain(e: Engine, t: Frame) -> Frame:
    """Kind, ids and time of rows that have a `session`; the ids of a search are 0."""
    t = e.with_columns(t, **{name: filled(e, name, "") for name in ("event_type", "product_action")})
    t = e.with_columns(t, **{name: filled(e, name, NOTHING) for name in IDS})
    for column, out in IDS.items():
        t = e.hex_id(t, column, out, digits=64)
    return e.with_columns(
        t,
        kind=lambda c: (
            e.cast(c("event_type") == "pageview", "int64") * PAGE
            + sum(e.cast(c("product_action") == name, "int64") * kind for name, kind in ACTIONS.items())
        ),
        time=lambda c: c("server_timestamp_epoch_ms") - FIRST_MS,
    )


def filled(e: Engine, name: str, value: str) -> Callable[[Columns], Expr]:
    """The column with missing values replaced by `value`."""
    return lambda c: e.fill_null(c(name), value)


def read_browsing(e: Engine, path: Path, work: Path, piece_rows: int) -> tuple[Frame, Frame]:
    """A browsing file's events, and the names of its products (sku, product_sku_hash).

    The file is read `piece_rows` lines at a time, so that only the ids of one piece are in memory as strings.
    """
    kinds = {"session_id_hash": "str", **dict.fromkeys(TEXT, "str"), "server_timestamp_epoch_ms": "int64"}
    parts, names = [], []
    for number, piece in enumerate(over_csv(path, work, piece_rows)):
        t = browsing(e, e.read_csv(piece, kinds))
        t = e.collect(
            e.select(e.with_columns(t, row=shifted(number * piece_rows)), [*KEPT, "product_sku_hash"])
        )
        names.append(e.collect(e.distinct(e.filter(t, lambda c: c("sku") != 0), ["sku", "product_sku_hash"])))
        parts.append(e.collect(e.drop(t, ["product_sku_hash"])))
    return concatenated(e, parts), e.collect(e.distinct(concatenated(e, names), ["sku", "product_sku_hash"]))


def over_csv(path: Path, work: Path, piece_rows: int) -> Iterator[Path]:
    """The pieces of a CSV file; reports the share that is done, unless the file is compressed."""
    total = 0 if path.suffix == ".gz" else path.stat().st_size
    return progress.over_pieces(csv_pieces(path, work, piece_rows), total)


def concatenated(e: Engine, parts: list[Frame]) -> Frame:
    """The rows of all parts."""
    return e.collect(parts[0] if len(parts) == 1 else e.concat(parts))


def shifted(rows: int) -> Callable[[Columns], Expr]:
    """Row numbers plus `rows`."""
    return lambda c: c("row") + rows


def read_search(e: Engine, path: Path, work: Path, piece_rows: int, first_row: int) -> Frame:
    """A search file's events with VECTORS, numbered from `first_row`; read in pieces like a browsing file."""
    parts = [
        e.collect(search(e, piece, first_row + number * piece_rows))
        for number, piece in enumerate(over_csv(path, work, piece_rows))
    ]
    return concatenated(e, parts or [e.collect(search(e, path, first_row))])  # the file may have no rows


def search(e: Engine, path: Path, first_row: int) -> Frame:
    """Events of a piece of a search file."""
    kinds = {"session_id_hash": "str", "query_vector": "str", "server_timestamp_epoch_ms": "int64"}
    t = e.hex_id(e.read_csv(path, kinds), "session_id_hash", "session", digits=64)
    t = e.parse_vector(t, "query_vector", DIMS, "vector")
    t = e.with_columns(
        t,
        row=shifted(first_row),
        sku=lambda c: c("row") * 0,
        url=lambda c: c("row") * 0,
        kind=lambda c: c("row") * 0 + SEARCH,
        time=lambda c: c("server_timestamp_epoch_ms") - FIRST_MS,
    )
    return e.select(t, [*KEPT, *VECTORS])


def read_content(e: Engine, path: Path) -> Frame:
    """The catalogue: row, sku, product_sku_hash, category_hash, price_bucket, description_0, ..., image_0, ...; 0 for unknown values."""
    kinds = dict.fromkeys(("product_sku_hash", "description_vector", "category_hash", "image_vector"), "str")
    t = e.read_csv(path, kinds | {"price_bucket": "float64"})
    t = e.hex_id(t, "product_sku_hash", "sku", digits=64)
    for name in ("description", "image"):
        t = e.drop(e.parse_vector(t, f"{name}_vector", DIMS, name), [f"{name}_vector"])
    price = {"price_bucket": lambda c: e.cast(e.fill_null(c("price_bucket"), 0.0), "int64")}
    return e.with_columns(t, **price)


def test_events(e: Engine, table: object, axes: Array) -> Frame:
    """Events of test queries, from the Arrow table of `json_file.events`."""
    t = plain(e, e.from_arrow(table))
    t = e.with_columns(t, kind=lambda c: e.where(c("searched") == 1, SEARCH, c("kind")))
    return project(e, e.select(t, [*KEPT, *VECTORS]), axes)


# ---- codes and order ----------------------------------------------------------------------------------------------


def queries(axes: Array) -> list[str]:
    """Names of the columns of projected search vectors."""
    return [f"query_{i}" for i in range(axes.shape[1])]


def project(e: Engine, t: Frame, axes: Array) -> Frame:
    """Replace VECTORS by their projections on the axes, query_0, ..., float32."""
    t = e.with_columns(t, **{name: along(e, axes[:, i]) for i, name in enumerate(queries(axes))})
    return e.drop(t, list(VECTORS))


def along(e: Engine, axis: Array) -> Callable[[Columns], Expr]:
    """Projection of VECTORS on an axis, float32."""
    return lambda c: e.cast(sum(c(name) * float(x) for name, x in zip(VECTORS, axis, strict=True)), "float32")


def without_queries(e: Engine, t: Frame, axes: Array) -> Frame:
    """Add zeros as query_0, ... to browsing events."""
    return e.with_columns(t, **dict.fromkeys(queries(axes), lambda c: e.cast(c("kind") * 0.0, "float32")))


def fit_codes(e: Engine, pages: Frame, content: Frame, rare: int) -> dict[str, Frame]:
    """Codes of the products in events or in the catalogue, and of the pages in more than `rare` events."""
    seen = e.filter(e.select(pages, ["sku"]), lambda c: c("sku") != 0)
    others = e.filter(e.select(pages, ["kind", "url"]), lambda c: (c("kind") == PAGE) & (c("url") != 0))
    return {
        "sku": e.categorify_fit([(seen, "sku"), (content, "sku")]),
        "url": e.categorify_fit([(others, "url")], rare + 1),
    }


def code(e: Engine, t: Frame, vocabulary: Vocabulary) -> Frame:
    """Add `ord`, the order in time, `product`, and `item`, the code of the product or page, 0 for searches and unknown ones."""
    products = e.filter(t, lambda c: (c("kind") >= DETAIL) & (c("kind") <= PURCHASE))
    shown = e.distinct(products, ["session", "time", "url"])
    t = e.seen_before(t, shown, ["session", "time", "url"], "twin")
    t = e.filter(t, lambda c: (c("kind") != PAGE) | (c("twin") == 0))
    t = e.categorify(t, "sku", vocabulary.tables["sku"], "product")
    t = e.categorify(t, "url", vocabulary.tables["url"], "page")
    t = ordered(e, t)
    t = e.with_columns(
        t,
        item=lambda c: e.where(
            (c("kind") == PAGE) & (c("page") > UNSEEN), c("page") + vocabulary.products, c("product")
        ),
    )
    return e.drop(t, ["twin", "page", "sku", "url"])


def ordered(e: Engine, t: Frame) -> Frame:
    """Add `ord`, the order in time."""
    return e.with_columns(t, ord=lambda c: c("time") * ROWS + c("row"))


def in_sessions(e: Engine, t: Frame, axes: Array) -> Frame:
    """Add `position`, the session's `length`, `gap` (log of seconds since the previous event), and query_0, ..., the mean of the
    session's searches up to this event."""
    names = queries(axes)
    t = e.with_columns(t, searched_wide=lambda c: e.cast(c("kind") == SEARCH, "float64"))
    # float64: a running sum over all sessions needs more digits than its parts.
    t = e.with_columns(t, **{f"{name}_wide": widened(e, name) for name in names})
    before = {f"{name}_before": (f"{name}_wide", 1.0, 0.0) for name in (*names, "searched")}
    t = e.window_features(
        t, ["session"], "ord", count="position", size="length", since={"time": "pause"}, mean=before
    )
    t = e.with_columns(t, gap=lambda c: e.log1p(e.clip(c("pause"), 0, 3600 * SECONDS) / float(SECONDS)))
    t = e.with_columns(t, **{name: mean_so_far(e, name) for name in names})
    wide = [f"{name}_wide" for name in (*names, "searched")]
    return e.drop(t, [*before, *wide, "pause"])


def widened(e: Engine, name: str) -> Callable[[Columns], Expr]:
    """The column as float64."""
    return lambda c: e.cast(c(name), "float64")


def mean_so_far(e: Engine, name: str) -> Callable[[Columns], Expr]:
    """The mean over the searches so far, from `window_features`' mean over all events so far."""

    def formula(c: Columns) -> Expr:
        events = c("position") + 1
        total = c(f"{name}_before") * events + c(name)
        return e.cast(total / e.clip(c("searched_before") * events + c("searched_wide"), 1.0, 1e9), "float32")

    return formula


# ---- arrays -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventArrays:
    """Events sorted by session and time; session i has the events starts[i] to starts[i + 1] - 1."""

    items: Array  # int32 [events]
    kinds: Array  # int8 [events]
    numbers: Array  # float32 [events, 1 + dims]: gap, query
    starts: Array  # int64 [sessions + 1]
    session: Array  # int64 [sessions]

    def __len__(self) -> int:
        return len(self.session)

    def lengths(self, ends: Array) -> Array:
        """Number of events of its session before each end."""
        return ends - self.starts[np.searchsorted(self.starts, ends - 1, side="right") - 1]

    def windows(self, ends: Array, length: int) -> dict[str, Array]:
        """The networks' inputs: the last `length` events before each end, left-padded with zeros.

        ends: int64 [rows], event numbers, exclusive; a row has events of the session of event end - 1 only.
        """
        first = ends - self.lengths(ends)
        at = ends[:, None] - length + np.arange(length)
        present = at >= first[:, None]
        at = np.where(present, at, 0)
        return {
            "items": np.where(present, self.items[at], 0).astype(np.int64),
            "kinds": np.where(present, self.kinds[at], 0).astype(np.int64),
            "numbers": np.where(present[:, :, None], self.numbers[at], np.float32(0)),
        }

    def next_products(self, products: int) -> Array:
        """For each event the code of the session's next product, 0 if there is none: int64 [events]."""
        is_product = (self.kinds >= DETAIL) & (self.kinds <= PURCHASE) & (self.items >= FIRST_CODE)
        return self._following(is_product & (self.items < products))

    def next_items(self) -> Array:
        """For each event the code of the session's next product or page, 0 if there is none: int64 [events]."""
        return self._following((self.kinds != SEARCH) & (self.items >= FIRST_CODE))

    def _following(self, wanted: Array) -> Array:
        """For each event the code of the session's next event that is `wanted`, bool [events]; 0 if there is none."""
        n = np.int32(len(self.items))
        at = np.where(wanted, np.arange(n, dtype=np.int32), n)
        following = np.append(np.minimum.accumulate(at[::-1])[::-1], n)[1:]
        session_end = np.repeat(self.starts[1:].astype(np.int32), np.diff(self.starts))
        follows = following < session_end
        return np.where(follows, self.items[np.where(follows, following, 0)], 0).astype(np.int64)

    def chosen(self, sessions: Array) -> "EventArrays":
        """The sessions for which `sessions`, bool [sessions], is true."""
        lengths = np.diff(self.starts)
        rows = np.repeat(sessions, lengths)
        starts = np.append(0, np.cumsum(lengths[sessions]))
        return EventArrays(
            self.items[rows], self.kinds[rows], self.numbers[rows], starts, self.session[sessions]
        )


def event_arrays(e: Engine, t: Frame, axes: Array) -> EventArrays:
    """The events as arrays, sorted by session and time."""
    numbers = ["gap", *queries(axes)]
    arrays = e.to_numpy(t, ["session", "position", "item", "kind", *numbers])
    order = np.lexsort((arrays["position"], arrays["session"]))
    session = arrays["session"][order]
    new = np.flatnonzero(np.append(True, session[1:] != session[:-1])) if len(session) else np.zeros(0, int)
    return EventArrays(
        arrays["item"].astype(np.int32)[order],
        arrays["kind"].astype(np.int8)[order],
        stack(arrays, numbers, np.float32)[order],
        np.append(new, len(session)).astype(np.int64),
        session[new],
    )


def joined(parts: Sequence[EventArrays]) -> EventArrays:
    """The sessions of all parts, in order."""
    before = np.cumsum([0, *(len(part.items) for part in parts)])
    starts = [part.starts[:-1] + first for part, first in zip(parts, before, strict=False)]
    return EventArrays(
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.kinds for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([*starts, before[-1:]]),
        np.concatenate([part.session for part in parts]),
    )


def batches(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows."""
    for start in range(0, rows, size):
        yield slice(start, start + size)
