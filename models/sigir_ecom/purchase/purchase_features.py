"""Features of sessions that add a product to the cart: one row for each place at which the organisers may have cut a session.

Like the winners' columns (Schifferer et al., SIGIR eCom 2021): counts by action before and after the add, recency, prices, similarity of
later products to the added one (by description and image), the last events, and target encodings of the added and the last products.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from buzzer.datasets.sigir_ecom.metric import WEIGHTS
from buzzer.datasets.sigir_ecom.schema import AFTER_ADD
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import RARE, Array, Columns, Expr
from buzzer.models.sigir_ecom.sessions import events
from buzzer.models.sigir_ecom.sessions.events import (
    ADD,
    DETAIL,
    FIRST_MS,
    PAGE,
    PURCHASE,
    REMOVE,
    SEARCH,
    SECONDS,
)
from buzzer.models.sigir_ecom.sessions.products import Products

NEVER = 10**6  # position of an event that does not occur
LAGS = 4  # events before the last one that are columns
AXES = 8  # principal axes on which products are compared
FOLDS, SMOOTHING = 5, 20.0
COUNTED = {"pages": PAGE, "details": DETAIL, "adds": ADD, "removes": REMOVE, "searches": SEARCH}
SUMMED = ("same", "alike", "cost", "pause")
ENCODED = {"te_added": ["added"], "te_last": ["item"], "te_before": ["item_lag1"], "te_third": ["item_lag2"]}
KINDS = LAGS + 1  # the first columns of CODES are kinds, the others items
CODES = ("kind", *(f"kind_lag{i}" for i in range(1, LAGS + 1)), "item", "item_lag1", "item_lag2", "added")


def sums() -> list[str]:
    """Columns that are summed over the session, and over the events after the add."""
    return [f"{name}{part}" for name in (*COUNTED, *SUMMED) for part in ("", "_after")]


def names(dims: int) -> list[str]:
    """The columns that the models read, in order. dims: axes of search vectors."""
    plain = ["after_add", "length", "added_at", "since_add", "price", "hour", "weekday", "gap"]
    lagged = [f"cost_lag{i}" for i in range(1, LAGS + 1)]
    kinds = list(CODES[:KINDS])
    queries = [f"query_{i}" for i in range(dims)]
    return [*plain, *sums(), *lagged, *kinds, *queries, *(f"{name}_bought" for name in ENCODED)]


@dataclass(frozen=True)
class Facts:
    """A table by product code: price, and coordinates on the principal axes of description and image."""

    table: Frame

    @staticmethod
    def columns() -> list[str]:
        """Names of the coordinates."""
        return [f"axis_{i}" for i in range(AXES)]


def facts(e: Engine, catalogue: Products) -> Facts:
    """The table of a catalogue. Coordinates have length 1, so that the dot product of two products is a cosine."""
    vectors = catalogue.vectors.astype(np.float64)
    axes = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :AXES]
    coordinates = vectors @ axes
    coordinates /= np.maximum(np.linalg.norm(coordinates, axis=1, keepdims=True), 1e-9)
    columns = {name: coordinates[:, i] for i, name in enumerate(Facts.columns())}
    table = {"code": np.arange(len(catalogue.price)), "price": catalogue.price.astype(np.float64)}
    # Not by pyarrow.table, which imports pandas.
    return Facts(e.from_arrow(pl.DataFrame(table | columns).to_arrow()))


# ---- rows ---------------------------------------------------------------------------------------------------------


def place(e: Engine, t: Frame) -> Frame:
    """Add `at`, the number of the event in its session, and the session's `size`. As in the organisers' count, pageviews of products
    count too."""
    return e.window_features(events.ordered(e, t), ["session"], "ord", count="at", size="size")


def with_cart(e: Engine, t: Frame) -> Frame:
    """The events before the first purchase, of sessions with an add before it.

    New columns of the session: `added`, `added_at` and `added_time` of its first add, `bought`, 0 or 1, and `left`, events after the add.
    """
    firsts = {}
    for name, kind in (("add", ADD), ("buy", PURCHASE)):
        those = e.filter(t, of_kind(kind))
        firsts[name] = e.filter(
            e.window_features(those, ["session"], "ord", count="nth"), lambda c: c("nth") == 0
        )
    wanted = {"at": "added_at", "product": "added", "time": "added_time"}
    t = e.left_join(t, firsts["add"], {"session": "session"}, wanted, NEVER)
    t = e.left_join(t, firsts["buy"], {"session": "session"}, {"at": "bought_at"}, NEVER)
    t = e.filter(t, lambda c: (c("added_at") < c("bought_at")) & (c("at") < c("bought_at")))
    return e.with_columns(
        t,
        bought=lambda c: e.cast(c("bought_at") < NEVER, "int64"),
        left=lambda c: e.where(c("bought_at") < c("size"), c("bought_at"), c("size")) - c("added_at") - 1,
    )


def of_kind(kind: int) -> Callable[[Columns], Expr]:
    """A condition that is true for the events of a kind."""
    return lambda c: c("kind") == kind


def describe(e: Engine, t: Frame, products: Facts) -> Frame:
    """Add to each event the columns that are summed over its session, `sums()`."""
    axes = Facts.columns()
    mine = {name: f"own_{name}" for name in axes} | {"price": "cost"}
    t = e.left_join(t, products.table, {"product": "code"}, mine, 0.0)
    theirs = {name: f"added_{name}" for name in axes} | {"price": "price"}
    t = e.left_join(t, products.table, {"added": "code"}, theirs, 0.0)
    t = e.with_columns(
        t,
        alike=lambda c: sum(c(f"own_{name}") * c(f"added_{name}") for name in axes),
        same=lambda c: e.cast((c("product") == c("added")) & (c("kind") == DETAIL), "int64"),
        pause=lambda c: c("gap"),
        **{name: counted(e, kind) for name, kind in COUNTED.items()},
    )
    t = e.with_columns(t, **{f"{name}_after": after(e, name) for name in (*COUNTED, *SUMMED)})
    return e.drop(t, [f"{whose}_{name}" for whose in ("own", "added") for name in axes])


def counted(e: Engine, kind: int) -> Callable[[Columns], Expr]:
    """1 for the events of a kind, else 0."""
    return lambda c: e.cast(c("kind") == kind, "int64")


def after(e: Engine, name: str) -> Callable[[Columns], Expr]:
    """The column after the add, 0 before."""
    return lambda c: c(name) * e.cast(c("at") > c("added_at"), "int64")


def rows_at(e: Engine, t: Frame, cut: int) -> Frame:
    """One row for each session with at least `cut` events after its add, cut after them: its last event, with lags and sums."""
    t = e.filter(t, lambda c: (c("left") >= cut) & (c("at") <= c("added_at") + cut))
    lags = {"kind": (LAGS, 0), "item": (2, 0), "cost": (LAGS, 0.0)}
    ended = e.window_features(t, ["session"], "ord", count="place", size="places", lags=lags)
    last = e.filter(ended, lambda c: c("place") == c("places") - 1)
    totals = e.group_sums(t, ["session"], sums())
    last = e.drop(last, sums())
    last = e.left_join(last, totals, {"session": "session"}, {f"sum_{name}": name for name in sums()}, 0)
    last = e.with_columns(
        last,
        row=lambda c: c("row") * len(AFTER_ADD) + AFTER_ADD.index(cut),
        after_add=lambda c: c("row") * 0 + cut,
        length=lambda c: c("places"),
        since_add=lambda c: e.log1p((c("time") - c("added_time")) / float(SECONDS)),
        seconds=lambda c: (c("time") + FIRST_MS) // SECONDS,
    )
    return e.date_parts(last, "seconds", "s", {"hour": "hour", "weekday": "weekday"})


def training_rows(e: Engine, t: Frame, dims: int) -> Frame:
    """A row for every session and every cut that it allows (the winners' duplicated sampling)."""
    kept = [name for name in names(dims) if not name.startswith("te_")]
    kept += [name for name in (*CODES, "session", "bought") if name not in kept]
    return e.concat([e.select(rows_at(e, t, cut), kept) for cut in AFTER_ADD])


def test_rows(e: Engine, t: Frame) -> Frame:
    """One row for each query, `row` is its number; queries are already cut."""
    parts = [rows_at(e, e.filter(t, exactly(cut)), cut) for cut in AFTER_ADD]
    return e.with_columns(e.concat(parts), row=lambda c: c("session"))


def exactly(cut: int) -> Callable[[Columns], Expr]:
    """A condition that is true for sessions with `cut` events after the add."""
    return lambda c: c("left") == cut


def encode_own(e: Engine, t: Frame, prior: float) -> Frame:
    """Add out-of-fold rates of purchase, for the rows that the rates are fitted on; folds by session."""
    t = source = e.with_columns(t, fold=lambda c: (c("session") % FOLDS + FOLDS) % FOLDS)
    for name, keys in ENCODED.items():
        t = e.target_encode_kfold(t, keys, "fold", {"bought": prior}, SMOOTHING, name, source=source)
    return t


def fit_rates(e: Engine, t: Frame) -> dict[str, Frame]:
    """Sums of `bought` by the keys of each of ENCODED."""
    return {name: e.group_sums(t, keys, ["bought"]) for name, keys in ENCODED.items()}


def encode(e: Engine, t: Frame, rates: Mapping[str, Frame], prior: float) -> Frame:
    """Add rates of purchase to rows that they were not fitted on. prior: the overall rate."""
    for name, keys in ENCODED.items():
        t = e.target_encode(t, rates[name], keys, {"bought": prior}, SMOOTHING, name)
    return t


def codes_of(e: Engine, t: Frame) -> Array:
    """Kinds and items of the last events, and the added product: int64 [rows, len(CODES)]."""
    arrays = e.to_numpy(t, CODES)
    return np.stack([arrays[name].astype(np.int64) for name in CODES], axis=1)


# ---- arrays -------------------------------------------------------------------------------------------------------


def common_items(codes: Array, sessions: Array, items: int, least: int) -> Array:
    """Whether an item occurs in at least `least` sessions: bool [items].

    Rarer items identify their sessions, and embeddings of them would memorise the labels.
    """
    pairs = np.stack([np.repeat(sessions, codes.shape[1] - KINDS), codes[:, KINDS:].ravel()])
    in_sessions = np.bincount(np.unique(pairs, axis=1)[1], minlength=items)
    return np.asarray(in_sessions >= least)


def with_common(codes: Array, common: Array) -> Array:
    """The codes, with one code for all rare items."""
    items = codes[:, KINDS:]
    return np.concatenate([codes[:, :KINDS], np.where(common[items], items, RARE)], axis=1)


def shares(sessions: Array) -> Array:
    """The weight of each row in training: the rows of a session sum to 1."""
    _, at, count = np.unique(sessions, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / count[at])


def score_weights(sessions: Array, after_add: Array) -> Array:
    """What a correct answer in each row adds to the official score, which is a sum over the groups of `after_add`."""
    share, after_add = shares(sessions), after_add.astype(np.int64)
    total = {n: share[after_add == n].sum() for n in np.unique(after_add).tolist()}
    return np.asarray([WEIGHTS[n] / total[n] for n in after_add.tolist()]) * share
