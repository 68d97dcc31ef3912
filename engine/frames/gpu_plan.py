"""Whether a lazy plan would run on cuDF as a whole, and on several GPUs; asked of cudf-polars' translator, which needs no GPU."""

import importlib.util
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import polars as pl

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
    """What cudf-polars would not run, in its own words; empty for a plan that translates whole.

    Raises UnsupportedError where the `gpu-plan` extra is not installed.
    """
    require()
    from cudf_polars import Translator

    engine = pl.GPUEngine(executor="in-memory", raise_on_fail=True)
    visitor: Any = plan._ldf.visit()
    translator: Any = Translator(visitor, engine)
    with deep_plans():
        translator.translate_ir()
    return [f"{type(error).__name__}: {error}" for error in translator.errors]


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
