"""Lookups in small tables: of a pandas frame by places found on the host, of a cuDF frame by merges of nothing but keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from buzzer.engine.frames.base import Array, Frame, Lookup, by_keys, fill_of

LARGEST = 2**62  # of combined codes
SPARE = 4  # slots for each key, up to which a code is an address


def by_places(t: Frame, wanted: Sequence[Lookup]) -> Frame:
    """`Engine.lookups` of a pandas frame."""
    places = Places(t)
    found: dict[str, Any] = {}
    for each in wanted:
        at = places.of(each.table, each.on)
        for column, name in each.columns.items():
            found[name] = taken(each.table[column], at, fill_of(each.fill, name))
    others = t.drop(columns=[name for name in found if name in t.columns])
    # All at once, as dozens of single columns take longer than what is in them.
    return pd.concat([others, pd.DataFrame(found, index=t.index, copy=False)], axis=1)


def by_merge(xp: Any, t: Frame, wanted: Sequence[Lookup]) -> Frame:
    """The same by one merge for all lookups by the same columns of the frame. cuDF's merge keeps no order, makes float64 of integers
    where a row finds nothing, and gathers whatever it is given: so only keys and places go through it."""
    found: dict[str, Any] = {}
    for keys, together in by_keys(wanted).items():
        on = list(keys)
        places = numbered_keys(together[0], "_at0")
        for i, each in enumerate(together[1:], 1):
            places = places.merge(numbered_keys(each, f"_at{i}"), on=on, how="outer")
        rows = t[on].assign(_row=range(len(t))).merge(places, on=on, how="left")
        rows = rows[["_row", *(f"_at{i}" for i in range(len(together)))]].sort_values("_row")
        for i, each in enumerate(together):
            at = rows[f"_at{i}"].fillna(len(each.table)).astype("int64")
            gathered = padded(xp, each).take(at)
            gathered.index = t.index
            found |= {name: gathered[name] for name in each.columns.values()}
    return t.assign(**{name: found[name] for each in wanted for name in each.columns.values()})


def numbered_keys(wanted: Lookup, place: str) -> Frame:
    """The keys of a lookup's table as the frame names them, and each row's number, without rows that miss a key."""
    back = {right: left for left, right in wanted.on.items()}
    keys = wanted.table[list(back)].rename(columns=back)
    return keys.assign(**{place: range(len(keys))}).dropna()


def padded(xp: Any, wanted: Lookup) -> Frame:
    """The columns of a lookup's table by their new names, the fill where it has none, and one more row of the fill."""
    table = wanted.table[list(wanted.columns)].rename(columns=dict(wanted.columns))
    kinds = dict(table.dtypes)
    values = {name: filling(kind, fill_of(wanted.fill, name)) for name, kind in kinds.items()}
    last = {name: [value] if isinstance(value, str) else np.array([value]) for name, value in values.items()}
    return xp.concat([table.fillna(values), xp.DataFrame(last)], ignore_index=True)


def taken(column: pd.Series, at: Array, fill: Any) -> Any:
    """The column's values at these places, the fill at -1 and where there is none."""
    value = filling(column.dtype, fill)
    if not isinstance(column.dtype, np.dtype):
        return column.array.take(at, allow_fill=True).fillna(value)
    known = np.empty(len(column) + 1, dtype=column.dtype)
    known[:-1] = column.fillna(value)
    known[-1] = value
    return known[at]


def filling(kind: Any, value: Any) -> Any:
    """A fill as a number of the column's own type."""
    return kind.type(value) if kind.kind in "iufb" else value


class Places:
    """Each key column of the frame is numbered once, however many tables are asked: numbers of several columns make one number of a
    combination, and those of the table's rows are found by its few different values."""

    def __init__(self, t: Frame) -> None:
        self._t = t
        self._numbered: dict[str, tuple[Array, pd.Index]] = {}

    def of(self, table: Frame, on: Mapping[str, str]) -> Array:
        """The table's row for each of the frame's [rows], -1 where there is none; on: the frame's columns -> the table's."""
        mine, theirs, many = self._combined(table, list(on.items()))
        there = np.flatnonzero(theirs >= 0)
        if many <= SPARE * (len(mine) + len(theirs)):
            slots = np.full(many + 1, -1, dtype=np.int64)  # the last is what -1 reads
            slots[theirs[there]] = there
            return slots[mine]
        found = pd.Index(theirs[there]).get_indexer(pd.Index(mine))
        return np.append(there, -1)[found]

    def _combined(self, table: Frame, keys: Sequence[tuple[str, str]]) -> tuple[Array, Array, int]:
        """Numbers of the combinations of keys: the frame's, the table's, and how many there may be; -1 where they cannot meet."""
        first, *others = keys
        mine, theirs, many = self._one(table, *first)
        for key in others:
            codes, found, size = self._one(table, *key)
            if many * size > LARGEST:
                there = mine >= 0
                mine[there], index = numbered(mine[there])
                theirs, many = index.get_indexer(pd.Index(theirs)), len(index)
            mine = np.where((mine < 0) | (codes < 0), -1, mine * size + codes)
            theirs = np.where((theirs < 0) | (found < 0), -1, theirs * size + found)
            many *= size
        return mine, theirs, many

    def _one(self, table: Frame, mine: str, theirs: str) -> tuple[Array, Array, int]:
        if mine not in self._numbered:
            self._numbered[mine] = numbered(self._t[mine])
        codes, index = self._numbered[mine]
        return codes, index.get_indexer(pd.Index(table[theirs])), len(index)


def numbered(column: Any) -> tuple[Array, pd.Index]:
    """Numbers of a column's values, -1 where missing, and the values."""
    codes, values = pd.factorize(column)
    return codes, pd.Index(values)
