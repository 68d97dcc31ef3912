"""The lazy implementation: Polars plans, run by Polars on the CPU or by cudf-polars on the GPU.

A plan has two forms where the form that is fast on one device is refused or slow on the other. `window_features` is a sort
and a scan of segments on the CPU, and `over(order_by=)` on the GPU; several GPUs shuffle the rows by key.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from buzzer.engine import faults
from buzzer.engine.frames import gpu_plan, resident, texts
from buzzer.engine.frames.base import (
    CHECK_HINT,
    FIRST_CODE,
    FIRST_ID,
    NO_ID,
    RARE,
    Array,
    Columns,
    Engine,
    Expr,
    Frame,
    Lookup,
    TextFeatures,
    fill_of,
)
from buzzer.engine.frames.texts import PARTS, field, split
from buzzer.errors import DataError

TYPES = {"int64": pl.Int64, "float64": pl.Float64, "str": pl.String, "date": pl.String}
CASTS = {
    "int8": pl.Int8,
    "int32": pl.Int32,
    "int64": pl.Int64,
    "float32": pl.Float32,
    "float64": pl.Float64,
    "str": pl.String,
}

BAD_DATA = (
    pl.exceptions.ComputeError,
    pl.exceptions.NoDataError,
    pl.exceptions.InvalidOperationError,
    DataError,  # of a function inside a plan, to which Polars adds the expression
)
NO_QUOTES = "\0"  # cuDF's value for "no quoting"; cudf-polars does not accept None, Polars' value
DAY = 86_400  # seconds
# All pairs of hexadecimal digits, and their values as three decimal digits.
DECIMALS = [f"{i:02x}" for i in range(256)], [f"{i:03d}" for i in range(256)]
HALVES = ("_high", "_low")  # temporary columns of an id's halves
GZIP = b"\x1f\x8b"


def engine(device: str) -> "Lazy":
    """The engine on "cpu" or "gpu"."""
    return Lazy(device)


class Lazy(Engine):
    """The operators as Polars plans. On the GPU, a plan never falls back to the CPU.

    device: "cpu" or "gpu".  engine: the cudf-polars engine of several GPUs, which collects results on the host. By default, the
    engine of this process's GPU, which leaves results on the GPU.
    """

    def __init__(self, device: str, engine: Any = None) -> None:
        self.gpu = device == "gpu"
        self._resident = self.gpu and engine is None
        self.name = "polars-gpu" if self.gpu else "polars"
        self._cluster_engine = engine

    def _engine(self, t: pl.LazyFrame) -> Any:
        """The engine that collects a plan. A plan that only selects columns of a frame on the host is not sent to the GPU."""
        if not self.gpu or gpu_plan.on_host(t):
            return "auto"
        return self._cluster_engine or resident.engine()

    def _run(self, t: pl.LazyFrame) -> pl.DataFrame:
        return self._computed(lambda: t.collect(engine=self._engine(t)))

    def _computed(self, compute: Callable[[], Any]) -> Any:
        """The result of `compute`. Polars' errors about bad data become a DataError."""
        try:
            with gpu_plan.deep_plans() if self.gpu else nullcontext():
                return compute()
        except Exception as error:
            cause = next((link for link in faults.chain(error) if isinstance(link, BAD_DATA)), None)
            if cause is None or (self.gpu and faults.classify(error)):
                raise
            raise DataError(str(cause).split("\n\n", 1)[0], CHECK_HINT) from error

    def read_csv(
        self,
        path: Path,
        schema: Mapping[str, str],
        *,
        names: Sequence[str] | None = None,
        separator: str = ",",
    ) -> Frame:
        # cuDF reads an invalid number as missing or 0. So numbers are read as strings; their casts raise.
        types = {name: pl.String if self.gpu else TYPES[kind] for name, kind in schema.items()}
        form: dict[str, Any] = {"schema_overrides": types, "infer_schema": False}
        if names is not None:
            form = {"schema": {name: types.get(name, pl.String) for name in names}, "has_header": False}
            form["quote_char"] = NO_QUOTES if self.gpu else None
        t = pl.scan_csv(path, separator=separator, row_index_name="row", **form)
        if missing := [name for name in schema if name not in self._header(t)]:
            raise DataError(f"{path}: no column {missing[0]}", CHECK_HINT)
        t = t.select(*schema, "row")
        if self.gpu and self._is_gzipped(path):
            t = self._computed(lambda: t.collect(engine="streaming")).lazy()
        wanted = [self._typed(name, kind) for name, kind in schema.items()]
        return t.select(*wanted, pl.col("row").cast(pl.Int64))

    @staticmethod
    def _is_gzipped(path: Path) -> bool:
        """Whether a CSV file is gzipped. cuDF reads plain files only, so the host decompresses gzipped ones and splits the columns."""
        with path.open("rb") as file:
            return file.read(len(GZIP)) == GZIP

    @staticmethod
    def _header(t: pl.LazyFrame) -> list[str]:
        try:
            return t.collect_schema().names()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(str(error).split("\n\n", 1)[0], CHECK_HINT) from error

    def _typed(self, name: str, kind: str) -> pl.Expr:
        column = pl.col(name)
        if kind == "int64" and self.gpu:
            return column.str.to_integer(dtype=pl.Int64)  # a cast does not check the range
        if kind != "date":
            return column.cast(TYPES[kind]) if self.gpu else column
        days = column.str.to_date("%Y-%m-%d", cache=not self.gpu)  # cuDF has no cache of parsed dates
        return days.cast(pl.Int32).cast(pl.Int64)

    def read_parquet(self, path: Path, columns: Sequence[str] | None = None) -> Frame:
        t = pl.scan_parquet(path)
        return t if columns is None else t.select(columns)

    def read_matching(self, path: Path, keys: Frame, on: Sequence[str]) -> Frame:
        matching = pl.scan_parquet(path).join(keys.select(on), on=list(on), how="semi")
        return self.collect(matching) if self.gpu else matching.collect(engine="streaming").lazy()

    def write_parquet(self, t: Frame, path: Path) -> None:
        self._run(t).write_parquet(path)

    def from_arrow(self, table: Any) -> Frame:
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame.lazy()

    def collect(self, t: Frame) -> Frame:
        return self._run(t).lazy()

    def keep(self, t: Frame) -> Frame:
        if not self._resident:
            return self.collect(t)
        return resident.scan(self._computed(lambda: resident.run(t)), t.collect_schema())

    def height(self, t: Frame) -> int:
        if not self.gpu or gpu_plan.on_host(t):
            return int(self._computed(lambda: t.select(pl.len()).collect()).item())
        # A frame kept on the GPU cannot be scanned without columns.
        return int(self._run(t.select(pl.first().len())).item())

    def columns(self, t: Frame) -> list[str]:
        return list(t.collect_schema().names())

    def to_numpy(self, t: Frame, columns: Sequence[str]) -> dict[str, Array]:
        frame = self._run(t.select(list(dict.fromkeys([*columns, "row"])))).sort("row")
        return {name: frame[name].to_numpy() for name in columns}

    def matrix(self, t: Frame, columns: Sequence[str]) -> Array:
        wanted = [pl.col(name).cast(pl.Float32) for name in columns]
        if self._resident:
            return resident.matrix(self._ordered(t, *(x.fill_null(float("nan")) for x in wanted)), "float32")
        return self._ordered(t, *wanted).to_numpy(order="c")

    def codes(self, t: Frame, columns: Sequence[str]) -> Array:
        ordered = self._ordered(t, *(pl.col(name).cast(pl.Int64) for name in columns))
        return resident.matrix(ordered, "int64") if self._resident else ordered.to_numpy(order="c")

    def token_matrix(self, t: Frame, column: str, separator: str, length: int) -> Array:
        text = pl.col(column).fill_null("")
        lists = self._ordered(t, pl.when(text == "").then(pl.lit("0")).otherwise(text).alias(column))
        if self._resident:
            return self._computed(lambda: resident.token_matrix(lists, separator, length))
        return self._computed(lambda: token_matrix(lists.to_series(), separator, length))

    def _ordered(self, t: pl.LazyFrame, *wanted: pl.Expr) -> Any:
        """Expressions sorted by `row`: a cudf-polars frame if results stay on the GPU, else a Polars frame."""
        chosen = t.select(*wanted, _row="row")
        if self._resident:
            plan = chosen.sort("_row").drop("_row")
            return self._computed(lambda: resident.run(plan))
        return self._run(chosen).sort("_row").drop("_row")

    def to_arrow(self, t: Frame, columns: Sequence[str]) -> Any:
        frame = self._run(t.select(list(dict.fromkeys([*columns, "row"])))).sort("row")
        return frame.select(columns).to_arrow(compat_level=pl.CompatLevel.oldest())

    def with_columns(self, t: Frame, **exprs: Callable[[Columns], Expr]) -> Frame:
        """Adds columns that do not use each other in one node: deep plans are slow, and cudf-polars walks them recursively."""
        node: dict[str, pl.Expr] = {}
        for name, expr in exprs.items():
            column = expr(pl.col)
            if not node.keys().isdisjoint(column.meta.root_names()):
                t, node = t.with_columns(**node), {}
            node[name] = column
        return t.with_columns(**node)

    def where(self, condition: Expr, a: Any, b: Any) -> Expr:
        then, other = (x if isinstance(x, pl.Expr) else pl.lit(x) for x in (a, b))
        return pl.when(condition).then(then).otherwise(other)

    def log1p(self, x: Expr) -> Expr:
        return (x.cast(pl.Float64) + 1).log() if self.gpu else x.log1p()

    def clip(self, x: Expr, low: float, high: float) -> Expr:
        return x.clip(low, high)

    def cast(self, x: Expr, dtype: str) -> Expr:
        return x.cast(CASTS[dtype])

    def is_null(self, x: Expr) -> Expr:
        return x.is_null()

    def ends_with(self, x: Expr, text: str) -> Expr:
        return x.str.ends_with(text)

    def fill_null(self, x: Expr, value: Any) -> Expr:
        return x.fill_null(value)

    def select(self, t: Frame, columns: Sequence[str]) -> Frame:
        row = ["row"] if "row" in self.columns(t) else []
        return t.select(list(dict.fromkeys([*columns, *row])))

    def rename(self, t: Frame, names: Mapping[str, str]) -> Frame:
        return t.rename(dict(names))

    def drop(self, t: Frame, columns: Sequence[str]) -> Frame:
        return t.drop(columns)

    def filter(self, t: Frame, keep: Callable[[Columns], Expr]) -> Frame:
        return t.filter(keep(pl.col))

    def concat(self, frames: Sequence[Frame]) -> Frame:
        return pl.concat(list(frames))

    def distinct(self, t: Frame, keys: Sequence[str]) -> Frame:
        return t.select(keys).drop_nulls().unique()

    def group_sums(self, t: Frame, keys: Sequence[str], columns: Sequence[str] = ()) -> Frame:
        sums = [pl.col(name).sum().alias(f"sum_{name}") for name in columns]
        return t.drop_nulls(keys).group_by(keys).agg(*sums, pl.len().cast(pl.Int64).alias("n"))

    def left_join(
        self,
        t: Frame,
        table: Frame,
        on: Mapping[str, str],
        columns: Mapping[str, str],
        fill: Any | Mapping[str, Any],
    ) -> Frame:
        return self.lookups(t, [Lookup(table, on, columns, fill)])

    def lookups(self, t: Frame, wanted: Sequence[Lookup]) -> Frame:
        """Joins the tables in sequence, then fills in one node. Merging tables with the same keys first is not faster."""
        filled = []
        for each in wanted:
            keys = [pl.col(right).alias(left) for left, right in each.on.items()]
            columns = [pl.col(name).alias(out) for name, out in each.columns.items()]
            t = t.join(each.table.select(*keys, *columns), on=list(each.on), how="left")
            filled += [pl.col(name).fill_null(fill_of(each.fill, name)) for name in each.columns.values()]
        return t.with_columns(filled)

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
        form = Windows(keys, order) if self.gpu else Segments(keys)
        t = form.open(self._apart(t), order)
        new = []
        if count:
            new.append(form.count.alias(count))
        if size:
            new.append(form.size().alias(size))
        new += [form.first(column).alias(out) for column, out in (first or {}).items()]
        new += [(pl.col(c) - form.shift(c, 1)).fill_null(-1).alias(out) for c, out in (since or {}).items()]
        for out, (column, weight, prior) in (mean or {}).items():
            smoothed = (form.sum_before(column) + weight * prior) / (form.count + weight)
            new.append(smoothed.cast(pl.Float32).alias(out))
        for column, (n, fill) in (lags or {}).items():
            new += [form.shift(column, i).fill_null(fill).alias(f"{column}_lag{i}") for i in range(1, n + 1)]
        return self._apart(form.close(t.with_columns(new)))

    def _apart(self, t: pl.LazyFrame) -> pl.LazyFrame:
        """The frame; on a GPU its rows, computed now. Polars may move an expression into the node of a window, where cudf-polars applies it
        twice (`gpu_plan.replaced_beside_a_window`)."""
        return self.keep(t) if self.gpu else t

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
        new = {size: token_count(column, separator)} if size else {}
        new |= {out: token_occurrences(column, token) for token, out in (counts or {}).items()}
        new |= {out: token_at(column, separator, place) for place, out in (at or {}).items()}
        new |= {out: token_after(column, separator, *which) for which, out in (after or {}).items()}
        return t.with_columns(**new)

    def text_features(self, t: Frame, column: str, separator: str, features: TextFeatures) -> Frame:
        form = texts.on_gpu if self.gpu else texts.on_cpu
        return form(t, column, separator, features)

    def first_hex_id(self, t: Frame, column: str, out: str) -> Frame:
        text = pl.col(column).fill_null("")
        first = pl.when(text == "").then(pl.lit(NO_ID)).otherwise(text.str.slice(0, 32))
        return self.hex_id(t.with_columns(first.alias(FIRST_ID)), FIRST_ID, out).drop(FIRST_ID)

    def hex_id(self, t: Frame, column: str, out: str, digits: int = 32) -> Frame:
        high, low = (pl.col(part) for part in HALVES)
        both = pl.when(high >= 2**31).then(high - 2**32).otherwise(high) * 2**32 + low
        return self._halves(t, column, digits).with_columns(both.alias(out)).drop(HALVES)

    def _halves(self, t: pl.LazyFrame, column: str, digits: int) -> pl.LazyFrame:
        """The frame with the last 16 hexadecimal digits as two non-negative numbers of 32 bits, the columns HALVES."""
        if not self.gpu:
            text = (pl.col(column).str.slice(i, 8) for i in (digits - 16, digits - 8))
            numbers = (x.str.to_integer(base=16, dtype=pl.Int64) for x in text)
            return t.with_columns(**dict(zip(HALVES, numbers, strict=True)))
        # cudf-polars parses base 10 only. An expression that is used twice needs its own node; otherwise it is computed twice.
        pairs = pl.col(column).str.slice(digits - 16, 16).str.to_lowercase().str.replace_many(*DECIMALS)
        t = t.with_columns(pairs.alias(PARTS)).with_columns(
            pl.col(PARTS).str.slice(i, 12).cast(pl.Int64).alias(name)
            for i, name in zip((0, 12), HALVES, strict=True)
        )
        return t.drop(PARTS).with_columns(from_decimals(name) for name in HALVES)

    def parse_vector(self, t: Frame, column: str, length: int, out: str) -> Frame:
        parts = split(t, pl.col(column).fill_null("").str.strip_chars("[]"), ", ", length)
        return parts.with_columns(
            field(i).cast(pl.Float32).fill_null(0.0).alias(f"{out}_{i}") for i in range(length)
        ).drop(PARTS)

    def date_parts(self, t: Frame, column: str, unit: str, parts: Mapping[str, str]) -> Frame:
        # Always from seconds: cudf-polars makes wrong dates from a number of days.
        seconds = pl.col(column).cast(pl.Int64) * (DAY if unit == "d" else 1)
        times = pl.from_epoch(seconds, time_unit="s").dt
        return t.with_columns(
            self._part(times, part).cast(pl.Int32).alias(out) for part, out in parts.items()
        )

    @staticmethod
    def _part(times: Any, part: str) -> pl.Expr:
        value: pl.Expr = getattr(times, part)()
        return value.cast(pl.Int32) - 1 if part == "weekday" else value

    def _with_codes(self, counts: Frame, min_count: int) -> Frame:
        table = counts.sort(["n", "value"], descending=[True, False]).with_row_index("code")
        code = (
            pl.when(pl.col("n") >= min_count).then(pl.col("code").cast(pl.Int64) + FIRST_CODE).otherwise(RARE)
        )
        return table.select("value", "n", code.cast(pl.Int64).alias("code"))


def from_decimals(name: str) -> pl.Expr:
    """The number of four hexadecimal pairs d3 d2 d1 d0, from the column S = sum(d[k] * 1000**k).

    With q[k] = S // 1000**k, d[k] = q[k] - 1000 * q[k + 1], so sum(d[k] * 256**k) = q[0] - 744 * (q[1] + 256 * q[2] + 256**2 * q[3]).
    """
    high = [pl.col(name) // 1000**k * 256 ** (k - 1) for k in (1, 2, 3)]
    return pl.col(name) - 744 * (high[0] + high[1] + high[2])


def token_count(column: str, separator: str) -> pl.Expr:
    """The number of tokens of a joined list, int32; 0 if missing or empty."""
    text = pl.col(column).fill_null("")
    count = pl.when(text == "").then(0).otherwise(text.str.count_matches(separator).cast(pl.Int64) + 1)
    return count.cast(pl.Int32)


def token_occurrences(column: str, token: str) -> pl.Expr:
    """How often a token is in a joined list of words, int32."""
    return pl.col(column).fill_null("").str.count_matches(rf"\b{token}\b").cast(pl.Int32)


def token_at(column: str, separator: str, place: int) -> pl.Expr:
    """The token at a position of a joined list of integers, int64; -1 if there is none."""
    token = pl.col(column).str.splitn(separator, place + 2).struct.field(f"field_{place}")
    return pl.when(token != "").then(token).otherwise(None).cast(pl.Int64).fill_null(-1)


def token_after(column: str, separator: str, token: str, nth: int) -> pl.Expr:
    """The token that follows the nth occurrence of another in a joined list of integers, int64; -1 if there is none."""
    again = f"(?:[0-9]+{separator})*?{token}{separator}"
    pattern = f"(?:^|{separator}){token}{separator}{again * (nth - 1)}([0-9]+)"
    return pl.col(column).fill_null("").str.extract(pattern, 1).cast(pl.Int64).fill_null(-1)


def token_matrix(text: pl.Series, separator: str, length: int) -> Array:
    """`Engine.token_matrix` of a column without missing or empty lists: int32 [rows, length]."""
    if text.is_empty():
        return np.zeros((0, length), dtype=np.int32)
    # The CSV reader is faster than a split followed by casts.
    numbers = pl.read_csv(
        text.str.join("\n")[0].encode(),
        schema={str(i): pl.Int32 for i in range(length)},
        has_header=False,
        separator=separator,
        quote_char=None,
        truncate_ragged_lines=True,
    )
    return numbers.fill_null(0).to_numpy(order="c")


class Segments:
    """Window expressions on the CPU: rows are sorted by keys and order, so that each key's rows are one segment.

    `open` adds temporary columns, `close` drops them. `count` is the number of earlier rows of the key.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(keys)
        self.count = pl.col("_at") - pl.col("_start")

    def open(self, t: pl.LazyFrame, order: str) -> pl.LazyFrame:
        """Sort, and add each row's position and the position of its segment's first row."""
        t = t.sort(*self._keys, order)
        new = pl.any_horizontal(pl.col(k).ne_missing(pl.col(k).shift(1)) for k in self._keys)
        t = t.with_columns(_at=pl.int_range(pl.len(), dtype=pl.Int64)).with_columns(
            _new=new | (pl.col("_at") == 0),
        )
        return t.with_columns(_start=pl.when("_new").then("_at").otherwise(0).cum_max())

    def close(self, t: pl.LazyFrame) -> pl.LazyFrame:
        """Drop the temporary columns."""
        return t.drop("_at", "_new", "_start")

    def shift(self, column: str, n: int) -> pl.Expr:
        """The value n rows before, missing if the key has fewer earlier rows."""
        return pl.when(self.count >= n).then(pl.col(column).shift(n)).otherwise(None)

    def first(self, column: str) -> pl.Expr:
        """The value of the key's first row."""
        return pl.col(column).gather(pl.col("_start"))

    def size(self) -> pl.Expr:
        """The number of the key's rows, int64."""
        last = pl.col("_new").shift(-1).fill_null(True)
        return pl.when(last).then(self.count + 1).otherwise(None).backward_fill()

    def sum_before(self, column: str) -> pl.Expr:
        """The sum over earlier rows."""
        before = pl.col(column).cum_sum() - pl.col(column)
        return before - before.gather(pl.col("_start"))


class Windows:
    """Window expressions on the GPU, with the interface of `Segments`. Each is an ordered window that cudf-polars supports."""

    def __init__(self, keys: Sequence[str], order: str) -> None:
        self._over: dict[str, Any] = {"partition_by": list(keys), "order_by": order}
        self._keys = list(keys)
        self.count = pl.col("_one").cum_sum().over(**self._over) - 1

    def open(self, t: pl.LazyFrame, order: str) -> pl.LazyFrame:
        """Add a column of ones, whose running sum is the count. A literal would be one row, also next to no rows."""
        return t.with_columns(_one=(pl.col(order) == pl.col(order)).cast(pl.Int64))

    def close(self, t: pl.LazyFrame) -> pl.LazyFrame:
        """Drop the temporary column."""
        return t.drop("_one")

    def shift(self, column: str, n: int) -> pl.Expr:
        """The value n rows before, missing if the key has fewer earlier rows."""
        return pl.col(column).shift(n).over(**self._over)

    def first(self, column: str) -> pl.Expr:
        """The value of the key's first row."""
        return pl.col(column).first().over(**self._over)

    def size(self) -> pl.Expr:
        """The number of the key's rows, int64."""
        return pl.len().over(self._keys).cast(pl.Int64)

    def sum_before(self, column: str) -> pl.Expr:
        """The sum over earlier rows."""
        return pl.col(column).cum_sum().over(**self._over) - pl.col(column)
