"""The feature operators that every engine implements, and those that all engines share.

Rules of every operator:

- A frame read from a file has a unique int64 column `row`. Operators neither rely on the order of rows nor guarantee one;
  `to_numpy` sorts by `row`.
- Operators that need an order take ONE unique integer column (`order_key` makes one).
- A missing key never matches a fitted table: it gets the fill value, the prior, or code 0. Inside one frame
  (`window_features`) missing is a key like any other.
- Most operators take a frame and return it with columns added. `*_fit`, `group_sums`, `distinct` and `top_k` return small
  tables that `write_parquet` saves and any engine loads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = Any  # pandas.DataFrame, cudf.DataFrame or polars.LazyFrame
Expr = Any  # a Series or a polars.Expr: the operands of the expressions of `with_columns`
Columns = Callable[[str], Expr]
Array = npt.NDArray[Any]

UNSEEN, RARE, FIRST_CODE = 0, 1, 2  # codes of `categorify`
CHECK_HINT = "`buzzer data convert` checks official files line by line"
ROWS_LIMIT = 2**31  # frames have fewer rows, so that `order_key` is unique


@dataclass(frozen=True)
class Lookup:
    """The arguments of one `Engine.left_join`."""

    table: Frame
    on: Mapping[str, str]  # the frame's key columns -> the table's
    columns: Mapping[str, str]  # the table's columns -> new names
    fill: (
        Any | Mapping[str, Any]
    )  # the value where there is no match: one for all columns, or new name -> value


@dataclass(frozen=True)
class Pieces:
    """The word pieces of a vocabulary by token id, which is below 2**17. Other ids start a word and have amounts of 0."""

    continues: Array  # bool [tokens]: whether the piece continues the word before it
    # Name -> integers [tokens] from 0 to 255 that are summed over a text, for example the characters of each piece.
    amounts: Mapping[str, Array]


@dataclass(frozen=True)
class TextFeatures:
    """Features of the decoded text of a list of token ids. The text itself is not made.

    A key is the first three pieces' ids, id0 + id1 * 2**17 + id2 * 2**34, as far as the pieces belong to the word; -1 if there is no
    such word. Longer words that begin with the same three pieces share a key.
    """

    pieces: Pieces
    # Amount -> new column, its sum over the first LONGEST tokens, int32.
    sums: Mapping[str, str] = field(default_factory=dict)
    # (amount, token) -> new column, its sum over those before the first occurrence of a token, int32; 0 if there is none.
    before: Mapping[tuple[str, str], str] = field(default_factory=dict)
    # 0 or 1 -> new column, the key of the first word, which starts at position 1 (after [CLS]), or of the second, if it starts at
    # position LAST_START or before; int64.
    words: Mapping[int, str] = field(default_factory=dict)
    # (token, n) -> new column, the key of the word after the nth occurrence (1 to 3) of a token, int64.
    after: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def amounts(self) -> list[str]:
        """The amounts that are summed."""
        return list(dict.fromkeys([*self.sums, *(name for name, _ in self.before)]))


FIRST_ID, NO_ID = "_first_id", "0" * 32  # temporary column of first ids; the id of an empty list
PIECE_BITS = 17
PIECES_OF_KEY = 3  # pieces of a word that its key consists of
LAST_START = 5  # last position at which the second word of a text is looked for
LONGEST = 256  # tokens of a text that amounts are summed over


class Engine(ABC):
    """Runs feature pipelines on one dataframe library. `name` is its name in `frames.all_engines()`."""

    name: str

    # ---- input and output ----------------------------------------------------------------------------------------

    @abstractmethod
    def read_csv(
        self,
        path: Path,
        schema: Mapping[str, str],
        *,
        names: Sequence[str] | None = None,
        separator: str = ",",
    ) -> Frame:
        """Columns of `schema` (name -> "int64", "float64", "str", or "date" for days since 1970-01-01 as int64)
        from a CSV file with a header, plain or gzipped, plus int64 `row` from 0.

        An empty field is missing (not allowed in int64 and date columns). names: the columns of a file without a
        header, whose fields are never quoted. Raises DataError with the file's name.
        """

    @abstractmethod
    def read_parquet(self, path: Path, columns: Sequence[str] | None = None) -> Frame:
        """Columns of a Parquet file (all by default), unchanged. No column `row` is added, so include it if an operator needs it."""

    @abstractmethod
    def read_matching(self, path: Path, keys: Frame, on: Sequence[str]) -> Frame:
        """The rows of a Parquet file whose columns `on` match a row of `keys` (unique). Reads some row groups at a time, on
        pandas and cuDF about as many rows as there are keys, so memory use grows with the keys and the result and not with the file."""

    @abstractmethod
    def write_parquet(self, t: Frame, path: Path) -> None:
        """Write all columns to a Parquet file."""

    @abstractmethod
    def from_arrow(self, table: Any) -> Frame:
        """A pyarrow.Table as a frame."""

    @abstractmethod
    def collect(self, t: Frame) -> Frame:
        """The frame with all pending work done, so that the current phase includes its time."""

    def keep(self, t: Frame) -> Frame:
        """Like `collect`, but the result stays on the engine's device. For a frame that becomes a matrix next."""
        return self.collect(t)

    @abstractmethod
    def height(self, t: Frame) -> int:
        """Number of rows."""

    @abstractmethod
    def columns(self, t: Frame) -> list[str]:
        """Column names."""

    @abstractmethod
    def to_numpy(self, t: Frame, columns: Sequence[str]) -> dict[str, Array]:
        """Columns as host arrays, sorted by `row`. Integer columns with missing values become float64 with NaN, missing strings None."""

    @abstractmethod
    def matrix(self, t: Frame, columns: Sequence[str]) -> Array:
        """Columns as float32 [rows, columns], sorted by `row`, missing as NaN. A GPU engine returns a cupy array that was never copied
        to the host; an engine on a cluster returns a host array."""

    def codes(self, t: Frame, columns: Sequence[str]) -> Array:
        """Integer columns without missing values as int64 [rows, columns], sorted by `row`, on the device of `matrix`."""
        raise NotImplementedError

    def token_matrix(self, t: Frame, column: str, separator: str, length: int) -> Array:
        """The first `length` tokens of a joined list of integers as int32 [rows, length], sorted by `row`, padded with 0
        (all 0 if the list is missing or empty), on the device of `matrix`."""
        raise NotImplementedError

    def to_arrow(self, t: Frame, columns: Sequence[str]) -> Any:
        """Columns as a pyarrow.Table, sorted by `row`."""
        raise NotImplementedError

    # ---- element-wise --------------------------------------------------------------------------------------------

    @abstractmethod
    def with_columns(self, t: Frame, **exprs: Callable[[Columns], Expr]) -> Frame:
        """Add computed columns: `with_columns(t, nights=lambda c: c("out") - c("in"))`. Later columns may use earlier ones.

        Expressions may use Python's operators and this engine's `where`, `log1p`, `clip`, `cast`, `is_null`, `fill_null`,
        `ends_with`.
        """

    @abstractmethod
    def where(self, condition: Expr, a: Any, b: Any) -> Expr:
        """`a` where the condition is true, `b` where it is false or missing; each is an expression or a value."""

    @abstractmethod
    def log1p(self, x: Expr) -> Expr:
        """ln(1 + x), float64."""

    @abstractmethod
    def clip(self, x: Expr, low: float, high: float) -> Expr:
        """`x` limited to [low, high]; missing stays missing."""

    @abstractmethod
    def cast(self, x: Expr, dtype: str) -> Expr:
        """`x` as "int8", "int32", "int64", "float32", "float64" or "str"."""

    @abstractmethod
    def is_null(self, x: Expr) -> Expr:
        """Whether a value is missing, boolean."""

    @abstractmethod
    def ends_with(self, x: Expr, text: str) -> Expr:
        """Whether a string ends with `text`, boolean. Strings may not be missing."""

    @abstractmethod
    def fill_null(self, x: Expr, value: Any) -> Expr:
        """`x` with missing values replaced by `value`."""

    # ---- rows and columns ----------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, t: Frame, columns: Sequence[str]) -> Frame:
        """Only these columns, and `row` if the frame has it."""

    @abstractmethod
    def rename(self, t: Frame, names: Mapping[str, str]) -> Frame:
        """The frame with columns renamed: old name -> new name."""

    @abstractmethod
    def drop(self, t: Frame, columns: Sequence[str]) -> Frame:
        """The frame without these columns."""

    @abstractmethod
    def filter(self, t: Frame, keep: Callable[[Columns], Expr]) -> Frame:
        """The rows for which the expression is true."""

    @abstractmethod
    def concat(self, frames: Sequence[Frame]) -> Frame:
        """The rows of all frames, which must have the same columns. The caller makes `row` unique."""

    @abstractmethod
    def distinct(self, t: Frame, keys: Sequence[str]) -> Frame:
        """The distinct combinations of the keys. Combinations with a missing key are left out."""

    # ---- groups --------------------------------------------------------------------------------------------------

    @abstractmethod
    def group_sums(self, t: Frame, keys: Sequence[str], columns: Sequence[str] = ()) -> Frame:
        """Table (keys..., sum_<column>..., n) over the rows without a missing key; n int64 is the number of rows."""

    @abstractmethod
    def left_join(
        self,
        t: Frame,
        table: Frame,
        on: Mapping[str, str],
        columns: Mapping[str, str],
        fill: Any | Mapping[str, Any],
    ) -> Frame:
        """Add columns of a table whose keys are unique. The new columns have the table's types.

        on: the frame's key columns -> the table's.  columns: the table's columns -> new names.
        fill: the value where there is no match or the table's value is missing: one for all columns, or new name -> value.
        """

    def lookups(self, t: Frame, wanted: Sequence[Lookup]) -> Frame:
        """Several left joins at once. Their new names must differ, and no join may use a column that another adds. An engine may
        merge joins with the same key columns."""
        for each in wanted:
            t = self.left_join(t, each.table, each.on, each.columns, each.fill)
        return t

    @abstractmethod
    def window_features(
        self,
        t: Frame,
        keys: Sequence[str],
        order: str,
        *,
        count: str = "",
        size: str = "",
        first: Mapping[str, str] | None = None,
        since: Mapping[str, str] | None = None,
        mean: Mapping[str, tuple[str, float, float]] | None = None,
        lags: Mapping[str, tuple[int, Any]] | None = None,
    ) -> Frame:
        """Features of each row from the earlier rows with the same keys. `order` is a unique integer column that orders the rows.

        count: new column, the number of earlier rows, int64.  size: new column, the number of all rows of the keys, int64.
        first: column -> new column with its first value.
        since: integer column -> new column, the difference to the previous row's value; -1 for the first row.
        mean: new column -> (column, weight, prior): (sum of earlier + weight * prior) / (count + weight), float32.
        lags: column -> (n, fill): adds <column>_lag1 (the previous row's value) to <column>_lag<n>.

        Except for `size`, later rows do not influence a row's values.
        """

    # ---- strings and dates: a separator is one ASCII character ---------------------------------------------------

    @abstractmethod
    def token_features(
        self,
        t: Frame,
        column: str,
        separator: str,
        *,
        size: str = "",
        counts: Mapping[str, str] | None = None,
        at: Mapping[int, str] | None = None,
        after: Mapping[tuple[str, int], str] | None = None,
    ) -> Frame:
        """Features of a joined list ("101\\t7\\t102"), which may be missing or empty.

        size: new column, the number of tokens, int32.
        counts: token -> new column, how often it is in the list, int32; for lists of words (letters, digits, _).
        at: position from 0 -> new column, the token at this position of a list of integers, int64; -1 if there is none.
        after: (token, n) -> new column, the token that follows the nth occurrence (1 or 2) of another in a list of
            integers, int64; -1 if there is none.
        """

    @abstractmethod
    def text_features(self, t: Frame, column: str, separator: str, features: TextFeatures) -> Frame:
        """Add features of the decoded text of a joined list of token ids, which may be missing or empty."""

    @abstractmethod
    def first_hex_id(self, t: Frame, column: str, out: str) -> Frame:
        """`hex_id` of the first id of a joined list of ids of 32 digits; 0 if the list is missing or empty."""

    @abstractmethod
    def hex_id(self, t: Frame, column: str, out: str, digits: int = 32) -> Frame:
        """The last 16 hexadecimal digits of an id as int64 (two's complement). Ids may not be missing. Raises DataError."""

    @abstractmethod
    def parse_vector(self, t: Frame, column: str, length: int, out: str) -> Frame:
        """The numbers of a string "[0.5, -1e-3, ...]" as <out>_0 .. <out>_<length-1>, float32. Padded with 0; all 0 if missing."""

    @abstractmethod
    def date_parts(self, t: Frame, column: str, unit: str, parts: Mapping[str, str]) -> Frame:
        """Calendar parts of an integer time, in days ("d") or seconds ("s") since 1970; part -> new column, int32.

        Parts: year, month, day, weekday (Monday = 0), hour, minute.
        """

    # ---- shared by both implementations --------------------------------------------------------------------------

    def order_key(self, t: Frame, time: str) -> Frame:
        """Add `ord`, a unique int64 column that orders by an integer time, then by `row` (fewer than 2**31 rows)."""
        return self.with_columns(t, ord=lambda c: c(time) * ROWS_LIMIT + c("row"))

    def categorify_fit(self, sources: Iterable[tuple[Frame, str]], min_count: int = 1) -> Frame:
        """Codes for the values of one or more columns: table (value, n, code).

        Code 0 is for unseen and missing values, code 1 for values with fewer than `min_count` occurrences. The other values get
        2, 3, ... by descending count; equal counts are ordered by value. All engines give the same codes.
        """
        values = [self._values(t, column) for t, column in sources]
        counts = self.group_sums(values[0] if len(values) == 1 else self.concat(values), ["value"])
        return self._with_codes(counts, min_count)

    def _values(self, t: Frame, column: str) -> Frame:
        named = self.with_columns(t, value=lambda c: c(column))
        return self.drop(named, [name for name in self.columns(named) if name != "value"])

    @abstractmethod
    def _with_codes(self, counts: Frame, min_count: int) -> Frame:
        """The table (value, n) with the column `code`."""

    def categorify(self, t: Frame, column: str, table: Frame, out: str) -> Frame:
        """Add the codes of a table of `categorify_fit`, int64; 0 for unseen and missing values."""
        return self.left_join(t, table, {column: "value"}, {"code": out}, UNSEEN)

    def target_encode(
        self,
        t: Frame,
        table: Frame,
        keys: Sequence[str],
        priors: Mapping[str, float],
        weight: float,
        out: str,
        *,
        leave_one_out: bool = False,
    ) -> Frame:
        """Add smoothed target means from a table `group_sums(earlier, keys, targets)`: <out>_<target>, float32,
        (sum + weight * prior) / (n + weight) (Micci-Barreca 2001 with a fixed weight).

        priors: target -> overall mean.  leave_one_out: the frame's own rows are in the table, so each row's target is
        subtracted from its sums.
        """
        same = {key: key for key in keys}
        if not leave_one_out:
            means = self.target_means(table, priors, weight, out)
            return self.left_join(t, means, same, *means_of(priors, out))
        sums = {f"sum_{target}": f"{out}_sum_{target}" for target in priors} | {"n": f"{out}_n"}
        t = self._smooth(self.left_join(t, table, same, sums, 0), out, priors, weight, leave_one_out=True)
        return self.drop(t, list(sums.values()))

    def target_means(self, table: Frame, priors: Mapping[str, float], weight: float, out: str) -> Frame:
        """The smoothed means of a table `group_sums(earlier, keys, targets)` as a table (keys..., <out>_<target>... float32).

        A left join with this table, filled with the priors, equals `target_encode`.
        """
        sums = {f"sum_{target}": f"{out}_sum_{target}" for target in priors} | {"n": f"{out}_n"}
        smoothed = self._smooth(self.rename(table, sums), out, priors, weight, leave_one_out=False)
        return self.drop(smoothed, list(sums.values()))

    def target_encode_kfold(
        self,
        t: Frame,
        keys: Sequence[str],
        fold: str,
        priors: Mapping[str, float],
        weight: float,
        out: str,
        *,
        source: Frame | None = None,
        table: Frame | None = None,
    ) -> Frame:
        """Add out-of-fold target means, each from the rows of the other folds: <out>_<target>, float32.

        source: the frame to sum over, by default `t`. To add several encodings in sequence, pass the collected frame, so
        that a lazy engine does not recompute the earlier encodings for each.  table: `group_sums(source, keys, targets)`,
        if already computed.
        """
        source = t if source is None else source
        everything = self.group_sums(source, keys, list(priors)) if table is None else table
        inside = self.group_sums(source, [*keys, fold], list(priors))
        names = [*(f"sum_{target}" for target in priors), "n"]
        same = {key: key for key in keys}
        t = self.left_join(t, everything, same, {name: f"{out}_all_{name}" for name in names}, 0)
        t = self.left_join(t, inside, same | {fold: fold}, {name: f"{out}_in_{name}" for name in names}, 0)
        t = self.with_columns(
            t, **{f"{out}_{n}": self._difference(f"{out}_all_{n}", f"{out}_in_{n}") for n in names}
        )
        t = self._smooth(t, out, priors, weight, leave_one_out=False)
        return self.drop(t, [f"{out}_{part}{name}" for part in ("", "all_", "in_") for name in names])

    @staticmethod
    def _difference(a: str, b: str) -> Callable[[Columns], Expr]:
        return lambda c: c(a) - c(b)

    def _smooth(
        self, t: Frame, out: str, priors: Mapping[str, float], weight: float, *, leave_one_out: bool
    ) -> Frame:
        """Add (sum + weight * prior) / (n + weight) of each target, without the row's own target if `leave_one_out`."""

        def formula(target: str, prior: float) -> Callable[[Columns], Expr]:
            def smoothed(c: Columns) -> Expr:
                total, n = c(f"{out}_sum_{target}"), c(f"{out}_n")
                if not leave_one_out:
                    return self.cast((total + weight * prior) / (n + weight), "float32")
                counted = self.cast(n > 0, "int64")
                return self.cast(
                    (total - c(target) * counted + weight * prior) / (n - counted + weight), "float32"
                )

            return smoothed

        return self.with_columns(
            t, **{f"{out}_{target}": formula(target, prior) for target, prior in priors.items()}
        )

    def seen_before(self, t: Frame, pairs: Frame, keys: Sequence[str], out: str) -> Frame:
        """Add an int64 column `out`: 1 if the keys are in `pairs`, a table `distinct(earlier, keys)`, else 0."""
        flagged = self.with_columns(pairs, seen=lambda c: self.cast(c(keys[0]) == c(keys[0]), "int64"))
        return self.left_join(t, flagged, {key: key for key in keys}, {"seen": out}, 0)

    def top_k(self, t: Frame, key: str, item: str, k: int, weight: str = "") -> Frame:
        """The k most frequent items of each key: table (key, rank from 0, item, n).

        item: a column of codes from 0 to 2**31 - 1. Among equally frequent items the smaller code comes first.
        weight: an int64 column whose sums are ranked instead of counts; they become `n`, and must be below 2**31.
        """
        counts = self.group_sums(t, [key, item], [weight] if weight else [])
        if weight:
            counts = self.rename(self.drop(counts, ["n"]), {f"sum_{weight}": "n"})
        counts = self.with_columns(counts, ord=lambda c: c(item) - c("n") * ROWS_LIMIT)
        ranked = self.window_features(counts, [key], "ord", count="rank")
        return self.drop(self.filter(ranked, lambda c: c("rank") < k), ["ord"])


def means_of(priors: Mapping[str, float], out: str) -> tuple[dict[str, str], dict[str, float]]:
    """The arguments `columns` and `fill` for a left join with a table of `target_means`."""
    names = {f"{out}_{target}": prior for target, prior in priors.items()}
    return {name: name for name in names}, names


def fill_of(fill: Any | Mapping[str, Any], name: str) -> Any:
    """The fill value of one new column."""
    return fill[name] if isinstance(fill, Mapping) else fill


def by_keys(wanted: Sequence[Lookup]) -> dict[tuple[str, ...], list[Lookup]]:
    """Lookups grouped by the frame's key columns: the sorted columns -> their lookups."""
    groups: dict[tuple[str, ...], list[Lookup]] = {}
    for each in wanted:
        groups.setdefault(tuple(sorted(each.on)), []).append(each)
    return groups


def stack(arrays: Mapping[str, Array], names: Sequence[str], dtype: Any) -> Array:
    """The named arrays [rows] as the columns of one array [rows, len(names)]."""
    return np.stack([arrays[name] for name in names], axis=1).astype(dtype, copy=False)


def on_host(array: Any) -> Array:
    """The array on the host: a NumPy array unchanged, a cupy array copied."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else array


def side_by_side(parts: Sequence[Any]) -> Array:
    """Matrices [rows, ...] joined along their columns, on the device of the first."""
    if not hasattr(parts[0], "__cuda_array_interface__"):
        return np.concatenate(parts, axis=1)
    import cupy

    return cupy.concatenate([cupy.asarray(part) for part in parts], axis=1)
