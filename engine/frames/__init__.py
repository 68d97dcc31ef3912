"""Feature operators on four engines from two texts; see `base.Engine` for the vocabulary.

e = frames.load("polars")
trips = e.window_features(e.read_csv(path, SCHEMA), "utrip_id", "ord", count="position", lags={"city": (5, 0)})
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from buzzer.engine.device import pool
from buzzer.engine.frames.base import Engine, Frame
from buzzer.errors import UnsupportedError, unknown_name

# name -> (text, its module or collect engine, packages it needs, what it runs on)
ENGINES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "pandas": ("eager", "pandas", ("pandas",), "cpu"),
    "cudf": ("eager", "cudf", ("cudf",), "gpu"),
    "polars": ("lazy", "cpu", ("polars",), "cpu"),
    "polars-gpu": ("lazy", "gpu", ("polars", "cudf_polars"), "gpu"),
}

__all__ = ["ENGINES", "Engine", "Frame", "check", "load", "loaded_on"]


@cache
def load(name: str) -> Engine:
    """The engine. Raises UsageError for an unknown name, UnsupportedError where a package or device is missing."""
    check(name)
    text, argument, _, device = ENGINES[name]
    if device == "gpu":
        pool()
    engine: Engine = importlib.import_module(f"buzzer.engine.frames.{text}").engine(argument)
    return engine


def check(name: str) -> None:
    """Raises what `load` would, without importing anything."""
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    _, _, packages, device = ENGINES[name]
    for package in packages:
        require(name, package)
    if device == "gpu":
        require_device(name)


@contextmanager
def loaded_on(name: str, client: Any, gpu_memory_bytes: int | None = None) -> Iterator[Engine]:
    """The engine for the driver of a Dask cluster: plans of `polars-gpu` run on all its GPUs, and spill to the host above four fifths
    of `gpu_memory_bytes`, and leave the workers' memory at the end; the other engines have no such form and run in this process."""
    if name != "polars-gpu":
        yield load(name)
        return
    require(name, "cudf_polars")
    from cudf_polars.engine.dask import DaskEngine

    from buzzer.engine.frames import resident
    from buzzer.engine.frames.lazy import Lazy

    options = resident.options(resident.WORKERS_POOL, gpu_memory_bytes)
    with DaskEngine.from_options(options, dask_client=client) as engine:
        yield Lazy("gpu", engine)


def require(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"engine {name} needs the package {package}", "pip install 'buzzer[gpu]'")


def require_device(name: str) -> None:
    """A GPU engine without a GPU is refused here, before a library could fall back to the CPU."""
    from buzzer.engine.device import RAPIDS_CUDA, cuda_problem, gpus

    problem = cuda_problem(RAPIDS_CUDA) or ("" if gpus() else "NVML shows none")
    if problem:
        told = f"engine {name} needs a CUDA device: {problem}"
        raise UnsupportedError(told, "`buzzer env` shows what this machine has")
