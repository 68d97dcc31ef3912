"""Synthetic rows in the official files' schema; card.md tells the process in words, with measured marginals."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from buzzer.datasets.files import new_folder
from buzzer.datasets.recsys2021.schema import (
    ALL_DAYS,
    DAY,
    FIRST_SECOND,
    LABELLED,
    LABELS,
    LIST,
    OFFICIAL_ROWS,
    PARTS,
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
from buzzer.datasets.workers import in_order

VERSION = 2  # of the process: the same version, scale and seed give the same files
CHUNK, PART = 1 << 16, 1 << 20  # rows drawn at a time, and of a part file
CHUNKS_A_JOB = 8  # at least, as a process takes as long to start as it takes to draw them
FOLLOWS, SAME_LANGUAGE = 0.38, 0.85
AUDIENCE, AUDIENCE_SIZE = 0.35, 1000  # share of a tweet's rows; readers that an author meets again and again
CLS, SEP, RETWEET_START = 101, 102, (56_898, 137)  # "[CLS]", "[SEP]", "RT @"
COLON, QUESTION, EXCLAMATION, AT, HASH, UNKNOWN = 131, 136, 106, 137, 108, 100
MARKS = np.array([0.90, 0.915, 0.94, 0.96, 0.97])  # from which share of a text's tokens on each of
MARK_TOKENS = np.array([QUESTION, EXCLAMATION, AT, HASH, UNKNOWN])
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


@dataclass(frozen=True)
class Chunk:
    """Rows of a part that are drawn together, and from no other state than what stands here."""

    part: str
    number: int
    start: int  # first row in its part
    rows: int
    of: int  # rows of the whole part
    seed: int
    scale: float  # of the world
    known_scale: float  # of the training parts' world


def generate(
    out: Path, scale: float, seed: int, progress: Progress, *, test_scale: float | None = None, jobs: int = 1
) -> None:
    """Write train/, val/, test/ and test_truth/ with part files, and generator.json, into the new folder `out`.

    Scale 1 has 719.7 M training, 14.5 M validation and 14.5 M test rows; test_scale: the test part's, where it is another. The
    files are the same for any number of processes `jobs`. Memory grows with the processes, not with the scale. Raises
    DataError if the disk is full.
    """
    scales = dict.fromkeys(OFFICIAL_ROWS, scale) | {"test": scale if test_scale is None else test_scale}
    sizes = {name: max(round(n * scales[name]), 500) for name, n in OFFICIAL_ROWS.items()}
    counts = {name: dict.fromkeys(LABELS, 0) for name in sizes}
    chunks = [
        Chunk(
            name, start // CHUNK, start, min(CHUNK, rows - start), rows, seed, max(scale, scales[name]), scale
        )
        for name, rows in sizes.items()
        for start in range(0, rows, CHUNK)
    ]
    total, done = sum(sizes.values()), 0
    with new_folder(out) as aside:
        for name in (*sizes, "test_truth"):
            (aside / name).mkdir()
        jobs = min(jobs, -(-len(chunks) // CHUNKS_A_JOB))
        with closing(in_order(partial(write_chunk, aside), chunks, jobs)) as written:
            for chunk, found in zip(chunks, written, strict=True):
                progress(done / total, f"generating {chunk.part} rows")
                for path in chunk_files(aside, chunk):
                    append(path.with_name(f"part-{chunk.start // PART:05d}"), path)
                for label in LABELS:
                    counts[chunk.part][label] += found[label]
                done += chunk.rows
        facts = {"generator": "recsys2021", "version": VERSION, "scale": scale, "seed": seed, "rows": sizes}
        facts |= {} if scales["test"] == scale else {"test_scale": test_scale}
        rates = {name: {label: counts[name][label] / sizes[name] for label in LABELS} for name in sizes}
        (aside / "generator.json").write_text(json.dumps(facts | {"rates": rates}, indent=1) + "\n")


def write_chunk(folder: Path, chunk: Chunk) -> dict[str, int]:
    """Write a chunk's own files; the number of each engagement."""
    world = World(chunk.scale, chunk.seed, chunk.known_scale)
    rng = np.random.default_rng([chunk.seed, list(OFFICIAL_ROWS).index(chunk.part), chunk.number])
    place = (chunk.start / chunk.of, (chunk.start + chunk.rows) / chunk.of)
    table = draw(world, rng, chunk.rows, place, chunk.part)
    for path in chunk_files(folder, chunk):
        columns = list(PARTS[path.parent.name])
        table.select(columns).write_csv(path, separator=SEPARATOR, include_header=False, quote_style="never")
    return {label: chunk.rows - table[column].null_count() for label, column in LABELS.items()}


def chunk_files(folder: Path, chunk: Chunk) -> list[Path]:
    """Where a chunk is written; one of the test also with its labels, to test_truth."""
    places = [chunk.part, "test_truth"] if chunk.part == "test" else [chunk.part]
    return [folder / place / f".{chunk.start}.chunk" for place in places]


def append(part: Path, chunk: Path) -> None:
    """Move a chunk's file to the end of its part's."""
    with part.open("ab") as target, chunk.open("rb") as source:
        shutil.copyfileobj(source, target, 16 << 20)
    chunk.unlink()


def draw(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], part: str
) -> pl.DataFrame:
    """Rows of a part, in no order; see `draw_pairs`."""
    late = part != "train"
    tweet, reader = draw_pairs(world, rng, n, place, part)
    # Two rows in five are of different tweets: all about a tweet is made once.
    different, of = np.unique(tweet, return_inverse=True)
    tweets = tweets_of(world, different, late)
    author, time = tweets["author"].to_numpy()[of], tweets["tweet_timestamp"].to_numpy()[of]
    follows = follow(world, author, reader)
    end = FIRST_SECOND + (ALL_DAYS if late else TRAIN_DAYS) * DAY
    columns = users(world, "enaging_user", reader) | {"engagee_follows_engager": follows}
    columns |= engagements(world, rng, tweet, author, reader, follows, time, end)
    return tweets[of].hstack(pl.DataFrame(columns)).select(list(LABELLED))


def tweets_of(world: World, tweet: Ints, late: bool) -> pl.DataFrame:
    """All that is known of tweets and their authors, a row each; `author` besides the official columns."""
    author = world.author(tweet)
    language, topic = world.tweet_language(tweet, author), world.topic(tweet, author)
    links = world.links(tweet)
    tag = topic * 50 + uniform_int(tweet, world.salt(40), 50)
    domain = mixed(author, world.salt(44)).astype(np.int64) % 5000
    columns: dict[str, Any] = {
        "author": author,
        "text_tokens": tokens_of(world, tweet, author, language),
        "hashtags": hashes_of(tag, world.hashtags(tweet), 41),
        "tweet_id": hexadecimal(tweet, world.salt(42)),
        "present_media": pl.Series(MEDIA_PATTERNS).gather(world.media(tweet)),
        "present_links": hashes_of(tweet, links, world.salt(43)),
        "present_domains": hashes_of(domain, links, 45),
        "tweet_type": pl.Series(TYPES).gather(world.kind(tweet)),
        "language": hexadecimal(language, 46),
        "tweet_timestamp": world.time(tweet, late),
    }
    return pl.DataFrame(columns | users(world, "engaged_with_user", author))


def users(world: World, prefix: str, user: Ints) -> dict[str, Any]:
    """The five columns of authors or readers."""
    return {
        f"{prefix}_id": hexadecimal(user, world.salt(47)),
        f"{prefix}_follower_count": world.followers(user),
        f"{prefix}_following_count": world.following(user),
        f"{prefix}_is_verified": world.verified(user),
        f"{prefix}_account_creation": world.created(user),
    }


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
    first, many = (max(early, world.first_late), (world.tweets - early) // 10) if late else (0, early)
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


def hexadecimal(values: Ints, salt: int) -> pa.Array:
    """32 hexadecimal digits by number: the official ids' form."""
    words = np.stack([mixed(values, salt), mixed(values, salt + 500)], axis=1).byteswap()
    digits = HEX[words.view(np.uint8)]
    data = np.ascontiguousarray(digits).view(np.uint8).reshape(-1)
    offsets = np.arange(0, 32 * len(values) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(data))


HEX = np.array([f"{byte:02X}" for byte in range(256)], dtype="S2")


def uniform_int(values: Ints, salt: int, n: int) -> Ints:
    return (uniform(values, salt) * n).astype(np.int64)


def hashes_of(first: Ints, many: Ints, salt: int) -> pl.Series:
    """Joined hashes: `many` different ones a row, beginning with that of `first`; missing where none."""
    rows = np.repeat(np.arange(len(first)), many)
    starts = np.cumsum(many) - many
    at = np.arange(len(rows)) - np.repeat(starts, many)
    return joined(hexadecimal(first[rows] + at * 1_000_003, salt), many)


def joined(values: pa.Array, many: Ints) -> pl.Series:
    """Runs of `many` values as lists joined by TAB; missing where there are none."""
    offsets = np.concatenate([[0], np.cumsum(many)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    text = pc.if_else(pa.array(many > 0), pc.binary_join(lists, LIST), None)
    return pl.Series(text)


def tokens_of(world: World, tweet: Ints, author: Ints, language: Ints) -> pl.Series:
    """Token ids of each tweet: words of its language and its topic, punctuation, the marks of retweets."""
    many = world.tokens(tweet)
    ends = np.cumsum(many)
    starts, row = ends - many, np.repeat(np.arange(len(tweet)), many)
    key = np.repeat(tweet * 256 - starts, many) + np.arange(len(row))
    u, choice = uniform(key, world.salt(100)), uniform(key, world.salt(101))
    token = (np.expm1(u * 7) / np.expm1(7) * WORDS).astype(np.int64) + 1_000
    token += np.repeat(language * 1_607 % 90_000, many)
    topical = np.flatnonzero(choice < 0.2)
    first = 95_000 + world.topic(tweet, author) * TOPIC_WORDS
    token[topical] = first[row[topical]] + (u[topical] ** 2 * TOPIC_WORDS).astype(np.int64)
    marks = np.flatnonzero(choice >= MARKS[0])
    token[marks] = MARK_TOKENS[np.searchsorted(MARKS, choice[marks], side="right") - 1]
    retweet = starts[world.kind(tweet) == 1]  # which have seven tokens at least
    whom = 70_000 + (mixed(author, world.salt(102)) % np.uint64(20_000)).astype(np.int64)
    token[retweet + 1], token[retweet + 2] = RETWEET_START
    token[retweet + 3], token[retweet + 4] = whom[world.kind(tweet) == 1], COLON
    token[starts], token[ends - 1] = CLS, SEP
    return joined(NUMBERS.take(pa.array(token)), many)


NUMBERS = pc.cast(pa.array(np.arange(120_000)), pa.string())  # every token as text
