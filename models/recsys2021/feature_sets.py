"""The columns of the models, as values: `feature_set(params)` returns the set that the task's parameters name.

A set says which encodings are computed from which keys, and which columns each model reads. `features` and `second_stage_features` compute
them; docs/recsys2021.md describes them. The prefix a_ means the author and b_ the reader, as in the winners' code. Models have the names of
the scores: trees_kfold, pooled, second_loo, ...
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from buzzer.datasets.recsys2021.schema import LABELS
from buzzer.errors import unknown_name
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
    "a_ratio",
    "b_ratio",
    "ab_followers",
    "ab_following",
    "age_difference",
    "a_age",
    "b_age",
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


@dataclass(frozen=True)
class WeekColumns:
    """The columns of a second-stage model that are computed from the fourth week, as names of encodings."""

    encoded: Sequence[str]
    counted: Sequence[str]

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
    second: Mapping[
        str, WeekColumns
    ]  # second-stage model, without the prefix second_ -> its columns of the week
    categories: Mapping[str, Mapping[str, int]]  # network -> its columns of codes
    # Model -> its columns, for models that do not read all of them; for trees_split without sums and counts.
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def encoded_names(self) -> list[str]:
        """The columns of target encodings from the training weeks."""
        return [f"te_{name}_{target}" for name in (*self.keys, *self.reversed) for target in TARGETS]

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
FEATURE_SETS = {each.name: each for each in (BASIC,)}


def feature_set(params: Params) -> FeatureSet:
    """The set of the parameter `features`. Raises UsageError for an unknown name."""
    return named(params.features)


def named(name: str) -> FeatureSet:
    """The set of this name. Raises UsageError for an unknown name."""
    if name not in FEATURE_SETS:
        raise unknown_name("value of features", name, FEATURE_SETS)
    return FEATURE_SETS[name]
