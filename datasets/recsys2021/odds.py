"""Who engages with which tweet: log odds of the engagements, labels that are drawn from them, and the exact probabilities of the labels.

Arrays of several engagements have the order of ODDS.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.recsys2021.schema import DAY, FIRST_SECOND, LABELS
from buzzer.datasets.recsys2021.world import Floats, Ints, World, normal

# Terms of the log odds: base, TopLevel, Retweet, Quote, with media, with a link, reader follows author, fame of the author.
ODDS = {
    "reply": (-4.13, 0.35, -0.9, 0.2, -0.2, -0.5, 0.9, -0.10),
    "retweet": (-3.32, 0.1, 0.3, -0.2, 0.35, 0.1, 0.35, -0.01),
    "quote": (-6.52, 0.1, 0.2, -0.1, 0.2, 0.1, 0.3, -0.02),
    "like": (-0.70, 0.55, -0.75, -0.1, 0.35, -0.7, 0.75, -0.01),
}
TASTE = {
    "reply": 0.5,
    "retweet": 0.5,
    "quote": 0.5,
    "like": 0.9,
}  # log odds per standard deviation of the reader's taste in the topic
# Change of the log odds after an earlier engagement of the same reader with the same tweet.
AFTER: dict[str, dict[str, float]] = {
    "reply": {},
    "retweet": {"reply": -1.8},
    "quote": {"reply": -0.6, "retweet": 1.6},
    "like": {"reply": -2.8, "retweet": -2.1, "quote": -2.2},
}
DECLINE = {"reply": 0.14, "retweet": 0.05, "quote": 0.1, "like": 0.02}  # decrease of the log odds per week
DELAY = {
    "reply": 3600.0,
    "retweet": 5400.0,
    "quote": 7200.0,
    "like": 4500.0,
}  # mean seconds from the tweet to the engagement


@dataclass(frozen=True)
class Rows:
    """Pairs of a tweet and a reader. A tweet can have several rows."""

    tweet: Ints  # numbers of the different tweets, [tweets]
    author: Ints  # their authors, [tweets]
    time: Ints  # their Unix seconds, [tweets]
    of: npt.NDArray[np.intp]  # index of each row's tweet, [rows]
    reader: Ints  # [rows]
    follows: npt.NDArray[np.bool_]  # whether the reader follows the author, [rows]
    end: int  # engagements from this second on are not recorded


def engagements(rng: np.random.Generator, log_odds: Floats, rows: Rows) -> dict[str, pl.Series]:
    """The four label columns: the Unix seconds of each engagement; missing if there is none before the end.

    log_odds: of each engagement of a reader without an earlier one, [labels, rows].
    """
    out: dict[str, pl.Series] = {}
    time = rows.time[rows.of]
    done: dict[str, npt.NDArray[np.bool_]] = {}
    for label, odds in zip(ODDS, log_odds, strict=True):
        after = sum((change * done[other] for other, change in AFTER[label].items()), start=odds)
        done[label] = rng.random(len(odds)) < sigmoid(after)
        at = time + 1 + rng.exponential(DELAY[label], len(odds)).astype(np.int64)
        table = pl.DataFrame({"at": at, "yes": done[label] & (at < rows.end)})
        out[LABELS[label]] = table.select(pl.when("yes").then("at"))["at"]
    return out


def probabilities(log_odds: Floats, rows: Rows) -> dict[str, Floats]:
    """The probability of each label, [rows]: what `engagements` draws, without knowledge of the other labels.

    It is the sum over all combinations of earlier engagements.
    """
    out: dict[str, Floats] = {}
    cases: dict[tuple[str, ...], Floats] = {(): np.ones(len(rows.of))}  # engagements so far -> probability
    for label, odds in zip(ODDS, log_odds, strict=True):
        engaged: dict[tuple[str, ...], Floats] = {}
        for earlier, probability in cases.items():
            change = sum(AFTER[label].get(other, 0.0) for other in earlier)
            engaged[*earlier, label] = probability * sigmoid(odds + change)
            cases[earlier] = probability - engaged[*earlier, label]
        in_time = -np.expm1((rows.time[rows.of] + 1 - rows.end) / DELAY[label])
        out[label] = in_time * sum(engaged.values())
        cases |= engaged
    return out


def sigmoid(x: Floats) -> Floats:
    """The probability that corresponds to log odds."""
    return cast(Floats, 1 / (1 + np.exp(-x)))


def log_odds(world: World, rows: Rows) -> Floats:
    """Log odds of each engagement of a reader who has not engaged with the tweet yet, [labels, rows]."""
    out = of_tweets(world, rows)[:, rows.of]
    topic = world.topic(rows.tweet, rows.author)
    taste = world.taste(rows.reader, topic[rows.of])
    foreign = world.tweet_language(rows.tweet, rows.author)[rows.of] != world.language(rows.reader)
    kind = world.kind(rows.tweet)[rows.of]
    for number, label in enumerate(ODDS):
        out[number] += ODDS[label][6] * rows.follows + TASTE[label] * taste - 0.5 * foreign
        out[number] += 1.3 * normal(rows.reader, world.salt(60 + number))
        out[number] += 0.4 * normal(rows.reader * 31 + kind, world.salt(80 + number))
    return out


def of_tweets(world: World, rows: Rows) -> Floats:
    """The part of the log odds that depends only on the tweet and its author, [labels, tweets]."""
    language, topic = world.tweet_language(rows.tweet, rows.author), world.topic(rows.tweet, rows.author)
    evening = np.cos((rows.time // 3600 % 24 - 20 + 3 * (language % 8)) * (2 * np.pi / 24))
    week = (rows.time - FIRST_SECOND) / (7 * DAY)
    trend = normal(topic * 8 + week.astype(np.int64), world.salt(50))
    common = 0.25 * evening + 0.15 * trend
    kind, fame = world.kind(rows.tweet), world.fame(rows.author)
    media, links = world.media(rows.tweet) > 0, world.links(rows.tweet) > 0
    out = np.empty((len(ODDS), len(rows.tweet)))
    for number, (label, terms) in enumerate(ODDS.items()):
        base, *by_kind, with_media, with_link, _, by_fame = terms
        out[number] = common + base + np.array(by_kind)[kind] + by_fame * fame - DECLINE[label] * week
        out[number] += with_media * media + with_link * links
        out[number] += 0.45 * normal(rows.author, world.salt(70 + number))
        out[number] += 0.35 * normal(rows.tweet, world.salt(90 + number))
    return out
