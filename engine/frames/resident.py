"""Results of Polars plans that stay on this process's GPU. What cudf-polars has no public name for stands in `run` alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from buzzer.engine.frames.base import Array
from buzzer.errors import UnsupportedError

VERSION = "26.10."  # of cudf-polars, whose results `run` knows how to take
ONLY_RANK = 0


def run(plan: pl.LazyFrame) -> Any:
    """A plan's result as cudf-polars' own frame on the GPU. Raises what cudf-polars does for a plan that it refuses, UnsupportedError
    for a cudf-polars of another version."""
    import cudf_polars

    if not cudf_polars.__version__.startswith(VERSION):
        raise UnsupportedError(
            f"cudf-polars {cudf_polars.__version__} may keep results on the GPU in another way than {VERSION}*",
            f"pip install 'cudf-polars-cu13=={VERSION}*'",
        )
    from cudf_polars.engine import rank_local_store
    from cudf_polars.engine.default_singleton_engine import DefaultSingletonEngine

    kept = DefaultSingletonEngine.get_or_create().execute(plan)
    # Its own `lazy` gives the rows to one plan only.
    return rank_local_store.require_store(kept._uid).pop(kept._query_id, ONLY_RANK)


def scan(frame: Any, schema: Mapping[str, Any]) -> pl.LazyFrame:
    """A frame on the GPU as the source of any number of plans, which cudf-polars alone can run."""

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[Any]:
        # cudf-polars filters what it is given, and refuses plans with a limit.
        assert predicate is None and n_rows is None
        yield copied(frame if columns is None else frame.select(columns))

    return register_io_source(rows, schema=dict(schema))


def copied(frame: Any) -> Any:
    """The same rows in device memory of their own: cudf-polars takes what it scans for its own, to spill and to free."""
    from pylibcudf import Table

    columns = [column.copy(stream=frame.stream) for column in frame.table.columns()]
    return type(frame).from_table(Table(columns), frame.column_names, frame.dtypes, frame.stream)


def matrix(frame: Any) -> Array:
    """A cupy array [rows, columns] in the order of C, of a frame whose columns are float32 without missing values."""
    import cupy

    if not frame.num_rows:
        return cupy.empty((0, frame.num_columns), dtype="float32")
    from pylibcudf.reshape import table_to_array

    found = cupy.empty((frame.num_rows, frame.num_columns), dtype="float32", order="F")
    cupy.cuda.get_current_stream().synchronize()  # the memory is there before another stream writes to it
    table_to_array(frame.table, found.data.ptr, found.nbytes, frame.stream)
    frame.stream.synchronize()
    return cupy.ascontiguousarray(found)
