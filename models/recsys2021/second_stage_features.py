"""Columns of the second stage: label means of the validation rows, and counts over the scored rows.

The fourth week is split into a validation and a test half, which share tweets and users. So label means of the validation half,
without each row's own label, predict the labels of the test half.
"""

from collections.abc import Iterable, Mapping, Sequence

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Lookup
from buzzer.models.recsys2021.features import KEYS, SMOOTHING, TARGETS, KeyColumns, encoding, in_folds, same

# Target encodings from the validation rows: name -> keys. Their columns are called week_<name>_<target>.
ENCODED: dict[str, list[str]] = {
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
COUNTED = {name: keys for name, keys in ENCODED.items() if name != "type"}
# Model -> its encodings and counts (winners' fourth and fifth XGBoost).
MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "loo": (("a", "b", "tweet"), ("a", "b", "tweet", "ab")),
    "kfold": (tuple(ENCODED), tuple(COUNTED)),
}


def names(model: str) -> list[str]:
    """The columns that a model reads in addition to the first stage's columns and predictions."""
    encoded, counted = MODELS[model]
    return [*(f"week_{name}_{t}" for name in encoded for t in TARGETS), *(f"rows_{name}" for name in counted)]


def encodings(models: Sequence[str]) -> list[str]:
    """The encodings that at least one of the models needs."""
    return [name for name in ENCODED if any(name in MODELS[model][0] for model in models)]


def counts(models: Sequence[str]) -> list[str]:
    """The counts that at least one of the models needs."""
    return [name for name in COUNTED if any(name in MODELS[model][1] for model in models)]


def fit_tables(e: Engine, validation: Frame, models: Sequence[str]) -> dict[str, Frame]:
    """Sums of the validation rows' labels by each key."""
    return {name: e.group_sums(validation, ENCODED[name], list(TARGETS)) for name in encodings(models)}


def looked_up_by(models: Sequence[str]) -> dict[str, KeyColumns]:
    """For each table of `fit_tables` its keys, and the columns that are looked up in it."""
    return {name: (ENCODED[name], [ENCODED[name]]) for name in encodings(models)}


def priors(e: Engine, validation: Frame) -> dict[str, float]:
    """Means of the validation rows' labels."""
    labels = e.to_numpy(validation, TARGETS)
    return {target: float(labels[target].mean()) for target in TARGETS}


def lookups(
    e: Engine, tables: Mapping[str, Frame], means: Mapping[str, float], models: Sequence[str]
) -> list[Lookup]:
    """Target encodings of rows that the tables were not fitted on."""
    return [encoding(e, tables[name], ENCODED[name], means, f"week_{name}") for name in encodings(models)]


def key_columns() -> list[str]:
    """The columns of all keys."""
    return [*dict.fromkeys(key for keys in ENCODED.values() for key in keys)]


def encode_own(
    e: Engine,
    t: Frame,
    tables: Mapping[str, Frame],
    means: Mapping[str, float],
    model: str,
    source: Frame | None = None,
) -> Frame:
    """Target encodings of validation rows: `loo` leaves out each row's own label, `kfold` the labels of its fold.

    source: the rows that the tables were fitted on, `t` among them; by default `t`.
    """
    if model == "loo":
        for name in encodings([model]):
            t = e.target_encode(
                t, tables[name], ENCODED[name], means, SMOOTHING, f"week_{name}", leave_one_out=True
            )
        return t
    whole = in_folds(e, t if source is None else source)
    t = in_folds(e, t)
    for name in encodings([model]):
        t = e.target_encode_kfold(t, ENCODED[name], "fold", means, SMOOTHING, f"week_{name}", source=whole)
    return e.drop(t, ["fold"])


def count(e: Engine, t: Frame, models: Sequence[str]) -> dict[str, Frame]:
    """How often each key occurs in some of the rows."""
    return {name: e.group_sums(t, COUNTED[name]) for name in counts(models)}


def add_up(e: Engine, parts: Iterable[Mapping[str, Frame]]) -> dict[str, Frame]:
    """The sum of the counts of several parts."""
    listed = list(parts)
    if len(listed) == 1:
        return dict(listed[0])
    whole = {
        name: e.group_sums(e.concat([part[name] for part in listed]), COUNTED[name], ["n"])
        for name in listed[0]
    }
    return {name: e.rename(e.drop(table, ["n"]), {"sum_n": "n"}) for name, table in whole.items()}


def count_lookups(counted: Mapping[str, Frame]) -> list[Lookup]:
    """Count encodings over all scored rows."""
    return [Lookup(table, same(COUNTED[name]), {"n": f"rows_{name}"}, 0) for name, table in counted.items()]
