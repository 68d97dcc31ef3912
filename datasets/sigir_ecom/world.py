"""The synthetic shop of all sessions: products, pages and links. It does not depend on the seed."""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from buzzer.datasets.draws import splitmix64, zipf_weights
from buzzer.datasets.sigir_ecom.schema import DIMS

PRODUCTS, LEAVES, MAINS = (
    57_483,
    174,
    9,
)  # products with interactions in the official files, categories, main categories
CATALOGUE = 66_386
LISTINGS, OTHERS = 12_000, 440_000  # pages that list products, and other pages
SPREAD = 3.0  # standard deviation of the log popularity of products, from the published shares of the most frequent ones
HIGHEST = 3.3  # largest quantile, in standard deviations: no product takes much more than the others of the top percent
INCLUDED = 0.75  # exponent of the popularity with which a list includes a product; it is chosen from the list with the rest
STYLES = 8  # styles of products; each session prefers one
LIKING = 8.0  # weight of the preferred style; the others have weight 1
RELATED = 16  # related products of a product
SHOWN = 16  # products that a listing shows
HOME, CART, CHECKOUT = range(3)  # the first three of the other pages
LAST_DAY = 119  # end of the test, in days after the start of the training files
LATE, LAUNCH_DAYS = (
    0.12,
    (1, LAST_DAY),
)  # share of products that are launched later, and the range of launch days
DESCRIBED = 0.6  # share of products with category, vectors and price

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype="S2")


def hashes(kind: str, numbers: Ints) -> npt.NDArray[np.bytes_]:
    """64 hexadecimal digits for each number, different for each kind of object."""
    salt = int.from_bytes(kind.encode()[:8], "big") * 0x9E3779B97F4A7C15
    base = splitmix64(numbers.astype(np.uint64) + np.uint64(salt % 2**64))
    words = np.stack([splitmix64(base + np.uint64(i * 0x632BE59BD9B4E019 % 2**64)) for i in range(4)], axis=1)
    pairs = HEX[np.ascontiguousarray(words.astype(">u8")).view(np.uint8)]
    return np.ascontiguousarray(pairs).view("S64")[:, 0]


def pick(rng: np.random.Generator, weights: Floats) -> Ints:
    """One index per row, drawn by the weights of the row; 0 for a row of zeros."""
    sums = np.cumsum(weights, axis=1)
    at = (sums <= rng.random(len(weights))[:, None] * sums[:, -1:]).sum(axis=1)
    return np.where(sums[:, -1] > 0, np.minimum(at, weights.shape[1] - 1), 0)


def normed(vectors: Floats) -> Floats:
    """The rows scaled to length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class World:
    """Products are indices ordered by leaf category.

    Below scale 1 there are fewer products and pages (scale ** 0.85) and categories (scale ** 0.4), so that each still has enough
    events to learn from. Above scale 1 there are more sessions in the same shop.
    """

    def __init__(self, scale: float) -> None:
        size, rng = min(scale, 1.0), np.random.default_rng(0)
        self.leaves = max(round(LEAVES * size**0.4), 16)
        products = max(round(PRODUCTS * size**0.85), 4 * self.leaves)
        counts = np.maximum(np.floor(products * zipf_weights(self.leaves, 0.6, 3.0)), 3).astype(np.int64)
        self.products = int(counts.sum())
        self.leaf = np.repeat(np.arange(self.leaves), counts)
        self.first = np.cumsum(counts) - counts  # index of the first product of each leaf
        self.main = rng.integers(0, MAINS, self.leaves)
        self.weight = self._popularity(rng)
        self.leaf_weight = np.add.reduceat(self.weight, self.first)
        place = np.arange(self.products) - self.first[self.leaf]
        self.style = rng.integers(0, STYLES, self.products)
        base = rng.uniform(2.0, 9.0, self.leaves)[self.leaf] + self.style - 2.5
        self.price = np.clip(np.rint(base + rng.normal(0, 1, self.products)), 1, 10).astype(np.int64)
        late = (rng.random(self.products) < LATE) & (place > 1)
        self.born = np.where(late, rng.integers(*LAUNCH_DAYS, self.products), 0)
        self.liking = np.where(np.eye(STYLES, dtype=bool), LIKING, 1.0)
        self._vectors(rng)
        self._links(rng, size)

    def _popularity(self, rng: np.random.Generator) -> Floats:
        """Shares of the products: lognormal quantiles in random order, the largest of each leaf first, so that the shares of the most
        popular products do not depend on the scale."""
        normal, n = NormalDist(), self.products
        quantiles = np.array([normal.inv_cdf((i + 0.5) / n) for i in range(n)])
        shares = np.exp(SPREAD * np.minimum(rng.permutation(quantiles), HIGHEST))
        order = np.lexsort((-shares, self.leaf))
        return np.asarray(shares[order] / shares.sum())

    def _vectors(self, rng: np.random.Generator) -> None:
        """Set description and image vectors: centre of the leaf, centre of the style and a random part, with the official norms."""
        self.leaf_centre, self.style_centre = (
            normed(rng.normal(size=(n, DIMS))) for n in (self.leaves, STYLES)
        )
        centre = self.leaf_centre[self.leaf] + 0.7 * self.style_centre[self.style]
        random_part = normed(rng.normal(size=(self.products, DIMS)))
        turn = np.linalg.qr(rng.normal(size=(DIMS, DIMS)))[0]  # image vectors have another space
        self.description = normed(centre + 0.5 * random_part) * rng.uniform(0.57, 0.67, (self.products, 1))
        other = normed(rng.normal(size=(self.products, DIMS)))
        self.image = normed(centre @ turn + 0.5 * other) * rng.uniform(308, 570, (self.products, 1))

    def _links(self, rng: np.random.Generator, size: float) -> None:
        """Set the related products of each product and the products of each listing: of the same leaf, by popularity."""
        self.related = np.empty((self.products, RELATED), dtype=np.int64)
        near = zipf_weights(RELATED, 0.6, 1.0)
        listings = max(round(LISTINGS * size**0.85), 3 * self.leaves)
        counts = np.maximum(np.floor(listings * self.leaf_weight), 2).astype(np.int64)
        self.listing_first = np.cumsum(counts) - counts
        self.listings = int(counts.sum())
        self.listing_leaf = np.repeat(np.arange(self.leaves), counts)
        self.listing_weight = (np.arange(self.listings) - self.listing_first[self.listing_leaf] + 2.0) ** -1.0
        self.shown = np.empty((self.listings, SHOWN), dtype=np.int64)
        place = zipf_weights(SHOWN, 0.4, 1.0)
        for leaf in range(self.leaves):
            members = np.flatnonzero(self.leaf == leaf)
            weight = INCLUDED * np.log(self.weight[members])
            self.related[members] = members[self._draw(rng, np.tile(weight, (len(members), 1)), RELATED)]
            pages = np.flatnonzero(self.listing_leaf == leaf)
            self.shown[pages] = members[self._draw(rng, np.tile(weight, (len(pages), 1)), SHOWN)]
        chosen = self.weight ** (1 - INCLUDED)
        self.related_weight, self.shown_weight = near * chosen[self.related], place * chosen[self.shown]
        self.others = max(round(OTHERS * size**0.85), 50)
        # Cumulative weights, from which products and listings of a leaf are drawn, by style of the session.
        self.product_sums = np.cumsum(self.weight * self.liking[:, self.style], axis=1)
        self.listing_sums = np.tile(np.cumsum(self.listing_weight), (STYLES, 1))
        self.other_sums = np.cumsum(zipf_weights(self.others, 0.7, 1.0))

    def _draw(self, rng: np.random.Generator, logits: Floats, n: int) -> Ints:
        """n different columns per row, drawn with weights exp(logits), the most likely first (Gumbel top-k); repeated if there are
        fewer."""
        noisy = logits + rng.gumbel(size=logits.shape)
        order = np.argsort(-noisy, axis=1)[:, :n]
        return order[:, np.arange(n) % order.shape[1]]

    def product(self, rng: np.random.Generator, leaf: Ints, style: Ints) -> Ints:
        """A product of each leaf, by popularity and the style of the session."""
        return self._among(rng, self.product_sums, self.first, self.products, leaf, style)

    def listing(self, rng: np.random.Generator, leaf: Ints, style: Ints) -> Ints:
        """A listing of each leaf, by popularity."""
        return self._among(rng, self.listing_sums, self.listing_first, self.listings, leaf, style)

    @staticmethod
    def _among(
        rng: np.random.Generator, sums: Floats, first: Ints, total: int, leaf: Ints, style: Ints
    ) -> Ints:
        ends = np.append(first[1:], total)
        low = np.where(first[leaf] > 0, sums[style, first[leaf] - 1], 0.0)
        target = low + rng.random(len(leaf)) * (sums[style, ends[leaf] - 1] - low)
        indices = np.empty(len(leaf), dtype=np.int64)
        for s in range(STYLES):
            rows = style == s
            indices[rows] = np.searchsorted(sums[s], target[rows], side="right")
        return np.clip(indices, first[leaf], ends[leaf] - 1)

    def other_page(self, rng: np.random.Generator, n: int) -> Ints:
        """n pages that are neither listings nor products, by popularity; never the checkout."""
        pages = np.minimum(np.searchsorted(self.other_sums, rng.random(n)), self.others - 1)
        return np.where(pages == CHECKOUT, HOME, pages)

    def query(self, rng: np.random.Generator, leaf: Ints, style: Ints) -> Floats:
        """A query vector for a search in each leaf, in the style of the session; shape [n, DIMS]."""
        centre = self.leaf_centre[leaf] + 0.7 * self.style_centre[style]
        vectors = normed(centre + 0.8 * normed(rng.normal(size=(len(leaf), DIMS))))
        return np.asarray(vectors * rng.uniform(0.31, 0.84, (len(leaf), 1)))
