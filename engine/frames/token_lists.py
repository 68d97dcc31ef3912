"""Joined lists ("101\\t7\\t102") as arrays. One array has the tokens of all rows. The same code runs on NumPy and CuPy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from buzzer.engine.frames.base import (
    CHECK_HINT,
    LAST_START,
    LONGEST,
    PIECE_BITS,
    PIECES_OF_KEY,
    Array,
    Pieces,
    TextFeatures,
)
from buzzer.errors import DataError

ROWS = 1 << 14  # rows processed at a time on the host, so that their tokens stay in the CPU's caches


@dataclass(frozen=True)
class TokenLists:
    """The tokens of a column. Each row has `lengths` adjacent tokens; the first has the index `first`."""

    xp: Any  # numpy or cupy; the module of all arrays here
    lengths: Array  # int64 [rows], the number of tokens; 0 if missing or empty
    occurrences: Callable[[str], Array]  # a token -> the indices of its occurrences, int64, ascending
    numbers: Callable[[], Array]  # all tokens as numbers, int64 [tokens]
    pick: Callable[[Array], Array]  # indices of tokens -> those tokens as numbers, int64

    @cached_property
    def ends(self) -> Array:
        """The index after each row's last token, int64 [rows]."""
        return self.xp.cumsum(self.lengths)

    @cached_property
    def first(self) -> Array:
        """The index of each row's first token, int64 [rows]."""
        return self.ends - self.lengths

    def located(self, token: str) -> tuple[Array, Array]:
        """The indices of a token's occurrences, and their rows; both int64 [occurrences]."""
        at = self.occurrences(token)
        return at, self.xp.searchsorted(self.ends, at, side="right")

    def count(self, token: str) -> Array:
        """How often a token is in each row, int32 [rows]."""
        _, row = self.located(token)
        return self.xp.bincount(row, minlength=len(self.lengths)).astype("int32")

    def at(self, position: int) -> Array:
        """The number at a position of each row, int64 [rows]; -1 if there is none."""
        rows = self.xp.flatnonzero(self.lengths > position)
        values = self.xp.full(len(self.lengths), -1, dtype="int64")
        values[rows] = self.pick(self.first[rows] + position)
        return values

    def after(self, token: str, nth: int) -> Array:
        """The number that follows the nth occurrence of a token in each row, int64 [rows]; -1 if there is none."""
        index = self.index_after(token, nth)
        rows = self.xp.flatnonzero(index >= 0)
        values = self.xp.full(len(self.lengths), -1, dtype="int64")
        values[rows] = self.pick(index[rows])
        return values

    def index_after(self, token: str, nth: int) -> Array:
        """The index of the token that follows the nth occurrence of a token in each row, int64 [rows]; -1 if there is none."""
        xp = self.xp
        at, row = self.located(token)
        followed = at + 1 < self.ends[row]
        at, row = at[followed], row[followed]
        rank = xp.arange(len(row)) - xp.searchsorted(row, row)
        chosen = rank == nth - 1
        values = xp.full(len(self.lengths), -1, dtype="int64")
        values[row[chosen]] = at[chosen] + 1
        return values

    def matrix(self, length: int) -> Array:
        """The first numbers of each row, int32 [rows, length], padded with 0."""
        xp = self.xp
        kept = xp.minimum(self.lengths, length)
        before = xp.cumsum(kept) - kept
        along = xp.arange(int(kept.sum()))
        values = xp.zeros(len(kept) * length, dtype="int32")
        at = self.repeated(self.first - before, kept) + along
        values[self.repeated(xp.arange(len(kept)) * length - before, kept) + along] = self.numbers()[at]
        return values.reshape(len(kept), length)

    def repeated(self, values: Array, counts: Array) -> Array:
        """Each value as often as its count."""
        if self.xp is np:
            return np.repeat(values, counts)
        ends = self.xp.cumsum(counts)  # CuPy's `repeat` needs counts on the host
        return values[self.xp.searchsorted(ends, self.xp.arange(int(counts.sum())), side="right")]


@dataclass(frozen=True)
class Packed:
    """Up to four amounts in one integer for each token id, so that they are summed at once. The sum of an amount over LONGEST tokens fits
    into BITS, because an amount is less than 256. So the difference of two running sums, modulo 2**64, has no carries."""

    names: tuple[str, ...]
    table: Array  # uint64 [tokens]


BITS, IN_ONE = 16, 4
SUM = np.uint64(2**BITS - 1)


def packed(pieces: Pieces, names: Sequence[str]) -> list[Packed]:
    """The amounts of these names."""
    groups = [tuple(names[start : start + IN_ONE]) for start in range(0, len(names), IN_ONE)]
    return [Packed(group, in_one([pieces.amounts[name] for name in group])) for group in groups]


def in_one(amounts: Sequence[Array]) -> Array:
    """Several amounts in one integer, uint64 [tokens]."""
    table = np.zeros(len(amounts[0]), dtype="uint64")
    for place, amount in enumerate(amounts):
        table |= amount.astype("uint64") << np.uint64(BITS * place)
    return table


class Text:
    """The texts that the lists are tokens of."""

    def __init__(self, lists: TokenLists, pieces: Pieces) -> None:
        self.lists, self.xp = lists, lists.xp
        # One more token, so that every index has one.
        self.numbers = self.xp.append(lists.numbers(), 0)
        # Ids that are not in the vocabulary share a last entry.
        size = len(pieces.continues)
        known = (self.numbers >= 0) & (self.numbers < size)
        self.ids = self.numbers if known.all() else self.xp.where(known, self.numbers, size)
        self.continues = self._by_token(pieces.continues)

    def _by_token(self, values: Array) -> Array:
        """The values of all tokens, from values by id."""
        return self.xp.append(self.xp.asarray(values), self.xp.zeros(1, dtype=values.dtype))[self.ids]

    def sums(
        self, packed: Sequence[Packed], names: Mapping[str, str], before: Mapping[tuple[str, str], str]
    ) -> dict[str, Array]:
        """The columns `sums` and `before` of `TextFeatures`, int32 [rows] each. packed: their amounts."""
        lists, new = self.lists, dict[str, Array]()
        ends = lists.first + self.xp.minimum(lists.lengths, LONGEST)
        stops = {"": ends} | {token: self._first_of(token, ends) for _, token in before}
        wanted = {"": names} | {
            token: {n: o for (n, of), o in before.items() if of == token} for _, token in before
        }
        for amounts in packed:
            by_token = self._by_token(amounts.table)
            running = self.xp.cumsum(by_token) - by_token  # sums over all tokens before each
            for token, stop in stops.items():
                total = running[stop] - running[lists.first]
                for place, name in enumerate(amounts.names):
                    if name in wanted[token]:
                        new[wanted[token][name]] = ((total >> np.uint64(BITS * place)) & SUM).astype("int32")
        return new

    def _first_of(self, token: str, ends: Array) -> Array:
        """The index of the first occurrence before `ends` in each row; that of the row's first token if there is none."""
        at, row = self.lists.located(token)
        earliest = self.xp.searchsorted(row, row) == self.xp.arange(len(row))
        index = self.lists.first.copy()
        index[row[earliest]] = at[earliest]
        return self.xp.where(index < ends, index, self.lists.first)

    def nth_word(self, nth: int) -> Array:
        """Keys of the first (0) or second (1) word of each row, int64 [rows]; -1 if there is none."""
        first, ends = self.lists.first, self.lists.ends
        if nth == 0:
            return self.keys(self.xp.where(first + 1 < ends, first + 1, -1))
        start = self.xp.full(len(first), -1, dtype="int64")
        for position in range(LAST_START, 1, -1):
            at = self.xp.minimum(first + position, len(self.numbers) - 1)
            start = self.xp.where((first + position < ends) & ~self.continues[at], at, start)
        return self.keys(start)

    def after(self, token: str, nth: int) -> Array:
        """Keys of the words after the nth occurrence of a token, int64 [rows]; -1 if there is none."""
        return self.keys(self.lists.index_after(token, nth))

    def keys(self, start: Array) -> Array:
        """Keys of the words that start at these indices, int64 [rows]; -1 where the index is -1."""
        inside = start >= 0
        keys = self.xp.where(inside, self.numbers[start], -1)
        for step in range(1, PIECES_OF_KEY):
            at = self.xp.minimum(start + step, len(self.numbers) - 1)
            inside = inside & (start + step < self.lists.ends) & self.continues[at]
            keys += self.xp.where(inside, self.numbers[at] << PIECE_BITS * step, 0)
        return keys


def word_keys(pieces: Pieces, spans: Array) -> Array:
    """Keys of words as in `TextFeatures`, int64 [words]; -1 for no word.

    spans: the first tokens from each word's start, int64 [words, at least PIECES_OF_KEY]; -1 after the end of the text.
    """
    inside = spans >= 0
    lists = of_numbers(inside.sum(axis=1), spans[inside])
    return Text(lists, pieces).keys(np.where(lists.lengths > 0, lists.first, -1))


def of_numbers(lengths: Array, numbers: Array) -> TokenLists:
    """The lists whose tokens are these numbers, on the host."""
    return TokenLists(
        np, lengths, lambda token: np.flatnonzero(numbers == int(token)), lambda: numbers, numbers.__getitem__
    )


Computation = Callable[[TokenLists], dict[str, Array]]


def text_features(features: TextFeatures) -> Computation:
    """The computation of `Engine.text_features`."""
    amounts = packed(features.pieces, features.amounts())

    def compute(lists: TokenLists) -> dict[str, Array]:
        text = Text(lists, features.pieces)
        new = text.sums(amounts, features.sums, features.before)
        new |= {out: text.nth_word(nth) for nth, out in features.words.items()}
        return new | {out: text.after(token, nth) for (token, nth), out in features.after.items()}

    return compute


def computed(on_gpu: bool, column: Any, separator: str, compute: Computation) -> dict[str, Array]:
    """The arrays that `compute` makes of a column's lists, by name, each with one entry per row. On the host, ROWS rows at a time."""
    if on_gpu:
        return compute(on_device(column, separator))
    return computed_on_host(column.name, large_text(column), separator, compute)


def computed_on_host(name: str, text: Any, separator: str, compute: Computation) -> dict[str, Array]:
    """`computed` for a pyarrow.LargeStringArray. name: of the column, for messages."""
    starts = range(0, max(len(text), 1), ROWS)
    parts = [compute(of_arrow(name, text[start : start + ROWS], separator)) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def on_host(column: Any, separator: str) -> TokenLists:
    """The lists of a pandas column."""
    return of_arrow(column.name, large_text(column), separator)


def of_arrow(name: str, text: Any, separator: str) -> TokenLists:
    """The lists of a pyarrow.LargeStringArray, from its bytes. The separator is one ASCII character."""
    offsets, data = bytes_of(text)
    filled = np.flatnonzero(np.diff(offsets))
    separators = data == ord(separator)
    separator_at = np.flatnonzero(separators)
    before = np.searchsorted(separator_at, offsets)  # separators before each row
    lengths = np.diff(before)
    lengths[filled] += 1
    # A token ends at a separator, and the next token starts after it. A row's last token ends where the next row starts.
    ends = np.insert(separator_at, before[filled + 1], offsets[filled + 1])
    starts = np.zeros(len(ends) + 1, dtype="int64")
    np.add(ends, 1, out=starts[1:])
    starts[np.cumsum(lengths[filled])] -= 1
    starts = starts[:-1]
    sizes = (ends - starts).astype("int32")  # bytes of each token
    by_size = cache(lambda size: np.flatnonzero(sizes == size))

    def occurrences(token: str) -> Array:
        wanted = token.encode()
        at = by_size(len(wanted))
        for i, byte in enumerate(wanted):
            at = at[data[starts[at] + i] == byte]
        return at

    def pick(at: Array) -> Array:
        bounds = offsets_of(sizes[at])
        chosen = data[np.repeat(starts[at] - bounds[:-1], sizes[at]) + np.arange(bounds[-1])]
        return integers(name, chosen, bounds)

    def numbers() -> Array:
        return integers(name, data[~separators], offsets_of(sizes))

    return TokenLists(np, lengths, cache(occurrences), cache(numbers), pick)


def offsets_of(sizes: Array) -> Array:
    """Offsets of adjacent items of these sizes, int64 [items + 1]."""
    return np.append(0, np.cumsum(sizes, dtype="int64"))


def integers(name: str, data: Array, offsets: Array) -> Array:
    """Adjacent decimal numbers as int64; number i is the bytes offsets[i] to offsets[i + 1]. Raises DataError for other strings."""
    import pyarrow as pa

    texts = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        return texts.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name}: {error}", CHECK_HINT) from error


def arrow_text(column: Any) -> tuple[Array, Array]:
    """The offsets int64 [rows + 1] and UTF-8 bytes of a pandas string column; missing strings are empty."""
    return bytes_of(large_text(column))


def large_text(column: Any) -> Any:
    """A pandas string column as a pyarrow.LargeStringArray."""
    import pyarrow as pa

    return pa.chunked_array(pa.array(column, type=pa.large_string(), from_pandas=True)).combine_chunks()


def bytes_of(text: Any) -> tuple[Array, Array]:
    """The offsets int64 [rows + 1] and UTF-8 bytes of a pyarrow.LargeStringArray; missing strings are empty."""
    text = text.fill_null("")
    _, offsets, data = text.buffers()
    bounds = np.frombuffer(offsets, dtype="int64")[text.offset : text.offset + len(text) + 1]
    return bounds - bounds[0], np.frombuffer(data or b"", dtype=np.uint8)[bounds[0] : bounds[-1]]


def on_device(column: Any, separator: str) -> TokenLists:
    """The lists of a cuDF column."""
    import cupy

    text = column.fillna("")
    filled = text != ""
    lists = text[filled].str.split(separator, regex=False).list
    tokens = lists.leaves
    lengths = cupy.zeros(len(text), dtype="int64")
    lengths[filled.values] = lists.len().values

    @cache
    def numbers() -> Array:
        try:
            return tokens.astype("int64").values
        except ValueError as error:
            raise DataError(f"column {column.name}: {error}", CHECK_HINT) from error

    def occurrences(token: str) -> Array:
        return cupy.flatnonzero((tokens == token).values)

    return TokenLists(cupy, lengths, cache(occurrences), numbers, lambda at: numbers()[at])
