"""Synthetic rows in the official files' schema; card.md tells the process in words, with measured marginals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from buzzer.datasets.files import new_folder
from buzzer.datasets.recsys2021.schema import (
    ALL_DAYS,
    DAY,
    FEATURES,
    FIRST_SECOND,
    LABELLED,
    LABELS,
    LIST,
    OFFICIAL_ROWS,
    SEPARATOR,
    TRAIN_DAYS,
    TYPES,
)
from buzzer.datasets.recsys2021.world import (
    MEDIA_PATTERNS,
    SLOT_LANGUAGE,
    SLOTS,
    Ints,
    World,
    mixed,
    normal,
    uniform,
)

VERSION = 2  # of the process: the same version, scale and seed give the same files
CHUNK, PART = 1 << 16, 1 << 20  # rows drawn at a time, and of a part file
FOLLOWS, SAME_LANGUAGE = 0.38, 0.85
AUDIENCE, AUDIENCE_SIZE = 0.35, 1000  # share of a tweet's rows; readers that an author meets again and again
CLS, SEP, RETWEET_START = 101, 102, (56_898, 137)  # "[CLS]", "[SEP]", "RT @"
COLON, QUESTION, EXCLAMATION, AT, HASH = 131, 136, 106, 137, 108
WORDS, TOPIC_WORDS = 3000, 400  # of a language, of a topic
# Log odds of reply, retweet, quote, like: base, TopLevel, Retweet, Quote, with media, with a link, follows, fame.
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
}  # log odds by a deviation of the taste in the topic
# Log odds of a later engagement of the same reader with the same tweet.
AFTER = {
    "reply": {},
    "retweet": {"reply": -1.8},
    "quote": {"reply": -0.6, "retweet": 1.6},
    "like": {"reply": -2.8, "retweet": -2.1, "quote": -2.2},
}
DECLINE = {"reply": 0.14, "retweet": 0.05, "quote": 0.1, "like": 0.02}  # of log odds, a week
DELAY = {
    "reply": 3600.0,
    "retweet": 5400.0,
    "quote": 7200.0,
    "like": 4500.0,
}  # mean seconds until an engagement

Progress = Callable[[float, str], None]
Floats = npt.NDArray[np.float64]


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write train/, val/, test/ and test_truth/ with part files, and generator.json, into the new folder `out`.

    Scale 1 has 719.7 M training, 14.5 M validation and 14.5 M test rows. Memory does not grow with the scale. Raises DataError if
    the disk is full.
    """
    world = World(scale, seed)
    sizes = {name: max(round(n * scale), 500) for name, n in OFFICIAL_ROWS.items()}
    total, done = sum(sizes.values()), 0
    counts = {name: dict.fromkeys(LABELS, 0) for name in sizes}
    with new_folder(out) as aside:
        for name in (*sizes, "test_truth"):
            (aside / name).mkdir()
        for number, (name, rows) in enumerate(sizes.items()):
            for start in range(0, rows, CHUNK):
                progress(done / total, f"generating {name} rows")
                n = min(CHUNK, rows - start)
                rng = np.random.default_rng([seed, number, start // CHUNK])
                table = draw(world, rng, n, (start / rows, (start + n) / rows), name)
                append(aside, name, start, table)
                done += n
                for label, column in LABELS.items():
                    counts[name][label] += n - table[column].null_count()
        rates = {name: {label: counts[name][label] / sizes[name] for label in LABELS} for name in sizes}
        facts = {
            "generator": "recsys2021",
            "version": VERSION,
            "scale": scale,
            "seed": seed,
            "rows": sizes,
            "rates": rates,
        }
        (aside / "generator.json").write_text(json.dumps(facts, indent=1) + "\n")


def append(folder: Path, name: str, start: int, table: pl.DataFrame) -> None:
    """Add a chunk to its part file; a test chunk without its labels, and with them to test_truth."""
    columns = list(FEATURES if name == "test" else LABELLED)
    targets = [(name, columns)] + ([("test_truth", list(LABELLED))] if name == "test" else [])
    for place, wanted in targets:
        with (folder / place / f"part-{start // PART:05d}").open("ab") as file:
            table.select(wanted).write_csv(
                file, separator=SEPARATOR, include_header=False, quote_style="never"
            )


def draw(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], part: str
) -> pl.DataFrame:
    """Rows of a part, in no order; see `draw_pairs`."""
    late = part != "train"
    tweet, reader = draw_pairs(world, rng, n, place, part)
    author = world.author(tweet)
    language = world.tweet_language(tweet, author)
    follows = follow(world, author, reader)
    time = world.time(tweet, late)
    columns: dict[str, Any] = {
        "text_tokens": tokens_of(world, tweet, author, language),
        "hashtags": hashes_of(
            world.topic(tweet, author) * 50 + uniform_int(tweet, world.salt(40), 50),
            world.hashtags(tweet),
            41,
        ),
        "tweet_id": hexadecimal(tweet, world.salt(42)),
        "present_media": pl.Series(MEDIA_PATTERNS).gather(world.media(tweet)),
        "present_links": hashes_of(tweet, world.links(tweet), world.salt(43)),
        "present_domains": hashes_of(
            mixed(author, world.salt(44)).astype(np.int64) % 5000, world.links(tweet), 45
        ),
        "tweet_type": pl.Series(TYPES).gather(world.kind(tweet)),
        "language": hexadecimal(language, 46),
        "tweet_timestamp": time,
        "engagee_follows_engager": follows,
    }
    for prefix, user in (("engaged_with_user", author), ("enaging_user", reader)):
        columns[f"{prefix}_id"] = hexadecimal(user, world.salt(47))
        columns[f"{prefix}_follower_count"] = world.followers(user)
        columns[f"{prefix}_following_count"] = world.following(user)
        columns[f"{prefix}_is_verified"] = world.verified(user)
        columns[f"{prefix}_account_creation"] = world.created(user)
    end = FIRST_SECOND + (ALL_DAYS if late else TRAIN_DAYS) * DAY
    columns |= engagements(world, rng, tweet, author, reader, follows, time, end)
    return pl.DataFrame(columns).select(list(LABELLED))


def draw_pairs(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], part: str
) -> tuple[Ints, Ints]:
    """Tweets and readers of n rows, no pair twice, nobody reading a tweet of their own.

    place: which share of the period's tweets, from and to. All rows of a tweet lie in one chunk of a part, so that pairs are
    different in the whole part when they are in the chunk; a hash halves week 4's pairs into validation and test.
    Tweets are numbered in no order of time.
    """
    tweet, reader = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    while len(tweet) < n:
        more = draw_tweets(world, rng, n + n // 8 + 16, place, late=part != "train")
        tweet = np.concatenate([tweet, more])
        reader = np.concatenate([reader, draw_readers(world, rng, world.author(more))])
        first = np.sort(np.unique(tweet * world.users + reader, return_index=True)[1])
        good = world.author(tweet[first]) != reader[first]
        if part != "train":
            half = uniform(tweet[first] * world.users + reader[first], world.salt(13)) < 0.5
            good &= half == (part == "val")
        tweet, reader = tweet[first[good]], reader[first[good]]
    return tweet[:n], reader[:n]


def draw_tweets(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], late: bool
) -> Ints:
    """Tweet numbers: those of the fourth week stand behind those of the first three; some are shown to many readers."""
    early = world.tweets * TRAIN_DAYS // ALL_DAYS
    # Week 4 was sampled: a thirteenth of a week's rows, over a tenth of its tweets.
    first, many = (early, (world.tweets - early) // 10) if late else (0, early)
    low, high = (first + int(many * share) for share in place)
    high = max(high, low + 1)
    share = np.expm1(4 * rng.random(n)) / np.expm1(4)
    return low + np.minimum((share * (high - low)).astype(np.int64), high - low - 1)


def draw_readers(world: World, rng: np.random.Generator, author: Ints) -> Ints:
    """Active users more often; some out of the author's own audience, so that pairs meet again; mostly of its language."""
    n = len(author)
    member = np.expm1(rng.random(n) * np.log(AUDIENCE_SIZE)).astype(np.int64)
    from_audience = rng.random(n) < AUDIENCE
    u = np.where(from_audience, uniform(author * AUDIENCE_SIZE + member, world.salt(10)), rng.random(n))
    like_author = rng.random(n) < SAME_LANGUAGE
    slot = np.where(like_author, author % SLOTS, rng.integers(0, SLOTS, n))
    return world.reader_at(u, SLOT_LANGUAGE[slot])


def follow(world: World, author: Ints, reader: Ints) -> npt.NDArray[np.bool_]:
    """Whether the reader follows the author: the same wherever the two meet."""
    likely = np.where(reader % 7 == author % 7, 0.75, FOLLOWS - 0.06)
    return uniform(author * world.users + reader, world.salt(12)) < likely


def engagements(
    world: World,
    rng: np.random.Generator,
    tweet: Ints,
    author: Ints,
    reader: Ints,
    follows: npt.NDArray[np.bool_],
    time: Ints,
    end: int,
) -> dict[str, pl.Series]:
    """The four label columns: when the reader engaged, missing where not, or not before `end`, the window's."""
    shared = appeal(world, tweet, author, reader, time)
    taste = world.taste(reader, world.topic(tweet, author))
    week = (time - FIRST_SECOND) / (7 * DAY)
    out: dict[str, pl.Series] = {}
    done: dict[str, npt.NDArray[np.bool_]] = {}
    for number, label in enumerate(ODDS):
        log_odds = shared + content(world, label, tweet, author, follows)
        log_odds += (
            TASTE[label] * taste - DECLINE[label] * week + habits(world, number, tweet, author, reader)
        )
        for other, change in AFTER[label].items():
            log_odds += change * done[other]
        done[label] = rng.random(len(tweet)) < 1 / (1 + np.exp(-log_odds))
        at = time + 1 + rng.exponential(DELAY[label], len(tweet)).astype(np.int64)
        rows = pl.DataFrame({"at": at, "yes": done[label] & (at < end)})
        out[LABELS[label]] = rows.select(pl.when("yes").then("at"))["at"]
    return out


def appeal(world: World, tweet: Ints, author: Ints, reader: Ints, time: Ints) -> Floats:
    """Log odds that all engagements share: the hour where the language is spoken, a topic's week, a foreign language."""
    language = world.tweet_language(tweet, author)
    evening = np.cos((time // 3600 % 24 - 20 + 3 * (language % 8)) * (2 * np.pi / 24))
    week = (time - FIRST_SECOND) // (7 * DAY)
    trend = normal(world.topic(tweet, author) * 8 + week, world.salt(50))
    return 0.25 * evening + 0.15 * trend - 0.5 * (language != world.language(reader))


def content(world: World, label: str, tweet: Ints, author: Ints, follows: npt.NDArray[np.bool_]) -> Floats:
    """Log odds by what can be seen: the tweet's type, media and links, the author's fame, whether the reader follows."""
    base, top, retweet, quote, media, link, following, fame = ODDS[label]
    by_type = base + np.array([top, retweet, quote])[world.kind(tweet)]
    by_tweet = media * (world.media(tweet) > 0) + link * (world.links(tweet) > 0)
    return np.asarray(by_type + by_tweet + following * follows + fame * world.fame(author))


def habits(world: World, number: int, tweet: Ints, author: Ints, reader: Ints) -> Floats:
    """Log odds of engagement `number` by who reads, who writes, how the reader is with this type, and the tweet."""
    by_user = 1.3 * normal(reader, world.salt(60 + number)) + 0.45 * normal(author, world.salt(70 + number))
    by_type = 0.4 * normal(reader * 31 + world.kind(tweet), world.salt(80 + number))
    return by_user + by_type + 0.35 * normal(tweet, world.salt(90 + number))


# ---- text --------------------------------------------------------------------------------------------------------


def hexadecimal(values: Ints, salt: int) -> pl.Series:
    """32 hexadecimal digits by number: the official ids' form."""
    words = np.stack([mixed(values, salt), mixed(values, salt + 500)], axis=1).byteswap()
    digits = HEX[words.view(np.uint8)]
    data = np.ascontiguousarray(digits).view(np.uint8).reshape(-1)
    offsets = np.arange(0, 32 * len(values) + 1, 32, dtype=np.int32)
    strings = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(data))
    return pl.Series(strings)


HEX = np.array([f"{byte:02X}" for byte in range(256)], dtype="S2")


def uniform_int(values: Ints, salt: int, n: int) -> Ints:
    return (uniform(values, salt) * n).astype(np.int64)


def hashes_of(first: Ints, many: Ints, salt: int) -> pl.Series:
    """Joined hashes: `many` different ones a row, beginning with that of `first`; missing where none."""
    rows = np.repeat(np.arange(len(first)), many)
    starts = np.cumsum(many) - many
    at = np.arange(len(rows)) - np.repeat(starts, many)
    return joined(hexadecimal(first[rows] + at * 1_000_003, salt), many)


def joined(values: pl.Series, many: Ints) -> pl.Series:
    """Runs of `many` values as lists joined by TAB; missing where there are none."""
    offsets = np.concatenate([[0], np.cumsum(many)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values.to_arrow())
    text = pl.from_arrow(lists)
    assert isinstance(text, pl.Series)
    return text.list.join(LIST).to_frame("t").select(pl.when(pl.col("t") != "").then("t"))["t"]


def tokens_of(world: World, tweet: Ints, author: Ints, language: Ints) -> pl.Series:
    """Token ids of each row's tweet: words of its language and its topic, punctuation, the marks of retweets."""
    many = world.tokens(tweet)
    starts = np.cumsum(many) - many
    row = np.repeat(np.arange(len(tweet)), many)
    at = np.arange(len(row)) - starts[row]
    key = tweet[row] * 256 + at
    u = uniform(key, world.salt(100))
    word = (np.expm1(u * 7) / np.expm1(7) * WORDS).astype(np.int64) + 1_000 + (language[row] * 1_607) % 90_000
    of_topic = 95_000 + world.topic(tweet, author)[row] * TOPIC_WORDS + (u * u * TOPIC_WORDS).astype(np.int64)
    choice = uniform(key, world.salt(101))
    token = np.where(choice < 0.2, of_topic, word)
    for mark, low, high in (
        (QUESTION, 0.90, 0.915),
        (EXCLAMATION, 0.915, 0.94),
        (AT, 0.94, 0.96),
        (HASH, 0.96, 0.97),
        (100, 0.97, 1.0),
    ):
        token = np.where((choice >= low) & (choice < high), mark, token)
    retweet = (world.kind(tweet) == 1)[row]
    whom = 70_000 + (mixed(author, world.salt(102)) % np.uint64(20_000)).astype(np.int64)[row]
    for place, value in ((1, RETWEET_START[0]), (2, RETWEET_START[1]), (3, whom), (4, COLON)):
        token = np.where(retweet & (at == place), value, token)
    token[starts], token[starts + many - 1] = CLS, SEP
    return joined(pl.Series(token).cast(pl.Int32).cast(pl.String), many)
