"""Who engages with which tweet: log odds of the engagements, labels that are drawn from them, and the exact probabilities of the labels.

Arrays of several engagements have the order of ODDS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from buzzer.datasets.recsys2021.schema import DAY, FIRST_SECOND, LABELS, TYPES
from buzzer.datasets.recsys2021.world import (
    EXCLAMATION,
    LANGUAGES,
    MEDIA_PATTERNS,
    QUESTION,
    TOPICS,
    Floats,
    Ints,
    World,
    normal,
    uniform_int,
)

# Terms of the log odds: base, TopLevel, Retweet, Quote, with media, with a link, reader follows author, fame of the author.
ODDS = {
    "reply": (-5.55, 0.35, -0.9, 0.2, -0.2, -0.5, 0.9, -0.06),
    "retweet": (-4.49, 0.1, 0.3, -0.2, 0.35, 0.1, 0.35, 0.02),
    "quote": (-7.62, 0.1, 0.2, -0.1, 0.2, 0.1, 0.3, 0.01),
    "like": (-1.24, 0.66, -1.0, -0.1, 0.35, -0.7, 0.75, 0.04),
}
# Log odds of each engagement per unit of an effect. Effects of hidden tastes have mean 0 and deviation 1.
EFFECTS = {
    # Of the tweet and its author.
    "author": (0.7, 0.7, 0.7, 0.7),  # a habit of the author for each engagement
    "author_week": (0.45, 0.45, 0.45, 0.45),  # what the author writes about in a week
    "appeal": (0.65, 0.65, 0.65, 0.65),  # of the tweet, the same for all engagements; cannot be seen
    "quality": (-0.35, 0.55, 0.5, 0.6),  # of the tweet; its words show it
    "occasion": (0.4, 0.4, 0.4, 0.4),  # of language, type and media together
    "opener": (0.4, 0.4, 0.4, 0.4),  # of the first word
    "retweeted": (0.55, 0.55, 0.55, 0.55),  # of the user who is retweeted
    "evening": (0.25, 0.25, 0.25, 0.25),  # local hour
    "trend": (0.15, 0.15, 0.15, 0.15),  # of the topic in a week
    "question": (1.1, -0.2, 0.5, -0.4),  # the text ends with "?"
    "exclamation": (-0.4, 0.5, 0.3, 0.6),  # the text ends with "!"
    "length": (0.25, -0.2, 0.1, -0.25),  # logarithm of the tokens, in deviations
    "tags": (-0.2, 0.2, 0.0, -0.2),  # number of hashtags
    # Of the reader with the tweet.
    "reader": (0.85, 0.85, 0.85, 0.85),  # a habit of the reader for each engagement
    "reader_type": (0.3, 0.3, 0.3, 0.3),  # of the reader with this type of tweet
    "reader_week": (0.2, 0.2, 0.2, 0.2),  # of the reader in a week
    "pair": (0.75, 0.75, 0.75, 0.75),  # of author and reader
    "groups": (0.3, 0.3, 0.3, 0.3),  # of the author's and the reader's group
    "group_topic": (0.35, 0.35, 0.35, 0.35),  # of the reader's group with the topic
    "taste": (0.3, 0.3, 0.3, 0.3),  # of the reader with the topic
    "peers": (1.2, 1.0, 1.0, 1.0),  # author and reader have similar numbers of followers
    "cohort": (0.4, 0.4, 0.4, 0.4),  # author and reader joined within two years
    "foreign": (-0.5, -0.5, -0.5, -0.5),  # the tweet is not in the reader's language
}
SHARED = 0.9  # correlation between a user's habits as a reader and as an author
USER_GROUPS = 12
# Change of the log odds after an earlier engagement of the same reader with the same tweet.
AFTER: dict[str, dict[str, float]] = {
    "reply": {},
    "retweet": {"reply": -3.0},
    "quote": {"reply": -1.2, "retweet": 0.7},
    "like": {"reply": -3.9, "retweet": -3.25, "quote": -3.05},
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
        after = odds.copy()
        for other, change in AFTER[label].items():
            after += change * done[other]
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
    return 1 / (1 + np.exp(-x))


def log_odds(world: World, rows: Rows) -> Floats:
    """Log odds of each engagement of a reader who has not engaged with the tweet yet, [labels, rows]."""
    reader, author = rows.reader, rows.author[rows.of]
    kind = world.kind(rows.tweet)[rows.of]
    language = world.tweet_language(rows.tweet, rows.author)[rows.of]
    topic = world.topic(rows.tweet, rows.author)[rows.of]
    group, author_group = (uniform_int(user, world.salt(110), USER_GROUPS) for user in (reader, author))
    out = of_tweets(world, rows)[:, rows.of]
    out += weighted(
        {
            "reader_week": normal(reader * 4 + week_of(rows.time)[rows.of], world.salt(111)),
            "pair": normal(author * world.users + reader, world.salt(112)),
            "groups": normal(author_group * USER_GROUPS + group, world.salt(113)),
            "group_topic": normal(group * TOPICS + topic, world.salt(114)),
            "taste": world.taste(reader, topic),
            "peers": world.peers(author, reader),
            "cohort": world.cohort(author, reader),
            "foreign": language != world.language(reader),
        }
    )
    for number, terms in enumerate(ODDS.values()):
        out[number] += terms[6] * rows.follows
        out[number] += EFFECTS["reader"][number] * habit(world, number, reader)
        by_type = normal(reader * 31 + kind, world.salt(80 + number))
        out[number] += EFFECTS["reader_type"][number] * by_type
    return out


def of_tweets(world: World, rows: Rows) -> Floats:
    """The part of the log odds that depends only on the tweet and its author, [labels, tweets]."""
    tweet, author, week = rows.tweet, rows.author, week_of(rows.time)
    language, kind, media = world.tweet_language(tweet, author), world.kind(tweet), world.media(tweet)
    hour, last = rows.time // 3600 % 24, world.last_mark(tweet)
    out = weighted(
        {
            "author_week": normal(author * 4 + week, world.salt(115)),
            "appeal": normal(tweet, world.salt(116)),
            "quality": world.quality(tweet),
            "evening": np.cos((hour - 20 + 3 * (language % 8)) * (2 * np.pi / 24)),
            "trend": normal(world.topic(tweet, author) * 8 + week, world.salt(50)),
            "question": last == QUESTION,
            "exclamation": last == EXCLAMATION,
            "length": world.length(tweet),
            "tags": world.hashtags(tweet),
        }
    )
    retweet = kind == 1
    named = np.where(retweet, world.retweeted(tweet), world.opener(tweet) * len(LANGUAGES) + language)
    occasion = (language * len(TYPES) + kind) * len(MEDIA_PATTERNS) + media
    fame, weeks = world.fame(author), (rows.time - FIRST_SECOND) / (7 * DAY)
    for number, (label, terms) in enumerate(ODDS.items()):
        base, *by_kind, with_media, with_link, _, by_fame = terms
        out[number] += base + np.array(by_kind)[kind] + by_fame * fame - DECLINE[label] * weeks
        out[number] += with_media * (media > 0) + with_link * (world.links(tweet) > 0)
        own = normal(author, world.salt(70 + number))
        as_reader = habit(world, number, author)
        out[number] += EFFECTS["author"][number] * (SHARED * as_reader + (1 - SHARED**2) ** 0.5 * own)
        out[number] += EFFECTS["occasion"][number] * normal(occasion, world.salt(120 + number))
        weight = np.where(retweet, EFFECTS["retweeted"][number], EFFECTS["opener"][number])
        out[number] += weight * normal(named * 2 + retweet, world.salt(130 + number))
    return out


def weighted(effects: Mapping[str, npt.NDArray[np.generic]]) -> Floats:
    """The sum of effects on each engagement, [labels, rows]. effects: values by name, [rows]."""
    weights = np.array([EFFECTS[name] for name in effects])
    return cast(Floats, weights.T @ np.stack([values.astype(np.float64) for values in effects.values()]))


def habit(world: World, number: int, user: Ints) -> Floats:
    """How readily each user, as a reader, makes engagement `number`."""
    return normal(user, world.salt(60 + number))


def week_of(time: Ints) -> Ints:
    """The week of each time, 0 to 3."""
    return (time - FIRST_SECOND) // (7 * DAY)
