"""Synthetic rows in the schema of the official files. card.md describes the random process and its measured statistics."""

import gzip
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import Field

from buzzer.datasets.contract import Progress
from buzzer.datasets.files import GeneratorFacts, generator_facts, new_folder
from buzzer.datasets.recsys2021 import ceiling, odds
from buzzer.datasets.recsys2021.odds import Rows
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
    EXCLAMATION,
    MEDIA_PATTERNS,
    QUESTION,
    SLOT_LANGUAGE,
    SLOTS,
    Floats,
    Ints,
    World,
    mixed,
    skewed,
    uniform,
    uniform_int,
)
from buzzer.datasets.unfinished import STEPS, Journal, Step, remove, unfinished_folder
from buzzer.datasets.workers import in_order
from buzzer.errors import UsageError

VERSION = 3  # version of the random process: the same version, scale and seed give the same files
CHUNK, PART = 1 << 16, 1 << 20  # rows of a chunk, and of a part file
# A generation of more rows, which takes more than a minute on a core, goes on after an interruption.
RESUMABLE_ROWS = 4 << 20
COMPRESSION = 1  # level of gzip
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of the peak that the system reports
MIN_CHUNKS_PER_JOB = 8  # the start of a process takes as long as drawing this many chunks
# Log of the ratio between the most and the least read tweet: in the training weeks, and in week 4, whose halves share tweets.
SKEW, LATE_SKEW = 4.0, 5.0
FOLLOWS, SAME_LANGUAGE = 0.38, 0.85  # shares of the pairs of author and reader
AUDIENCE, AUDIENCE_SIZE = (
    0.35,
    1000,
)  # share of rows whose reader is from the author's audience; size of an audience
CLS, SEP, RETWEET_START = 101, 102, (56_898, 137)  # "[CLS]", "[SEP]", "RT @"
DOMAIN_SALT = 45
RETWEET_TOKENS = 5  # "[CLS] RT @user:"; retweets have at least seven tokens
COLON, AT, HASH, UNKNOWN = 131, 137, 108, 100
MARKS = np.array([0.90, 0.915, 0.94, 0.96, 0.97])  # thresholds of a uniform number for the marks below
MARK_TOKENS = np.array([QUESTION, EXCLAMATION, AT, HASH, UNKNOWN])
AT_RANGE = MARKS[2:4]  # the range for "@"
WORDS, TOPIC_WORDS = 3000, 400  # words of a language, and of a topic
# Thresholds of a uniform number for words of the topic, and for words that show the quality.
TOPICAL, QUALITY = 0.2, 0.32
FIRST_QUALITY_WORD, QUALITY_WORDS = 105_000, 40
BEST = ".best"  # file that collects the best probabilities of the test rows, see `ceiling`


@dataclass(frozen=True)
class Chunk:
    """Rows of a part that are drawn together. These fields determine all of its rows."""

    part: str
    number: int
    start: int  # index of its first row in the part
    rows: int
    part_rows: int  # rows of the whole part
    seed: int
    scale: float  # scale of the world
    known_scale: float  # scale of the training parts
    at: int = 0  # index of its first written row in the files of the part
    kept: int = 0  # how many of its rows are written, from the first
    gzipped: bool = False  # whether the files with labels are compressed


class Written(Step):
    """What the files of a chunk contain, and what drawing it took."""

    engaged: dict[str, int]  # label -> rows with this engagement
    process: int
    cpu_s: float
    peak_memory_bytes: int  # of the process, up to this chunk
    wall_s: float = 0.0  # of the call of `generate`, up to this chunk


def generate(
    out: Path,
    scale: float,
    seed: int,
    progress: Progress,
    *,
    train_scale: float | None = None,
    test_scale: float | None = None,
    compress_above: int | None = None,
    jobs: int = 1,
) -> None:
    """Write train/, val/, test/ and test_truth/ with part files, generator.json and generation.json, into the new folder `out`.

    Scale 1 has 719.7 M training, 14.5 M validation and 14.5 M test rows. train_scale: scale of a sample of the training rows
    that is written instead of all. test_scale: scale of the test part, if it differs. compress_above: parts of more rows are
    written with gzip, except the test; None = no part. jobs: number of processes; it does not change the files. Memory grows with
    the processes, not with the scale.

    More than RESUMABLE_ROWS rows are written to a hidden folder beside `out`. If the call is interrupted, the next one with the
    same arguments goes on after the last complete chunk, and the files are the same as without the interruption. generation.json
    has the seconds, bytes and memory of the generation; it is the only file that the arguments do not determine.

    Raises UsageError if `train_scale` is above `scale`, and DataError if the files cannot be written.
    """
    chunks = planned(scale, seed, train_scale, test_scale, compress_above)
    sizes = {name: sum(chunk.kept for chunk in chunks if chunk.part == name) for name in OFFICIAL_ROWS}
    facts: dict[str, object] = {
        "generator": "recsys2021",
        "version": VERSION,
        "scale": scale,
        "seed": seed,
        "rows": sizes,
    }
    differing = {"train_scale": train_scale, "test_scale": test_scale}
    facts |= {name: value for name, value in differing.items() if value not in (None, scale)}
    plan = json.dumps([facts, compress_above, CHUNK, PART])
    large = sum(sizes.values()) > RESUMABLE_ROWS
    with unfinished_folder(out, plan, progress) if large else new_folder(out) as folder:
        steps = write_chunks(folder, chunks, jobs, progress)
        facts["rates"] = {name: rates_of(steps, chunks, name) for name in sizes}
        facts["ceiling"] = ceiling.scores(folder / BEST)
        (folder / "generator.json").write_text(json.dumps(facts, indent=1) + "\n")
        (folder / "generation.json").write_text(json.dumps(costs(steps), indent=1) + "\n")
        remove([folder / STEPS, folder / BEST])


def write_chunks(folder: Path, chunks: Sequence[Chunk], jobs: int, progress: Progress) -> list[Written]:
    """Write the chunks that the folder's journal does not have yet. Returns the steps of all chunks."""
    journal = Journal(folder, Written).restore()
    for name in PARTS:
        (folder / name).mkdir(exist_ok=True)
    done = len(journal.steps)
    before = journal.steps[-1].wall_s if done else 0.0
    began, todo = time.perf_counter(), chunks[done:]
    jobs = min(jobs, -(-len(todo) // MIN_CHUNKS_PER_JOB))
    total, rows = sum(chunk.kept for chunk in chunks), sum(chunk.kept for chunk in chunks[:done])
    with closing(in_order(partial(write_chunk, folder), todo, jobs)) as written:
        for chunk, step in zip(todo, written, strict=True):
            progress(rows / total, f"generating {chunk.part} rows")
            paths = [append(path, whole) for path, whole in chunk_files(folder, chunk).items()]
            step.sizes = {str(path.relative_to(folder)): path.stat().st_size for path in paths}
            step.wall_s = before + time.perf_counter() - began
            journal.add(step)
            rows += chunk.kept
    return journal.steps


class RecSysFacts(GeneratorFacts):
    """The fields of generator.json that are read later."""

    ceiling: dict[str, float] = Field(default={})  # missing in files of older programs


def best_scores(folder: Path) -> dict[str, float]:
    """The scores of the exact probabilities on the test rows in a folder, as `metric.scores`; empty if they are not known."""
    facts = generator_facts(folder, RecSysFacts)
    return {} if facts is None else facts.ceiling


def rates_of(steps: Sequence[Written], chunks: Sequence[Chunk], part: str) -> dict[str, float]:
    """The share of a part's rows that has each engagement."""
    of_part = [(step, chunk) for step, chunk in zip(steps, chunks, strict=True) if chunk.part == part]
    rows = sum(chunk.kept for _, chunk in of_part)
    return {label: sum(step.engaged[label] for step, _ in of_part) / rows for label in LABELS}


def costs(steps: Sequence[Written]) -> dict[str, float]:
    """Wall and CPU seconds, bytes of the part files, number of processes, and the highest peak memory of a process."""
    sizes = {name: size for step in steps for name, size in step.sizes.items() if name != BEST}
    return {
        "wall_s": round(steps[-1].wall_s, 3),
        "cpu_s": round(sum(step.cpu_s for step in steps), 3),
        "bytes": sum(sizes.values()),
        "processes": len({step.process for step in steps}),
        "peak_memory_bytes": max(step.peak_memory_bytes for step in steps),
    }


def planned(
    scale: float,
    seed: int,
    train_scale: float | None = None,
    test_scale: float | None = None,
    compress_above: int | None = None,
) -> list[Chunk]:
    """The chunks of all parts, in the order in which they are written. The arguments are those of `generate`."""
    train, test = (scale if other is None else other for other in (train_scale, test_scale))
    if train > scale:
        raise UsageError(
            f"a training scale of {train:g} is above the scale {scale:g}", "the training rows are a sample"
        )
    chunks = []
    for name, official in OFFICIAL_ROWS.items():
        of_part = test if name == "test" else scale
        rows = at_least(official * of_part)
        sample = at_least(official * train) if name == "train" else rows
        numbers, at = -(-rows // CHUNK), 0
        gzipped = compress_above is not None and sample > compress_above
        for number in spread(-(-sample // CHUNK), numbers):
            drawn = min(CHUNK, rows - number * CHUNK)
            kept = min(drawn, sample - at)
            chunk = Chunk(name, number, number * CHUNK, drawn, rows, seed, max(scale, of_part), scale)
            chunks.append(replace(chunk, at=at, kept=kept, gzipped=gzipped))
            at += kept
    return chunks


def at_least(rows: float) -> int:
    """A number of rows, rounded; no part has fewer than 500."""
    return max(round(rows), 500)


def spread(some: int, many: int) -> list[int]:
    """`some` of the numbers 0 to `many` - 1, at equal distances. All if they are as many."""
    return [i * many // some for i in range(some)]


def write_chunk(folder: Path, chunk: Chunk) -> Written:
    """Write the files of one chunk."""
    began_s = time.process_time()
    world = World(chunk.scale, chunk.seed, chunk.known_scale)
    table = draw(world, rng_of(chunk), chunk.rows, place_of(chunk), chunk.part).head(chunk.kept)
    for path in chunk_files(folder, chunk):
        if path.name.startswith(BEST):
            path.write_bytes(best_of(table).tobytes())
            continue
        columns = table.select(list(PARTS[path.parent.name]))
        with path.open("wb") as file, member(file) if path.suffix == ".gz" else nullcontext(file) as out:
            columns.write_csv(
                cast("IO[bytes]", out), separator=SEPARATOR, include_header=False, quote_style="never"
            )
    return Written(
        sizes={},
        engaged={label: table.height - table[column].null_count() for label, column in LABELS.items()},
        process=os.getpid(),
        cpu_s=time.process_time() - began_s,
        peak_memory_bytes=getrusage(RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES,
    )


def rng_of(chunk: Chunk) -> np.random.Generator:
    """The random numbers of a chunk."""
    return np.random.default_rng([chunk.seed, list(OFFICIAL_ROWS).index(chunk.part), chunk.number])


def place_of(chunk: Chunk) -> tuple[float, float]:
    """The range of a chunk's tweets, see `draw_pairs`."""
    return chunk.start / chunk.part_rows, (chunk.start + chunk.rows) / chunk.part_rows


def member(file: IO[bytes]) -> gzip.GzipFile:
    """A gzip member without a name and a time, so that the same rows give the same bytes."""
    return gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0)


def chunk_files(folder: Path, chunk: Chunk) -> dict[Path, Path]:
    """The files of a chunk, and for each the file that gets its content. A chunk of the test is also written with its labels, to
    test_truth, and its best probabilities to BEST."""
    places = [chunk.part, "test_truth"] if chunk.part == "test" else [chunk.part]
    suffixes = [".gz" if chunk.gzipped and place != "test" else "" for place in places]
    files = {
        folder / place / f".{chunk.start}{suffix}": folder / place / f"part-{chunk.at // PART:05d}{suffix}"
        for place, suffix in zip(places, suffixes, strict=True)
    }
    return files | ({folder / f"{BEST}-{chunk.start}": folder / BEST} if chunk.part == "test" else {})


def append(path: Path, whole: Path) -> Path:
    """Move the content of a chunk's file to the end of another file. Returns that file."""
    with whole.open("ab") as target, path.open("rb") as source:
        shutil.copyfileobj(source, target, 16 << 20)
    path.unlink()
    return whole


def draw(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], part: str
) -> pl.DataFrame:
    """n rows of a part, in no order; those of the test also have the columns `best_<label>`, the exact probabilities of the labels.

    place: as in `draw_pairs`.
    """
    rows = draw_rows(world, rng, n, place, part)
    log_odds = odds.log_odds(world, rows)
    tweets = tweets_of(world, rows.tweet, rows.author, rows.time)
    pairs = {"engagee_follows_engager": pl.Series(rows.follows)} | odds.engagements(rng, log_odds, rows)
    table = tweets[rows.of].hstack(users(world, "enaging_user", rows.reader)).hstack(pl.DataFrame(pairs))
    table = table.select(list(LABELLED))
    if part != "test":
        return table
    best = odds.probabilities(log_odds, rows)
    return table.with_columns(pl.Series(f"best_{label}", values) for label, values in best.items())


def best_of(table: pl.DataFrame) -> npt.NDArray[np.uint16]:
    """The rows of BEST for test rows from `draw`."""
    truth = {label: table[column].is_not_null().to_numpy() for label, column in LABELS.items()}
    best = {label: table[f"best_{label}"].to_numpy() for label in LABELS}
    return ceiling.packed(truth, best, table["engaged_with_user_follower_count"].to_numpy())


def draw_rows(world: World, rng: np.random.Generator, n: int, place: tuple[float, float], part: str) -> Rows:
    """Tweets and readers of n rows, in no order. place: as in `draw_pairs`."""
    late = part != "train"
    tweet, reader = draw_pairs(world, rng, n, place, part)
    # Only two rows in five have a tweet that no other row has. What depends on the tweet is computed once.
    unique, of = np.unique(tweet, return_inverse=True)
    author = world.author(unique)
    end = FIRST_SECOND + (ALL_DAYS if late else TRAIN_DAYS) * DAY
    return Rows(unique, author, world.time(unique, late), of, reader, follow(world, author[of], reader), end)


def tweets_of(world: World, tweet: Ints, author: Ints, time: Ints) -> pl.DataFrame:
    """The official columns of tweets and their authors, one row per tweet."""
    language, topic = world.tweet_language(tweet, author), world.topic(tweet, author)
    links = world.links(tweet)
    tag = topic * 50 + uniform_int(tweet, world.salt(40), 50)
    columns = {
        "text_tokens": tokens_of(world, tweet, author, language),
        "hashtags": hashes_of(tag, world.hashtags(tweet), 41),
        "tweet_id": hexadecimal(tweet, world.salt(42)),
        "present_media": pl.Series(MEDIA_PATTERNS).gather(world.media(tweet)),
        "present_links": hashes_of(tweet, links, world.salt(43)),
        "present_domains": hashes_of(domain_of(world, author), links, DOMAIN_SALT),
        "tweet_type": pl.Series(TYPES).gather(world.kind(tweet)),
        "language": hexadecimal(language, 46),
        "tweet_timestamp": time,
    }
    return pl.DataFrame(columns).hstack(users(world, "engaged_with_user", author))


def domain_of(world: World, author: Ints) -> Ints:
    """The first domain of the links in an author's tweets."""
    return mixed(author, world.salt(44)).astype(np.int64) % 5000


def users(world: World, prefix: str, user: Ints) -> pl.DataFrame:
    """The five columns of authors or readers, one row per element of `user`."""
    columns = {
        f"{prefix}_id": hexadecimal(user, world.salt(47)),
        f"{prefix}_follower_count": world.followers(user),
        f"{prefix}_following_count": world.following(user),
        f"{prefix}_is_verified": world.verified(user),
        f"{prefix}_account_creation": world.created(user),
    }
    return pl.DataFrame(columns)


def draw_pairs(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], part: str
) -> tuple[Ints, Ints]:
    """Tweets and readers of n rows. No pair occurs twice, and no reader is the author.

    place: the range of the period's tweets, as shares from 0 to 1. All rows of a tweet in a part are in one chunk, so pairs that
    are unique in each chunk are unique in the part. A hash divides the pairs of week 4 into validation and test. The number of a
    tweet says nothing about its time.
    """
    tweet, reader = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    while len(tweet) < n:
        more = draw_tweets(world, rng, n + n // 8 + 16, place, late=part != "train")
        tweet = np.concatenate([tweet, more])
        reader = np.concatenate([reader, draw_readers(world, rng, world.author(more))])
        first = np.sort(np.unique(tweet * world.users + reader, return_index=True)[1])
        valid = world.author(tweet[first]) != reader[first]
        if part != "train":
            half = uniform(tweet[first] * world.users + reader[first], world.salt(13)) < 0.5
            valid &= half == (part == "val")
        tweet, reader = tweet[first[valid]], reader[first[valid]]
    return tweet[:n], reader[:n]


def draw_tweets(
    world: World, rng: np.random.Generator, n: int, place: tuple[float, float], late: bool
) -> Ints:
    """n tweet numbers. The tweets of week 4 have the numbers after those of weeks 1 to 3. A few tweets are drawn often."""
    early = world.tweets * TRAIN_DAYS // ALL_DAYS
    # Week 4 of the real data is a sample: a thirteenth of the rows of a week, a tenth of its tweets.
    first, many = (max(early, world.first_late), (world.tweets - early) // 10) if late else (0, early)
    low, high = (first + int(many * share) for share in place)
    high = max(high, low + 1)
    skew = LATE_SKEW if late else SKEW
    share = np.expm1(skew * rng.random(n)) / np.expm1(skew)
    return low + np.minimum((share * (high - low)).astype(np.int64), high - low - 1)


def draw_readers(world: World, rng: np.random.Generator, author: Ints) -> Ints:
    """A reader for each author. Active users are drawn more often, AUDIENCE of the readers come from the audience of the author
    so that pairs meet again, and most share the author's language."""
    n = len(author)
    member = np.expm1(rng.random(n) * np.log(AUDIENCE_SIZE)).astype(np.int64)
    from_audience = rng.random(n) < AUDIENCE
    u = np.where(from_audience, uniform(author * AUDIENCE_SIZE + member, world.salt(10)), rng.random(n))
    like_author = rng.random(n) < SAME_LANGUAGE
    slot = np.where(like_author, author % SLOTS, rng.integers(0, SLOTS, n))
    return world.reader_at(u, SLOT_LANGUAGE[slot])


def follow(world: World, author: Ints, reader: Ints) -> npt.NDArray[np.bool_]:
    """Whether the reader follows the author; the same for every tweet of a pair."""
    likely = np.where(reader % 7 == author % 7, 0.75, FOLLOWS - 0.06)
    return uniform(author * world.users + reader, world.salt(12)) < likely


# ---- text --------------------------------------------------------------------------------------------------------


def hexadecimal(values: Ints, salt: int) -> pa.Array:
    """32 hexadecimal digits for each number, the form of the official ids."""
    words = np.stack([mixed(values, salt), mixed(values, salt + 500)], axis=1).byteswap()
    digits = HEX[words.view(np.uint8)]
    data = np.ascontiguousarray(digits).view(np.uint8).reshape(-1)
    offsets = np.arange(0, 32 * len(values) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(data))


HEX = np.array([f"{byte:02X}" for byte in range(256)], dtype="S2")


def hashes_of(first: Ints, many: Ints, salt: int) -> pl.Series:
    """Lists of `many` different hashes per row, the first that of `first`; missing if `many` is 0."""
    rows = np.repeat(np.arange(len(first)), many)
    starts = np.cumsum(many) - many
    at = np.arange(len(rows)) - np.repeat(starts, many)
    return joined(hexadecimal(first[rows] + at * 1_000_003, salt), many)


def joined(values: pa.Array, many: Ints) -> pl.Series:
    """Consecutive runs of `many` values, joined by TAB; missing if `many` is 0."""
    from pyarrow import compute

    offsets = np.concatenate([[0], np.cumsum(many)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    text = compute.if_else(pa.array(many > 0), compute.binary_join(lists, LIST), None)
    return pl.Series(text)


def tokens_of(world: World, tweet: Ints, author: Ints, language: Ints) -> pl.Series:
    """The token ids of each tweet as text, joined by TAB."""
    texts = Texts.of(world, tweet, author, language)
    token = texts.at(*texts.everywhere())
    return joined(numbers().take(pa.array(token)), texts.many)


@cache
def numbers() -> pa.Array:
    """Each token id as a string. Made when it is used, because pyarrow imports pandas for it."""
    return pa.array(np.arange(120_000)).cast(pa.string())


@dataclass(frozen=True)
class Texts:
    """The token ids of tweets: words of the language and the topic, punctuation, and the start of a retweet.

    Each token is a function of the tweet and the position, so some can be drawn without the others. Arrays have one entry per tweet.
    """

    world: World
    tweet: Ints
    many: Ints  # tokens, with [CLS] and [SEP]
    retweet: npt.NDArray[np.bool_]
    mention: Ints  # the token of the user in "RT @user:"
    of_language: Ints  # the first word of the language
    of_topic: Ints  # the first word of the topic
    opener: Ints  # the first word of the text, if it is not a retweet
    quality: Floats
    last_mark: Ints  # the mark at the end; 0 if there is none

    @classmethod
    def of(cls, world: World, tweet: Ints, author: Ints, language: Ints) -> "Texts":
        """The texts of tweets of these authors and languages."""
        of_language = 1_000 + language * 1_607 % 90_000
        return cls(
            world,
            tweet,
            many=world.tokens(tweet),
            retweet=world.kind(tweet) == 1,
            mention=70_000 + world.retweeted(tweet),
            of_language=of_language,
            of_topic=95_000 + world.topic(tweet, author) * TOPIC_WORDS,
            opener=of_language + world.opener(tweet),
            quality=world.quality(tweet),
            last_mark=world.last_mark(tweet),
        )

    def everywhere(self) -> tuple[Ints, Ints]:
        """The index of the tweet, and the position, of every token."""
        starts = np.cumsum(self.many) - self.many
        row = np.repeat(np.arange(len(self.many)), self.many)
        return row, np.arange(len(row)) - np.repeat(starts, self.many)

    def at(self, row: Ints, position: Ints) -> Ints:
        """The tokens at positions of the tweets with the indices `row`."""
        key = self.tweet[row] * 256 + position
        u, choice = uniform(key, self.world.salt(100)), uniform(key, self.world.salt(101))
        token = skewed(u, WORDS, 7.0) + self.of_language[row]
        topical = np.flatnonzero(choice < TOPICAL)
        token[topical] = self.of_topic[row[topical]] + (u[topical] ** 2 * TOPIC_WORDS).astype(np.int64)
        good = np.flatnonzero((choice >= TOPICAL) & (choice < QUALITY))
        share = (0.35 + 0.3 * u[good] + 0.2 * self.quality[row[good]]).clip(0, 0.999)
        token[good] = FIRST_QUALITY_WORD + (share * QUALITY_WORDS).astype(np.int64)
        marks = np.flatnonzero(choice >= MARKS[0])
        token[marks] = MARK_TOKENS[np.searchsorted(MARKS, choice[marks], side="right") - 1]
        left = self.many[row] - position
        final = np.flatnonzero(left == 2)
        token[final] = np.where(self.last_mark[row[final]] > 0, self.last_mark[row[final]], token[final])
        head = np.flatnonzero(position < RETWEET_TOKENS)
        token[head] = self._head(row[head], position[head], token[head])
        token[left == 1] = SEP
        return token

    def _head(self, row: Ints, position: Ints, others: Ints) -> Ints:
        """The tokens at positions below RETWEET_TOKENS: [CLS], "RT @user:" in retweets, else the first word and `others`."""
        cls, user = np.full(len(row), CLS), self.mention[row]
        retweet = np.choose(position, [cls, *RETWEET_START, user, COLON])
        own = np.where(position == 1, self.opener[row], others)
        return np.where(self.retweet[row] | (position == 0), retweet, own)

    def spans(self, row: Ints, first: Ints, length: int) -> Ints:
        """The tokens from the positions `first` on, int64 [len(row), length]; -1 after the end of the text."""
        rows = np.broadcast_to(row[:, None], (len(row), length))
        position = first[:, None] + np.arange(length)
        inside = position < self.many[rows]
        tokens = np.full(inside.shape, -1)
        tokens[inside] = self.at(rows[inside], position[inside])
        return tokens

    def mentions(self) -> tuple[Ints, Ints]:
        """The index of the tweet, and the position, of every "@", in order."""
        row, position = self.everywhere()
        choice = uniform(self.tweet[row] * 256 + position, self.world.salt(101))
        # Every "@" is one of these: a mark, or the third token of a retweet.
        likely = np.flatnonzero(((choice >= AT_RANGE[0]) & (choice < AT_RANGE[1])) | (position == 2))
        row, position = row[likely], position[likely]
        found = self.at(row, position) == AT
        return row[found], position[found]
