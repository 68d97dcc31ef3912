"""Joined lists ("101\\t7\\t102") as arrays: all tokens of a column one after the other. The same text for NumPy and CuPy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from buzzer.engine.frames.base import CHECK_HINT, Array
from buzzer.errors import DataError

ROWS = 1 << 14


@dataclass(frozen=True)
class TokenLists:
    """A column's tokens; a row's are those from `first` on, `many` of them."""

    xp: Any  # numpy or cupy, whose arrays these are
    many: Array  # int64 [rows], 0 where missing or empty
    places: Callable[[str], Array]  # int64 [found]: which tokens are a given one
    numbers: Callable[[], Array]  # int64 [tokens]
    pick: Callable[[Array], Array]  # int64 [chosen]: the numbers of some tokens

    @cached_property
    def ends(self) -> Array:
        return self.xp.cumsum(self.many)

    @cached_property
    def first(self) -> Array:
        return self.ends - self.many

    def found(self, token: str) -> tuple[Array, Array]:
        """Where a token stands among all, and in which rows, int64 [found]."""
        at = self.places(token)
        return at, self.xp.searchsorted(self.ends, at, side="right")

    def count(self, token: str) -> Array:
        """How often a token stands in each row, int32."""
        _, row = self.found(token)
        return self.xp.bincount(row, minlength=len(self.many)).astype("int32")

    def at(self, place: int) -> Array:
        """The number at a place, int64; -1 where there is none."""
        there = self.xp.flatnonzero(self.many > place)
        found = self.xp.full(len(self.many), -1, dtype="int64")
        found[there] = self.pick(self.first[there] + place)
        return found

    def after(self, token: str, nth: int) -> Array:
        """The number that follows the nth occurrence of a token, int64; -1 where there is none."""
        xp = self.xp
        at, row = self.found(token)
        followed = at + 1 < self.ends[row]
        at, row = at[followed], row[followed]
        rank = xp.arange(len(row)) - xp.searchsorted(row, row)
        chosen = rank == nth - 1
        found = xp.full(len(self.many), -1, dtype="int64")
        found[row[chosen]] = self.pick(at[chosen] + 1)
        return found

    def matrix(self, length: int, dtype: str = "int32") -> Array:
        """The first numbers of each row [rows, length], 0 after the last."""
        xp = self.xp
        kept = xp.minimum(self.many, length)
        before = xp.cumsum(kept) - kept
        along = xp.arange(int(kept.sum()))
        found = xp.zeros(len(kept) * length, dtype=dtype)
        at = self.spread(self.first - before, kept) + along
        found[self.spread(xp.arange(len(kept)) * length - before, kept) + along] = self.numbers()[at]
        return found.reshape(len(kept), length)

    def spread(self, values: Array, many: Array) -> Array:
        """Each of the values so often."""
        if self.xp is np:
            return np.repeat(values, many)
        ends = self.xp.cumsum(many)  # CuPy repeats by numbers that the host knows
        return values[self.xp.searchsorted(ends, self.xp.arange(int(many.sum())), side="right")]


Computation = Callable[[TokenLists], dict[str, Array]]


def computed(engine: str, column: Any, separator: str, compute: Computation) -> dict[str, Array]:
    """Arrays of a row each by name: what `compute` makes of the column's lists; on the host of so many rows at a time that their
    tokens stay in the caches."""
    if engine == "cudf":
        return compute(on_device(column, separator))
    starts = range(0, max(len(column), 1), ROWS)
    parts = [compute(on_host(column.iloc[start : start + ROWS], separator)) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def on_host(column: Any, separator: str) -> TokenLists:
    """Of a pandas column, from the bytes of its Arrow form; the separator is one ASCII character."""
    offsets, data = arrow_text(column)
    filled = np.flatnonzero(np.diff(offsets))
    separators = data == ord(separator)
    places = np.flatnonzero(separators)
    before = np.searchsorted(places, offsets)  # separators before each row
    many = np.diff(before)
    many[filled] += 1
    # A token ends at a separator or at its row's end, where the next begins.
    ends = np.insert(places, before[filled + 1], offsets[filled + 1])
    starts = np.zeros(len(ends) + 1, dtype="int64")
    np.add(ends, 1, out=starts[1:])
    starts[np.cumsum(many[filled])] -= 1
    starts = starts[:-1]
    lengths = (ends - starts).astype("int32")
    by_length = cache(lambda length: np.flatnonzero(lengths == length))

    def places_of(token: str) -> Array:
        wanted = token.encode()
        at = by_length(len(wanted))
        for i, byte in enumerate(wanted):
            at = at[data[starts[at] + i] == byte]
        return at

    def pick(at: Array) -> Array:
        sizes = lengths[at]
        bounds = offsets_of(sizes)
        chosen = data[np.repeat(starts[at] - bounds[:-1], sizes) + np.arange(bounds[-1])]
        return integers(column.name, chosen, bounds)

    def numbers() -> Array:
        return integers(column.name, data[~separators], offsets_of(lengths))

    return TokenLists(np, many, cache(places_of), numbers, pick)


def offsets_of(sizes: Array) -> Array:
    return np.append(0, np.cumsum(sizes, dtype="int64"))


def integers(name: str, data: Array, offsets: Array) -> Array:
    """Decimal numbers that stand one after the other."""
    import pyarrow as pa

    texts = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        return texts.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name}: {error}", CHECK_HINT) from error


def arrow_text(column: Any) -> tuple[Array, Array]:
    """The offsets [rows + 1] and bytes of a pandas text column; a missing text is empty."""
    import pyarrow as pa

    text = pa.chunked_array(pa.array(column, type=pa.large_string(), from_pandas=True)).combine_chunks()
    text = text.fill_null("")
    _, offsets, data = text.buffers()
    places = np.frombuffer(offsets, dtype="int64")[text.offset : text.offset + len(text) + 1]
    return places - places[0], np.frombuffer(data or b"", dtype=np.uint8)[places[0] : places[-1]]


def on_device(column: Any, separator: str) -> TokenLists:
    """Of a cuDF column."""
    import cupy

    text = column.fillna("")
    filled = text != ""
    lists = text[filled].str.split(separator, regex=False).list
    tokens = lists.leaves
    many = cupy.zeros(len(text), dtype="int64")
    many[filled.values] = lists.len().values

    @cache
    def numbers() -> Array:
        try:
            return tokens.astype("int64").values
        except ValueError as error:
            raise DataError(f"column {column.name}: {error}", CHECK_HINT) from error

    def places(token: str) -> Array:
        return cupy.flatnonzero((tokens == token).values)

    return TokenLists(cupy, many, cache(places), numbers, lambda at: numbers()[at])
