"""The eager implementation: dataframes of pandas, or of cuDF, which has the same API."""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from buzzer.engine.frames import eager_csv, token_lists
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
)
from buzzer.engine.frames.lookups import by_merge, by_position
from buzzer.engine.frames.token_lists import TokenLists
from buzzer.errors import DataError

# Operators add columns one by one by design; `collect` copies them into one block.
warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
SECONDS = {"d": 86400, "s": 1}
ROWS_AT_ONCE = 1 << 10  # rows of a matrix that are filled together, so that they stay in the CPU's caches
HEX = np.full(256, 255, dtype=np.uint8)  # value of a hexadecimal digit by its ASCII code; 255: not a digit
HEX[list(b"0123456789abcdef")] = HEX[list(b"0123456789ABCDEF")] = range(16)


def engine(module: str) -> "Eager":
    """The engine on the module "pandas" or "cudf"."""
    return Eager(module)


def batches(rows: Sequence[int], least: int) -> list[list[int]]:
    """Consecutive row groups, by number, that together have at least `least` rows; the last batch may have fewer. rows: of each group."""
    made: list[list[int]] = []
    have = least
    for number, count in enumerate(rows):
        if have >= least:
            made.append([])
            have = 0
        made[-1].append(number)
        have += count
    return made


def is_series(x: Any) -> bool:
    """Whether a value is a column of pandas or cuDF."""
    return hasattr(x, "where")


def interleaved(columns: Sequence[Array], rows: int, dtype: str) -> Array:
    """Arrays of `rows` values as the columns of a matrix [rows, columns]. pandas' own copy is column-major, and a copy of that is slow."""
    matrix = np.empty((rows, len(columns)), dtype=dtype)
    for start in range(0, rows, ROWS_AT_ONCE):
        block = matrix[start : start + ROWS_AT_ONCE]
        for place, column in enumerate(columns):
            block[:, place] = column[start : start + ROWS_AT_ONCE]
    return matrix


class Eager(Engine):
    """The operators on `xp`, the module pandas or cudf."""

    def __init__(self, module: str) -> None:
        self.name = module
        self.gpu = module == "cudf"
        self.xp = importlib.import_module(module)

    def read_csv(
        self,
        path: Path,
        schema: Mapping[str, str],
        *,
        names: Sequence[str] | None = None,
        separator: str = ",",
    ) -> Frame:
        if self.gpu:
            t = eager_csv.on_device(self.xp, path, schema, names, separator)
        else:
            t = eager_csv.on_host(path, schema, names, separator)
        return t.assign(row=range(len(t)))

    def read_parquet(self, path: Path, columns: Sequence[str] | None = None) -> Frame:
        return self.xp.read_parquet(path, columns=None if columns is None else list(columns))

    def read_matching(self, path: Path, keys: Frame, on: Sequence[str]) -> Frame:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        # A merge hashes all keys. So it reads about as many rows as there are keys, and not one row group.
        groups = batches(rows, len(keys))
        if not groups:
            return self.read_parquet(path)
        return self.concat(
            [self._row_groups(path, some).merge(keys[list(on)], on=list(on)) for some in groups]
        )

    def _row_groups(self, path: Path, groups: list[int]) -> Frame:
        if self.gpu:
            return self.xp.read_parquet(path, row_groups=groups)
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            return file.read_row_groups(groups).to_pandas()

    def write_parquet(self, t: Frame, path: Path) -> None:
        t.to_parquet(path, index=False)

    def from_arrow(self, table: Any) -> Frame:
        if self.gpu:
            return self.xp.DataFrame.from_arrow(table)
        return table.to_pandas()

    def collect(self, t: Frame) -> Frame:
        return t.copy()  # puts columns that were added one by one into one block

    def keep(self, t: Frame) -> Frame:
        return t  # already computed, and `matrix` makes a copy

    def height(self, t: Frame) -> int:
        return len(t)

    def columns(self, t: Frame) -> list[str]:
        return list(t.columns)

    def to_numpy(self, t: Frame, columns: Sequence[str]) -> dict[str, Array]:
        ordered = self._ordered(t, list(dict.fromkeys(columns)))
        return {name: self._array(ordered[name]) for name in columns}

    def matrix(self, t: Frame, columns: Sequence[str]) -> Array:
        return self._side_by_side(self._ordered(t, columns), "float32")

    def codes(self, t: Frame, columns: Sequence[str]) -> Array:
        return self._side_by_side(self._ordered(t, columns), "int64")

    def _side_by_side(self, t: Frame, dtype: str) -> Array:
        if not self.gpu:
            return interleaved([column.astype(dtype).to_numpy() for _, column in t.items()], len(t), dtype)
        import cupy

        return cupy.ascontiguousarray(t.astype(dtype).to_cupy())  # `to_cupy` is column-major

    def to_arrow(self, t: Frame, columns: Sequence[str]) -> Any:
        ordered = self._ordered(t, columns)
        if self.gpu:
            return ordered.to_arrow(preserve_index=False)
        import pyarrow as pa

        return pa.Table.from_pandas(ordered, preserve_index=False).replace_schema_metadata()

    def _ordered(self, t: Frame, columns: Sequence[str]) -> Frame:
        """Columns sorted by `row`; most frames are sorted already."""
        if not t["row"].is_monotonic_increasing:
            t = t[list(dict.fromkeys([*columns, "row"]))].sort_values("row")
        return t[list(columns)]

    def _array(self, column: Any) -> Array:
        if column.dtype.kind in "iufb":
            return column.to_numpy()
        host = column.to_pandas() if self.gpu else column
        return host.astype(object).where(host.notna(), None).to_numpy()

    def with_columns(self, t: Frame, **exprs: Callable[[Columns], Expr]) -> Frame:
        t = t.copy(deep=False)
        for name, expr in exprs.items():
            t[name] = expr(lambda column: t[column])
        return t

    def where(self, condition: Expr, a: Any, b: Any) -> Expr:
        condition = condition.fillna(False)  # cuDF's `mask` treats a missing condition as true
        if is_series(a):
            return a.where(condition, b)
        if is_series(b):
            return b.where(~condition, a)
        kind = type(b).__name__
        return condition.astype("int64").astype(kind).where(~condition, a).where(condition, b)

    def log1p(self, x: Expr) -> Expr:
        return np.log1p(x.astype("float64"))

    def clip(self, x: Expr, low: float, high: float) -> Expr:
        return x.clip(low, high)

    def cast(self, x: Expr, dtype: str) -> Expr:
        return x.astype(dtype)

    def is_null(self, x: Expr) -> Expr:
        return x.isna()

    def ends_with(self, x: Expr, text: str) -> Expr:
        return x.str.endswith(text)

    def fill_null(self, x: Expr, value: Any) -> Expr:
        return x.fillna(value)

    def select(self, t: Frame, columns: Sequence[str]) -> Frame:
        row = ["row"] if "row" in t.columns else []
        return t[list(dict.fromkeys([*columns, *row]))]

    def rename(self, t: Frame, names: Mapping[str, str]) -> Frame:
        return t.rename(columns=dict(names))

    def drop(self, t: Frame, columns: Sequence[str]) -> Frame:
        return t.drop(columns=list(columns))

    def filter(self, t: Frame, keep: Callable[[Columns], Expr]) -> Frame:
        return t[keep(lambda column: t[column])]

    def concat(self, frames: Sequence[Frame]) -> Frame:
        return self.xp.concat(list(frames), ignore_index=True)

    def distinct(self, t: Frame, keys: Sequence[str]) -> Frame:
        return t[list(keys)].dropna().drop_duplicates()

    def group_sums(self, t: Frame, keys: Sequence[str], columns: Sequence[str] = ()) -> Frame:
        groups = t[[*keys, *columns]].groupby(list(keys), sort=False)
        table = groups.size().to_frame("n")
        if columns:
            sums = groups[list(columns)].sum()
            table = sums.rename(columns={name: f"sum_{name}" for name in columns}).join(table)
        return table.reset_index()

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
        return by_merge(self.xp, t, wanted) if self.gpu else by_position(t, wanted)

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
        t = t.sort_values(order)
        groups = t.groupby(list(keys), sort=False, dropna=False)
        so_far = groups.cumcount()
        new: dict[str, Any] = {}
        if count:
            new[count] = so_far.astype("int64")
        if size:
            new[size] = groups[order].transform("count").astype("int64")
        for column, out in (first or {}).items():
            new[out] = groups[column].transform("first")
        for column, out in (since or {}).items():
            new[out] = (t[column] - groups[column].shift(1)).fillna(-1).astype("int64")
        for out, (column, weight, prior) in (mean or {}).items():
            before = groups[column].cumsum() - t[column]
            new[out] = ((before + weight * prior) / (so_far + weight)).astype("float32")
        for column, (n, fill) in (lags or {}).items():
            for i in range(1, n + 1):
                new[f"{column}_lag{i}"] = groups[column].shift(i).fillna(fill).astype(t[column].dtype)
        return t.assign(**new)

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
        def compute(lists: TokenLists) -> dict[str, Array]:
            new: dict[str, Array] = {size: lists.lengths.astype("int32")} if size else {}
            new |= {out: lists.count(token) for token, out in (counts or {}).items()}
            new |= {out: lists.at(place) for place, out in (at or {}).items()}
            return new | {out: lists.after(token, nth) for (token, nth), out in (after or {}).items()}

        return t.assign(**token_lists.computed(self.gpu, t[column], separator, compute))

    def text_features(self, t: Frame, column: str, separator: str, features: TextFeatures) -> Frame:
        compute = token_lists.text_features(features)
        return t.assign(**token_lists.computed(self.gpu, t[column], separator, compute))

    def token_matrix(self, t: Frame, column: str, separator: str, length: int) -> Array:
        text = self._ordered(t, [column])[column]
        return token_lists.computed(self.gpu, text, separator, lambda x: {"": x.matrix(length)})[""]

    def first_hex_id(self, t: Frame, column: str, out: str) -> Frame:
        lists = t[column].fillna("")
        firsts = lists.str.slice(0, 32)
        t = self.hex_id(t.assign(**{FIRST_ID: firsts.where(lists != "", NO_ID)}), FIRST_ID, out)
        return t.drop(columns=[FIRST_ID])

    def hex_id(self, t: Frame, column: str, out: str, digits: int = 32) -> Frame:
        if self.gpu:
            halves = [t[column].str.slice(i, i + 8).str.htoi() for i in (digits - 16, digits - 8)]
            high = halves[0].where(halves[0] < 2**31, halves[0] - 2**32)
            return t.assign(**{out: high * 2**32 + halves[1]})
        offsets, data = token_lists.arrow_text(t[column])
        if (np.diff(offsets) != digits).any():
            raise DataError(f"column {column}: an id does not have {digits} digits", CHECK_HINT)
        values = HEX[data.reshape(len(t), digits)[:, -16:]]
        if (values == 255).any():
            raise DataError(f"column {column}: an id is not hexadecimal", CHECK_HINT)
        packed = np.ascontiguousarray(values[:, 0::2] * 16 + values[:, 1::2])
        return t.assign(**{out: packed.view(">i8")[:, 0].astype("int64")})

    def parse_vector(self, t: Frame, column: str, length: int, out: str) -> Frame:
        parts = t[column].fillna("").str.strip("[]").str.split(", ", n=length, expand=True)
        values = [self._number_or_zero(parts[i]) for i in range(min(length, parts.shape[1]))]
        values += [0.0] * (length - len(values))
        names = [f"{out}_{i}" for i in range(length)]
        return t.assign(**dict(zip(names, values, strict=True))).astype(dict.fromkeys(names, "float32"))

    @staticmethod
    def _number_or_zero(texts: Any) -> Any:
        return texts.where(texts.fillna("") != "", "0").astype("float64")

    def date_parts(self, t: Frame, column: str, unit: str, parts: Mapping[str, str]) -> Frame:
        times = (t[column] * SECONDS[unit]).astype("datetime64[s]").dt
        return t.assign(**{out: getattr(times, part).astype("int32") for part, out in parts.items()})

    def _with_codes(self, counts: Frame, min_count: int) -> Frame:
        table = counts.sort_values(["n", "value"], ascending=[False, True], ignore_index=True)
        code = self.xp.Series(np.arange(FIRST_CODE, FIRST_CODE + len(table), dtype="int64"))
        return table.assign(code=code.where(table["n"] >= min_count, RARE))
