"""Key columns and labels of the generator's training rows, drawn without their texts.

The rows are those of `generator.generate`, in the same order, with the same random numbers. A row costs a fraction of the time, and
no disk. So sums over all training rows of scale 1, 720 million, can be computed although their text would take 360 GB.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from buzzer.datasets.files import GeneratorFacts, generator_facts
from buzzer.datasets.recsys2021 import generator, odds
from buzzer.datasets.recsys2021.generator import DOMAIN_SALT, Chunk, Texts
from buzzer.datasets.recsys2021.schema import LABELS
from buzzer.datasets.recsys2021.world import LANGUAGES, MEDIA_PATTERNS, Ints, World, mixed
from buzzer.errors import DataError

Column = npt.NDArray[np.generic]
USER_SALT, LANGUAGE_SALT = 47, 46
SPAN = 3  # tokens of a column of several tokens
# Columns that depend on the tweet, the author, the reader, or the pair.
AFTER = ("after_1", "after_2", "after_3")
OF_TEXT = ("begin", *AFTER, "end")
OF_TWEET = ("type", "language", "media", "domain", "time", *OF_TEXT)
OF_USER = ("verified", "followers", "following", "created")
COLUMNS = ("a", "b", *OF_TWEET, *(f"{who}_{what}" for who in "ab" for what in OF_USER), "follows")


class Facts(GeneratorFacts):
    """The fields of generator.json that determine the training rows."""

    version: int
    seed: int = Field(ge=0)


@dataclass(frozen=True)
class TrainingRows:
    """All training rows of generated data, of which the training part may be a sample."""

    scale: float
    seed: int
    train_scale: float | None

    @classmethod
    def of(cls, folder: Path) -> "TrainingRows":
        """The training rows of the data in a folder. Raises DataError for files that this version of the generator did not write."""
        facts = generator_facts(folder, Facts)
        if facts is None:
            raise DataError(f"{folder}: no generated files, so their training rows cannot be drawn again")
        if facts.version != generator.VERSION:
            raise DataError(
                f"{folder}: written by version {facts.version} of the generator", "generate again"
            )
        return cls(facts.scale, facts.seed, facts.train_scale)

    def chunks(self) -> list[Chunk]:
        """All chunks of the training rows. `kept` rows of a chunk, from the first, are in the training part, from its row `at`."""
        written = generator.planned(self.scale, self.seed, self.train_scale)
        sample = {chunk.number: chunk for chunk in written if chunk.part == "train"}
        everything = [c for c in generator.planned(self.scale, self.seed) if c.part == "train"]
        return [sample.get(c.number, replace(c, at=0, kept=0)) for c in everything]


def draw(chunk: Chunk, wanted: Collection[str]) -> dict[str, Column]:
    """The columns `wanted` of COLUMNS and the four labels of a chunk of the training rows, in the order of `generator.draw`.

    a, b: numbers of users, see `user_ids`. type, language, media: numbers, see `language_texts` and MEDIA_PATTERNS. domain: the id of
    the first domain as `reader.short_id` reads it, 0 if there is none. Tokens, int64 [rows, SPAN], -1 after the end of the text: begin,
    those after [CLS]; after_1 to after_3, those after the first three "@", all -1 if there are fewer; end, the last. Labels: 0 or 1, uint8.
    """
    world = World(chunk.scale, chunk.seed, chunk.known_scale)
    rng = generator.rng_of(chunk)
    rows = generator.draw_rows(world, rng, chunk.rows, generator.place_of(chunk), "train")
    at = odds.engagements(rng, odds.log_odds(world, rows), rows)
    labels = {label: at[column].is_not_null().to_numpy().astype(np.uint8) for label, column in LABELS.items()}
    author, time = rows.author[rows.of], rows.time[rows.of]
    columns: dict[str, Column] = {
        "a": author,
        "b": rows.reader,
        "time": time,
        "follows": rows.follows.astype(np.uint8),
    }
    for who, user in (("a", author), ("b", rows.reader)):
        columns |= user_columns(world, who, user, wanted)
    by_tweet = tweet_columns(world, rows.tweet, rows.author, wanted)
    columns |= {name: values[rows.of] for name, values in by_tweet.items()}
    return {name: columns[name] for name in wanted} | labels


def user_columns(world: World, who: str, user: Ints, wanted: Collection[str]) -> dict[str, Column]:
    """The columns of the authors or the readers that are wanted."""
    functions = (world.verified, world.followers, world.following, world.created)
    named = {f"{who}_{name}": function for name, function in zip(OF_USER, functions, strict=True)}
    return {name: function(user) for name, function in named.items() if name in wanted}


def tweet_columns(world: World, tweet: Ints, author: Ints, wanted: Collection[str]) -> dict[str, Column]:
    """The columns of tweets that are wanted, except their time."""
    columns: dict[str, Column] = {"type": world.kind(tweet), "media": world.media(tweet)}
    columns["language"] = language = world.tweet_language(tweet, author)
    if "domain" in wanted:
        ids = short(generator.domain_of(world, author), DOMAIN_SALT)
        columns["domain"] = np.where(world.links(tweet) > 0, ids, 0)
    if set(OF_TEXT) & set(wanted):
        columns |= text_columns(Texts.of(world, tweet, author, language), wanted)
    return columns


def text_columns(texts: Texts, wanted: Collection[str]) -> dict[str, Column]:
    """The columns of tokens that are wanted. Only these tokens are drawn, and the places of all "@"."""
    every = np.arange(len(texts.many))
    firsts = {"begin": np.ones_like(every), "end": texts.many - SPAN}  # a tweet has at least three tokens
    columns: dict[str, Column] = {
        name: texts.spans(every, first, SPAN) for name, first in firsts.items() if name in wanted
    }
    if set(AFTER) & set(wanted):
        row, position = texts.mentions()
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        for nth, name in enumerate(AFTER):
            found = rank == nth
            spans = np.full((len(every), SPAN), -1)
            spans[row[found]] = texts.spans(row[found], position[found] + 1, SPAN)
            columns[name] = spans
    return columns


def user_ids(rows: TrainingRows, user: Ints) -> Ints:
    """The ids of users as `reader.short_id` reads them from the text: the last 16 hexadecimal digits as int64."""
    return short(user, World(rows.scale, rows.seed).salt(USER_SALT))


def short(values: Ints, salt: int) -> Ints:
    """The last 16 digits of `generator.hexadecimal` as int64, in two's complement."""
    return mixed(values, salt + 500).view(np.int64)


def language_texts(folder: Path) -> Path:
    """Write a file with a row for each pair of a language and media, in this order, and return it: language, media."""
    path = folder / ".languages.csv"
    languages = generator.hexadecimal(np.arange(len(LANGUAGES)), LANGUAGE_SALT).to_pylist()
    lines = [f"{language}\x01{media}\n" for language in languages for media in MEDIA_PATTERNS]
    path.write_text("".join(lines), encoding="utf-8")
    return path
