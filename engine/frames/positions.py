"""Lookups of a pandas frame in small tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from buzzer.engine.frames.base import Array, Frame, Lookup, fill_of

LARGEST = 2**62  # of combined codes
SPARE = 4  # slots for each key, up to which a code is an address


def looked_up(t: Frame, wanted: Sequence[Lookup]) -> Frame:
    """`Engine.lookups`."""
    positions = Positions(t)
    found: dict[str, Any] = {}
    for each in wanted:
        at = positions.of(each.table, each.on)
        for column, name in each.columns.items():
            found[name] = taken(each.table[column], at, fill_of(each.fill, name))
    return t.assign(**found)


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


class Positions:
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
                mine, index = numbered(pd.Series(mine).where(mine >= 0))
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


def numbered(column: pd.Series) -> tuple[Array, pd.Index]:
    """Numbers of a column's values, -1 where missing, and the values."""
    codes, values = pd.factorize(column)
    return codes, pd.Index(values)
