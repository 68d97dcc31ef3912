"""The scores of a model that knows the shop, on generated tests: what a model that is learned from the files can approach.

Task 1: the distribution of the next product by the generator's own probabilities, given the actions up to the cut. The hidden style is
inferred by Bayes' rule from the products viewed; after a search it is known, because the vector of the query has it. Pages between the
cut and the next product, and changes of the category, enter by their average probability. Task 2: the log odds that a cart is bought
follow the actions one by one (`Walk.learn`). The place of the cut depends on the number of events that are left; this enters by one
constant for each group of queries, fitted on the test.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from buzzer.datasets.draws import merged, repeated
from buzzer.datasets.files import GeneratorFacts, generator_facts
from buzzer.datasets.sigir_ecom import walk
from buzzer.datasets.sigir_ecom.metric import WEIGHTS, K
from buzzer.datasets.sigir_ecom.walk import ACTIONS, ADD, DETAIL, SEARCHED, Sessions
from buzzer.datasets.sigir_ecom.world import STYLES, World

TABS, VIEWS = 6, 10  # latest listings and views of a session that are candidates' sources
# What lies between a cut and the next product. Most sessions are short and have few actions left, so these are measured shares of
# the cuts of drawn sessions, not the probabilities of an action. A test compares them with drawn sessions.
DIRECT = 0.64  # nothing
NEW = 0.235  # a listing or search, among other pages
STAYS = 0.92  # no change of the category
TAKES_OUT = 0.3  # a product is removed or bought before another is viewed, after the first add

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Shop:
    """Distributions of products that depend only on the world."""

    def __init__(self, world: World) -> None:
        self.world = world
        in_leaf = (
            world.listing_weight / np.bincount(world.listing_leaf, world.listing_weight)[world.listing_leaf]
        )
        by_listing, by_category = [], []
        for style in range(STYLES):
            liked = world.shown_weight * world.liking[style, world.style[world.shown]]
            liked *= (in_leaf / liked.sum(axis=1))[:, None]
            by_listing.append(np.bincount(world.shown.ravel(), liked.ravel(), world.products))
            weight = world.weight * world.liking[style, world.style]
            by_category.append(weight / np.add.reduceat(weight, world.first)[world.leaf])
        # In its leaf, [STYLES, products]: a product of any listing, and of the category.
        self.by_listing, self.by_category = np.array(by_listing), np.array(by_category)
        # The normaliser of the likelihood of a style, [STYLES, leaves].
        self.liked = np.stack(
            [np.add.reduceat(world.weight * world.liking[s, world.style], world.first) for s in range(STYLES)]
        )
        listed = walk.FROM_HERE * NEW  # of the first view in a category
        mixed = listed * self.by_listing + (1 - listed) * self.by_category
        self.anywhere = world.leaf_weight[world.leaf] * mixed.mean(axis=0)
        self.popular = np.argsort(-self.anywhere)[:K]
        ends = np.append(world.first[1:], world.products)
        self.top = np.zeros((world.leaves, STYLES, K), dtype=np.int64)
        for leaf, (start, end) in enumerate(zip(world.first, ends, strict=True)):
            best = start + np.argsort(-mixed[:, start:end], axis=1)[:, :K]
            self.top[leaf] = best[:, np.arange(K) % best.shape[1]]

    def next_products(self, sessions: Sessions, rows: Ints, cuts: Ints) -> tuple[Ints, Floats]:
        """The K likeliest next products of the sessions `rows` after their first `cuts` actions, and their probabilities, [queries, K].

        rows, cuts: [queries].
        """
        seen = Seen.of(self.world, sessions, rows, cuts)
        style = self.styles(seen)
        likely = np.argsort(-style, axis=1)[:, :2]
        general = [self.top[seen.leaf, likely[:, i]] for i in (0, 1)]
        general.append(np.broadcast_to(self.popular, general[0].shape))
        parts = [*self.specific(seen, style), *((codes, np.zeros(codes.shape)) for codes in general)]
        codes, mass = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        mass = merged(codes, mass) + self.in_general(seen, style, codes)
        unborn = self.world.born[codes] > sessions.day[rows][:, None]
        mass[repeated(codes) | (codes < 0) | unborn] = 0
        best = np.argsort(-mass, axis=1)[:, :K]
        return np.take_along_axis(codes, best, axis=1), np.take_along_axis(mass, best, axis=1)

    def styles(self, seen: "Seen") -> Floats:
        """The probability of each style, [queries, STYLES], from the products viewed; certain after a search."""
        world = self.world
        fresh = (seen.views >= 0) & ~repeated(seen.views)
        likelihood = world.liking[:, world.style[seen.views]] / self.liked[:, world.leaf[seen.views]]
        log = np.where(fresh, np.log(likelihood), 0.0).sum(axis=2).T
        share = np.exp(log - log.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return np.where(seen.searched[:, None], np.eye(STYLES)[seen.style], share)

    def specific(self, seen: "Seen", style: Floats) -> list[tuple[Ints, Floats]]:
        """Candidates from the listings and products of the session: pairs of products and probabilities, [queries, n]."""
        world, view = self.world, (1 - seen.same) * seen.elsewhere
        here = view * walk.FROM_HERE
        # The next view is the next action after a view, or only pages that are no listings come before it, or a listing does.
        direct = np.where(seen.viewed, DIRECT, 0.0)
        tabs = (seen.listings > 0) * ((1 - NEW - direct) + direct * walk.SAME_LISTING)
        old = np.where(seen.listings > 0, (1 - walk.LATEST) * seen.listings / (seen.listings + 1), 0.0)
        each = np.maximum(seen.listings, 1)[:, None]
        is_latest = np.arange(TABS) == 0
        share = (here * STAYS * tabs)[:, None] * (walk.LATEST * is_latest + (1 - walk.LATEST) / each)
        share += (here * STAYS * NEW * old)[:, None] / each
        parts = []
        for i in range(TABS):
            at = seen.tabs[:, i]
            weight = share[:, i] * (at >= 0)
            parts.append(self.listed(world.shown[at], world.shown_weight[at], weight, seen, style))
        at = seen.product
        weight = here * direct * np.where(seen.listings > 0, 1 - walk.SAME_LISTING, 1.0)
        parts.append(self.listed(world.related[at], world.related_weight[at], weight, seen, style))
        some = seen.n_views > 0
        again = np.where(some, (1 - seen.same) * walk.AGAIN + seen.same, 0.0)
        back = np.where(some, (1 - seen.same) * walk.BACK / np.maximum(seen.n_views, 1), 0.0)
        parts += [(at[:, None], again[:, None]), (seen.views, back[:, None] * (seen.views >= 0))]
        return parts

    def listed(
        self, options: Ints, weight: Floats, share: Floats, seen: "Seen", style: Floats
    ) -> tuple[Ints, Floats]:
        """The products of a list, and their probabilities if it is used with probability `share`, [queries]."""
        world, mass = self.world, np.zeros(options.shape)
        weight = weight * (options != seen.product[:, None]) * (world.born[options] <= seen.day[:, None])
        for s in range(STYLES):
            liked = weight * world.liking[s, world.style[options]]
            mass += (
                (share * style[:, s])[:, None] * liked / np.maximum(liked.sum(axis=1, keepdims=True), 1e-30)
            )
        return options, mass

    def in_general(self, seen: "Seen", style: Floats, codes: Ints) -> Floats:
        """The probability of products that come from a listing not visited yet, or from a category, [queries, n]."""
        world, view = self.world, (1 - seen.same) * seen.elsewhere
        listings = walk.FROM_HERE * NEW * (walk.LATEST + (1 - walk.LATEST) / (seen.listings + 1))
        direct = np.where(seen.viewed, DIRECT, 0.0)
        no_source = walk.FROM_HERE * (seen.listings == 0) * (1 - NEW - direct)
        category = 1 - walk.FROM_HERE + no_source
        by_listing = (style[:, :, None] * self.by_listing[:, codes].transpose(1, 0, 2)).sum(axis=1)
        by_category = (style[:, :, None] * self.by_category[:, codes].transpose(1, 0, 2)).sum(axis=1)
        here = listings[:, None] * by_listing + category[:, None] * by_category
        here *= world.leaf[codes] == seen.leaf[:, None]
        stays = np.where(seen.known, STAYS, 0.0)[:, None]
        return view[:, None] * (stays * here + (1 - stays) * self.anywhere[codes])


@dataclass(frozen=True)
class Seen:
    """What is known of sessions at their cuts; arrays of shape [queries], and of [queries, n] for `tabs` and `views`."""

    tabs: Ints  # the latest listings in the category, latest first; -1 if none
    views: Ints  # the latest products viewed, latest first; -1 if none
    listings: Ints  # number of listings visited in the category
    n_views: Ints
    product: Ints  # the latest product viewed, -1 if none
    leaf: Ints  # category of the latest listing or product
    known: npt.NDArray[np.bool_]  # there is one
    viewed: npt.NDArray[np.bool_]  # the last action is a view
    searched: npt.NDArray[np.bool_]
    style: Ints  # the style, to be used only after a search
    day: Ints
    same: Floats  # probability that the product is added, removed or bought before another is viewed
    elsewhere: Floats  # probability that the next view is neither the same product nor one viewed before

    @classmethod
    def of(cls, world: World, sessions: Sessions, rows: Ints, cuts: Ints) -> "Seen":
        """What is known after the first `cuts` actions of the sessions `rows`."""
        step = np.arange(sessions.kind.shape[1])
        kind = np.where(step < cuts[:, None], sessions.kind[rows], walk.NONE)
        viewed = kind == DETAIL
        listed = (kind != walk.NONE) & (sessions.listing[rows] >= 0)
        place = np.where(viewed | listed, step, -1).max(axis=1)
        leaf = sessions.leaf[rows, place]
        same_leaf = listed & (sessions.leaf[rows] == leaf[:, None])
        views, tabs = (
            latest(values, n)
            for values, n in (
                (np.where(viewed, sessions.product[rows], -1), VIEWS),
                (np.where(same_leaf, sessions.listing[rows], -1), TABS),
            )
        )
        added = (kind == ADD).any(axis=1)
        last = kind[np.arange(len(rows)), cuts - 1] == DETAIL
        to_cart = np.where(last, np.where(added, walk.TO_CART_AGAIN, walk.TO_CART), 0.0)
        out = np.where(added, TAKES_OUT, 0.0)
        n_views = viewed.sum(axis=1)
        return cls(
            tabs=tabs,
            views=views,
            listings=same_leaf.sum(axis=1),
            n_views=n_views,
            product=views[:, 0],
            leaf=leaf,
            known=place >= 0,
            viewed=last,
            searched=(kind == SEARCHED).any(axis=1),
            style=sessions.style[rows, 0],
            day=sessions.day[rows],
            same=np.where(n_views > 0, 1 - (1 - to_cart) * (1 - out), 0.0),
            elsewhere=np.where(n_views > 0, 1 - walk.AGAIN - walk.BACK, 1.0),
        )


def latest(values: Ints, n: int) -> Ints:
    """The last n values of each row that are not negative, latest first; padded with -1."""
    order = np.argsort(values < 0, axis=1, kind="stable")
    count = (values >= 0).sum(axis=1)
    at = count[:, None] - 1 - np.arange(n)
    found = np.take_along_axis(np.take_along_axis(values, order, axis=1), np.maximum(at, 0), axis=1)
    return np.where(at >= 0, found, -1)


@dataclass
class Ceiling:
    """Collects the queries of generated tests, and scores the model that knows the shop."""

    shop: Shop
    # 1 / rank of the next product, 0 if it is not among K; and its expectation by the model's probabilities.
    reciprocal: list[Floats] = field(default_factory=list)
    expected: list[Floats] = field(default_factory=list)
    log_odds: list[Floats] = field(default_factory=list)
    carts: list[tuple[int, int]] = field(default_factory=list)  # nb_after_add, label

    def add_next(self, sessions: Sessions, rows: Ints, cuts: Ints) -> None:
        """Add queries of the first task: sessions `rows` after their first `cuts` actions."""
        if not len(rows):
            return
        codes, mass = self.shop.next_products(sessions, rows, cuts)
        later = np.arange(sessions.kind.shape[1]) >= cuts[:, None]
        place = (later & np.isin(sessions.kind[rows], list(ACTIONS))).argmax(axis=1)
        hit = codes == sessions.product[rows, place][:, None]
        rank = 1 / np.arange(1, K + 1)
        self.reciprocal.append((hit * rank).sum(axis=1))
        self.expected.append((mass * rank).sum(axis=1))

    def add_carts(self, sessions: Sessions, rows: Ints, cuts: Ints, carts: list[tuple[int, int]]) -> None:
        """Add queries of the second task. carts: their nb_after_add and labels."""
        self.log_odds.append(sessions.log_odds[rows, cuts - 1].astype(np.float64))
        self.carts += carts

    def facts(self) -> dict[str, dict[str, float]]:
        """By task the score, and the score that the model itself expects; without a task that has no queries."""
        facts = {}
        if self.reciprocal:
            mrr, expected = (float(np.concatenate(part).mean()) for part in (self.reciprocal, self.expected))
            facts["rec"] = {"MRR@20": mrr, "expected": expected}
        if self.carts:
            after, label = np.array(self.carts).T
            log_odds = np.concatenate(self.log_odds)
            realised = expected = 0.0
            for group in np.unique(after):
                truth = label[after == group]
                p = calibrated(log_odds[after == group], truth)
                realised += WEIGHTS[int(group)] * float(((p > 0.5) == truth).mean())
                expected += WEIGHTS[int(group)] * float(np.maximum(p, 1 - p).mean())
            facts["cart"] = {"weighted_f1": realised, "expected": expected}
        return facts


def calibrated(log_odds: Floats, truth: Ints) -> Floats:
    """The probabilities of log odds plus the constant that makes their mean the share of `truth`, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(50):
        shift = (low + high) / 2
        p = 1 / (1 + np.exp(-(log_odds + shift)))
        low, high = (shift, high) if p.mean() < truth.mean() else (low, shift)
    return p


class ShopFacts(GeneratorFacts):
    """The fields of this data set's generator.json that are read later; version 1 has no ceiling."""

    ceiling: dict[str, dict[str, float]] = Field(default={})


def ceiling(folder: Path, task: str, metric: str) -> float | None:
    """The score of the model that knows the shop on the test of a folder; None for files that were not generated.

    task: rec or cart; metric: its score.
    """
    facts = generator_facts(folder, ShopFacts)
    return None if facts is None else facts.ceiling.get(task, {}).get(metric)
