"""The synthetic world of all trips: countries, cities, routes, bookers and seasons. It does not depend on the seed."""

import numpy as np
import numpy.typing as npt

from buzzer.datasets.draws import splitmix64, zipf_weights

CITIES, COUNTRIES, AFFILIATES = 39_901, 195, 3_254  # numbers in the official training file
THEMES = 4  # kinds of cities, and themes of trips, each of which prefers one kind
AREA = 40  # mean number of cities of an area
AREA_ROUTES = 18  # routes of a city to cities of its area
AREA_PULL = 0.85  # the weight of a route within an area is the popularity to this power
OWN_ROUTES, OWN_SHARE = 6, 0.1  # further routes of a city, and the sum of their weights
DEVICES, DEVICE_SHARES = ("desktop", "mobile", "tablet"), (0.646, 0.284, 0.070)
BOOKERS = ("Gondal", "The Devilfire Empire", "Elbonia", "Tcherkistan", "Bartovia")
BOOKER_SHARES = (0.459, 0.245, 0.202, 0.069, 0.025)
NIGHTS = 30  # of the longest stay
START_DAYS = 425  # 2015-12-31 to 2017-02-27
DAY_ONE = np.datetime64("2015-12-31")
MONTHS = ((DAY_ONE + np.arange(START_DAYS)).astype("datetime64[M]").astype(np.int64) % 12).astype(np.int64)

LIKING = 12.0  # weight of a theme's preferred kind of city
SECOND_LIKING = 1.5  # weight of its second kind; the other kinds have weight 1
AT_HOME = 0.7  # share of a city's further routes that stay in the country
HUB_PULL = 0.8  # weight of a city at the last stay: popularity to this power
DEVICE_CHANGE, AFFILIATE_CHANGE = 0.02, 0.02  # probabilities at each stay

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def pick(rng: np.random.Generator, weights: Floats) -> Ints:
    """One index per row, drawn by the weights of the row."""
    sums = np.cumsum(weights, axis=1)
    at = (sums < rng.random(len(weights))[:, None] * sums[:, -1:]).sum(axis=1)
    return np.minimum(at, weights.shape[1] - 1)


def hashed(values: Ints, seed: int) -> Floats:
    """A number in [0, 1) for each value, by hash."""
    x = values.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    return np.asarray(splitmix64(x).astype(np.float64) / 2.0**64)


class World:
    """Cities are indices ordered by country and kind; `public_id` has the ids in the files.

    Below scale 1 there are fewer cities (scale ** 0.9) and countries (scale ** 0.4), so that each city still has enough trips
    to learn from. Above scale 1 there are more trips in the same world.
    """

    def __init__(self, scale: float, seed: int) -> None:
        size, rng = min(scale, 1.0), np.random.default_rng(0)
        self.seed = seed
        self.cities = max(round(CITIES * size**0.9), 60)
        self.countries = max(round(COUNTRIES * size**0.4), 6)
        self._settle(rng)
        self._connect(rng)
        self._tastes(rng)
        self._names(rng, max(round(AFFILIATES * size**0.9), 20))

    def _settle(self, rng: np.random.Generator) -> None:
        """Set country, kind and popularity of the cities."""
        k, c = self.countries, self.cities
        weight = zipf_weights(k, 1.9, 6)
        many = np.maximum(np.floor(zipf_weights(k, 1.0, 4.0) * (c - k)).astype(np.int64), 0) + 1
        many[0] += c - many.sum()
        country = np.repeat(np.arange(k), many)
        rank = np.arange(c) - np.repeat(np.cumsum(many) - many, many)
        popularity = np.concatenate(
            [w * zipf_weights(int(n), 1.3, 1.5) for w, n in zip(weight, many, strict=True)]
        )
        kind = rng.integers(0, THEMES, c)
        order = np.lexsort((rank, kind, country))
        self.country, self.kind, self.popularity = country[order], kind[order], popularity[order]
        self._sums = np.concatenate([[0.0], np.cumsum(self.popularity)])
        cells = self.country * THEMES + self.kind
        self._cell_start = np.searchsorted(cells, np.arange(k * THEMES))
        self._cell_end = np.searchsorted(cells, np.arange(k * THEMES), side="right")
        mass = np.bincount(cells, weights=self.popularity, minlength=k * THEMES).reshape(k, THEMES)
        self._mass = mass
        self.kinds_of_country = mass / mass.sum(axis=1, keepdims=True)
        self.hub = (self.popularity / self.popularity.mean()) ** HUB_PULL
        self.top_of_country = np.stack([self._top(i, 8) for i in range(k)])

    def _top(self, country: int, n: int) -> Ints:
        """The n most popular cities of a country; the first is repeated if there are fewer."""
        its = np.flatnonzero(self.country == country)
        top = its[np.argsort(-self.popularity[its], kind="stable")][:n]
        return np.concatenate([top, np.full(n - len(top), top[0])])

    def _connect(self, rng: np.random.Generator) -> None:
        """Set the routes of each city: to the most popular cities of its area, which its cities share, and to OWN_ROUTES cities
        drawn by popularity in the country and its five neighbours. The weights of two routes to one city are added."""
        k, c = self.countries, self.cities
        areas_of = np.maximum(np.bincount(self.country, minlength=k) // AREA, 1)
        area = np.concatenate([[0], np.cumsum(areas_of)])[self.country] + rng.integers(
            0, areas_of[self.country]
        )
        place = rng.random((k, 2))
        distance = ((place[:, None] - place[None]) ** 2).sum(axis=2) + np.eye(k) * 9
        near = np.argsort(distance, axis=1)[:, :5]
        abroad = near[self.country[:, None], rng.integers(0, 5, (c, OWN_ROUTES))]
        country = np.where(rng.random((c, OWN_ROUTES)) < AT_HOME, self.country[:, None], abroad)
        further = self.popular_city(rng, country.ravel()).reshape(c, OWN_ROUTES)
        own_weight = np.arange(1, OWN_ROUTES + 1) ** -1.0
        own_weight *= OWN_SHARE / own_weight.sum()
        shared, shared_weight = self._area_routes(area, int(areas_of.sum()))
        to = np.concatenate([shared[area], further], axis=1)
        weight = np.concatenate([shared_weight[area] * (1 - OWN_SHARE), np.tile(own_weight, (c, 1))], axis=1)
        order = np.argsort(to, axis=1, kind="stable")
        to, weight = np.take_along_axis(to, order, 1), np.take_along_axis(weight, order, 1)
        for i in range(to.shape[1] - 1, 0, -1):  # add the weights of equal neighbours, from the right
            same = to[:, i] == to[:, i - 1]
            weight[:, i - 1] += np.where(same, weight[:, i], 0)
            weight[:, i] = np.where(same, 0, weight[:, i])
        self.route_to, self.route_weight = to, weight.astype(np.float32)

    def _area_routes(self, area: Ints, areas: int) -> tuple[Ints, Floats]:
        """For each area, its AREA_ROUTES most popular cities and their weights; small areas repeat a city with weight 0."""
        order = np.lexsort((-self.popularity, area))
        starts = np.searchsorted(area[order], np.arange(areas))
        many = np.bincount(area, minlength=areas)
        rank = np.arange(AREA_ROUTES)
        at = order[np.minimum(starts[:, None] + np.minimum(rank, many[:, None] - 1), len(order) - 1)]
        weight = np.where(rank < many[:, None], self.popularity[at] ** AREA_PULL, 0)
        total = weight.sum(axis=1, keepdims=True)
        return at, weight / np.where(total > 0, total, 1)

    def _tastes(self, rng: np.random.Generator) -> None:
        """Set the preferences of themes, their probability by booker and month, the first countries of bookers, and nights."""
        themes = np.arange(THEMES)
        self.liking = np.ones((THEMES, THEMES))
        self.liking[themes, (themes + 1) % THEMES] = SECOND_LIKING
        self.liking[themes, themes] = LIKING
        season = 1 + np.cos(2 * np.pi * (np.arange(12)[:, None] / 12 - themes / THEMES))
        leaning = rng.dirichlet(np.full(THEMES, 2.0), len(BOOKERS))
        prior = leaning[:, None, :] * (0.3 + season)
        self.theme_prior = prior / prior.sum(axis=2, keepdims=True)
        begin = self._mass.sum(axis=1) * rng.lognormal(0, 0.5, (len(BOOKERS), self.countries))
        self.begin = begin / begin.sum(axis=1, keepdims=True)
        days = np.arange(START_DAYS)
        summer = np.exp(-(((days - 222) / 45) ** 2)) * 2.2 + np.exp(-(((days - 365) / 20) ** 2)) * 0.5
        self.day_share = (0.45 + summer) * np.where((days + 3) % 7 < 2, 1.25, 1.0)
        self.day_share /= self.day_share.sum()
        more = np.linspace(0.15, 0.56, THEMES)[:, None]  # probability of one more night, by kind of city
        share = more ** np.arange(NIGHTS)
        self.nights_share = np.pad(share / share.sum(axis=1, keepdims=True), ((0, 0), (1, 0)))

    def _names(self, rng: np.random.Generator, affiliates: int) -> None:
        """Set the ids and names of cities, countries, bookers and affiliates."""
        self.public_id = rng.permutation(
            np.sort(rng.choice(int(self.cities * 1.7), self.cities, replace=False)) + 2
        )
        self.booker_names = list(BOOKERS)
        self.country_names = [*BOOKERS, *(f"Country {i}" for i in range(len(BOOKERS), self.countries))]
        self.affiliate_id = rng.permutation(affiliates * 3)[:affiliates] + 1
        self._affiliates = np.cumsum(zipf_weights(affiliates, 1.5, 1.0))

    # ---- random draws: arrays of shape [n] ------------------------------------------------------------------------------

    def booker_of(self, user: Ints) -> Ints:
        """The country that each user books from."""
        at = np.searchsorted(np.cumsum(BOOKER_SHARES), hashed(user, self.seed), side="right")
        return np.minimum(at, len(BOOKERS) - 1)

    def start_day(self, rng: np.random.Generator, n: int) -> Ints:
        """First days of n trips, as days after DAY_ONE."""
        return np.minimum(np.searchsorted(np.cumsum(self.day_share), rng.random(n)), START_DAYS - 1)

    def theme_of(self, rng: np.random.Generator, booker: Ints, month: Ints) -> Ints:
        """The theme of each trip."""
        return pick(rng, self.theme_prior[booker, month])

    def first_city(self, rng: np.random.Generator, booker: Ints, theme: Ints) -> Ints:
        """The first city of each trip: country by the booker, kind by the theme, then city by popularity."""
        country = pick(rng, self.begin[booker])
        kind = pick(rng, self._mass[country] * self.liking[theme])
        cell = country * THEMES + kind
        return self._among(rng, self._cell_start[cell], self._cell_end[cell])

    def log_first(self, city: Ints) -> Floats:
        """log P(city | theme) up to a constant for all themes, shape [n, themes]."""
        liked = self.liking[:, self.kind[city]].T
        return np.asarray(np.log(liked / (self._mass[self.country[city]] @ self.liking.T)))

    def popular_city(self, rng: np.random.Generator, country: Ints) -> Ints:
        """A city of each country, by popularity."""
        cells = country * THEMES
        return self._among(rng, self._cell_start[cells], self._cell_end[cells + THEMES - 1])

    def share_in_country(self, city: Ints) -> Floats:
        """The share of each city in the popularity of its country."""
        return np.asarray(self.popularity[city] / self._mass.sum(axis=1)[self.country[city]])

    def _among(self, rng: np.random.Generator, start: Ints, end: Ints) -> Ints:
        """A city with start <= index < end, by popularity."""
        low, high = self._sums[start], self._sums[end]
        at = np.searchsorted(self._sums, low + rng.random(len(start)) * (high - low), side="right") - 1
        return np.clip(at, start, end - 1)

    def nights_at(self, rng: np.random.Generator, city: Ints) -> Ints:
        """The number of nights of a stay in each city, at least 1."""
        return np.maximum(pick(rng, self.nights_share[self.kind[city]]), 1)

    def device_and_affiliate(self, rng: np.random.Generator, booker: Ints, stays: int) -> tuple[Ints, Ints]:
        """Device and affiliate of each stay, shape [n, stays]. Both rarely change within a trip."""
        n = len(booker)
        device = rng.choice(len(DEVICES), (n, stays), p=DEVICE_SHARES)
        affiliate = np.minimum(
            np.searchsorted(self._affiliates, rng.random((n, stays))), len(self._affiliates) - 1
        )
        return kept(rng, device, DEVICE_CHANGE), kept(rng, affiliate, AFFILIATE_CHANGE)


def kept(rng: np.random.Generator, values: Ints, change: float) -> Ints:
    """Values in which each stay repeats the value of the one before, except with probability `change`."""
    changes = rng.random(values.shape) < change
    changes[:, 0] = True
    at = np.maximum.accumulate(np.where(changes, np.arange(values.shape[1]), 0), axis=1)
    return np.take_along_axis(values, at, axis=1)
