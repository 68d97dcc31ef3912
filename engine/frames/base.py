"""The operator vocabulary, and those operators that are the same words in both texts.

What every operator keeps:

- A frame that comes from a file has a unique int64 column `row`. No operator relies on the order of rows, and none
  promises one; `to_numpy` sorts by `row`.
- Ordering is by ONE unique integer column (`order_key` makes one).
- A missing key never matches a fitted table: it gets the fill value, the prior, code 0. Inside one frame
  (`count_encode`, `history`) missing is a key like any other.
- Operators take a frame and return it with columns added; `*_fit`, `group_sums`, `distinct` and `top_k` return small
  tables that `write_parquet` saves and any engine loads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = Any  # pandas.DataFrame, cudf.DataFrame or polars.LazyFrame
Expr = Any  # a Series or a polars.Expr: what operators of `with_columns` work on
Columns = Callable[[str], Expr]
Array = npt.NDArray[Any]

UNSEEN, RARE, FIRST_CODE = 0, 1, 2  # codes of `categorify`
CHECK_HINT = "`buzzer data convert` checks official files line by line"
# Unique per (time, row) as long as a frame has fewer rows than this.
ROWS_LIMIT = 2**31


@dataclass(frozen=True)
class Lookup:
    """Arguments of one `Engine.lookup`."""

    table: Frame
    on: Mapping[str, str]  # the frame's key columns -> the table's
    columns: Mapping[str, str]  # the table's columns -> new names
    fill: Any | Mapping[str, Any]  # where there is no match: one value, or one for each new name


class Engine(ABC):
    """One way to run feature pipelines. `name` is that of `frames.ENGINES`."""

    name: str

    # ---- files and hand-over -------------------------------------------------------------------------------------

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

        An empty field is missing (not allowed in int64 and date columns). `names` are the columns of a file without a
        header, whose fields are never quoted. Raises DataError naming the file.
        """

    @abstractmethod
    def read_parquet(self, path: Path, columns: Sequence[str] | None = None) -> Frame:
        """A Parquet file's columns as they are; `row` must be among them if operators are to use it."""

    @abstractmethod
    def read_matching(self, path: Path, keys: Frame, on: Sequence[str]) -> Frame:
        """The rows of a Parquet file whose columns `on` stand in `keys` (unique), read a row group at a time: memory grows with what
        is found, not with the file."""

    @abstractmethod
    def write_parquet(self, t: Frame, path: Path) -> None:
        """Write all columns."""

    @abstractmethod
    def from_arrow(self, table: Any) -> Frame:
        """A pyarrow.Table as a frame."""

    @abstractmethod
    def collect(self, t: Frame) -> Frame:
        """Compute what is pending, so that a phase ends when its work has ended; the frame stays usable."""

    def keep(self, t: Frame) -> Frame:
        """`collect` of a frame whose columns become a matrix next: what is computed stays where the engine computes."""
        return self.collect(t)

    @abstractmethod
    def height(self, t: Frame) -> int:
        """Number of rows."""

    @abstractmethod
    def columns(self, t: Frame) -> list[str]:
        """Column names."""

    @abstractmethod
    def to_numpy(self, t: Frame, columns: Sequence[str]) -> dict[str, Array]:
        """Columns as host arrays in the order of `row`. Missing integers come as NaN in float64, strings as None."""

    @abstractmethod
    def matrix(self, t: Frame, columns: Sequence[str]) -> Array:
        """Columns side by side as float32 [rows, columns] in the order of `row`, missing as NaN: where the engine computes,
        so that a GPU's gives a cupy array that no copy through the host made (a cluster's a host array)."""

    def codes(self, t: Frame, columns: Sequence[str]) -> Array:
        """Integer columns without missing values as int64 [rows, columns] in the order of `row`, where `matrix` has its rows."""
        raise NotImplementedError

    def token_matrix(self, t: Frame, column: str, separator: str, length: int) -> Array:
        """The first `length` tokens of a joined list of integers as int32 [rows, length] in the order of `row`, 0 after the last
        (all 0 where the list is missing or empty), where `matrix` has its rows."""
        raise NotImplementedError

    def to_arrow(self, t: Frame, columns: Sequence[str]) -> Any:
        """Columns as a pyarrow.Table in the order of `row`."""
        raise NotImplementedError

    # ---- element-wise --------------------------------------------------------------------------------------------

    @abstractmethod
    def with_columns(self, t: Frame, **exprs: Callable[[Columns], Expr]) -> Frame:
        """Add columns computed from others, one after the other: `with_columns(t, nights=lambda c: c("out") - c("in"))`.

        Python's operators and this engine's `where`, `log1p`, `clip`, `cast`, `is_null`, `fill_null` may be used.
        """

    @abstractmethod
    def where(self, condition: Expr, a: Any, b: Any) -> Expr:
        """`a` where the condition holds, else `b` (a missing condition does not hold)."""

    @abstractmethod
    def log1p(self, x: Expr) -> Expr: ...

    @abstractmethod
    def clip(self, x: Expr, low: float, high: float) -> Expr: ...

    @abstractmethod
    def cast(self, x: Expr, dtype: str) -> Expr:
        """To "int8", "int32", "int64", "float32", "float64" or "str"."""

    @abstractmethod
    def is_null(self, x: Expr) -> Expr: ...

    @abstractmethod
    def fill_null(self, x: Expr, value: Any) -> Expr: ...

    # ---- rows and columns ----------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, t: Frame, columns: Sequence[str]) -> Frame:
        """These columns, and `row` where the frame has it."""

    @abstractmethod
    def rename(self, t: Frame, names: Mapping[str, str]) -> Frame: ...

    @abstractmethod
    def drop(self, t: Frame, columns: Sequence[str]) -> Frame: ...

    @abstractmethod
    def filter(self, t: Frame, keep: Callable[[Columns], Expr]) -> Frame:
        """Rows where the expression holds."""

    @abstractmethod
    def concat(self, frames: Sequence[Frame]) -> Frame:
        """Frames of the same columns one below the other; `row` must be made unique by the caller."""

    @abstractmethod
    def distinct(self, t: Frame, keys: Sequence[str]) -> Frame:
        """The different combinations of the keys without missing parts."""

    # ---- groups --------------------------------------------------------------------------------------------------

    @abstractmethod
    def group_sums(self, t: Frame, keys: Sequence[str], columns: Sequence[str] = ()) -> Frame:
        """Table (keys..., sum_<column>..., n) over rows whose keys are all there."""

    @abstractmethod
    def join_groupby(
        self, t: Frame, source: Frame, keys: Sequence[str], columns: Sequence[str], stats: Sequence[str]
    ) -> Frame:
        """Add <column>_<stat> of `source` by key, float64; stats of "mean", "std" (n - 1), "min", "max".

        Missing where the key was not seen (and for the std of one value).
        """

    @abstractmethod
    def left_join(
        self,
        t: Frame,
        table: Frame,
        on: Mapping[str, str],
        columns: Mapping[str, str],
        fill: Any | Mapping[str, Any],
    ) -> Frame:
        """Add columns of a unique-key table: `on` maps the frame's key columns to the table's, `columns` the table's
        columns to new names; `fill` where there is no match or the table has none: one value, or one for each new name. The new
        columns have the table's types."""

    def lookups(self, t: Frame, wanted: Sequence[Lookup]) -> Frame:
        """All of several lookups, whose new names differ, and none of which is by a column that another adds; those by the same
        columns of the frame are one join where that is faster."""
        for each in wanted:
            t = self.left_join(t, each.table, each.on, each.columns, each.fill)
        return t

    @abstractmethod
    def count_encode(self, t: Frame, keys: Sequence[str], out: str) -> Frame:
        """Number of rows of this frame with the same keys, int64."""

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
        """What came before a row among the rows of the same keys, in the order of a unique integer column.

        count: new column, rows so far (0 for the first).  size: new column, all rows of the keys.
        first: column -> new column with its first value.
        since: integer column -> new column, difference to the previous row's; -1 for the first.
        mean: new column -> (column, weight, prior): (sum so far + weight * prior) / (count so far + weight), float32.
        lags: column -> (n, fill): adds <column>_lag1 (the previous row's value) to <column>_lag<n>.

        Except for `size`, a row's values depend on earlier rows only.
        """

    # ---- text and dates: a separator is one ASCII character ------------------------------------------------------

    @abstractmethod
    def token_counts(self, t: Frame, column: str, separator: str, out: str) -> Frame:
        """Number of tokens of a joined list, int32; 0 where missing or empty."""

    @abstractmethod
    def count_token(self, t: Frame, column: str, separator: str, token: str, out: str) -> Frame:
        """How often one token stands in a joined list of words (letters, digits, _), int32; 0 where missing."""

    @abstractmethod
    def token_at(self, t: Frame, column: str, separator: str, at: int, out: str) -> Frame:
        """The token at place `at` (from 0) of a joined list of integers, int64; -1 where there is none."""

    @abstractmethod
    def token_after(self, t: Frame, column: str, separator: str, token: str, nth: int, out: str) -> Frame:
        """The token that follows the nth occurrence (1 or 2) of another in a joined list of integers, int64; -1 where there is none."""

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
        """Several of the four above of one column, which the eager engines then split once. size: new column of `token_counts`.
        counts: token -> new column of `count_token`.  at: place -> of `token_at`.  after: (token, nth) -> of `token_after`.
        """
        t = self.token_counts(t, column, separator, size) if size else t
        for token, out in (counts or {}).items():
            t = self.count_token(t, column, separator, token, out)
        for place, out in (at or {}).items():
            t = self.token_at(t, column, separator, place, out)
        for (token, nth), out in (after or {}).items():
            t = self.token_after(t, column, separator, token, nth, out)
        return t

    @abstractmethod
    def hex_id(self, t: Frame, column: str, out: str, digits: int = 32) -> Frame:
        """The last 16 of an id's hexadecimal digits as int64 (two's complement); none may be missing."""

    @abstractmethod
    def parse_vector(self, t: Frame, column: str, length: int, out: str) -> Frame:
        """The numbers of a list as text, "[0.5, -1e-3, ...]": <out>_0 .. <out>_<length-1>, float32; 0 where missing, and
        after the last."""

    @abstractmethod
    def token_hash(self, t: Frame, column: str, separator: str, first: int, buckets: int, out: str) -> Frame:
        """Counts of `token % buckets` over the first tokens of a joined list of integers: <out>_0 .., int8."""

    @abstractmethod
    def date_parts(self, t: Frame, column: str, unit: str, parts: Mapping[str, str]) -> Frame:
        """Parts of an integer time: unit "d" (days) or "s" (seconds) since 1970; part -> new column, int32.

        Parts: year, month, day, weekday (Monday = 0), hour, minute.
        """

    # ---- the same words in both texts ----------------------------------------------------------------------------

    def order_key(self, t: Frame, time: str, out: str = "ord") -> Frame:
        """One unique int64 that orders by an integer time, then by `row` (below 2**31 rows)."""
        return self.with_columns(t, **{out: lambda c: c(time) * ROWS_LIMIT + c("row")})

    def categorify_fit(self, sources: Iterable[tuple[Frame, str]], min_count: int = 1) -> Frame:
        """Codes for the values of one or more columns: table (value, n, code).

        Codes: 0 is left for unseen and missing, 1 = seen fewer than `min_count` times, then 2, 3, ... by falling
        count, equal counts by value; the same on every engine.
        """
        values = [self._values(t, column) for t, column in sources]
        counts = self.group_sums(values[0] if len(values) == 1 else self.concat(values), ["value"])
        return self._number(counts, min_count)

    def _values(self, t: Frame, column: str) -> Frame:
        named = self.with_columns(t, value=lambda c: c(column))
        return self.drop(named, [name for name in self.columns(named) if name != "value"])

    @abstractmethod
    def _number(self, counts: Frame, min_count: int) -> Frame:
        """Add `code` to (value, n)."""

    def categorify(self, t: Frame, column: str, table: Frame, out: str) -> Frame:
        """The codes of `categorify_fit`'s table, int64; 0 for unseen and missing values."""
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
        on: Sequence[str] | None = None,
        leave_one_out: bool = False,
        raw: bool = False,
    ) -> Frame:
        """Smoothed target means from `group_sums(earlier, keys, targets)`: <out>_<target>, float32,
        (sum + weight * prior) / (n + weight) (Micci-Barreca 2001 with a fixed weight).

        priors: target -> overall mean.  on: the frame's key columns where they differ from the table's (the reader
        looked up among authors).  leave_one_out: the frame's own rows are in the table; each row's target is taken
        out of its own sums.  raw: also keep <out>_sum_<target> and <out>_n (0 where unseen).
        """
        by = dict(zip(on or keys, keys, strict=True))
        if not (leave_one_out or raw):
            means = self.target_means(table, keys, priors, weight, out)
            return self.left_join(t, means, by, *means_of(priors, out))
        kept = {f"sum_{target}": f"{out}_sum_{target}" for target in priors} | {"n": f"{out}_n"}
        t = self.left_join(t, table, by, kept, 0)
        t = self._smooth(t, out, priors, weight, leave_one_out=leave_one_out)
        return t if raw else self.drop(t, list(kept.values()))

    def target_means(
        self, table: Frame, keys: Sequence[str], priors: Mapping[str, float], weight: float, out: str
    ) -> Frame:
        """The smoothed means of `group_sums(earlier, keys, targets)` as a table (keys..., <out>_<target>... float32). A lookup there
        with the priors as the fill gives what `target_encode` gives."""
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
        """Out-of-fold target means: each row's from the rows of the other folds, <out>_<target>, float32.

        source: the frame that is summed over, where that is not `t` itself: give the collected frame when encodings are
        added to it one after the other, or a lazy engine does the earlier ones anew for each.  table: `group_sums(source, keys,
        targets)`, where that is at hand.
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
        """(sum + weight * prior) / (n + weight) of each target; the row's own target taken out where it was counted."""

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
        """1 where the keys stand in `distinct(earlier, keys)`, else 0, int64."""
        flagged = self.with_columns(pairs, seen=lambda c: self.cast(c(keys[0]) == c(keys[0]), "int64"))
        return self.left_join(t, flagged, {key: key for key in keys}, {"seen": out}, 0)

    def top_k(self, t: Frame, key: str, item: str, k: int, weight: str = "") -> Frame:
        """The k most frequent items of each key: table (key, rank from 0, item, n).

        `item` is a code of 0 to 2**31 - 1; of equally frequent items the smaller code comes first.
        weight: an int64 column whose sums are compared instead of counts; they become `n`, and must stay below 2**31.
        """
        counts = self.group_sums(t, [key, item], [weight] if weight else [])
        if weight:
            counts = self.rename(self.drop(counts, ["n"]), {f"sum_{weight}": "n"})
        counts = self.with_columns(counts, ord=lambda c: c(item) - c("n") * ROWS_LIMIT)
        ranked = self.window_features(counts, [key], "ord", count="rank")
        return self.drop(self.filter(ranked, lambda c: c("rank") < k), ["ord"])

    def sequences(
        self, t: Frame, key: str, order: str, columns: Sequence[str], length: int, pad: int
    ) -> Frame:
        """The last `length` values by key: one row a key (its last row), <column>_0 (oldest) .. <column>_<length-1>
        (latest), `pad` before the first."""
        ended = self.window_features(
            t, [key], order, count="_count", size="_size", lags=dict.fromkeys(columns, (length - 1, pad))
        )
        last = self.filter(ended, lambda c: c("_count") == c("_size") - 1)
        names = {f"{c}_lag{i}": f"{c}_{length - 1 - i}" for c in columns for i in range(1, length)}
        names |= {c: f"{c}_{length - 1}" for c in columns}
        return self.select(self.rename(last, names), [key, *sorted(names.values())])


def means_of(priors: Mapping[str, float], out: str) -> tuple[dict[str, str], dict[str, float]]:
    """What a lookup in `target_means` adds, and its fill."""
    names = {f"{out}_{target}": prior for target, prior in priors.items()}
    return {name: name for name in names}, names


def fill_of(fill: Any | Mapping[str, Any], name: str) -> Any:
    """A lookup's fill of one new column."""
    return fill[name] if isinstance(fill, Mapping) else fill


def by_keys(wanted: Sequence[Lookup]) -> dict[tuple[str, ...], list[Lookup]]:
    """Lookups by the same columns of the frame together; the columns, sorted -> their lookups."""
    together: dict[tuple[str, ...], list[Lookup]] = {}
    for each in wanted:
        together.setdefault(tuple(sorted(each.on)), []).append(each)
    return together


def following(separator: str, token: str, nth: int) -> str:
    """A regular expression whose one group is the number after the nth occurrence of `token`."""
    again = f"(?:[0-9]+{separator})*?{token}{separator}"
    return f"(?:^|{separator}){token}{separator}{again * (nth - 1)}([0-9]+)"


def stack(arrays: Mapping[str, Array], names: Sequence[str], dtype: Any) -> Array:
    """Columns side by side: shape [rows, len(names)]."""
    return np.stack([arrays[name] for name in names], axis=1).astype(dtype, copy=False)


def on_host(array: Any) -> Array:
    """A NumPy array of a NumPy or cupy one."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else array


def side_by_side(parts: Sequence[Any]) -> Array:
    """Matrices [rows, ...] as one, where the first of them is."""
    if not hasattr(parts[0], "__cuda_array_interface__"):
        return np.concatenate(parts, axis=1)
    import cupy

    return cupy.concatenate([cupy.asarray(part) for part in parts], axis=1)
