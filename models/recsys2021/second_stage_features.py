"""Columns of the second stage: label means of the validation rows, and counts over the scored rows.

The fourth week is split into a validation and a test half, which share tweets and users. So label means of the validation half,
without each row's own label, predict the labels of the test half.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Lookup
from buzzer.models.recsys2021.feature_sets import FeatureSet, Keys
from buzzer.models.recsys2021.features import (
    SMOOTHING,
    TARGETS,
    Compute,
    KeyColumns,
    Source,
    encoding,
    in_folds,
    planned,
    same,
    sums_by,
)
from buzzer.models.recsys2021.params import SECOND

MODELS = SECOND  # winners: fourth and fifth XGBoost


def encodings(columns: FeatureSet, models: Sequence[str]) -> Keys:
    """The encodings that at least one of the models needs."""
    needed = {name for model in models for name in columns.second[model].encoded}
    return {name: keys for name, keys in columns.week.items() if name in needed}


def counts(columns: FeatureSet, models: Sequence[str]) -> Keys:
    """The counts that at least one of the models needs."""
    reversed_counts = {name: table for name, (table, _) in columns.counted_reversed.items()}
    needed = {reversed_counts.get(name, name) for model in models for name in columns.second[model].counted}
    return {name: keys for name, keys in columns.counted.items() if name in needed}


def fit_tables(
    e: Engine, validation: Source, columns: FeatureSet, models: Sequence[str], compute: Compute = planned
) -> dict[str, Frame]:
    """Sums of the validation rows' labels by each key."""
    return sums_by(e, validation, encodings(columns, models), compute)


def looked_up_by(columns: FeatureSet, models: Sequence[str]) -> dict[str, KeyColumns]:
    """For each table of `fit_tables` its keys, and the columns that are looked up in it."""
    return {name: (keys, [keys]) for name, keys in encodings(columns, models).items()}


def priors(e: Engine, validation: Source) -> dict[str, float]:
    """Means of the validation rows' labels."""
    labels = e.to_numpy(validation(TARGETS), TARGETS)
    return {target: float(labels[target].mean()) for target in TARGETS}


def lookups(
    e: Engine,
    tables: Mapping[str, Frame],
    means: Mapping[str, float],
    columns: FeatureSet,
    models: Sequence[str],
) -> list[Lookup]:
    """Target encodings of rows that the tables were not fitted on."""
    wanted = encodings(columns, models)
    return [encoding(e, tables[name], keys, means, f"week_{name}") for name, keys in wanted.items()]


def encode_own(
    e: Engine,
    t: Frame,
    tables: Mapping[str, Frame],
    means: Mapping[str, float],
    columns: FeatureSet,
    model: str,
    source: Source | None = None,
) -> Frame:
    """Target encodings of validation rows: `loo` leaves out each row's own label, `kfold` the labels of its fold.

    source: the rows that the tables were fitted on, `t` among them; by default `t`.
    """
    wanted = encodings(columns, [model])
    if model == "loo":
        for name, keys in wanted.items():
            t = e.target_encode(t, tables[name], keys, means, SMOOTHING, f"week_{name}", leave_one_out=True)
        return t
    source = source or partial(e.select, t)
    t = in_folds(e, t)
    for name, keys in wanted.items():
        rows = in_folds(e, source([*keys, *TARGETS]))
        t = e.target_encode_kfold(t, keys, "fold", means, SMOOTHING, f"week_{name}", source=rows)
    return e.drop(t, ["fold"])


def count(e: Engine, rows: Source, columns: FeatureSet, models: Sequence[str]) -> dict[str, Frame]:
    """How often each key occurs in some of the rows."""
    return {name: e.group_sums(rows(keys), keys) for name, keys in counts(columns, models).items()}


def add_up(e: Engine, parts: Iterable[Mapping[str, Frame]], columns: FeatureSet) -> dict[str, Frame]:
    """The sum of the counts of several parts."""
    listed = list(parts)
    if len(listed) == 1:
        return dict(listed[0])
    whole = {
        name: e.group_sums(e.concat([part[name] for part in listed]), columns.counted[name], ["n"])
        for name in listed[0]
    }
    return {name: e.rename(e.drop(table, ["n"]), {"sum_n": "n"}) for name, table in whole.items()}


def counted_keys(counted: Mapping[str, Frame], columns: FeatureSet) -> list[tuple[Sequence[str], Frame]]:
    """The key columns of each table of counts, and the table."""
    return [(columns.counted[name], table) for name, table in counted.items()]


def count_lookups(counted: Mapping[str, Frame], columns: FeatureSet) -> list[Lookup]:
    """Count encodings over all scored rows."""
    return [
        Lookup(table, same(columns.counted[name]), {"n": f"rows_{name}"}, 0)
        for name, table in counted.items()
    ] + [
        Lookup(counted[name], {column: columns.counted[name][0]}, {"n": f"rows_{out}"}, 0)
        for out, (name, column) in columns.counted_reversed.items()
        if name in counted
    ]
