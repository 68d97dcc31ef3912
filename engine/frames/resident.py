"""Polars plans on this process's GPU: the engine that runs them, and results that stay on the GPU.

Only `run` uses parts of cudf-polars that are not public.
"""

import atexit
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from buzzer.engine import device
from buzzer.engine.frames.base import Array
from buzzer.errors import UnsupportedError

VERSION = "26.10."  # the version of cudf-polars that `run` supports
ONLY_RANK = 0
OWN_POOL = "buzzer.engine.device.pool"
WORKERS_POOL = "rmm.mr.get_current_device_resource"  # the pool that dask-cuda made in a worker


@cache
def engine() -> Any:
    """The cudf-polars engine of this process; it allocates from `device.pool`.

    It is created at first use, and shut down by the same thread when Python exits, as rapidsmpf requires.
    """
    from cudf_polars.engine.spmd import SPMDEngine

    device.pool()
    spmd = SPMDEngine.from_options(options(OWN_POOL, device.memory_limit()))
    atexit.register(spmd.shutdown)
    return spmd


def options(pool: str, limit: int | None) -> Any:
    """Options of a cudf-polars engine that never falls back to the CPU.

    pool: dotted name of the function that returns its memory resource.  limit: its memory limit in bytes, which sets the partition
    sizes and the size above which it spills; None for the device's memory.
    """
    from cudf_polars.engine.hardware_binding import HardwareBindingPolicy
    from cudf_polars.engine.options import StreamingOptions
    from cudf_polars.utils.config import MemoryResourceConfig

    sizes: dict[str, Any] = {}
    if limit:  # cudf-polars' default fractions, applied to the limit instead of the device's memory
        sizes = {"target_partition_size": limit // 40, "broadcast_limit": limit * 3 // 20}
        sizes["spill_device_limit"] = str(limit * 4 // 5)
    return StreamingOptions(
        raise_on_fail=True,
        memory_resource_config=MemoryResourceConfig(qualname=pool),
        hardware_binding=HardwareBindingPolicy(
            enabled=False
        ),  # cores are bound by the budget or by dask-cuda
        **sizes,
    )


def run(plan: pl.LazyFrame) -> Any:
    """A plan's result as a frame of cudf-polars on the GPU.

    Raises UnsupportedError for another version of cudf-polars, and cudf-polars' own errors for a plan that it refuses.
    """
    import cudf_polars

    if not cudf_polars.__version__.startswith(VERSION):
        raise UnsupportedError(
            f"cudf-polars {cudf_polars.__version__} is not supported: results can stay on the GPU only with {VERSION}*",
            f"pip install 'cudf-polars-cu13=={VERSION}*'",
        )
    from cudf_polars.engine import rank_local_store

    result = engine().execute(plan)
    # The result's own `lazy()` can be used by one plan only.
    return rank_local_store.require_store(result._uid).pop(result._query_id, ONLY_RANK)


def scan(frame: Any, schema: Mapping[str, Any]) -> pl.LazyFrame:
    """A frame on the GPU as a scan that any number of plans can use. Only cudf-polars can run these plans."""

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[Any]:
        # cudf-polars filters afterwards, and refuses plans with a limit.
        assert predicate is None and n_rows is None
        yield copied(frame if columns is None else frame.select(columns))

    return register_io_source(rows, schema=dict(schema))


def copied(frame: Any) -> Any:
    """A copy in device memory. cudf-polars takes ownership of scanned frames, and may spill or free them."""
    from pylibcudf import Table

    columns = [column.copy(stream=frame.stream) for column in frame.table.columns()]
    return type(frame).from_table(Table(columns), frame.column_names, frame.dtypes, frame.stream)


def matrix(frame: Any, dtype: str) -> Array:
    """A frame as a C-contiguous cupy array [rows, columns]. All columns must have this dtype and no missing values."""
    import cupy

    return cupy.ascontiguousarray(side_by_side(frame.table, frame.num_rows, dtype, frame.stream))


def side_by_side(table: Any, rows: int, dtype: str, stream: Any) -> Array:
    """A pylibcudf table as a Fortran-contiguous cupy array [rows, columns]."""
    import cupy

    array = cupy.empty((rows, table.num_columns()), dtype=dtype, order="F")
    if not rows:
        return array
    from pylibcudf.reshape import table_to_array

    cupy.cuda.get_current_stream().synchronize()  # the array must be allocated before another stream writes to it
    table_to_array(table, array.data.ptr, array.nbytes, stream)
    stream.synchronize()
    return array


def token_matrix(frame: Any, separator: str, length: int) -> Array:
    """The first `length` integers of each joined list as a cupy array int32 [rows, length], padded with 0.

    The frame has one string column, without missing or empty values.
    """
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
    tokens = cupy.where(at < ends[1:, None], values[cupy.minimum(at, len(values) - 1)], 0)
    return tokens.astype("int32", copy=False)
