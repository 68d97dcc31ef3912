"""Synthetic trips in the schema of the official files. card.md describes the model and its calibration.

The random process is known, so the best possible accuracy@4 can be computed; it is in generator.json. Trips are drawn in
chunks, each with a random generator of (seed, chunk).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, Field

from buzzer.datasets.booking.metric import write_submission
from buzzer.datasets.booking.schema import HIDDEN, TEST, TRAIN, TRUTH
from buzzer.datasets.booking.world import DAY_ONE, DEVICES, MONTHS, THEMES, World
from buzzer.datasets.contract import Progress
from buzzer.datasets.draws import merged, repeated
from buzzer.datasets.files import GeneratorFacts, append_csv, generator_facts, new_folder

VERSION = 1  # version of the random process: the same version, scale and seed give the same files
CHUNK = 1 << 14  # trips drawn at a time
TRAIN_TRIPS, TEST_TRIPS = 217_686, 70_662
# Number of trips in the official training file with 1, 2, ... stays.
LENGTHS = (
    *(
        113,
        174,
        593,
        98_356,
        49_854,
        27_398,
        16_101,
        9_486,
        5_774,
        3_573,
        2_236,
        1_431,
        903,
        593,
        365,
        221,
        138,
        93,
    ),
    *(64, 66, 35, 31, 22, 13, 14, 7, 3, 5, 2, 1, 2, 2, 2, 3, 2, 2, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1),
)
NEW_USER = 0.898  # probability that a trip is by a new user: 200,153 users have 217,686 training trips
GAP_FREE = 0.96  # probability that a stay begins on the day when the previous one ends
RETURN = 0.15  # probability that the last stay is in the first city of the trip
EXPLORE = 0.3  # probability that the next city is drawn by popularity in the country, not from the routes
MEMORY = 5  # last cities of the trip, to which routes do not lead again

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class Trips:
    """A chunk of trips: arrays of shape [trips], and of shape [trips, longest] for stays."""

    user: Ints
    ordinal: Ints  # number of the trip among its user's trips, from 1
    test: npt.NDArray[np.bool_]
    length: Ints  # number of stays
    booker: Ints  # index of the country that the user books from
    city: Ints  # index of the city in the world
    checkin: Ints  # days since 1970
    checkout: Ints  # days since 1970
    device: Ints
    affiliate: Ints
    best: Floats  # [trips], probability of the four likeliest last cities; NaN for training trips
    hit: Floats  # [trips], 1 if the true last city is among them, else 0; NaN for training trips


def apportion(counts: tuple[int, ...], total: int) -> Ints:
    """Integers with the sum `total` in the proportions of `counts`, by the largest remainder method."""
    exact = np.asarray(counts) * (total / sum(counts))
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def lengths_of(trips: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The number of stays of each trip, in random order and the official proportions."""
    values = np.arange(1, len(LENGTHS) + 1, dtype=np.uint8)
    return rng.permutation(np.repeat(values, apportion(LENGTHS, trips)))


def plan(scale: float, seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """For each trip, whether it is in the test, and its number of stays."""
    train, test = max(round(TRAIN_TRIPS * scale), 60), max(round(TEST_TRIPS * scale), 20)
    rng = np.random.default_rng([seed, 1])
    is_test = rng.permutation(np.repeat([False, True], [train, test]))
    lengths = np.empty(train + test, dtype=np.uint8)
    lengths[~is_test], lengths[is_test] = lengths_of(train, rng), lengths_of(test, rng)
    return is_test, lengths


def chunks(world: World, scale: float, seed: int) -> Iterator[Trips]:
    """All trips in chunks, grouped by user."""
    is_test, lengths = plan(scale, seed)
    user, ordinal = 29, 0
    for number, start in enumerate(range(0, len(lengths), CHUNK)):
        rng = np.random.default_rng([seed, 2, number])
        part = slice(start, start + CHUNK)
        n = len(lengths[part])
        new = rng.random(n) < NEW_USER
        new[0] |= start == 0
        users = user + np.cumsum(np.where(new, rng.integers(1, 48, n), 0))
        first = np.maximum.accumulate(
            np.where(new, np.arange(n), -1)
        )  # -1: the last user of the previous chunk
        ordinals = np.arange(n) - first + np.where(first < 0, ordinal, 1)
        user, ordinal = int(users[-1]), int(ordinals[-1])
        yield draw(world, rng, users, ordinals, is_test[part], lengths[part].astype(np.int64))


def draw(
    world: World,
    rng: np.random.Generator,
    user: Ints,
    ordinal: Ints,
    test: npt.NDArray[np.bool_],
    length: Ints,
) -> Trips:
    """One chunk of trips, drawn stay by stay."""
    n, longest = len(length), int(length.max())
    booker = world.booker_of(user)
    begin = world.start_day(rng, n)
    month = MONTHS[begin]
    theme = world.theme_of(rng, booker, month)
    city = np.full((n, longest), -1, dtype=np.int64)
    nights = np.zeros((n, longest), dtype=np.int64)
    log_theme = np.log(world.theme_prior[booker, month])  # log P(theme | visible stays), up to a constant
    best, hit = np.full(n, np.nan), np.full(n, np.nan)
    for step in range(longest):
        on = np.flatnonzero(length > step)
        last = length[on] - 1 == step
        if step == 0:
            city[on, 0] = world.first_city(rng, booker[on], theme[on])
            seen = world.log_first(city[on, 0])
        else:
            routes = Routes(world, city[on], step, last)
            city[on, step] = routes.next(rng, theme[on])
            seen = routes.log_next(city[on, step])
        nights[on, step] = world.nights_at(rng, city[on, step])
        if step:
            final = np.flatnonzero(last & test[on])
            rows = on[final]
            best[rows], hit[rows] = routes.best(final, log_theme[rows], nights[rows, step], city[rows, step])
        log_theme[on] += seen
    first_day = DAY_ONE.astype(np.int64) + begin
    gaps = np.where(rng.random((n, longest)) < GAP_FREE, 0, rng.geometric(0.5, (n, longest)))
    gaps[:, 0] = 0
    checkin = first_day[:, None] + np.cumsum(gaps + np.pad(nights, ((0, 0), (1, 0)))[:, :-1], axis=1)
    device, affiliate = world.device_and_affiliate(rng, booker, longest)
    return Trips(
        user, ordinal, test, length, booker, city, checkin, checkin + nights, device, affiliate, best, hit
    )


class Routes:
    """The distribution of the next city of each trip, to draw from it and to compute the best possible accuracy.

    At the last stay, the first city with probability RETURN. Else, with probability EXPLORE, a city of the same country by its
    popularity. Else a city along a route from the current one that does not lead to one of the last MEMORY cities; the weight
    of a route is multiplied by the theme's liking of the city's kind and, at the last stay, by the city's weight as a hub.
    """

    def __init__(self, world: World, city: Ints, step: int, last: npt.NDArray[np.bool_]) -> None:
        self.world = world
        self.here, self.first = city[:, step - 1], city[:, 0]
        self.to = world.route_to[self.here]
        weight = world.route_weight[self.here].astype(np.float64)
        weight[last] *= world.hub[self.to[last]]
        for back in range(max(step - MEMORY, 0), step):
            weight[self.to == city[:, back, None]] = 0
        self.weight = weight
        self.kind = world.kind[self.to]
        by_kind = np.stack([(weight * (self.kind == k)).sum(axis=1) for k in range(THEMES)], axis=1)
        self.total = by_kind @ world.liking.T  # [trips, themes]
        self.back = np.where(last & (self.first != self.here) & (step > 1), RETURN, 0.0)

    def next(self, rng: np.random.Generator, theme: Ints) -> Ints:
        """The next city of each trip, drawn."""
        n = len(self.here)
        liked = self.weight * self.world.liking[theme[:, None], self.kind]
        sums = np.cumsum(liked, axis=1)
        pick = (sums < rng.random(n)[:, None] * sums[:, -1:]).sum(axis=1)
        chosen = self.to[np.arange(n), np.minimum(pick, self.to.shape[1] - 1)]
        explore = (rng.random(n) < EXPLORE) | (sums[:, -1] <= 0)
        chosen[explore] = self.world.popular_city(rng, self.world.country[self.here[explore]])
        return np.where(rng.random(n) < self.back, self.first, chosen)

    def log_next(self, city: Ints) -> Floats:
        """log P(city | theme), shape [trips, themes], for a stay that is not the last."""
        world = self.world
        base = (self.weight * (self.to == city[:, None])).sum(axis=1)
        share = np.where(self.total > 0, EXPLORE, 1.0)
        route = base[:, None] * world.liking[:, world.kind[city]].T / np.maximum(self.total, 1e-12)
        explored = world.share_in_country(city) * (world.country[city] == world.country[self.here])
        return np.log((1 - share) * route + share * explored[:, None] + 1e-30)

    def best(self, rows: Ints, log_theme: Floats, nights: Ints, truth: Ints) -> tuple[Floats, Floats]:
        """For the trips `rows`, before their last stay: the probability of the four likeliest cities given the visible stays
        and the nights of the last stay, and 1 where `truth` is among them."""
        world, here = self.world, self.here[rows]
        theme = np.exp(log_theme - log_theme.max(axis=1, keepdims=True))
        theme /= theme.sum(axis=1, keepdims=True)
        total, back = self.total[rows], self.back[rows]
        share = np.where(total > 0, EXPLORE, 1.0)
        scaled = theme * (1 - share) / np.maximum(total, 1e-12)
        explore = (theme * share).sum(axis=1)
        liked = np.einsum("nz,znr->nr", scaled, world.liking[:, self.kind[rows]])
        popular = world.top_of_country[world.country[here]]
        candidates = np.concatenate([self.to[rows], popular, self.first[rows, None]], axis=1)
        route = np.zeros(candidates.shape)
        route[:, : self.to.shape[1]] = self.weight[rows] * liked
        route = merged(candidates, route)
        at_home = world.country[candidates] == world.country[here][:, None]
        mass = (1 - back)[:, None] * (route + explore[:, None] * world.share_in_country(candidates) * at_home)
        mass += back[:, None] * (candidates == self.first[rows, None])
        mass *= world.nights_share[world.kind[candidates], nights[:, None]]
        all_explored = world.kinds_of_country[world.country[here]] @ world.nights_share
        everything = (1 - back) * (
            (route * world.nights_share[world.kind[candidates], nights[:, None]]).sum(axis=1)
            + explore * all_explored[np.arange(len(rows)), nights]
        ) + back * world.nights_share[world.kind[self.first[rows]], nights]
        mass[repeated(candidates)] = 0
        top = np.argpartition(-mass, 4, axis=1)[:, :4]
        hit = (np.take_along_axis(candidates, top, axis=1) == truth[:, None]).any(axis=1)
        return np.take_along_axis(mass, top, axis=1).sum(axis=1) / everything, hit.astype(np.float64)


def stays(world: World, trips: Trips, test: bool) -> pl.DataFrame:
    """The training or test trips of a chunk as rows of the official file."""
    which = np.flatnonzero(trips.test == test)
    trip = np.repeat(which, trips.length[which])
    starts = np.cumsum(trips.length[which]) - trips.length[which]
    stay = np.arange(len(trip)) - np.repeat(starts, trips.length[which])
    city = trips.city[trip, stay]
    hidden = test & (stay == trips.length[trip] - 1)
    country = pl.Series(world.country_names).gather(world.country[city])
    columns = {
        "user_id": trips.user[trip],
        "checkin": pl.Series(trips.checkin[trip, stay]).cast(pl.Int32).cast(pl.Date),
        "checkout": pl.Series(trips.checkout[trip, stay]).cast(pl.Int32).cast(pl.Date),
        "city_id": np.where(hidden, HIDDEN, world.public_id[city]),
        "device_class": pl.Series(DEVICES).gather(trips.device[trip, stay]),
        "affiliate_id": world.affiliate_id[trips.affiliate[trip, stay]],
        "booker_country": pl.Series(world.booker_names).gather(trips.booker[trip]),
        "hotel_country": country.to_frame("c").select(pl.when(pl.Series(~hidden)).then("c"))["c"],
        "utrip_id": trip_ids(trips)[trip],
    }
    return pl.DataFrame(columns).select(list(TEST if test else TRAIN))


def trip_ids(trips: Trips) -> pl.Series:
    """The `utrip_id` of each trip."""
    frame = pl.DataFrame({"user": trips.user, "ordinal": trips.ordinal})
    return frame.select(pl.concat_str("user", "ordinal", separator="_"))["user"]


def truth(world: World, trips: Trips) -> pl.DataFrame:
    """The hidden last cities of the test trips of a chunk."""
    which = np.flatnonzero(trips.test)
    city = trips.city[which, trips.length[which] - 1]
    country = pl.Series(world.country_names).gather(world.country[city])
    columns = {"utrip_id": trip_ids(trips)[which], "city_id": world.public_id[city], "hotel_country": country}
    return pl.DataFrame(columns).select(list(TRUTH))


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write the official files and generator.json into the new folder `out`.

    submission.csv has the four most frequent cities for every trip. generator.json has the parameters and the best possible
    accuracy@4. Memory grows by two bytes per trip. Raises DataError if the files cannot be written.
    """
    world = World(scale, seed)
    counts = np.zeros(world.cities, dtype=np.int64)
    best, hit = [], []
    total = len(plan(scale, seed)[0])
    with new_folder(out) as partial:
        with (
            (partial / "train_set.csv").open("wb") as train,
            (partial / "test_set.csv").open("wb") as test,
            (partial / "ground_truth.csv").open("wb") as answers,
        ):
            for number, trips in enumerate(chunks(world, scale, seed)):
                progress(min(number * CHUNK / total, 1.0), "generating Booking.com trips")
                append_csv(train, stays(world, trips, test=False))
                append_csv(test, stays(world, trips, test=True))
                append_csv(answers, truth(world, trips))
                counts += np.bincount(
                    trips.city[~trips.test][trips.city[~trips.test] >= 0], minlength=world.cities
                )
                best.append(trips.best[trips.test])
                hit.append(trips.hit[trips.test])
        ids = pl.scan_csv(partial / "ground_truth.csv").select("utrip_id").collect()["utrip_id"]
        popular = world.public_id[np.argsort(-counts, kind="stable")[:4]]
        write_submission(partial / "submission.csv", ids, np.tile(popular, (len(ids), 1)))
        facts = about(world, scale, seed, np.concatenate(best), np.concatenate(hit))
        (partial / "generator.json").write_text(json.dumps(facts, indent=1) + "\n")


def about(world: World, scale: float, seed: int, best: Floats, hit: Floats) -> dict[str, object]:
    """The content of generator.json. Trips with one stay have no visible city, so they count as misses."""
    return {
        "generator": "booking",
        "version": VERSION,
        "scale": scale,
        "seed": seed,
        "cities": world.cities,
        "countries": world.countries,
        "ceiling": {
            "accuracy@4": float(np.nan_to_num(best).mean()),
            "realised": float(np.nan_to_num(hit).mean()),
            "trips": len(best),
        },
    }


class Ceiling(BaseModel):
    """The best possible score."""

    accuracy: float = Field(alias="accuracy@4")


class BookingFacts(GeneratorFacts):
    """The fields of Booking's generator.json that are read later."""

    ceiling: Ceiling


def ceiling(folder: Path) -> float | None:
    """The best possible accuracy@4 on the test trips in a folder; None for files that were not generated."""
    facts = generator_facts(folder, BookingFacts)
    return None if facts is None else facts.ceiling.accuracy
