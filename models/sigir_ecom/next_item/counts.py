"""Counts of products that follow or accompany others, as small tables. Such counts, without a network, won the next-item prize
(DeepBlueAI, MRR .2773).

Table `next`: the product that follows a page (or a product's page) within the next few events. Table `near`: products that are viewed
near each other in a session (item-item collaborative filtering). Nearer pairs weigh more.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, Array, Columns, Expr
from buzzer.models.sigir_ecom.sessions.events import DETAIL, PURCHASE, SEARCH

AHEAD = 3  # the next product of a page is searched in this many events after it
NEAR = 4  # earlier products that a product is paired with
TABLES = ("next", "near")
Sums = Mapping[str, Frame]  # by table: columns key, target, weight


def merge(e: Engine, sums: Sequence[Sums]) -> dict[str, Frame]:
    """The sums of the counts of several parts. Each part is a result of `add`; empty parts are skipped."""
    return {name: summed(e, [part[name] for part in sums if part]) for name in TABLES}


def add(e: Engine, sums: Sums, t: Frame) -> dict[str, Frame]:
    """`sums` plus the counts of these sessions' coded events: tables with the columns key, target, weight."""
    t = e.with_columns(t, target=lambda c: e.where(is_product(c), c("product"), 0), back=lambda c: -c("ord"))
    counted = {"next": following(e, t), "near": nearby(e, e.filter(t, is_product))}
    return merge(e, [sums, counted])


def push(e: Engine, stack: list[Sums], part: Sums) -> None:
    """Append the sums of a part. While the last entry is more than half as long as the one before it, both are merged.

    So each row is merged a logarithmic number of times. Weights are integers: the order of merges changes nothing.
    """
    stack.append({name: e.collect(t) for name, t in part.items()})
    while len(stack) > 1 and 2 * rows(e, stack[-1]) > rows(e, stack[-2]):
        last, before = stack.pop(), stack.pop()
        stack.append({name: e.collect(t) for name, t in merge(e, [before, last]).items()})


def rows(e: Engine, sums: Sums) -> int:
    """The rows of all tables."""
    return sum(int(e.height(t)) for t in sums.values())


def summed(e: Engine, parts: list[Frame]) -> Frame:
    """The sums of weights by key and target."""
    sums = e.group_sums(e.concat(parts), ["key", "target"], ["weight"])
    return e.rename(e.drop(sums, ["n"]), {"sum_weight": "weight"})


def tables(e: Engine, sums: Sums, k: int) -> dict[str, Frame]:
    """The k targets of each key with the largest weights: columns key, rank, target, n."""
    return {name: e.top_k(t, "key", "target", k, "weight") for name, t in sums.items()}


def is_product(c: Columns) -> Expr:
    """True for events of products that are neither unseen nor rare."""
    return (c("kind") >= DETAIL) & (c("kind") <= PURCHASE) & (c("product") >= FIRST_CODE)


def following(e: Engine, t: Frame) -> Frame:
    """Counts of products that follow a page."""
    t = e.window_features(t, ["session"], "back", lags={"target": (AHEAD, 0)})
    t = e.rename(e.drop(t, ["target"]), {"item": "key"})
    t = e.with_columns(
        t, target=lambda c: first_present(e, [c(f"target_lag{i}") for i in range(1, AHEAD + 1)])
    )
    counted = e.filter(t, lambda c: (c("key") > 0) & (c("target") > 0) & (c("kind") != SEARCH))
    return e.rename(e.group_sums(counted, ["key", "target"]), {"n": "weight"})


def first_present(e: Engine, codes: list[Expr]) -> Expr:
    """The first code above 0, else 0."""
    first = codes[-1]
    for code in reversed(codes[:-1]):
        first = e.where(code > 0, code, first)
    return first


def nearby(e: Engine, t: Frame) -> Frame:
    """Weights of pairs of products in the same session, in both orders; nearer pairs weigh more."""
    t = e.window_features(t, ["session"], "ord", lags={"target": (NEAR, 0)})
    pairs = []
    for i in range(1, NEAR + 1):
        others = e.filter(t, differs(f"target_lag{i}"))
        for key, target in ((f"target_lag{i}", "product"), ("product", f"target_lag{i}")):
            pair = e.with_columns(
                others, key=column(key), other=column(target), weight=constant(NEAR + 1 - i)
            )
            pairs.append(e.group_sums(pair, ["key", "other"], ["weight"]))
    table = e.rename(e.drop(e.concat(pairs), ["n"]), {"sum_weight": "weight", "other": "target"})
    return e.select(table, ["key", "target", "weight"])


def differs(lag: str) -> Callable[[Columns], Expr]:
    """A condition that is true where the earlier product exists and is a different product."""
    return lambda c: (c(lag) > 0) & (c(lag) != c("product"))


def column(name: str) -> Callable[[Columns], Expr]:
    """An expression: the column with this name."""
    return lambda c: c(name)


def constant(value: int) -> Callable[[Columns], Expr]:
    """An expression: the same value in every row."""
    return lambda c: c("product") * 0 + value


def dense(e: Engine, table: Frame, keys: int, k: int) -> tuple[Array, Array]:
    """A table as two arrays [keys, k]: targets int64, padded with 0, and their shares of the key's total, float32."""
    arrays = e.to_numpy(
        e.with_columns(table, row=lambda c: c("key") * k + c("rank")), ["key", "rank", "target", "n"]
    )
    targets, n = np.zeros((keys, k), dtype=np.int64), np.zeros((keys, k), dtype=np.float32)
    targets[arrays["key"], arrays["rank"]] = arrays["target"]
    n[arrays["key"], arrays["rank"]] = arrays["n"]
    return targets, n / np.maximum(n.sum(axis=1, keepdims=True), 1)
