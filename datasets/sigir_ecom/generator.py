"""Synthetic sessions in the schema of the official files. card.md describes the model and its calibration.

Sessions are drawn in chunks, each with a random generator of (seed, chunk), so memory does not grow with their number.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import append_csv, new_folder
from buzzer.datasets.sigir_ecom.json_file import written
from buzzer.datasets.sigir_ecom.schema import BROWSING, CONTENT, DIMS, NAMES, SEARCH, TESTS
from buzzer.datasets.sigir_ecom.sessions import intention, merged, recommendation
from buzzer.datasets.sigir_ecom.world import (
    CART,
    CATALOGUE,
    CHECKOUT,
    DESCRIBED,
    LAST_DAY,
    STYLES,
    World,
    hashes,
    pick,
)

VERSION = 1  # version of the random process: the same version, scale and seed give the same files
CHUNK = 1 << 14  # sessions of a chunk
TRAIN_SESSIONS, TEST_SESSIONS = 4_934_699, 1_100_000
TRAIN_DAYS = 91
REC_SHARE = 0.62  # share of the test sessions with a later product that become a query of the first task
FIRST_MS, DAY_MS = 1_547_510_400_000, 86_400_000  # 2019-01-15
LONGEST = 110  # maximum number of actions of a session
NONE, PAGE, DETAIL, ADD, REMOVE, PURCHASE, SEARCHED = range(7)
ACTIONS = {DETAIL: "detail", ADD: "add", REMOVE: "remove", PURCHASE: "purchase"}
# Probabilities of the next action: view a listing, view another page, search; else view a product.
TO_LISTING, TO_OTHER, TO_SEARCH = 0.30, 0.26, 0.03
NEW_LEAF = 0.05  # probability that an action changes the category of the session
AGAIN = 0.10  # probability that the same product is viewed again
FROM_HERE = 0.8  # probability that a product comes from the listing, search or product before it, not from the category
SAME_LISTING = 0.6  # after a product, probability of another one from the same listing, not a related one
TO_CART, TO_CART_AGAIN = (
    0.027,
    0.12,
)  # probabilities of an add after a product, before and after the first add
HOURS = np.array([1, 0.6, 0.4, 0.3, 0.3, 0.5, 1, 2, 3, 4, 4.5, 4.5, 4.5, 5, 5, 5, 5, 5, 5.5, 6, 6, 5, 3.5, 2])

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Sessions:
    """A chunk of sessions: arrays of shape [sessions, actions], except `number`."""

    number: Ints  # [sessions], unique over all chunks
    kind: Ints  # NONE, PAGE, DETAIL, ADD, REMOVE, PURCHASE or SEARCHED
    product: Ints  # -1 if none
    page: Ints  # numbers of other pages, then of listings, then of products
    listing: Ints  # for a search the listing with its results, else -1
    leaf: Ints  # leaf category of the session at the action
    style: Ints  # style that the session prefers
    time: Ints  # milliseconds since 1970


class Walk:
    """Draws the sessions of a chunk, one action after the other."""

    def __init__(self, world: World, rng: np.random.Generator, n: int, days: tuple[int, int]) -> None:
        self.world, self.rng = world, rng
        self.length = np.clip(np.rint(rng.lognormal(np.log(2.15), 1.33, n)), 1, LONGEST).astype(np.int64)
        self.day = rng.integers(*days, n)
        self.leaf = rng.choice(world.leaves, n, p=world.leaf_weight)
        self.style = rng.integers(0, STYLES, n)
        self.last = np.full(n, NONE)
        self.product = np.full(n, -1)
        self.listing = np.full(n, -1)
        self.visits = np.zeros(n, dtype=np.int64)  # repeated views of the last product
        self.searches = np.zeros(n, dtype=np.int64)
        self.since = np.zeros(n, dtype=np.int64)  # actions since the first add
        self.added, self.buyer, self.paying = (np.zeros(n, dtype=bool) for _ in range(3))

    def run(self) -> dict[str, Ints]:
        """The arrays kind, product, page, listing and leaf of `Sessions`."""
        n, steps = len(self.length), LONGEST
        shape = (n, steps)
        out = {name: np.full(shape, -1, dtype=np.int64) for name in ("product", "page", "listing", "leaf")}
        out["kind"] = np.zeros(shape, dtype=np.int64)
        for step in range(steps):
            on = np.flatnonzero(self.length > step)
            if not len(on):
                break
            kind = self.choose(on)
            self.move(on, kind)
            out["kind"][on, step] = kind
            out["product"][on, step] = np.where(np.isin(kind, list(ACTIONS)), self.product[on], -1)
            out["listing"][on, step] = np.where(kind == SEARCHED, self.listing[on], -1)
            out["leaf"][on, step] = self.leaf[on]
            out["page"][on, step] = self.page(on, kind)
        return out

    def choose(self, on: Ints) -> Ints:
        """The kind of the next action of the sessions `on`."""
        rng, n = self.rng, len(on)
        u = rng.random(n)
        kind = np.full(n, DETAIL)
        kind[u < TO_LISTING + TO_OTHER + TO_SEARCH] = PAGE
        kind[u < TO_SEARCH] = SEARCHED
        to_cart = np.where(self.added[on], TO_CART_AGAIN, TO_CART) * (1 + 0.5 * self.visits[on])
        kind[(self.last[on] == DETAIL) & (rng.random(n) < to_cart)] = ADD
        added = self.added[on]
        kind[added & (rng.random(n) < np.where(self.buyer[on], 0.03, 0.12))] = REMOVE
        hurry = np.where(self.since[on] >= 4, 0.3, 0.04)
        self.since[on] += added
        pays = added & (self.last[on] != SEARCHED) & (rng.random(n) < np.where(self.buyer[on], hurry, 0.012))
        self.page_to = np.where(pays, CHECKOUT, -1)
        kind[pays] = PAGE
        kind[self.paying[on] & self.buyer[on] & (rng.random(n) < 0.3)] = PURCHASE
        return kind

    def move(self, on: Ints, kind: Ints) -> None:
        """Update the state of the sessions after an action."""
        rng, world = self.rng, self.world
        turning = on[rng.random(len(on)) < NEW_LEAF]
        self.leaf[turning] = rng.choice(world.leaves, len(turning), p=world.leaf_weight)
        self.listing[turning] = -1
        details = on[kind == DETAIL]
        before = self.product[details]
        self.product[details] = self.next_product(details)
        self.visits[details] = np.where(self.product[details] == before, self.visits[details] + 1, 0)
        lists = on[(kind == SEARCHED) | ((kind == PAGE) & (self.page_to < 0) & (rng.random(len(on)) < 0.53))]
        self.to_listing = np.zeros(len(self.last), dtype=bool)
        self.to_listing[lists] = True
        self.listing[lists] = world.listing(rng, self.leaf[lists], self.style[lists])
        self.searches[on[kind == SEARCHED]] += 1
        adds = on[kind == ADD]
        fresh = adds[~self.added[adds]]
        log_odds = -1.9 + 1.2 * self.visits[fresh] + 1.2 * (self.searches[fresh] > 0)
        log_odds += 0.35 * (5 - world.price[self.product[fresh]])
        self.buyer[fresh] = rng.random(len(fresh)) < 1 / (1 + np.exp(-log_odds))
        more = rng.geometric(np.where(self.buyer[fresh], 0.08, 0.3))
        self.length[fresh] = np.minimum(self.length[fresh] + more, LONGEST)
        self.added[adds] = True
        self.paying[on] |= self.page_to == CHECKOUT
        self.buyer[on[kind == PURCHASE]] = False
        self.last[on] = np.where((kind == PAGE) & ~self.to_listing[on], NONE, kind)

    def next_product(self, rows: Ints) -> Ints:
        """The next product: from the last listing or search, related to the last product, or else from the category."""
        rng, world = self.rng, self.world
        style, last = self.style[rows], self.last[rows]
        products = world.product(rng, self.leaf[rows], style)
        here = rng.random(len(rows)) < FROM_HERE
        listed = (last == PAGE) | (last == SEARCHED)
        listed |= (last == DETAIL) & (self.listing[rows] >= 0) & (rng.random(len(rows)) < SAME_LISTING)
        for source, links, weight in (
            (listed & here, world.shown, world.shown_weight),
            ((last == DETAIL) & here & ~listed, world.related, world.related_weight),
        ):
            at = self.listing if links is world.shown else self.product
            options = links[at[rows[source]]]
            liked = weight * world.liking[style[source][:, None], world.style[options]]
            liked = liked * (world.born[options] <= self.day[rows[source]][:, None])
            products[source] = options[np.arange(len(options)), pick(rng, liked)]
        again = (self.product[rows] >= 0) & (rng.random(len(rows)) < AGAIN)
        products[again] = self.product[rows[again]]
        unborn = world.born[products] > self.day[rows]
        products[unborn] = world.first[world.leaf[products[unborn]]]
        return products

    def page(self, on: Ints, kind: Ints) -> Ints:
        """The page of each action: numbers of other pages, then of listings, then of products."""
        world = self.world
        plain = world.other_page(self.rng, len(on))
        plain = np.where(self.page_to >= 0, self.page_to, plain)
        listed = self.to_listing[on] & (kind == PAGE)
        pages = np.where(listed, world.others + self.listing[on], plain)
        pages = np.where(kind == DETAIL, world.others + world.listings + self.product[on], pages)
        pages = np.where(np.isin(kind, (ADD, REMOVE)), CART, pages)
        return np.where(kind == PURCHASE, CHECKOUT, pages)


def draw(world: World, seed: int, chunk: int, n: int, days: tuple[int, int]) -> Sessions:
    """One chunk of n sessions that begin on a day of range(*days)."""
    rng = np.random.default_rng([seed, chunk])
    walk = Walk(world, rng, n, days)
    did = walk.run()
    hour = rng.choice(24, n, p=HOURS / HOURS.sum())
    begin = FIRST_MS + walk.day * DAY_MS + hour * 3_600_000 + rng.integers(0, 3_600_000, n)
    gaps = np.minimum(rng.lognormal(np.log(13_000), 1.5, did["kind"].shape), 1_700_000).astype(np.int64) + 1
    gaps[:, 0] = 0
    number = np.arange(n) + (np.int64(seed) << 40) + chunk * CHUNK
    style = np.broadcast_to(walk.style[:, None], did["kind"].shape)
    return Sessions(number, style=style, time=begin[:, None] + np.cumsum(gaps, axis=1), **did)


def hexed(kind: str, numbers: Ints, missing: Bools | None = None) -> pl.Series:
    """The id of each number as a string of 64 hexadecimal digits; missing where `missing` is true."""
    unique, back = np.unique(numbers, return_inverse=True)
    texts = pl.Series(hashes(kind, unique).astype("U64").tolist(), dtype=pl.String).gather(back)
    if missing is None:
        return texts
    return texts.to_frame("id").select(pl.when(pl.Series(~missing)).then("id"))["id"]


def browsing(sessions: Sessions, rng: np.random.Generator) -> pl.DataFrame:
    """Rows of the browsing file, shuffled. A product page gives a detail and a pageview at the same time."""
    session, step = np.nonzero((sessions.kind != NONE) & (sessions.kind != SEARCHED))
    kind = sessions.kind[session, step]
    twin = np.flatnonzero(kind == DETAIL)
    at = np.concatenate([np.arange(len(kind)), twin])
    shown = np.concatenate([kind, np.full(len(twin), PAGE)])
    order = rng.permutation(len(at))
    at, shown = at[order], shown[order]
    session, step = session[at], step[at]
    action = pl.Series([ACTIONS.get(k) for k in range(SEARCHED)]).gather(shown)
    table = {
        "session_id_hash": hexed("session", sessions.number[session]),
        "event_type": pl.Series(["pageview", "event_product"]).gather((shown != PAGE).astype(np.int64)),
        "product_action": action,
        "product_sku_hash": hexed("sku", sessions.product[session, step], shown == PAGE),
        "server_timestamp_epoch_ms": sessions.time[session, step],
        "hashed_url": hexed("url", sessions.page[session, step]),
    }
    return pl.DataFrame(table).select(list(BROWSING))


def listed(values: npt.NDArray[Any], digits: int = 9) -> list[str]:
    """Vectors in the format of the official files: Python lists of numbers."""
    return ["[" + ", ".join(f"{x:.{digits}g}" for x in row) + "]" for row in values.tolist()]


def search(world: World, sessions: Sessions, rng: np.random.Generator) -> pl.DataFrame:
    """Rows of the search file: the vector of the query, the products shown, and those clicked."""
    session, step = np.nonzero(sessions.kind == SEARCHED)
    leaf, style = sessions.leaf[session, step], sessions.style[session, step]
    shown = world.shown[sessions.listing[session, step]]
    clicked = pick(rng, world.shown_weight * world.liking[style[:, None], world.style[shown]])
    names = hashes("sku", shown.ravel()).astype("U64").reshape(shown.shape)
    none = rng.random(len(shown)) < 0.8
    clicks = [None if no else f"['{row[at]}']" for no, row, at in zip(none, names, clicked, strict=True)]
    table = {
        "session_id_hash": hexed("session", sessions.number[session]),
        "query_vector": pl.Series(listed(world.query(rng, leaf, style)), dtype=pl.String),
        "clicked_skus_hash": pl.Series(clicks, dtype=pl.String),
        "product_skus_hash": pl.Series(
            ["[" + ", ".join(f"'{name}'" for name in row) + "]" for row in names.tolist()], dtype=pl.String
        ),
        "server_timestamp_epoch_ms": sessions.time[session, step],
    }
    return pl.DataFrame(table).select(list(SEARCH))


def content(world: World) -> pl.DataFrame:
    """The catalogue, with products that are never viewed. Two in five products have only an id."""
    more = max(round((CATALOGUE / 57_483 - 1) * world.products), 1)
    n, rng = world.products + more, np.random.default_rng(1)
    described = np.append(rng.random(world.products) < DESCRIBED, np.zeros(more, dtype=bool))
    leaf = np.append(world.leaf, np.zeros(more, dtype=np.int64))
    paths = [
        hexed(level, ids)
        for level, ids in (("main", world.main[leaf]), ("middle", leaf // 2), ("leaf", leaf))
    ]
    padded = np.zeros((more, DIMS))
    texts = pl.DataFrame(
        {
            "product_sku_hash": hexed("sku", np.arange(n)),
            "description_vector": listed(np.vstack([world.description, padded])),
            "category_hash": pl.DataFrame({"a": paths[0], "b": paths[1], "c": paths[2]}).select(
                pl.concat_str("a", "b", "c", separator="/")
            )["a"],
            "image_vector": listed(np.vstack([world.image, padded])),
            "price_bucket": np.append(world.price, np.zeros(more)).astype(np.float64),
        }
    )
    has_content = pl.Series(described)
    columns = [pl.when(has_content).then(name).alias(name) for name in CONTENT if name != "product_sku_hash"]
    shuffled = texts.with_columns(columns).select(list(CONTENT))
    return shuffled[rng.permutation(n).tolist()]


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write browsing_train.csv, search_train.csv, sku_to_content.csv, both test files with labels, and generator.json into the
    new folder `out`.

    Training sessions begin on 91 days, test sessions in the four weeks after. Raises DataError if the files cannot be written.
    """
    world = World(scale)
    total, test = max(round(TRAIN_SESSIONS * scale), 400), max(round(TEST_SESSIONS * scale), 120)
    with new_folder(out) as partial:
        content(world).write_csv(partial / NAMES["content"][0])
        chunk = 0
        with (
            (partial / NAMES["browsing"][0]).open("wb") as pages,
            (partial / NAMES["search"][0]).open("wb") as queries,
        ):
            for start in range(0, total, CHUNK):
                progress(start / (total + test), "generating sessions")
                sessions = draw(world, seed, chunk, min(CHUNK, total - start), (0, TRAIN_DAYS))
                rng = np.random.default_rng([seed, chunk, 1])
                append_csv(pages, browsing(sessions, rng))
                append_csv(queries, search(world, sessions, rng))
                chunk += 1
        counts = write_tests(
            partial,
            world,
            seed,
            chunk,
            test,
            lambda x: progress((total + x) / (total + test), "generating tests"),
        )
        facts = {
            "generator": "sigir_ecom",
            "version": VERSION,
            "scale": scale,
            "seed": seed,
            "products": world.products,
            "categories": world.leaves,
            "sessions": total,
            "queries": counts,
        }
        (partial / "generator.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_tests(
    folder: Path, world: World, seed: int, chunk: int, test: int, progress: Callable[[int], None]
) -> dict[str, int]:
    """Write both test files. Returns the numbers of their queries."""
    rec_path, cart_path = (folder / TESTS[task][0] for task in ("rec", "cart"))
    with written(rec_path) as rec, written(cart_path) as cart:
        for number, start in enumerate(range(0, test, CHUNK), chunk):
            progress(start)
            sessions = draw(world, seed, number, min(CHUNK, test - start), (TRAIN_DAYS, LAST_DAY))
            rng = np.random.default_rng([seed, number, 1])
            for session in merged(browsing(sessions, rng), search(world, sessions, rng)):
                wanted = rng.random() < REC_SHARE
                for file, query in ((rec, recommendation(session, rng)), (cart, intention(session, rng))):
                    if query is not None and (wanted or file is cart):
                        file.add(query)
        return {"rec": rec.items, "cart": cart.items}
