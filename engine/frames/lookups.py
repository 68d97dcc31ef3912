"""Several left joins with small tables at once. pandas gathers by row numbers from an index; cuDF merges the keys only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from buzzer.engine.frames.base import Array, Frame, Lookup, by_keys, fill_of

LARGEST = 2**62  # limit of combined codes
SPARE = 4  # a code is used as an array index if the array has at most this many slots per key


def by_position(t: Frame, wanted: Sequence[Lookup]) -> Frame:
    """`Engine.lookups` of a pandas frame."""
    finder = RowFinder(t)
    new: dict[str, Any] = {}
    for each in wanted:
        at = finder.rows_of(each.table, each.on)
        for column, name in each.columns.items():
            new[name] = taken(each.table[column], at, fill_of(each.fill, name))
    others = t.drop(columns=[name for name in new if name in t.columns])
    # All at once: adding dozens of columns one by one takes longer than computing them.
    return pd.concat([others, pd.DataFrame(new, index=t.index, copy=False)], axis=1)


def by_merge(xp: Any, t: Frame, wanted: Sequence[Lookup]) -> Frame:
    """`Engine.lookups` of a cuDF frame (xp: cudf), with one merge for all lookups with the same key columns.

    cuDF's merge does not keep the order of rows, converts integers to float64 if a row has no match, and copies every
    column of both sides. So only keys and row numbers are merged; the values are gathered by row number.
    """
    new: dict[str, Any] = {}
    for keys, same in by_keys(wanted).items():
        on = list(keys)
        numbers = numbered_keys(same[0], "_at0")
        for i, each in enumerate(same[1:], 1):
            numbers = numbers.merge(numbered_keys(each, f"_at{i}"), on=on, how="outer")
        rows = t[on].assign(_row=range(len(t))).merge(numbers, on=on, how="left")
        rows = rows[["_row", *(f"_at{i}" for i in range(len(same)))]].sort_values("_row")
        for i, each in enumerate(same):
            at = rows[f"_at{i}"].fillna(len(each.table)).astype("int64")
            gathered = padded(xp, each).take(at)
            gathered.index = t.index
            new |= {name: gathered[name] for name in each.columns.values()}
    return t.assign(**{name: new[name] for each in wanted for name in each.columns.values()})


def numbered_keys(wanted: Lookup, number: str) -> Frame:
    """The keys of a lookup's table, renamed as in the frame, with each row's number. Rows with a missing key are left out."""
    names = {right: left for left, right in wanted.on.items()}
    keys = wanted.table[list(names)].rename(columns=names)
    return keys.assign(**{number: range(len(keys))}).dropna()


def padded(xp: Any, wanted: Lookup) -> Frame:
    """The columns of a lookup's table, renamed and with missing values filled, plus one last row of fill values."""
    table = wanted.table[list(wanted.columns)].rename(columns=dict(wanted.columns))
    kinds = dict(table.dtypes)
    values = {name: filling(kind, fill_of(wanted.fill, name)) for name, kind in kinds.items()}
    last = {name: [value] if isinstance(value, str) else np.array([value]) for name, value in values.items()}
    return xp.concat([table.fillna(values), xp.DataFrame(last)], ignore_index=True)


def taken(column: pd.Series, at: Array, fill: Any) -> Any:
    """The column's values at these row numbers; the fill at -1 and for missing values."""
    value = filling(column.dtype, fill)
    if not isinstance(column.dtype, np.dtype):
        return column.array.take(at, allow_fill=True).fillna(value)
    values = np.empty(len(column) + 1, dtype=column.dtype)
    values[:-1] = column.fillna(value)
    values[-1] = value  # row number -1 reads it
    return values[at]


def filling(kind: Any, value: Any) -> Any:
    """A fill value converted to the column's type if that is a number."""
    return kind.type(value) if kind.kind in "iufb" else value


class RowFinder:
    """Finds rows of tables by the keys of a pandas frame.

    Each key column of the frame is factorised once for all tables. A table's keys get codes from the column's distinct values. The
    codes of several columns are combined into one number.
    """

    def __init__(self, t: Frame) -> None:
        self._t = t
        self._factorised: dict[str, tuple[Array, pd.Index]] = {}

    def rows_of(self, table: Frame, on: Mapping[str, str]) -> Array:
        """The table's row number for each row of the frame, int64 [rows], -1 without a match. on: as in `Lookup`."""
        left, right, size = self._combined(table, list(on.items()))
        valid = np.flatnonzero(right >= 0)
        if size <= SPARE * (len(left) + len(right)):
            slots = np.full(size + 1, -1, dtype=np.int64)  # code -1 reads the last slot
            slots[right[valid]] = valid
            return slots[left]
        at = pd.Index(right[valid]).get_indexer(pd.Index(left))
        return np.append(valid, -1)[at]

    def _combined(self, table: Frame, keys: Sequence[tuple[str, str]]) -> tuple[Array, Array, int]:
        """Codes of the key combinations in the frame and in the table, and the number of possible codes. -1 cannot match."""
        first, *others = keys
        left, right, size = self._codes(table, *first)
        for key in others:
            left_codes, right_codes, count = self._codes(table, *key)
            if size * count > LARGEST:
                valid = left >= 0
                left[valid], index = factorised(left[valid])
                right, size = index.get_indexer(pd.Index(right)), len(index)
            left = np.where((left < 0) | (left_codes < 0), -1, left * count + left_codes)
            right = np.where((right < 0) | (right_codes < 0), -1, right * count + right_codes)
            size *= count
        return left, right, size

    def _codes(self, table: Frame, left: str, right: str) -> tuple[Array, Array, int]:
        """Codes of one key column of the frame and of the table, and the number of distinct values."""
        if left not in self._factorised:
            self._factorised[left] = factorised(self._t[left])
        codes, index = self._factorised[left]
        return codes, index.get_indexer(pd.Index(table[right])), len(index)


def factorised(column: Any) -> tuple[Array, pd.Index]:
    """A column's codes, -1 for missing values, and its distinct values."""
    codes, values = pd.factorize(column)
    return codes, pd.Index(values)
