"""The second stage: what the validation week tells, and counts over the rows that are scored.

The fourth week's halves share tweets and users, so that means fitted on the validation half, each row's own label left out, say
much of the test half.
"""

from collections.abc import Iterable, Mapping, Sequence

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Lookup
from buzzer.models.recsys2021.features import FOLDS, KEYS, SMOOTHING, TARGETS, Asked, encoding, same

# Target encodings by the validation week, and count encodings: name -> keys.
WEEK: dict[str, list[str]] = {
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
COUNTED = {name: keys for name, keys in WEEK.items() if name != "type"}
# Model -> its encodings and counts (winners' fourth and fifth XGBoost).
MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "loo": (("a", "b", "tweet"), ("a", "b", "tweet", "ab")),
    "kfold": (tuple(WEEK), tuple(COUNTED)),
}


def names(model: str) -> list[str]:
    """The columns that a model sees beside the first stage's columns and predictions."""
    encoded, counted = MODELS[model]
    return [*(f"week_{name}_{t}" for name in encoded for t in TARGETS), *(f"rows_{name}" for name in counted)]


def encodings(models: Sequence[str]) -> list[str]:
    """The encodings that some of the models need."""
    return [name for name in WEEK if any(name in MODELS[model][0] for model in models)]


def counts(models: Sequence[str]) -> list[str]:
    """The counts that some of the models need."""
    return [name for name in COUNTED if any(name in MODELS[model][1] for model in models)]


def fit_tables(e: Engine, week: Frame, models: Sequence[str]) -> dict[str, Frame]:
    """Sums of the validation week's labels by each key."""
    return {name: e.group_sums(week, WEEK[name], list(TARGETS)) for name in encodings(models)}


def looked_up_by(models: Sequence[str]) -> dict[str, Asked]:
    """For each of the tables its keys, and the columns that are looked up there."""
    return {name: (WEEK[name], [WEEK[name]]) for name in encodings(models)}


def priors(e: Engine, week: Frame) -> dict[str, float]:
    """Means of the validation week's labels."""
    labels = e.to_numpy(week, TARGETS)
    return {target: float(labels[target].mean()) for target in TARGETS}


def lookups(
    e: Engine, tables: Mapping[str, Frame], means: Mapping[str, float], models: Sequence[str]
) -> list[Lookup]:
    """Target encodings of rows that the tables were not fitted on."""
    return [encoding(e, tables[name], WEEK[name], means, f"week_{name}") for name in encodings(models)]


def encode_own(
    e: Engine, t: Frame, tables: Mapping[str, Frame], means: Mapping[str, float], model: str
) -> Frame:
    """The same for the validation week's own rows: each without its own label, or without its fold's."""
    if model == "loo":
        for name in encodings([model]):
            t = e.target_encode(
                t, tables[name], WEEK[name], means, SMOOTHING, f"week_{name}", leave_one_out=True
            )
        return t
    t = source = e.with_columns(t, fold=lambda c: c("row") % FOLDS)
    for name in encodings([model]):
        t = e.target_encode_kfold(t, WEEK[name], "fold", means, SMOOTHING, f"week_{name}", source=source)
    return e.drop(t, ["fold"])


def count(e: Engine, t: Frame, models: Sequence[str]) -> dict[str, Frame]:
    """How often each key occurs in some of the rows."""
    return {name: e.group_sums(t, COUNTED[name]) for name in counts(models)}


def add_up(e: Engine, parts: Iterable[Mapping[str, Frame]]) -> dict[str, Frame]:
    """The counts of several parts together."""
    listed = list(parts)
    if len(listed) == 1:
        return dict(listed[0])
    whole = {
        name: e.group_sums(e.concat([part[name] for part in listed]), COUNTED[name], ["n"])
        for name in listed[0]
    }
    return {name: e.rename(e.drop(table, ["n"]), {"sum_n": "n"}) for name, table in whole.items()}


def count_lookups(counted: Mapping[str, Frame]) -> list[Lookup]:
    """Count encodings over all rows that are scored."""
    return [Lookup(table, same(COUNTED[name]), {"n": f"rows_{name}"}, 0) for name, table in counted.items()]
