"""The columns of the models, as values: `feature_set(params)` returns the set that the task's parameters name.

A set says which encodings are computed from which keys, and which columns each model reads. `features` and `second_stage_features` compute
them; docs/recsys2021.md describes them. The prefix a_ means the author and b_ the reader, as in the winners' code. Models have the names of
the scores: trees_kfold, pooled, second_loo, ...
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from buzzer.datasets.recsys2021.schema import LABELS
from buzzer.errors import UsageError, unknown_name
from buzzer.models.recsys2021.params import Params

TARGETS = tuple(LABELS)
Keys = Mapping[str, list[str]]  # name of an encoding -> its key columns

FLAGS = {
    "a_verified": "engaged_with_user_is_verified",
    "b_verified": "enaging_user_is_verified",
    "follows": "engagee_follows_engager",
}
COUNTS = {
    "a_followers": "engaged_with_user_follower_count",
    "a_following": "engaged_with_user_following_count",
    "b_followers": "enaging_user_follower_count",
    "b_following": "enaging_user_following_count",
    "a_created": "engaged_with_user_account_creation",
    "b_created": "enaging_user_account_creation",
    "time": "tweet_timestamp",
}
LISTS = {
    "tokens": "text_tokens",
    "hashtags": "hashtags",
    "links": "present_links",
    "domains": "present_domains",
}
# Special symbols by their token ids in bert-base-multilingual-cased; emojis are [UNK].
SYMBOLS = {
    "questions": "136",
    "exclamations": "106",
    "mentions": "137",
    "hashes": "108",
    "unknowns": "100",
    "colons": "131",
}
MEDIA = {"photos": "Photo", "videos": "Video", "gifs": "GIF"}
# Target encodings: name -> keys.
KEYS: dict[str, list[str]] = {
    "a": ["a"],
    "b": ["b"],
    "ab": ["a", "b"],
    "a_type": ["a", "type"],
    "b_type": ["b", "type"],
    "a_type_lang": ["a", "type", "language_code"],
    "b_type_lang": ["b", "type", "language_code"],
    "type_lang_media": ["type", "language_code", "media_code"],
    "context": ["type", "language_code", "media_code", "a_verified", "b_verified", "follows"],
    "word": ["word", "type"],
    "whom": ["whom", "language_code"],
    "mention": ["mention", "type", "language_code"],
    "b_group": ["b", "a_group"],
}
# Encodings from another table: name -> (table, column of the rows that is looked up in it).
REVERSED = {"a_as_b": ("b", "a"), "b_as_a": ("a", "b")}
# Coarse columns: name -> (column, width of a step). RAW has the keys of the raw sums and counts that the `split` trees read.
STEPS = {
    f"{who}_{what}_step": (f"{who}_{what}", width)
    for who in "ab"
    for what, width in (("followers", 819.0), ("following", 712.0))
} | {"late": ("decline", 7.19)}
RAW: dict[str, list[str]] = {
    "b": ["b"],
    "a_type": ["a", "type"],
    "b_type": ["b", "type"],
    "word": ["word", "type"],
    "whom": ["whom", "language_code"],
    "mention": ["mention", "type", "language_code"],
    "occasion": [
        "type",
        "language_code",
        "media_code",
        "a_verified",
        "b_verified",
        "follows",
        "a_group",
        "late",
    ],
    "sizes": [*(step for step in STEPS if step != "late"), "type", "language_code", "follows"],
}
LOOKED_UP = ("same_language", "met_before")
# Ratios of followers and followings, and ages (`features.arithmetic`).
DERIVED = ("a_ratio", "b_ratio", "ab_followers", "ab_following", "age_difference", "a_age", "b_age")
PLAIN = (
    *FLAGS,
    *(name for name in COUNTS if name != "time"),
    *LISTS,
    *SYMBOLS,
    *MEDIA,
    "type",
    "language_code",
    "media_code",
    "a_group",
    "weekday",
    "hour",
    "minute",
    "decline",
    *DERIVED,
    *LOOKED_UP,
)
# Columns of codes that networks embed -> the number of codes; larger codes share the last one.
CATEGORIES = {"type": 3, "language_code": 80, "media_code": 24, "weekday": 7, "a_group": 5}
# Target encodings from the validation rows: name -> keys. Their columns are called week_<name>_<target>.
WEEK: Keys = {
    "a": ["a"],
    "b": ["b"],
    "tweet": ["tweet"],
    "ab": ["a", "b"],
    "type": ["type"],
    "language": ["language_code"],
    "media": ["media_code"],
    "word": ["word", "type"],
    **{name: KEYS[name] for name in ("a_type_lang", "b_type_lang", "type_lang_media")},
}
# Counts over the scored rows: name -> keys. Their columns are called rows_<name>.
COUNTED: Keys = {name: keys for name, keys in WEEK.items() if name != "type"}


# ---- the winners' columns ---------------------------------------------------------------------------------------------

# What is counted in the decoded text, from `vocabulary.AMOUNTS`. In a retweet, TEXT_SIZES are of the text from the first ":"
# on, and those of the part before it have the names HEAD.
TEXT_SIZES = ("words", "characters", "capital_words")
DECODED = (*TEXT_SIZES, "capital_letters", "line_breaks", "retweet_marks")
HEAD = {name: f"head_{name}" for name in TEXT_SIZES}
# Codes of keys -> the keys. Keys with the same remainder share a code.
HASHED = {
    "first_word_code": "first_word",
    "second_word_code": "second_word",
    "mention_code": "mention_word",
    "second_mention_code": "second_mention_word",
    "retweeted_code": "retweeted",
    "hashtag_code": "hashtag",
    "domain_code": "domain",
}
HASHES = 1000  # codes of each
NUMBERS = (
    *(name for name in COUNTS if name != "time"),
    *DERIVED,
    *LISTS,
)
FOLLOWERS = ("a_followers", "a_following", "b_followers", "b_following")
CODES = ("type", "language_code", "media_code")
WINNERS_PLAIN = (
    *FLAGS, *NUMBERS, *SYMBOLS, *MEDIA, *CODES, "a_group", "weekday", "hour", "minute", "decline",
    *DECODED, *HEAD.values(), "last_mark", *HASHED,
)  # fmt: skip
WINNERS_KEYS: Keys = {
    "a": ["a"],
    "b": ["b"],
    "ab": ["a", "b"],
    "type": ["type"],
    "language": ["language_code"],
    "media": ["media_code"],
    "first_word": ["first_word"],
    **{name: KEYS[name] for name in ("a_type_lang", "b_type_lang", "type_lang_media", "context")},
    "verified_type": ["b_verified", "type"],
    "domain": ["domain", "language_code", "follows", "type", "media_code", "a_verified"],
    "mention_word": ["mention_word", "type", "language_code"],
    "second_mention_word": ["second_mention_word", "type", "language_code"],
}
WINNERS_RAW: Keys = {
    **{name: RAW[name] for name in ("b", "a_type", "b_type", "sizes")},
    "first_word_type": ["first_word", "type"],
    "retweeted": ["retweeted"],
    "mention_word_type": ["mention_word", "type"],
    "second_mention_word_type": ["second_mention_word", "type"],
    "occasion": [*RAW["occasion"], "last_mark"],
}
WINNERS_WEEK: Keys = {
    **{name: keys for name, keys in WEEK.items() if name != "word"},
    "first_word": ["first_word"],
}


def encoded(names: Sequence[str]) -> list[str]:
    """The columns of some target encodings."""
    return [f"te_{name}_{target}" for name in names for target in TARGETS]


KFOLD_READS = (
    *FLAGS, *FOLLOWERS, *LISTS, *MEDIA, *CODES, "a_group", "weekday", "minute", "decline",
    *TEXT_SIZES, *HEAD.values(), "line_breaks", "retweet_marks", "last_mark",
    *encoded((
        "a", "b", "ab", "type", "language", "media", "first_word", "a_type_lang", "b_type_lang", "type_lang_media",
    )),
)  # fmt: skip
LOO_READS = (
    *FLAGS, *FOLLOWERS, "a_ratio", "b_ratio", "ab_followers", "ab_following", "age_difference", *CODES, *LISTS, *MEDIA,
    "weekday", "hour", "minute",
    *encoded((
        "a", "b", "ab", "b_type_lang", "verified_type", "type", "type_lang_media", "context", "domain",
        "mention_word", "second_mention_word", *REVERSED,
    )),
)  # fmt: skip
SPLIT_READS = (
    *FLAGS, *FOLLOWERS, "questions", "exclamations", "mentions", "hashes", *TEXT_SIZES, "line_breaks", "last_mark",
    "tokens", "hashtags", "domains", *CODES, "a_group", "decline", "weekday", "minute",
)  # fmt: skip
POOLED_READS = (
    *NUMBERS, "questions", "exclamations", "mentions", "hashes", *TEXT_SIZES, "line_breaks", "minute", "decline",
)  # fmt: skip
GRU64_READS = tuple(
    encoded(("a", "b", "ab", "b_type_lang", "type_lang_media", "context", "a_as_b", "b_as_a"))
)
GRU128_READS = (
    *POOLED_READS, *HEAD.values(), "capital_letters", *MEDIA, "unknowns", "colons",
)  # fmt: skip
FEW_CATEGORIES = {name: CATEGORIES[name] for name in (*CODES, "weekday")}
MANY_CATEGORIES = CATEGORIES | {
    "hour": 24,
    **dict.fromkeys(FLAGS, 2),
    "last_mark": 5,
    "photos": 5,
    "videos": 3,
    "gifs": 3,
    **dict.fromkeys(HASHED, HASHES),
}


@dataclass(frozen=True)
class WeekColumns:
    """The columns of a second-stage model that are computed from the fourth week, as names of encodings."""

    encoded: Sequence[str]
    counted: Sequence[str]  # also names of reversed counts

    def names(self) -> list[str]:
        """The names of the columns, in order."""
        encoded = [f"week_{name}_{target}" for name in self.encoded for target in TARGETS]
        return [*encoded, *(f"rows_{name}" for name in self.counted)]


@dataclass(frozen=True)
class NetworkColumns:
    """The columns of a network. It is given all columns of the first stage."""

    given: Sequence[str]
    scaled: Sequence[str]  # read as scaled logarithms
    categories: Mapping[str, int]  # embedded: column of codes -> the number of codes


@dataclass(frozen=True)
class FeatureSet:
    """The columns of all models."""

    name: str
    plain: Sequence[str]  # columns that are neither encodings nor counts
    keys: Keys  # target encodings from the training weeks
    reversed: Mapping[str, tuple[str, str]]  # encodings from another table: name -> (table, column looked up)
    raw: Keys  # raw sums and counts for the `split` trees
    week: Keys  # target encodings from the validation rows
    counted: Keys  # counts over the scored rows
    second: Mapping[str, WeekColumns]  # by second-stage model, without the prefix second_
    categories: Mapping[str, Mapping[str, int]]  # network -> its columns of codes
    counted_reversed: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # `reversed` of `counted`
    decoded: bool = False  # whether columns of the decoded text are computed
    vocabulary: str = ""  # file of the vocabulary that decodes it; "" = a generated one
    pieces: Path | None = None  # file of `vocabulary.save` that is read in its place
    # Model -> its columns, for models that do not read all of them; for trees_split without sums and counts.
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def pairs(self) -> bool:
        """Whether there are columns of the reader's history, LOOKED_UP."""
        return set(LOOKED_UP) <= set(self.plain)

    def encoded_names(self) -> list[str]:
        """The columns of target encodings from the training weeks."""
        return encoded((*self.keys, *self.reversed))

    def names(self) -> list[str]:
        """The columns of the first stage, in order. Each model reads all of them, or those of `of`."""
        return [*self.plain, *self.encoded_names()]

    def of(self, model: str) -> list[str]:
        """The columns that a model reads, in order. A second-stage model also reads log odds and the columns of `second`."""
        if model == "trees_split":
            return self.raw_names()
        return list(self.reads.get(model, self.names()))

    def network(self, name: str) -> NetworkColumns:
        """The columns that a network reads."""
        return NetworkColumns(self.names(), self.of(name), self.categories[name])

    def week_names(self, model: str) -> list[str]:
        """The columns of the fourth week that a second-stage model reads, in order."""
        return self.second[model].names()

    def row_names(self) -> list[str]:
        """The plain columns that depend only on the row."""
        return [name for name in self.plain if name not in LOOKED_UP]

    def raw_names(self) -> list[str]:
        """The columns that the `split` trees read, in order."""
        parts = [*(f"sum_{target}" for target in TARGETS), "n"]
        plain = self.reads.get("trees_split", self.row_names())
        return [*plain, *(f"{part}_{name}" for name in self.raw for part in parts)]

    def coded_names(self) -> list[str]:
        """The columns of coded rows that encodings and model inputs are computed from."""
        keys = {key for table in (self.keys, self.raw) for names in table.values() for key in names}
        return [*dict.fromkeys([*self.row_names(), *sorted(keys), "tweet"])]

    def read_names(self) -> list[str]:
        """`coded_names`, and the labels."""
        return [*self.coded_names(), *TARGETS]

    def keys_of(self, models: Collection[str]) -> Keys:
        """The target encodings of which at least one of the models reads a column."""
        read = {column for model in models for column in self.of(model)}
        return {
            name: keys
            for name, keys in self.keys.items()
            if any(f"te_{name}_{target}" in read for target in TARGETS)
        }


BASIC = FeatureSet(
    "basic",
    PLAIN,
    KEYS,
    REVERSED,
    RAW,
    WEEK,
    COUNTED,
    second={
        "loo": WeekColumns(("a", "b", "tweet"), ("a", "b", "tweet", "ab")),
        "kfold": WeekColumns(tuple(WEEK), tuple(COUNTED)),
    },
    categories=dict.fromkeys(("pooled", "gru64", "gru128", "logistic"), CATEGORIES),
)
WINNERS = FeatureSet(
    "winners",
    WINNERS_PLAIN,
    WINNERS_KEYS,
    REVERSED,
    WINNERS_RAW,
    WINNERS_WEEK,
    {name: keys for name, keys in WINNERS_WEEK.items() if name != "type"},
    second={
        "loo": WeekColumns(("a", "b", "tweet"), ("b",)),
        "kfold": WeekColumns(
            tuple(WINNERS_WEEK), (*(name for name in WINNERS_WEEK if name != "type"), *REVERSED)
        ),
    },
    categories={"pooled": FEW_CATEGORIES, "gru64": MANY_CATEGORIES, "gru128": FEW_CATEGORIES}
    | {"logistic": FEW_CATEGORIES},
    counted_reversed=REVERSED,
    decoded=True,
    reads={
        "trees_kfold": KFOLD_READS,
        "trees_loo": LOO_READS,
        "trees_split": SPLIT_READS,
        "pooled": POOLED_READS,
        "gru64": GRU64_READS,
        "gru128": GRU128_READS,
        "second_loo": LOO_READS,
        "second_kfold": KFOLD_READS,
    },
)
FEATURE_SETS = {each.name: each for each in (BASIC, WINNERS)}


def feature_set(params: Params) -> FeatureSet:
    """The set of the parameters `features` and `vocabulary`. Raises UsageError for an unknown name, and for a vocabulary without use."""
    columns = named(params.features)
    if params.vocabulary and not columns.decoded:
        raise UsageError(f"features={params.features} does not read a vocabulary", "--set features=winners")
    return replace(columns, vocabulary=params.vocabulary)


def named(name: str) -> FeatureSet:
    """The set of this name. Raises UsageError for an unknown name."""
    if name not in FEATURE_SETS:
        raise unknown_name("value of features", name, FEATURE_SETS)
    return FEATURE_SETS[name]
