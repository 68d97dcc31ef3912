"""Checks whether a lazy plan would run on cuDF as a whole, and on several GPUs, with cudf-polars' translator. Needs no GPU."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any

import polars as pl

from buzzer.engine import faults
from buzzer.errors import UnsupportedError

# Assumed device memory in bytes on a machine without a GPU. The streaming executor derives its partition sizes from it.
A_GPU = 80 * 10**9
# Recursion limit. An operator takes about twenty calls, and the plan of recsys2021's encodings nests about a hundred operators.
DEEP = 50_000


@contextmanager
def deep_plans() -> Iterator[None]:
    """Raises Python's recursion limit. cudf-polars walks plans recursively, and plans that Polars runs exceed the default of 1000."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def on_host(plan: pl.LazyFrame) -> bool:
    """Whether a plan only selects columns of a frame on the host."""
    visitor: Any = plan._ldf.visit()
    while (node := type(visitor.view_current_node()).__name__) == "SimpleProjection":
        visitor.set_node(*visitor.get_inputs())
    return node == "DataFrameScan"


def require() -> None:
    """Raises UnsupportedError unless the `gpu-plan` extra is installed."""
    if importlib.util.find_spec("cudf_polars") is None:
        raise UnsupportedError("cudf-polars is not installed", "pip install 'buzzer[gpu-plan]'")


def refusals(plan: pl.LazyFrame) -> list[str]:
    """Reasons why cudf-polars would refuse a plan or compute a wrong result; empty if the plan is supported as a whole.

    Raises UnsupportedError unless the `gpu-plan` extra is installed.
    """
    with translated(plan) as (errors, root):
        if errors:
            return [f"{type(error).__name__}: {error}" for error in errors]
        return list(dict.fromkeys([*unreadable(root), *wrong(root)]))


@contextmanager
def translated(plan: pl.LazyFrame) -> Iterator[tuple[list[Exception], Any]]:
    """The translator's errors, and the root node of the plan in cudf-polars. The block may walk the plan, however deep it is."""
    require()
    from cudf_polars import Translator

    engine = pl.GPUEngine(executor="in-memory", raise_on_fail=True)
    with deep_plans():
        visitor: Any = plan._ldf.visit()
        translator: Any = Translator(visitor, engine)
        yield translator.errors, translator.translate_ir()


def nodes(root: Any) -> Iterator[Any]:
    """The nodes of a plan, each once."""
    from cudf_polars.dsl.traversal import traversal

    yield from traversal([root])


def expressions(node: Any) -> Iterator[Any]:
    """The expressions of a node and all their parts. A part that occurs twice is yielded twice, because it is computed twice."""

    yield from expressions_in(node._non_child_args)


def expressions_in(value: Any) -> Iterator[Any]:
    """An expression, or those of a list, and all their parts."""
    from cudf_polars.dsl.expr import Expr, NamedExpr

    if isinstance(value, NamedExpr):
        value = value.value
    if isinstance(value, Expr):
        yield value
        yield from chain.from_iterable(map(expressions_in, value.children))
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(map(expressions_in, value))


def unreadable(root: Any) -> Iterator[str]:
    """Errors of file scans that occur even without a GPU. The translator does not check all options of a scan."""
    from cudf_polars.dsl.ir import Scan

    context = SimpleNamespace(get_cuda_stream=lambda: None)
    for node in nodes(root):
        if isinstance(node, Scan):
            try:
                node.do_evaluate(*node._non_child_args, context=context)
            except Exception as error:  # noqa: BLE001  the libraries share no error type
                fault = faults.classify(error)
                if fault is None or fault.kind != faults.LACKING:
                    yield f"{type(error).__name__}: {error}"


def wrong(root: Any) -> Iterator[str]:
    """Operations that cudf-polars 26.10 translates but computes differently from Polars, without an error."""
    from cudf_polars.dsl.ir import Scan

    for node in nodes(root):
        numbers = [name for name, kind in node.schema.items() if not isinstance(kind.polars_type, pl.String)]
        row_number = node.row_index[0] if isinstance(node, Scan) and node.row_index else None
        if isinstance(node, Scan) and node.typ == "csv" and set(numbers) - {row_number}:
            yield "CSV: an invalid number becomes missing or 0; read strings and cast them"
        for part in expressions(node):
            yield from (message for message, is_wrong in WRONG.items() if is_wrong(part))
        yield from replaced_beside_a_window(node)


def replaced_beside_a_window(node: Any) -> Iterator[str]:
    """Columns that replace themselves in a node with a window.

    The streaming executor splits such a node into `Over` and a `Select` of its results, and both apply the other expressions:
    x + 1 becomes x + 2. Polars moves expressions into such nodes.
    """
    from cudf_polars.dsl.ir import HStack, Select

    if not isinstance(node, (HStack, Select)):
        return
    columns = node.columns if isinstance(node, HStack) else node.exprs
    parts = {each.name: list(expressions_in(each)) for each in columns}
    windows = {name for name, inside in parts.items() if any(is_named(x, "GroupedWindow") for x in inside)}
    for name in parts.keys() - windows if windows else ():
        read = {x.name for x in parts[name] if is_named(x, "Col")}
        if name in read and len(parts[name]) > 1:
            yield f"column {name}: replaces itself beside a window, so it is applied twice; compute windows apart"


def is_named(part: Any, kind: str) -> bool:
    """Whether an expression is of this class of cudf-polars."""
    return type(part).__name__ == kind


def is_cast(part: Any, start: Callable[[Any], bool], end: Callable[[Any], bool]) -> bool:
    """Whether an expression is a cast whose Polars types before and after the cast satisfy `start` and `end`."""
    if not is_named(part, "Cast"):
        return False
    return start(part.children[0].dtype.polars_type) and end(part.dtype.polars_type)


# Message for the user -> function that recognises the operation.
WRONG: dict[str, Callable[[Any], bool]] = {
    # cudf_polars.containers.column: integers of 8 bytes are reinterpreted, while dates have 4 bytes.
    "cast of integers to dates: reads other rows' bytes; make dates from seconds": lambda part: is_cast(
        part, lambda start: start.is_integer(), lambda end: end == pl.Date
    ),
    # The range is not checked: 2**32 becomes 0.
    "cast of strings to integers of less than 64 bits: wraps; use str.to_integer": lambda part: is_cast(
        part,
        lambda start: start == pl.String,
        lambda end: end.is_integer() and end not in (pl.Int64, pl.UInt64),
    ),
    # libcudf prints a different number of digits.
    "cast of floats to strings: different digits": lambda part: is_cast(
        part, lambda start: start.is_float(), lambda end: end == pl.String
    ),
    # libcudf uses xxhash_64.
    "hash: values differ from Polars'": lambda part: getattr(part, "name", None) == "hash",
}


def fallback(plan: pl.LazyFrame) -> str:
    """Why a plan on several GPUs would collect all rows in one partition: cudf-polars' message, empty if rows stay partitioned.

    Each input row is its own partition here, so the answer does not depend on the data size. Raises UnsupportedError as `refusals`
    does.
    """
    require()
    from unittest import mock  # not at the top: it imports asyncio

    from cudf_polars import Translator
    from cudf_polars.streaming.parallel import lower_ir_graph
    from cudf_polars.streaming.statistics import collect_statistics
    from cudf_polars.utils.config import ConfigOptions

    options = {"fallback_mode": "raise", "max_rows_per_partition": 1}
    engine = pl.GPUEngine(executor="streaming", raise_on_fail=True, executor_options=options)
    with mock.patch("cudf_polars.utils.config.get_total_device_memory", return_value=A_GPU), deep_plans():
        config: Any = ConfigOptions.from_polars_engine(engine)
        visitor: Any = plan._ldf.visit()
        plan_on_gpu: Any = Translator(visitor, engine).translate_ir()
        with ThreadPoolExecutor(1) as pool:
            statistics = collect_statistics(plan_on_gpu, config, pool)
        try:
            lower_ir_graph(plan_on_gpu, config, statistics)
        except NotImplementedError as error:
            return str(error)
    return ""
