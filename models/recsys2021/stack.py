"""The second stage: what the validation week tells, and counts over the rows that are scored.

The fourth week's halves share tweets and users, so that means fitted on the validation half, each of its own rows left out, say
much of the test half.
"""

from collections.abc import Iterable, Mapping

from buzzer.engine.frames import Engine, Frame
from buzzer.models.recsys2021.features import SMOOTHING, TARGETS

KEYS = {"a": ["a"], "b": ["b"], "tweet": ["tweet"], "b_type": ["b", "type"]}
COUNTED = {"a": ["a"], "b": ["b"], "tweet": ["tweet"], "ab": ["a", "b"]}


def names() -> list[str]:
    """The columns that stand beside the first stage's columns and predictions."""
    encoded = [f"week_{name}_{target}" for name in KEYS for target in TARGETS]
    return [*encoded, *(f"rows_{name}" for name in COUNTED)]


def fit_tables(e: Engine, week: Frame) -> dict[str, Frame]:
    """Sums of the validation week's labels by each key."""
    return {name: e.group_sums(week, keys, list(TARGETS)) for name, keys in KEYS.items()}


def encode(
    e: Engine, t: Frame, tables: Mapping[str, Frame], means: Mapping[str, float], *, own: bool
) -> Frame:
    """Target encodings by the validation week; `own` for its own rows, each without its own labels."""
    for name, keys in KEYS.items():
        t = e.target_encode(t, tables[name], keys, means, SMOOTHING, f"week_{name}", leave_one_out=own)
    return t


def count(e: Engine, t: Frame) -> dict[str, Frame]:
    """How often each key occurs in some of the rows."""
    return {name: e.group_sums(t, keys) for name, keys in COUNTED.items()}


def add_up(e: Engine, parts: Iterable[Mapping[str, Frame]]) -> dict[str, Frame]:
    """The counts of several parts together."""
    listed = list(parts)
    if len(listed) == 1:
        return dict(listed[0])
    whole = {
        name: e.group_sums(e.concat([part[name] for part in listed]), keys, ["n"])
        for name, keys in COUNTED.items()
    }
    return {name: e.rename(e.drop(table, ["n"]), {"sum_n": "n"}) for name, table in whole.items()}


def look_up(e: Engine, t: Frame, counts: Mapping[str, Frame]) -> Frame:
    """Count encodings over all rows that are scored."""
    for name, keys in COUNTED.items():
        t = e.lookup(t, counts[name], {key: key for key in keys}, {"n": f"rows_{name}"}, 0)
    return t
