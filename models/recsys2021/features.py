"""Features: from the official part files to the models' columns, with the operators of `engine.frames`. docs/recsys2021.md describes them.

There are two steps, so that a part file can be processed without the others: `base` needs only the row, `lookups` need the tables that
`fit` saved. `feature_sets` has the names of the columns.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from buzzer.datasets.recsys2021.schema import (
    ALL_DAYS,
    DAY,
    FEATURES,
    FIRST_SECOND,
    GROUPS,
    LABELLED,
    LABELS,
    LIST,
    SEPARATOR,
    TRAIN_DAYS,
)
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import FIRST_CODE, UNSEEN, Columns, Expr, Lookup, TextFeatures, means_of
from buzzer.models.api import progress
from buzzer.models.recsys2021 import feature_sets, vocabulary
from buzzer.models.recsys2021.feature_sets import (
    COUNTS,
    DECODED,
    FLAGS,
    HASHED,
    HASHES,
    HEAD,
    LISTS,
    MEDIA,
    STEPS,
    SYMBOLS,
    FeatureSet,
    Keys,
)

TARGETS = feature_sets.TARGETS

Compute = Callable[[Frame], Frame]  # what is done with a table before the next one is made
Source = Callable[[Sequence[str]], Frame]  # columns by name, as a frame that has `row`

KeyColumns = tuple[list[str], list[list[str]]]  # a table's keys, and the columns that are looked up by them
USERS: dict[str, KeyColumns] = {"code": (["value"], [["a"], ["b"]])}
SMOOTHING = 20.0  # winners: 20
FOLDS = 5
# Leave-one-out encoding leaks the label: in a large group, the encodings of rows with different labels differ only in the last digits, and
# trees split on this difference. So tables with few keys leave no row out, and other encodings are rounded (both as the winners did).
FEW_KEYS, DECIMALS = 1000, 3
# Noon of the last day of the training weeks, and noon of the last day of the fourth week.
LAST_NOONS = tuple(FIRST_SECOND + day * DAY - DAY // 2 for day in (TRAIN_DAYS, ALL_DAYS))

IDS = {"tweet_id": "tweet", "engaged_with_user_id": "a", "enaging_user_id": "b"}
TEXT = {
    "text_tokens": "str",
    "hashtags": "str",
    "tweet_id": "str",
    "present_media": "str",
    "present_links": "str",
    "present_domains": "str",
    "tweet_type": "str",
    "language": "str",
    "tweet_timestamp": "int64",
    "engaged_with_user_id": "str",
    "engaged_with_user_follower_count": "int64",
    "engaged_with_user_following_count": "int64",
    "engaged_with_user_is_verified": "str",
    "engaged_with_user_account_creation": "int64",
    "enaging_user_id": "str",
    "enaging_user_follower_count": "int64",
    "enaging_user_following_count": "int64",
    "enaging_user_is_verified": "str",
    "enaging_user_account_creation": "int64",
    "engagee_follows_engager": "str",
}
CODED = {"language": "language", "media": "present_media"}
MENTION, COLON, SEP = "137", "131", "102"  # "@", ":", and the end of a text
FIRST_HASHES = {"hashtags": "hashtag", "present_domains": "domain"}  # lists whose first hash is a key
TEXTS = "text_tokens"  # the networks' text: the column of the files


def read_part(e: Engine, path: Path, labelled: bool) -> Frame:
    """A part file's columns under the organisers' names."""
    kinds = TEXT | (dict.fromkeys(LABELS.values(), "float64") if labelled else {})
    return e.read_csv(path, kinds, names=list(LABELLED if labelled else FEATURES), separator=SEPARATOR)


def base(e: Engine, t: Frame, columns: FeatureSet, labelled: bool, extra: Sequence[str] = ()) -> Frame:
    """Features of the set that depend only on the row, and the columns `extra` unchanged. `language` and `present_media` are still strings."""
    for column, out in IDS.items():
        t = e.hex_id(t, column, out)
    t = e.with_columns(
        t, type=lambda c: equals(e, "tweet_type", "Retweet")(c) + 2 * equals(e, "tweet_type", "Quote")(c)
    )
    t, text_names = (decoded_text if columns.decoded else text_of_tokens)(e, t, columns)
    t = e.token_features(t, "present_media", LIST, counts={kind: out for out, kind in MEDIA.items()})
    for out in ("hashtags", "links", "domains"):
        t = e.token_features(t, LISTS[out], LIST, size=f"{out}_n")
    t = e.with_columns(t, **{out: equals(e, column, "true") for out, column in FLAGS.items()})
    if labelled:
        t = e.with_columns(t, **{label: is_present(e, column) for label, column in LABELS.items()})
    t = e.rename(t, {column: out for out, column in COUNTS.items()})
    kept = [*extra, *IDS.values(), *FLAGS, *COUNTS, *SYMBOLS, *MEDIA, *CODED.values()]
    kept += [
        *(f"{out}_n" for out in LISTS),
        "type",
        *text_names,
        *(TARGETS if labelled else ()),
    ]
    t = e.rename(e.select(t, kept), {f"{out}_n": out for out in LISTS})
    t = e.date_parts(t, "time", "s", {"weekday": "weekday", "hour": "hour", "minute": "minutes"})
    return steps(e, arithmetic(e, t))


def text_of_tokens(e: Engine, t: Frame, columns: FeatureSet) -> tuple[Frame, list[str]]:
    """Counts of symbols, and keys that are single tokens. Returns the frame, and the names of the keys."""
    t = e.token_features(
        t,
        TEXTS,
        LIST,
        size="tokens_n",
        counts={symbol: out for out, symbol in SYMBOLS.items()},
        at={1: "word", 3: "third"},
        after={(MENTION, 1): "first_mention", (MENTION, 2): "second_mention"},
    )
    t = e.with_columns(
        t,
        whom=lambda c: e.where(c("type") == 1, c("third"), -1),
        mention=lambda c: e.where(c("type") == 1, c("second_mention"), c("first_mention")),
    )
    return t, ["word", "whom", "mention"]


def decoded_text(e: Engine, t: Frame, columns: FeatureSet) -> tuple[Frame, list[str]]:
    """Counts of symbols and of the decoded text, keys that are words, and codes of keys. Returns the frame, and their names.

    A retweet's text begins with "RT @user:". This part, up to the first ":", is counted apart, and its user is not a mention.
    """
    t = e.token_features(
        t, TEXTS, LIST, size="tokens_n", counts={symbol: out for out, symbol in SYMBOLS.items()}
    )
    wanted = TextFeatures(
        vocabulary.saved(columns.pieces) if columns.pieces else vocabulary.pieces(columns.vocabulary),
        sums={name: name for name in DECODED},
        before={(name, COLON): out for name, out in HEAD.items()},
        words={0: "first_word", 1: "second_word"},
        after={(MENTION, nth): f"after_{nth}" for nth in (1, 2, 3)},
    )
    t = e.text_features(t, TEXTS, LIST, wanted)
    for column, out in FIRST_HASHES.items():
        t = e.first_hex_id(t, column, out)
    t = e.with_columns(
        t,
        **{out: retweets_only(e, out, 0) for out in HEAD.values()},
        **{name: without(name, out) for name, out in HEAD.items()},
        retweeted=retweets_only(e, "after_1", -1),
        mention_word=lambda c: e.where(c("type") == 1, c("after_2"), c("after_1")),
        second_mention_word=lambda c: e.where(c("type") == 1, c("after_3"), c("after_2")),
        last_mark=lambda c: last_mark(e, e.fill_null(c(TEXTS), "")),
    )
    t = e.with_columns(t, **{out: remainder(name) for out, name in HASHED.items()})
    return t, [*DECODED, *HEAD.values(), "last_mark", *HASHED, *HASHED.values()]


def retweets_only(e: Engine, name: str, other: int) -> Callable[[Columns], Expr]:
    """The column for retweets, and another value for other tweets."""
    return lambda c: e.where(c("type") == 1, c(name), other)


def without(whole: str, part: str) -> Callable[[Columns], Expr]:
    """The difference of two columns."""
    return lambda c: c(whole) - c(part)


def remainder(key: str) -> Callable[[Columns], Expr]:
    """A code from 0 to HASHES - 1 of a key."""
    return lambda c: c(key) % HASHES


def last_mark(e: Engine, text: Expr) -> Expr:
    """The mark at the end of a text: 1 "?", 2 "!", 3 "!?", 4 "?!", else 0."""
    question, exclamation = (SYMBOLS[name] for name in ("questions", "exclamations"))
    # A text with two marks also has the ending of its last mark.
    endings = {(question,): 1, (exclamation,): 2, (exclamation, question): 2, (question, exclamation): 2}
    return sum(
        e.cast(e.ends_with(text, LIST + LIST.join((*marks, SEP))), "int64") * value
        for marks, value in endings.items()
    )


def equals(e: Engine, column: str, value: str) -> Callable[[Columns], Expr]:
    """1 where the column has this value, else 0; 0 for missing values."""
    return lambda c: e.cast(e.fill_null(c(column), "") == value, "int64")


def is_present(e: Engine, column: str) -> Callable[[Columns], Expr]:
    """1 where the column has a value, else 0."""
    return lambda c: 1 - e.cast(e.is_null(c(column)), "int64")


def arithmetic(e: Engine, t: Frame) -> Frame:
    """Add ratios, ages, the author's group, the time of day, and `decline`: minutes after noon of a window's last day. Labels become
    rarer in this time, because engagements after the window's end are not labelled."""
    return e.with_columns(
        t,
        a_group=lambda c: sum(e.cast(c("a_followers") >= limit, "int64") for limit in GROUPS),
        minute=lambda c: c("hour") * 60 + c("minutes"),
        decline=lambda c: sum(decline(e, c("time"), noon) for noon in LAST_NOONS),
        a_ratio=lambda c: c("a_followers") / (c("a_following") + 1.0),
        b_ratio=lambda c: c("b_followers") / (c("b_following") + 1.0),
        ab_followers=lambda c: c("a_followers") / (c("b_followers") + 1.0),
        ab_following=lambda c: c("a_following") / (c("b_following") + 1.0),
        age_difference=lambda c: (c("a_created") - c("b_created")) / float(DAY),
        a_age=lambda c: (c("time") - c("a_created")) / float(DAY),
        b_age=lambda c: (c("time") - c("b_created")) / float(DAY),
    )


def decline(e: Engine, time: Expr, noon: int) -> Expr:
    """Minutes since `noon`, 0 before noon and after the end of that day."""
    inside = e.cast(time >= noon, "int64") * e.cast(time < noon + DAY // 2, "int64")
    return (time - noon) / 60.0 * inside


# ---- tables ------------------------------------------------------------------------------------------------------


def fit_codes(e: Engine, train: Source) -> dict[str, Frame]:
    """Codes of languages and media."""
    return {name: e.categorify_fit([(train([column]), column)]) for name, column in CODED.items()}


def code(e: Engine, t: Frame, codes: Mapping[str, Frame]) -> Frame:
    """Rows with strings replaced by codes."""
    for name, column in CODED.items():
        t = e.categorify(t, column, codes[name], f"{name}_code")
    return e.drop(t, list(CODED.values()))


def planned(table: Frame) -> Frame:
    """The table as it is: a lazy engine computes it later."""
    return table


def fit_tables(e: Engine, train: Source, columns: FeatureSet, compute: Compute = planned) -> dict[str, Frame]:
    """Sums of the labels and counts by each key, over coded rows, and the language that each reader sees most."""
    return sums_by(e, train, columns.keys, compute) | (
        {"spoken": compute(spoken(e, train))} if columns.pairs else {}
    )


def fit_raw_tables(
    e: Engine, early: Source, columns: FeatureSet, compute: Compute = planned
) -> dict[str, Frame]:
    """Sums and counts by the keys of the `split` trees, over coded rows of an earlier time."""
    return sums_by(e, early, columns.raw, compute)


def sums_by(e: Engine, rows: Source, wanted: Keys, compute: Compute) -> dict[str, Frame]:
    """Sums of the labels and counts of the rows by each of the keys."""
    return {
        name: compute(e.group_sums(rows([*keys, *TARGETS]), keys, list(TARGETS)))
        for name, keys in progress.over([*wanted.items()])
    }


def raw_lookups(tables: Mapping[str, Frame], columns: FeatureSet) -> list[Lookup]:
    """Raw sums and counts, for coded rows that the tables were not fitted on."""
    sums = [*(f"sum_{target}" for target in TARGETS), "n"]
    return [
        Lookup(tables[name], same(keys), {column: f"{column}_{name}" for column in sums}, 0)
        for name, keys in columns.raw.items()
    ]


def same(keys: Sequence[str]) -> dict[str, str]:
    """A mapping for keys that have the same name in frame and table."""
    return {key: key for key in keys}


def steps(e: Engine, t: Frame) -> Frame:
    """Add coarse columns of followers, followings and lateness, which are parts of the widest keys."""
    return e.with_columns(t, **{out: whole_part(e, column, width) for out, (column, width) in STEPS.items()})


def whole_part(e: Engine, column: str, width: float) -> Callable[[Columns], Expr]:
    """The column divided by `width`, int64."""
    return lambda c: e.cast(c(column) / width, "int64")


def fit_users(e: Engine, train: Source, least: int) -> Frame:
    """Codes from FIRST_CODE of the users in at least `least` rows, as author or reader: columns value, n, code."""
    users = e.categorify_fit([(train([who]), who) for who in "ab"], least)
    return e.filter(users, lambda c: c("code") >= FIRST_CODE)


def user_lookups(users: Frame) -> list[Lookup]:
    """Codes of author and reader, a_user and b_user; UNSEEN for users without a code."""
    return [Lookup(users, {who: "value"}, {"code": f"{who}_user"}, UNSEEN) for who in "ab"]


def spoken(e: Engine, train: Source) -> Frame:
    """The most frequent language of the tweets that each reader saw: columns b, spoken."""
    top = e.top_k(train(["b", "language_code"]), "b", "language_code", 1)
    return e.rename(e.drop(top, ["rank", "n"]), {"language_code": "spoken"})


def priors(e: Engine, tables: Mapping[str, Frame]) -> dict[str, float]:
    """Means of the labels over all rows, from the sums of a small table."""
    counted = e.with_columns(tables["context"], row=lambda c: c("type"))
    columns = [f"sum_{target}" for target in TARGETS]
    sums = e.to_numpy(counted, [*columns, "n"])
    return {target: float(sums[f"sum_{target}"].sum() / sums["n"].sum()) for target in TARGETS}


def looked_up_by(columns: FeatureSet) -> dict[str, KeyColumns]:
    """For each table of `fit_tables` its keys, and the columns of a frame that are looked up in it."""
    by: dict[str, KeyColumns] = {name: (keys, [keys]) for name, keys in columns.keys.items()}
    for whose, column in columns.reversed.values():
        by[whose][1].append([column])
    return by | ({"spoken": (["b"], [["b"]])} if columns.pairs else {})


def raw_looked_up_by(columns: FeatureSet) -> dict[str, KeyColumns]:
    """`looked_up_by` for `fit_raw_tables`."""
    return {name: (keys, [keys]) for name, keys in columns.raw.items()}


def encoding(
    e: Engine,
    table: Frame,
    keys: Sequence[str],
    means: Mapping[str, float],
    out: str,
    on: Sequence[str] | None = None,
) -> Lookup:
    """A target encoding of rows that the table of sums was not fitted on. on: the rows' columns, if their names differ from the keys."""
    smoothed = e.target_means(table, means, SMOOTHING, out)
    return Lookup(smoothed, dict(zip(on or keys, keys, strict=True)), *means_of(means, out))


def lookups(
    e: Engine, tables: Mapping[str, Frame], means: Mapping[str, float], columns: FeatureSet
) -> list[Lookup]:
    """The lookups in the tables of `fit_tables`, for coded rows that they were not fitted on. Call `pair_features` afterwards."""
    encodings = [encoding(e, tables[name], keys, means, f"te_{name}") for name, keys in columns.keys.items()]
    return [*encodings, *other_lookups(e, tables, means, columns)]


def other_lookups(
    e: Engine, tables: Mapping[str, Frame], means: Mapping[str, float], columns: FeatureSet
) -> list[Lookup]:
    """Reversed encodings, rows of the same author and reader (`met`), and the reader's usual language (`spoken`)."""
    reversed_encodings = [
        encoding(e, tables[whose], columns.keys[whose], means, f"te_{name}", [column])
        for name, (whose, column) in columns.reversed.items()
    ]
    if not columns.pairs:
        return reversed_encodings
    met = Lookup(tables["ab"], same(columns.keys["ab"]), {"n": "met"}, 0)
    return [*reversed_encodings, met, Lookup(tables["spoken"], same(["b"]), {"spoken": "spoken"}, 0)]


def pair_features(e: Engine, t: Frame, columns: FeatureSet, counted: int = 0) -> Frame:
    """Replace `met` and `spoken` by met_before, the number of other rows of this author and reader, and same_language, whether the
    tweet is in the reader's usual language. counted: how often the tables count the row itself, 0 or 1."""
    if not columns.pairs:
        return t
    t = e.with_columns(
        t,
        met_before=lambda c: e.clip(c("met") - counted, 0, 100),
        same_language=lambda c: e.cast(c("language_code") == c("spoken"), "int64"),
    )
    return e.drop(t, ["met", "spoken"])


def encode_own(
    e: Engine,
    t: Frame,
    tables: Mapping[str, Frame],
    means: Mapping[str, float],
    strategy: str,
    columns: FeatureSet,
    models: Collection[str] | None = None,
    *,
    source: Source,
) -> Frame:
    """All columns of `lookups` and `pair_features` for rows `t` of `source`, which the tables were fitted on, without their own labels.

    strategy: `kfold`, five folds by row (the winners' first XGBoost), or `loo`, leave-one-out (their second).  models: leave out target
    encodings that none of these models reads.
    """
    wanted = columns.keys if models is None else columns.keys_of(models)
    if strategy == "kfold":
        t = in_folds(e, t)
        for name, keys in wanted.items():
            rows = in_folds(e, source([*keys, *TARGETS]))
            t = e.target_encode_kfold(
                t, keys, "fold", means, SMOOTHING, f"te_{name}", source=rows, table=tables[name]
            )
        t = e.drop(t, ["fold"])
    else:
        for name, keys in wanted.items():
            many = e.height(tables[name]) > FEW_KEYS
            t = e.target_encode(t, tables[name], keys, means, SMOOTHING, f"te_{name}", leave_one_out=many)
    return pair_features(e, e.lookups(t, other_lookups(e, tables, means, columns)), columns, counted=1)


def in_folds(e: Engine, t: Frame) -> Frame:
    """Add the number of each row's fold, `fold`."""
    return e.with_columns(t, fold=lambda c: c("row") % FOLDS)
