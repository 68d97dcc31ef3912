"""What follows what: the counts that won the next-item prize without a network (DeepBlueAI, MRR .2773), as small tables.

Two kinds: the product that follows a page (a product's page too) within the next few events, and products that
are looked at near each other in a session (item-item collaborative filtering), nearer pairs weighing more.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array, Columns, Expr
from buzzer.models.sigir_ecom.sessions.events import DETAIL, PURCHASE, SEARCH

AHEAD = 3  # events after a page among which its next product is looked for
NEAR = 4  # products before a product that it is paired with
TABLES = ("next", "near")


def together(e: Engine, sums: Sequence[Mapping[str, Frame]]) -> dict[str, Frame]:
    """What `add` counted in several parts, as one; a part without any is left out."""
    return {name: summed(e, [part[name] for part in sums if part]) for name in TABLES}


def add(e: Engine, sums: Mapping[str, Frame], t: Frame) -> dict[str, Frame]:
    """How often what follows or stands near what, (key, target, weight), in these sessions' coded events and in those of `sums`."""
    t = e.with_columns(t, target=lambda c: e.where(is_product(c), c("product"), 0), back=lambda c: -c("ord"))
    found = {"next": following(e, t), "near": nearby(e, e.filter(t, is_product))}
    return together(e, [sums, found])


def summed(e: Engine, parts: list[Frame]) -> Frame:
    """One row a key and target."""
    sums = e.group_sums(e.concat(parts), ["key", "target"], ["weight"])
    return e.rename(e.drop(sums, ["n"]), {"sum_weight": "weight"})


def tables(e: Engine, sums: Mapping[str, Frame], k: int) -> dict[str, Frame]:
    """(key, rank, target, n), at most k targets a key."""
    return {name: e.top_k(t, "key", "target", k, "weight") for name, t in sums.items()}


def is_product(c: Columns) -> Expr:
    return (c("kind") >= DETAIL) & (c("kind") <= PURCHASE) & (c("product") >= FIRST_CODE)


def following(e: Engine, t: Frame) -> Frame:
    """How often a product follows a page."""
    t = e.window_features(t, ["session"], "back", lags={"target": (AHEAD, 0)})
    t = e.rename(e.drop(t, ["target"]), {"item": "key"})
    t = e.with_columns(t, target=lambda c: first_known(e, [c(f"target_lag{i}") for i in range(1, AHEAD + 1)]))
    known = e.filter(t, lambda c: (c("key") > 0) & (c("target") > 0) & (c("kind") != SEARCH))
    return e.rename(e.group_sums(known, ["key", "target"]), {"n": "weight"})


def first_known(e: Engine, codes: list[Expr]) -> Expr:
    found = codes[-1]
    for code in reversed(codes[:-1]):
        found = e.where(code > 0, code, found)
    return found


def nearby(e: Engine, t: Frame) -> Frame:
    """How often a product is looked at near a product, in either order; nearer pairs weigh more."""
    t = e.window_features(t, ["session"], "ord", lags={"target": (NEAR, 0)})
    pairs = []
    for i in range(1, NEAR + 1):
        there = e.filter(t, differs(f"target_lag{i}"))
        for key, target in ((f"target_lag{i}", "product"), ("product", f"target_lag{i}")):
            pair = e.with_columns(there, key=column(key), other=column(target), weight=constant(NEAR + 1 - i))
            pairs.append(e.group_sums(pair, ["key", "other"], ["weight"]))
    table = e.rename(e.drop(e.concat(pairs), ["n"]), {"sum_weight": "weight", "other": "target"})
    return e.select(table, ["key", "target", "weight"])


def differs(lag: str) -> Callable[[Columns], Expr]:
    return lambda c: (c(lag) > 0) & (c(lag) != c("product"))


def column(name: str) -> Callable[[Columns], Expr]:
    return lambda c: c(name)


def constant(value: int) -> Callable[[Columns], Expr]:
    return lambda c: c("product") * 0 + value


def dense(e: Engine, table: Frame, keys: int, k: int) -> tuple[Array, Array]:
    """A table as arrays [keys, k]: targets int64 (0 where there is none), and their shares of the key's counts, float32."""
    arrays = e.to_numpy(
        e.with_columns(table, row=lambda c: c("key") * k + c("rank")), ["key", "rank", "target", "n"]
    )
    targets, n = np.zeros((keys, k), dtype=np.int64), np.zeros((keys, k), dtype=np.float32)
    targets[arrays["key"], arrays["rank"]] = arrays["target"]
    n[arrays["key"], arrays["rank"]] = arrays["n"]
    return targets, n / np.maximum(n.sum(axis=1, keepdims=True), 1)
