"""Results of `polars-gpu` stay on the GPU between a plan and the models.

Without a GPU, stand-ins for cudf-polars, pylibcudf and cupy show it, whose API is checked against the real ones. On a GPU, CUDA's
trace shows it.
"""

import ctypes
import importlib.util
import inspect
import json
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from buzzer.engine import device, faults, frames
from buzzer.engine.frames import Engine, gpu_plan, resident
from buzzer.engine.frames.lazy import Lazy
from buzzer.errors import UnsupportedError


class Column:
    def __init__(self, values: pl.Series) -> None:
        self.values = values

    def copy(self, *, stream: "Stream") -> "Column":
        return Column(self.values.clone())

    def size(self) -> int:
        return len(self.values)


class Table:
    def __init__(self, columns: list[Column]) -> None:
        self._columns = columns

    def columns(self) -> list[Column]:
        return self._columns

    def num_columns(self) -> int:
        return len(self._columns)


class OnDevice:
    """A stand-in for a frame of cudf-polars. Only plans and `table_to_array` can read its rows."""

    def __init__(self, table: Table, names: list[str], dtypes: list[Any], stream: "Stream") -> None:
        self.table, self.column_names, self.dtypes, self.stream = table, names, dtypes, stream
        self.num_rows, self.num_columns = len(table.columns()[0].values), len(names)

    @classmethod
    def from_table(cls, table: Table, names: list[str], dtypes: list[Any], stream: "Stream") -> "OnDevice":
        return cls(table, names, dtypes, stream)

    def select(self, names: list[str]) -> "OnDevice":
        at = [self.column_names.index(name) for name in names]
        chosen = Table([self.table.columns()[i] for i in at])
        return OnDevice(chosen, names, [self.dtypes[i] for i in at], self.stream)


class Stream:
    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


class Cupy(np.ndarray[Any, Any]):
    """An array on the device: the host has its pointer only."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self) -> Any:
        raise AssertionError("a copy to the host")

    tobytes = tolist = get


class Gpu:
    """A stand-in for the engine, which records the plans that it executes."""

    def __init__(self) -> None:
        self.executed: list[pl.LazyFrame] = []
        self.results: dict[tuple[str, int, int], Any] = {}
        self.failure: Exception | None = None
        self.stream = Stream()

    def execute(self, plan: pl.LazyFrame) -> Any:
        if self.failure is not None:
            raise self.failure
        self.executed.append(plan)
        key = ("engine", len(self.executed), 0)
        frame = plan.collect()
        table = Table([Column(values) for values in frame.iter_columns()])
        self.results[key] = OnDevice(table, frame.columns, frame.dtypes, Stream())
        return SimpleNamespace(_uid=key[0], _query_id=key[1])

    def require_store(self, uid: str) -> Any:
        return SimpleNamespace(pop=lambda query, rank: self.results.pop((uid, query, rank)))


def table_to_array(table: Table, ptr: int, size: int, stream: Stream) -> None:
    """Column-major, as the real one. Columns have one type and no missing values."""
    columns = [column.values for column in table.columns()]
    assert len({column.dtype for column in columns}) == 1
    assert not any(column.null_count() for column in columns)
    values = np.concatenate([column.to_numpy() for column in columns])
    assert size == values.nbytes
    ctypes.memmove(ptr, values.ctypes.data, size)


def split_record(strings: Column, delimiter: str, maxsplit: int, *, stream: Stream) -> Any:
    """The parts of a list column, by Python's split."""
    assert not strings.values.null_count()
    lists = [text.split(delimiter, maxsplit) for text in strings.values]
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    items = pl.Series([item for items in lists for item in items], dtype=pl.String)
    return SimpleNamespace(
        list_view=lambda: SimpleNamespace(
            child=lambda: Column(items), offsets=lambda: Column(pl.Series(ends))
        )
    )


def to_integers(strings: Column, dtype: Any, *, stream: Stream) -> Column:
    """Anything else than an integer becomes an arbitrary integer, as in the real one."""
    assert dtype == "INT32"
    return Column(strings.values.cast(pl.Int32, strict=False).fill_null(-77))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    recorder = Gpu()
    cupy = SimpleNamespace(
        empty=lambda shape, dtype, order="C": np.empty(shape, dtype, order).view(Cupy),
        ascontiguousarray=lambda array: array.copy(order="C"),
        arange=np.arange,
        minimum=np.minimum,
        where=lambda condition, a, b: np.where(condition, a, b).view(Cupy),
        zeros=lambda shape, dtype: np.zeros(shape, dtype).view(Cupy),
        cuda=SimpleNamespace(get_current_stream=lambda: recorder.stream),
    )
    plc: Any = SimpleNamespace(
        Table=Table,
        DataType=lambda kind: kind,
        TypeId=SimpleNamespace(INT32="INT32"),
        Scalar=SimpleNamespace(from_py=lambda value, *, stream: value),
    )
    modules = {
        "cupy": cupy,
        "cudf_polars": SimpleNamespace(__version__="26.10.02"),
        "cudf_polars.engine": SimpleNamespace(rank_local_store=recorder),
        "pylibcudf": plc,
        "pylibcudf.reshape": SimpleNamespace(table_to_array=table_to_array),
        "pylibcudf.strings.convert.convert_integers": SimpleNamespace(to_integers=to_integers),
        "pylibcudf.strings.split.split": SimpleNamespace(split_record=split_record),
    }
    monkeypatch.setattr(resident, "engine", lambda: recorder)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return recorder


@pytest.fixture
def e(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine; collecting to the host fails."""
    engine = Lazy("gpu")

    def to_host(t: Any) -> None:
        raise AssertionError("collected to the host")

    monkeypatch.setattr(engine, "_run", to_host)
    return engine


def rows(**columns: Any) -> Any:
    return pl.LazyFrame({"row": np.arange(len(next(iter(columns.values())))), **columns})


def test_a_matrix_is_made_on_the_device(e: Engine, gpu: Gpu) -> None:
    t = rows(a=[2, 0, 1], b=[0.5, None, 1.5], s=["x", None, "y"]).with_columns(row=pl.Series([2, 0, 1]))
    got: Any = e.matrix(t, ["b", "row", "a"])
    assert isinstance(got, Cupy)
    assert got.dtype == np.float32 and got.flags["C_CONTIGUOUS"]
    want = np.array([[np.nan, 0, 0], [1.5, 1, 1], [0.5, 2, 2]], dtype=np.float32)
    np.testing.assert_array_equal(got.view(np.ndarray), want)
    assert gpu.stream.waited == 1


def test_codes_are_made_on_the_device(e: Engine) -> None:
    t = rows(a=[2**40, 0, 1], b=[5, 6, 7]).with_columns(row=pl.Series([2, 0, 1]))
    got: Any = e.codes(t, ["b", "a"])
    assert isinstance(got, Cupy)
    assert got.dtype == np.int64 and got.flags["C_CONTIGUOUS"]
    assert got.view(np.ndarray).tolist() == [[6, 0], [7, 1], [5, 2**40]]


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        (["1,2,3,4", None, "7", "", "5,6"], [[1, 2, 3], [0] * 3, [7, 0, 0], [0] * 3, [5, 6, 0]]),
        (["", None], [[0] * 3, [0] * 3]),
        ([], []),
    ],
)
def test_tokens_are_scattered_on_the_device(e: Engine, texts: list[Any], want: Any) -> None:
    """The rest of a list after `length` tokens, "4,..", is not a number and must not be parsed."""
    t = rows(s=pl.Series(texts, dtype=pl.String))
    got: Any = e.token_matrix(t, "s", ",", 3)
    assert isinstance(got, Cupy)
    assert got.dtype == np.int32 and got.shape == (len(texts), 3)
    assert got.view(np.ndarray).tolist() == want


def test_a_matrix_without_rows(e: Engine) -> None:
    got: Any = e.matrix(rows(a=[1.0]).filter(pl.col("a") > 1), ["a", "row"])
    assert isinstance(got, Cupy)
    assert got.shape == (0, 2)


def test_a_kept_frame_is_computed_once_and_read_from_the_device(
    e: Engine, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of plans may read it, each the columns that it needs. Polars itself reads nothing."""
    given: list[Any] = []
    monkeypatch.setattr(
        resident, "register_io_source", lambda source, *, schema: given.append((source, schema))
    )
    e.keep(rows(a=[1, 2], b=[3.0, 4.0]))
    ((source, schema),) = given
    assert dict(schema) == {"row": pl.Int64, "a": pl.Int64, "b": pl.Float64}
    assert len(gpu.executed) == 1 and not gpu.results  # removed from the engine's store
    own = list[Column]()
    for columns in (["a"], ["b", "a"], None, ["a"]):
        (chunk,) = source(columns, None, None, None)
        assert isinstance(chunk, OnDevice)
        assert chunk.column_names == (columns or ["row", "a", "b"])
        values = {
            n: c.values.to_list() for n, c in zip(chunk.column_names, chunk.table.columns(), strict=True)
        }
        assert values == {n: {"row": [0, 1], "a": [1, 2], "b": [3.0, 4.0]}[n] for n in values}
        own += chunk.table.columns()
    assert len({id(column) for column in own}) == 7  # each plan gets its own copy, which it may free
    with pytest.raises(AssertionError):
        next(source(None, pl.col("a") > 1, None, None))
    assert len(gpu.executed) == 1


def test_several_gpus_collect_results_on_the_host(gpu: Gpu) -> None:
    e: Any = Lazy("gpu", "cpu")  # an engine that the caller gives
    kept = e.keep(rows(a=[2.0, None]))
    assert e.matrix(kept, ["a"])[0] == [2.0]
    assert not gpu.executed


def test_another_version_of_cudf_polars_is_refused(
    e: Engine, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cudf_polars.__version__", "26.12.00")
    for ask in (lambda: e.matrix(rows(a=[1]), ["a"]), lambda: e.keep(rows(a=[1]))):
        with pytest.raises(UnsupportedError, match=r"26\.12\.00 is not supported") as caught:
            ask()
        assert "==26.10.*" in caught.value.hint
    assert not gpu.executed


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (
            MemoryError("std::bad_alloc: out_of_memory: CUDA error at: rmm/mr/cuda_async.hpp:85"),
            faults.MEMORY,
        ),
        (
            NotImplementedError("Query execution with GPU not possible: unsupported operations."),
            faults.REFUSED,
        ),
        (RuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy"), faults.LACKING),
    ],
)
def test_faults_keep_their_kind(e: Engine, gpu: Gpu, failure: Exception, kind: str) -> None:
    gpu.failure = failure
    for ask in (lambda: e.matrix(rows(a=[1]), ["a"]), lambda: e.keep(rows(a=[1]))):
        with pytest.raises(type(failure)) as caught:
            ask()
        fault = faults.classify(caught.value)
        assert fault is not None and fault.kind == kind


# ---- the real libraries -----------------------------------------------------------------------------------------------

HERE = importlib.util.find_spec("cudf_polars") is not None


@pytest.mark.gpu_plan
@pytest.mark.skipif(not HERE, reason="needs the gpu-plan extra")
def test_the_stand_ins_have_the_api_of_the_libraries() -> None:
    import cudf_polars
    import pylibcudf
    from cudf_polars.containers import DataFrame
    from cudf_polars.engine import rank_local_store
    from cudf_polars.engine.persisted_result import PersistedQueryResult
    from cudf_polars.engine.spmd import SPMDEngine
    from pylibcudf import reshape
    from pylibcudf.strings.convert.convert_integers import to_integers
    from pylibcudf.strings.split.split import split_record

    assert cudf_polars.__version__.startswith(resident.VERSION)
    assert list(inspect.signature(SPMDEngine.execute).parameters) == ["self", "lf"]
    result = PersistedQueryResult(SimpleNamespace(drop_persisted=lambda query: None), "u", "q", [0], {})  # type: ignore[arg-type]
    store, frame = rank_local_store.open_store(result._uid), object()
    store.put(result._query_id, resident.ONLY_RANK, frame, duplicated=False)  # type: ignore[arg-type]
    assert rank_local_store.require_store("u").pop(result._query_id, resident.ONLY_RANK) is frame
    assert {"select", "num_rows", "num_columns", "column_names"} <= vars(DataFrame).keys()
    assert {"table", "stream"} <= DataFrame.__annotations__.keys()
    taken = ["table", "names", "dtypes", "stream"]
    assert list(inspect.signature(DataFrame.from_table).parameters) == taken
    assert {"copy", "size", "list_view"} <= set(dir(pylibcudf.Column))
    assert {"columns", "num_columns"} <= set(dir(pylibcudf.Table))
    assert {"child", "offsets"} <= set(dir(pylibcudf.column.ListsColumnView))
    for function, parameters in (
        (split_record, "Column strings, Scalar delimiter, size_type maxsplit, stream"),
        (to_integers, "Column input, DataType output_type, stream"),
        (reshape.table_to_array, "Table input_table, uintptr_t ptr, size_t size, stream"),
    ):
        assert f"({parameters}" in (function.__doc__ or "")


@pytest.mark.gpu_plan
@pytest.mark.skipif(not HERE, reason="needs the gpu-plan extra")
@pytest.mark.parametrize("limit", [None, 8 * 10**9])
def test_there_is_one_engine_on_one_pool(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`collect` and `keep` use the same engine, created once; its memory is the process's pool."""
    from cudf_polars.engine.spmd import SPMDEngine

    created: list[Any] = []

    def from_options(options: Any) -> Any:
        created.append(options)
        return SimpleNamespace(shutdown=lambda: None, execute=lambda plan: plan)

    pool, collected = object(), list[Any]()
    monkeypatch.setattr(SPMDEngine, "from_options", from_options)
    monkeypatch.setattr(device, "_limit", limit)
    monkeypatch.setattr(resident.atexit, "register", lambda shutdown: None)
    monkeypatch.setattr(pl.LazyFrame, "collect", lambda self, engine: collected.append(engine))
    monkeypatch.setattr(resident, "engine", cache(resident.engine.__wrapped__))
    monkeypatch.setattr(device, "pool", lambda: pool)
    e = Lazy("gpu")
    e._run(rows(a=[1]).with_columns(z=pl.col("a") + 1))
    assert collected == [resident.engine()]
    assert resident.engine() is resident.engine()
    (options,) = created
    config = options.to_engine_options()
    assert config["memory_resource_config"].create_memory_resource() is pool
    assert config["raise_on_fail"] is True
    assert config["hardware_binding"].enabled is False
    sizes = {"target_partition_size": 2 * 10**8, "broadcast_limit": 12 * 10**8}
    assert options.to_executor_options() == (sizes if limit else {})
    spills_at = options.to_rapidsmpf_options().get_strings().get("spill_device_limit")
    assert spills_at == ("6400000000" if limit else None)


@pytest.mark.gpu_plan
@pytest.mark.skipif(not HERE, reason="needs the gpu-plan extra")
@pytest.mark.parametrize(
    ("plan", "stays"),
    [
        (lambda t: t, True),
        (lambda t: t.select("a", "row"), True),
        (lambda t: t.drop("s"), True),
        (lambda t: t.select("s", "a", "row"), True),
        (lambda t: t.filter(pl.col("a") > 1), False),
        (lambda t: t.with_columns(z=pl.col("a") + 1), False),
    ],
)
def test_columns_of_a_frame_on_the_host_do_not_go_to_the_gpu(plan: Any, stays: bool, gpu: Gpu) -> None:
    e = Lazy("gpu")
    assert (e._engine(plan(rows(a=[1, 2], s=["x", "y"]))) == "auto") == stays


def test_a_collected_frame_is_written_from_the_host(gpu: Gpu, tmp_path: Path) -> None:
    e = Lazy("gpu")
    t = rows(a=[3, 1]).collect().lazy()
    e.write_parquet(t, tmp_path / "t.parquet")
    assert pl.read_parquet(tmp_path / "t.parquet")["a"].to_list() == [3, 1]
    assert e.to_numpy(t, ["a"])["a"].tolist() == [3, 1]
    assert e.to_arrow(t, ["a"]).to_pydict() == {"a": [3, 1]}
    assert e.height(t) == 2
    assert not gpu.executed


@pytest.mark.gpu_plan
@pytest.mark.skipif(not HERE, reason="needs the gpu-plan extra")
def test_plans_over_kept_frames_translate_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the plan of the matrix itself."""
    e, plans = Lazy("gpu"), list[pl.LazyFrame]()
    kept = resident.scan(None, {"row": pl.Int64, "a": pl.Int64, "b": pl.Float64, "s": pl.String})

    def look(plan: pl.LazyFrame) -> Any:
        plans.append(plan)
        return SimpleNamespace(num_rows=1, item=lambda: 1)

    monkeypatch.setattr(resident, "run", look)
    monkeypatch.setattr(resident, "matrix", lambda frame, dtype: None)
    monkeypatch.setattr(resident, "token_matrix", lambda frame, separator, length: None)
    monkeypatch.setattr(e, "_run", look)
    e.matrix(kept, ["a", "row", "b"])
    e.height(kept)
    e.keep(e.left_join(e.filter(kept, lambda c: c("a") > 1), kept, {"a": "a"}, {"b": "z"}, 0.0))
    e.matrix(e.target_encode_kfold(kept, ["a"], "row", {"b": 0.5}, 20.0, "te"), ["te_b"])
    e.codes(kept, ["a", "row"])
    e.token_matrix(kept, "s", ",", 3)
    assert len(plans) == 6
    assert [gpu_plan.refusals(plan) for plan in plans] == [[]] * 6
    assert "PROJECT 0/" not in plans[1].explain()


@pytest.mark.gpu_plan
@pytest.mark.skipif(not HERE, reason="needs the gpu-plan extra")
@pytest.mark.parametrize(("limit", "spills_at"), [(None, None), (40 * 10**9, str(32 * 10**9))])
def test_an_engine_of_several_gpus_never_falls_back_and_is_shut_down(
    limit: int | None, spills_at: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="needs the cluster extra")
    asked: list[Any] = []

    @contextmanager
    def from_options(options: Any, *, dask_client: Any) -> Any:
        asked.append((dask_client, options.to_engine_options(), options.to_rapidsmpf_options().get_strings()))
        try:
            yield "engine"
        finally:
            asked.append("shut down")

    monkeypatch.setattr("cudf_polars.engine.dask.DaskEngine.from_options", from_options)
    with pytest.raises(MemoryError), frames.loaded_on("polars-gpu", "client", limit) as e:
        assert e.name == "polars-gpu"
        assert len(asked) == 1
        raise MemoryError
    (client, engine, rapidsmpf), closed = asked
    assert (client, closed) == ("client", "shut down")
    assert engine["raise_on_fail"] is True
    assert engine["hardware_binding"].enabled is False
    monkeypatch.setattr("rmm.mr.get_current_device_resource", lambda: "the worker's")
    assert engine["memory_resource_config"].create_memory_resource() == "the worker's"
    assert rapidsmpf.get("spill_device_limit") == spills_at


@pytest.mark.gpu
def test_kept_frames_never_cross_cuda(tmp_path: Path) -> None:
    """In CUDA's trace, no copy between host and device is as large as a column, from a kept frame to the matrix."""
    try:
        e = frames.load("polars-gpu")
    except UnsupportedError as error:
        pytest.skip(error.message)
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    n, names = 100_000, [f"c{i}" for i in range(40)]
    values = np.random.default_rng(0).normal(size=(n, len(names))).astype("float32")
    columns = {name: values[:, i] for i, name in enumerate(names)}
    kept = e.keep(e.from_arrow(pa.table({"row": np.arange(n)[::-1], **columns})))
    assert e.height(kept) == n
    e.matrix(kept, names)  # first use, in which libraries load
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        got: Any = e.matrix(kept, names)
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event for event in events if event.get("cat") == "kernel"]  # the trace contains cuDF's kernels
    copies = [
        event["args"]["bytes"]
        for event in events
        if event.get("cat") == "gpu_memcpy" and "DtoD" not in event["name"]
    ]
    assert max(copies, default=0) < n * 4
    np.testing.assert_array_equal(got.get(), values[::-1])
