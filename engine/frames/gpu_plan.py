"""Whether a lazy plan would run on cuDF as a whole, and on several GPUs; asked of cudf-polars' translator, which needs no GPU."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any
from unittest import mock

import polars as pl

from buzzer.engine import faults
from buzzer.errors import UnsupportedError

A_GPU = (
    80 * 10**9
)  # bytes; the streaming executor sizes its partitions by the device's memory, and there may be no device


DEEP = 50_000  # calls; an operator is some twenty, and the encodings of recsys2021 are a hundred operators one on the other


@contextmanager
def deep_plans() -> Iterator[None]:
    """cudf-polars walks plans by recursion; Python's own limit of 1000 calls ends that on plans that Polars runs."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def on_host(plan: pl.LazyFrame) -> bool:
    """Whether a plan only chooses columns of a frame that lies on the host."""
    visitor: Any = plan._ldf.visit()
    while (node := type(visitor.view_current_node()).__name__) == "SimpleProjection":
        visitor.set_node(*visitor.get_inputs())
    return node == "DataFrameScan"


def require() -> None:
    if importlib.util.find_spec("cudf_polars") is None:
        raise UnsupportedError("cudf-polars is not installed", "pip install 'buzzer[gpu-plan]'")


def refusals(plan: pl.LazyFrame) -> list[str]:
    """What cudf-polars would not run, in its own words, or would run to a wrong result; empty for a plan that is right as a whole.

    Raises UnsupportedError where the `gpu-plan` extra is not installed.
    """
    with deep_plans():
        errors, found = translated(plan)
        if errors:
            return [f"{type(error).__name__}: {error}" for error in errors]
        return list(dict.fromkeys([*unreadable(found), *wrong(found)]))


def translated(plan: pl.LazyFrame) -> tuple[list[Exception], Any]:
    """The translator's errors, and the plan's root in cudf-polars."""
    require()
    from cudf_polars import Translator

    engine = pl.GPUEngine(executor="in-memory", raise_on_fail=True)
    visitor: Any = plan._ldf.visit()
    translator: Any = Translator(visitor, engine)
    return translator.errors, translator.translate_ir()


def nodes(root: Any) -> Iterator[Any]:
    """A plan's nodes, each once."""
    from cudf_polars.dsl.traversal import traversal

    yield from traversal([root])


def expressions(node: Any) -> Iterator[Any]:
    """The expressions of one node and their parts, as often as they stand there: each is computed as often."""

    def inside(value: Any) -> Iterator[Any]:
        if isinstance(value, NamedExpr):
            value = value.value
        if isinstance(value, Expr):
            yield value
            yield from chain.from_iterable(inside(part) for part in value.children)
        elif isinstance(value, (list, tuple)):
            yield from chain.from_iterable(map(inside, value))

    from cudf_polars.dsl.expr import Expr, NamedExpr

    yield from inside(node._non_child_args)


def unreadable(root: Any) -> Iterator[str]:
    """Scans of files that fail before they need a device: the translator does not look at all that they are asked for."""
    from cudf_polars.dsl.ir import Scan

    context = SimpleNamespace(get_cuda_stream=lambda: None)
    for node in nodes(root):
        if isinstance(node, Scan):
            try:
                node.do_evaluate(*node._non_child_args, context=context)
            except Exception as error:  # noqa: BLE001  of any of its libraries
                fault = faults.classify(error)
                if fault is None or fault.kind != faults.LACKING:
                    yield f"{type(error).__name__}: {error}"


def wrong(root: Any) -> Iterator[str]:
    """What cudf-polars 26.10 translates and then computes otherwise than Polars, without a word."""
    from cudf_polars.dsl.ir import Scan

    for node in nodes(root):
        numbers = [name for name, kind in node.schema.items() if not isinstance(kind.polars_type, pl.String)]
        counted = node.row_index[0] if isinstance(node, Scan) and node.row_index else None
        if isinstance(node, Scan) and node.typ == "csv" and set(numbers) - {counted}:
            yield "CSV: a number that cannot be read becomes missing or 0; read text and cast it"
        for part in expressions(node):
            yield from (told for told, is_wrong in WRONG.items() if is_wrong(part))


def is_cast(part: Any, start: Callable[[Any], bool], end: Callable[[Any], bool]) -> bool:
    """Whether an expression casts a type to another; both by Polars' types."""
    if type(part).__name__ != "Cast":
        return False
    return start(part.children[0].dtype.polars_type) and end(part.dtype.polars_type)


WRONG: dict[str, Callable[[Any], bool]] = {
    # cudf_polars.containers.column: integers are relabelled as 8 bytes each, and days have 4.
    "cast of integers to dates: reads other rows' bytes; make dates of seconds": lambda part: is_cast(
        part, lambda start: start.is_integer(), lambda end: end == pl.Date
    ),
    # The range is not checked: 2**32 becomes 0.
    "cast of text to integers of less than 64 bits: wraps; str.to_integer": lambda part: is_cast(
        part,
        lambda start: start == pl.String,
        lambda end: end.is_integer() and end not in (pl.Int64, pl.UInt64),
    ),
    # libcudf has its own rule of how many digits it prints.
    "cast of floats to text: other digits": lambda part: is_cast(
        part, lambda start: start.is_float(), lambda end: end == pl.String
    ),
    # libcudf's xxhash_64.
    "hash: other values than Polars'": lambda part: getattr(part, "name", None) == "hash",
}


def fallback(plan: pl.LazyFrame) -> str:
    """Why several GPUs would bring the plan's rows together on one, in cudf-polars' words; empty for a plan that stays shared out.

    Every input row is a partition of its own, so that the answer does not hang on sizes. Raises as `refusals`.
    """
    require()
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
