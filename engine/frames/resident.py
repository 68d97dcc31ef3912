"""Polars plans on this process's GPU: the one engine that runs them, and results that stay there. What cudf-polars has no public name
for stands in `run` alone."""

import atexit
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from buzzer.engine import device
from buzzer.engine.frames.base import Array
from buzzer.errors import UnsupportedError

VERSION = "26.10."  # of cudf-polars, whose results `run` knows how to take
ONLY_RANK = 0
OWN_POOL = "buzzer.engine.device.pool"
WORKERS_POOL = "rmm.mr.get_current_device_resource"  # that dask-cuda gave a worker


@cache
def engine() -> Any:
    """The engine that collects and executes every plan of this process, over `device.pool`. Made at first use, and shut down by the
    same thread when Python ends, as rapidsmpf demands."""
    from cudf_polars.engine.spmd import SPMDEngine

    device.pool()
    made = SPMDEngine.from_options(options(OWN_POOL, device.memory_limit()))
    atexit.register(made.shutdown)
    return made


def options(pool: str, limit: int | None) -> Any:
    """What an engine is told: no fall-back to the CPU, the memory resource that a function of this name gives, and where its memory
    has a limit in bytes, partitions of a size for it and when to spill."""
    from cudf_polars.engine.hardware_binding import HardwareBindingPolicy
    from cudf_polars.engine.options import StreamingOptions
    from cudf_polars.utils.config import MemoryResourceConfig

    within: dict[str, Any] = {}
    if limit:  # the same shares as cudf-polars', of the limit instead of the device
        within = {"target_partition_size": limit // 40, "broadcast_limit": limit * 3 // 20}
        within["spill_device_limit"] = str(limit * 4 // 5)
    return StreamingOptions(
        raise_on_fail=True,
        memory_resource_config=MemoryResourceConfig(qualname=pool),
        hardware_binding=HardwareBindingPolicy(enabled=False),  # the budget or dask-cuda has bound the cores
        **within,
    )


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

    kept = engine().execute(plan)
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


def matrix(frame: Any, dtype: str) -> Array:
    """A cupy array [rows, columns] in the order of C, of a frame whose columns are of this type without missing values."""
    import cupy

    return cupy.ascontiguousarray(side_by_side(frame.table, frame.num_rows, dtype, frame.stream))


def side_by_side(table: Any, rows: int, dtype: str, stream: Any) -> Array:
    """A cupy array [rows, columns] of a pylibcudf table, column by column."""
    import cupy

    found = cupy.empty((rows, table.num_columns()), dtype=dtype, order="F")
    if not rows:
        return found
    from pylibcudf.reshape import table_to_array

    cupy.cuda.get_current_stream().synchronize()  # the memory is there before another stream writes to it
    table_to_array(table, found.data.ptr, found.nbytes, stream)
    stream.synchronize()
    return found


def token_matrix(frame: Any, separator: str, length: int) -> Array:
    """The first `length` integers of each joined list as a cupy array int32 [rows, length], 0 after the last; of a frame with one
    column of text, none of it missing or empty."""
    import cupy
    from pylibcudf import DataType, Scalar, Table, TypeId
    from pylibcudf.strings.convert.convert_integers import to_integers
    from pylibcudf.strings.split.split import split_record

    if not frame.num_rows:
        return cupy.zeros((0, length), dtype="int32")
    stream, (text,) = frame.stream, frame.table.columns()
    lists = split_record(text, Scalar.from_py(separator, stream=stream), length, stream=stream).list_view()
    items = to_integers(lists.child(), DataType(TypeId.INT32), stream=stream)
    values = side_by_side(Table([items]), items.size(), "int32", stream)[:, 0]
    ends = side_by_side(Table([lists.offsets()]), frame.num_rows + 1, "int32", stream)[:, 0]
    at = ends[:-1, None] + cupy.arange(length, dtype="int32")
    found = cupy.where(at < ends[1:, None], values[cupy.minimum(at, len(values) - 1)], 0)
    return found.astype("int32", copy=False)
