"""The random process of the sessions: what a visitor of the shop does, action by action."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from buzzer.datasets.sigir_ecom.world import CART, CHECKOUT, STYLES, World, pick

CHUNK = 1 << 14  # sessions of a chunk
FIRST_MS, DAY_MS = 1_547_510_400_000, 86_400_000  # 2019-01-15
LONGEST = 110  # maximum number of actions of a session
NONE, PAGE, DETAIL, ADD, REMOVE, PURCHASE, SEARCHED = range(7)
ACTIONS = {DETAIL: "detail", ADD: "add", REMOVE: "remove", PURCHASE: "purchase"}
# Probabilities of the next action: view a listing, view another page, search; else view a product.
TO_LISTING, TO_OTHER, TO_SEARCH = 0.28, 0.32, 0.03
LISTED = TO_LISTING / (TO_LISTING + TO_OTHER)
NEW_LEAF = 0.05  # probability that an action changes the category of the session
AGAIN = 0.05  # probability that the same product is viewed again
BACK = 0.08  # probability that one of the products viewed before is viewed again
FROM_HERE = 0.8  # probability that a product comes from a listing or the last product, not from the category
SAME_LISTING = 0.6  # after a product, probability of another one from the listings, not a related one
LATEST = 0.5  # probability that it is the latest listing, not any of those visited
# Probabilities of an add after a product, before and after the first add.
TO_CART, TO_CART_AGAIN = 0.027, 0.12
# Log odds that a cart is bought: base, by repeated view, if a search was made, by price bucket below 5.
BUYS, BY_VIEW, BY_SEARCH, BY_PRICE = -1.65, 0.7, 0.7, 0.12
# Probabilities after the first add, of those who buy and of the others.
REMOVES = (0.07, 0.12)
TO_CHECKOUT = (0.05, 0.03)
TO_CHECKOUT_LATE = 0.2  # of those who buy, after four actions
TO_PURCHASE = 0.5  # at each action after the checkout
ENDS = 0.3  # the first add makes a session longer by a geometric number of actions with this parameter
HOURS = np.array([1, 0.6, 0.4, 0.3, 0.3, 0.5, 1, 2, 3, 4, 4.5, 4.5, 4.5, 5, 5, 5, 5, 5, 5.5, 6, 6, 5, 3.5, 2])

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class Sessions:
    """A chunk of sessions: arrays of shape [sessions, actions], except `number`."""

    number: Ints  # [sessions], unique over all chunks
    kind: Ints  # NONE, PAGE, DETAIL, ADD, REMOVE, PURCHASE or SEARCHED
    product: Ints  # -1 if none
    page: Ints  # numbers of other pages, then of listings, then of products
    listing: Ints  # the listing viewed, for a search that of its results, else -1
    leaf: Ints  # leaf category of the session at the action
    # From the first add on: log odds that the cart is bought, given the actions so far.
    log_odds: npt.NDArray[np.float32]
    style: Ints  # style that the session prefers
    day: Ints  # [sessions], in days after the start of the training files
    time: Ints  # milliseconds since 1970


class History:
    """Numbers that each session appends in its course."""

    def __init__(self, sessions: int) -> None:
        self.n = np.zeros(sessions, dtype=np.int64)
        self._values = np.full((sessions, LONGEST), -1, dtype=np.int32)

    def append(self, rows: Ints, values: Ints) -> None:
        """Append a value to each of the sessions `rows`."""
        self._values[rows, self.n[rows]] = values
        self.n[rows] += 1

    def clear(self, rows: Ints) -> None:
        """Forget the values of the sessions `rows`."""
        self.n[rows] = 0

    def last(self, rows: Ints) -> Ints:
        """The last value of each session, any number if it has none."""
        return self._values[rows, self.n[rows] - 1].astype(np.int64)

    def any(self, rng: np.random.Generator, rows: Ints) -> Ints:
        """One of the values of each session, any number if it has none."""
        return self._values[rows, (rng.random(len(rows)) * self.n[rows]).astype(np.int64)].astype(np.int64)


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
        self.views, self.listings = History(n), History(n)
        self.visits = np.zeros(n, dtype=np.int64)  # repeated views of the last product
        self.searches = np.zeros(n, dtype=np.int64)
        self.since = np.zeros(n, dtype=np.int64)  # actions since the first add
        self.added, self.buyer, self.paying = (np.zeros(n, dtype=bool) for _ in range(3))
        self.log_odds = np.zeros(n)  # that the session buys, given its actions so far

    def run(self) -> dict[str, Any]:
        """The arrays kind, product, page, listing, leaf and log_odds of `Sessions`."""
        n, steps = len(self.length), LONGEST
        shape = (n, steps)
        out: dict[str, Any] = {
            name: np.full(shape, -1, dtype=np.int64) for name in ("product", "page", "listing", "leaf")
        }
        out["kind"] = np.zeros(shape, dtype=np.int64)
        out["log_odds"] = np.zeros(shape, dtype=np.float32)
        for step in range(steps):
            on = np.flatnonzero((self.length > step) | self.buyer)
            if not len(on):
                break
            kind = self.choose(on)
            self.move(on, kind)
            out["kind"][on, step] = kind
            out["product"][on, step] = np.where(np.isin(kind, list(ACTIONS)), self.product[on], -1)
            listed = (kind == SEARCHED) | self.to_listing[on]
            out["listing"][on, step] = np.where(listed, self.listings.last(on), -1)
            out["leaf"][on, step] = self.leaf[on]
            out["page"][on, step] = self.page(on, kind)
            out["log_odds"][on, step] = self.log_odds[on]
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
        added, buyer = self.added[on], self.buyer[on]
        kind[added & (rng.random(n) < np.where(buyer, *REMOVES))] = REMOVE
        late = np.where(self.since[on] >= 4, TO_CHECKOUT_LATE, TO_CHECKOUT[0])
        self.since[on] += added
        pays = added & (rng.random(n) < np.where(buyer, late, TO_CHECKOUT[1]))
        self.page_to = np.where(pays, CHECKOUT, -1)
        kind[pays] = PAGE
        kind[self.paying[on] & buyer & (rng.random(n) < TO_PURCHASE)] = PURCHASE
        self.learn(on, kind, late)
        return kind

    def learn(self, on: Ints, kind: Ints, late: Floats) -> None:
        """Update the log odds by the probabilities of the actions, of sessions that buy to those of the others.

        late: probability of the checkout page for those who buy.
        """
        checkout = self.page_to == CHECKOUT
        ratio = np.where(checkout, late / TO_CHECKOUT[1], (1 - late) / (1 - TO_CHECKOUT[1]))
        removed = kind == REMOVE
        removes = np.where(removed, REMOVES[0] / REMOVES[1], (1 - REMOVES[0]) / (1 - REMOVES[1]))
        ratio *= np.where(checkout, 1.0, removes)
        ratio *= np.where(self.paying[on], 1 - TO_PURCHASE, 1.0)
        self.log_odds[on] += np.where(self.added[on], np.log(ratio), 0.0)

    def move(self, on: Ints, kind: Ints) -> None:
        """Update the state of the sessions after an action."""
        rng, world = self.rng, self.world
        turning = on[rng.random(len(on)) < NEW_LEAF]
        self.leaf[turning] = rng.choice(world.leaves, len(turning), p=world.leaf_weight)
        self.listings.clear(turning)
        details = on[kind == DETAIL]
        before = self.product[details]
        self.product[details] = self.next_product(details)
        self.views.append(details, self.product[details])
        self.visits[details] = np.where(self.product[details] == before, self.visits[details] + 1, 0)
        lists = on[
            (kind == SEARCHED) | ((kind == PAGE) & (self.page_to < 0) & (rng.random(len(on)) < LISTED))
        ]
        self.to_listing = np.zeros(len(self.last), dtype=bool)
        self.to_listing[lists] = True
        self.listings.append(lists, world.listing(rng, self.leaf[lists], self.style[lists]))
        self.searches[on[kind == SEARCHED]] += 1
        adds = on[kind == ADD]
        fresh = adds[~self.added[adds]]
        log_odds = BUYS + BY_VIEW * self.visits[fresh] + BY_SEARCH * (self.searches[fresh] > 0)
        log_odds += BY_PRICE * (5 - world.price[self.product[fresh]])
        self.log_odds[fresh] = log_odds
        self.buyer[fresh] = rng.random(len(fresh)) < 1 / (1 + np.exp(-log_odds))
        more = rng.geometric(ENDS, len(fresh))
        self.length[fresh] = np.minimum(self.length[fresh] + more, LONGEST)
        self.added[adds] = True
        self.paying[on] |= self.page_to == CHECKOUT
        self.buyer[on[kind == PURCHASE]] = False
        self.last[on] = np.where((kind == PAGE) & ~self.to_listing[on], NONE, kind)

    def next_product(self, rows: Ints) -> Ints:
        """The next product: from the listings of the session, related to the last product, viewed before, or else from the category."""
        rng, world = self.rng, self.world
        style, viewed = self.style[rows], self.last[rows] == DETAIL
        products = world.product(rng, self.leaf[rows], style)
        here = rng.random(len(rows)) < FROM_HERE
        listed = here & (self.listings.n[rows] > 0) & (~viewed | (rng.random(len(rows)) < SAME_LISTING))
        related = here & viewed & ~listed
        latest = rng.random(len(rows)) < LATEST
        listing = np.where(latest, self.listings.last(rows), self.listings.any(rng, rows))
        for source, at, links, weight in (
            (listed, listing, world.shown, world.shown_weight),
            (related, self.product[rows], world.related, world.related_weight),
        ):
            options = links[at[source]]
            liked = weight[at[source]] * world.liking[style[source][:, None], world.style[options]]
            liked *= world.born[options] <= self.day[rows[source]][:, None]
            liked *= options != self.product[rows[source]][:, None]
            products[source] = options[np.arange(len(options)), pick(rng, liked)]
        u = rng.random(len(rows))
        again = (self.product[rows] >= 0) & (u < AGAIN + BACK)
        products[again] = np.where(u < AGAIN, self.product[rows], self.views.any(rng, rows))[again]
        unborn = world.born[products] > self.day[rows]
        products[unborn] = world.first[world.leaf[products[unborn]]]
        return products

    def page(self, on: Ints, kind: Ints) -> Ints:
        """The page of each action: numbers of other pages, then of listings, then of products."""
        world = self.world
        plain = world.other_page(self.rng, len(on))
        plain = np.where(self.page_to >= 0, self.page_to, plain)
        listed = self.to_listing[on] & (kind == PAGE)
        pages = np.where(listed, world.others + self.listings.last(on), plain)
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
    time = begin[:, None] + np.cumsum(gaps, axis=1)
    return Sessions(number, style=style, day=walk.day, time=time, **did)
