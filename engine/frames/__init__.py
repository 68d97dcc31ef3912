"""Feature engines: one vocabulary of operators (`base.Engine`), several implementations.

e = frames.load("polars")
trips = e.window_features(e.read_csv(path, SCHEMA), "utrip_id", "ord", count="position", lags={"city": (5, 0)})
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from buzzer import plugins
from buzzer.engine.device import pool
from buzzer.engine.frames.base import Engine, Frame
from buzzer.errors import UnsupportedError, unknown_name
from buzzer.plugins import Plugin

__all__ = [
    "ENGINES",
    "Engine",
    "EngineInfo",
    "Frame",
    "all_engines",
    "check",
    "cpu_twin",
    "info",
    "load",
    "loaded_on",
    "on_cluster",
    "on_gpu",
    "plugin_engines",
]


@dataclass(frozen=True)
class EngineInfo:
    """The description of an engine, available before any of its libraries is imported."""

    name: str
    load: Callable[[], Engine] | str  # makes the engine; a string is the "module:attr" of such a function
    summary: str  # one line for `buzzer list`
    packages: tuple[str, ...] = ()  # top-level modules that must be installed
    device: Literal["cpu", "cuda"] = "cpu"  # where its frames are stored
    cpu_twin: str = (
        ""  # engine that computes the same on the CPU, for work that must not use the GPUs; "" = this one
    )
    # Opens the engine for the driver of a Dask cluster: (client, bytes of GPU memory or None). None = it cannot use a cluster.
    on_cluster: Callable[[Any, int | None], AbstractContextManager[Engine]] | None = None
    hint: str = "see the documentation of the engine's own package"  # how to install `packages`


def _eager(module: str) -> Engine:
    if module == "cudf":
        pool()
    from buzzer.engine.frames.eager import Eager

    return Eager(module)


def _lazy(device: str) -> Engine:
    if device == "gpu":
        pool()
    from buzzer.engine.frames.lazy import Lazy

    return Lazy(device)


@contextmanager
def _polars_on_cluster(client: Any, gpu_memory_bytes: int | None) -> Iterator[Engine]:
    """An engine whose plans run on all GPUs of the cluster. It spills to the host above four fifths of `gpu_memory_bytes`, and frees
    the workers' memory at the end."""
    from cudf_polars.engine.dask import DaskEngine

    from buzzer.engine.frames import resident
    from buzzer.engine.frames.lazy import Lazy

    options = resident.options(resident.WORKERS_POOL, gpu_memory_bytes)
    with DaskEngine.from_options(options, dask_client=client) as engine:
        yield Lazy("gpu", engine)


_BUILT_IN = (
    EngineInfo(
        name="pandas",
        load=partial(_eager, "pandas"),
        summary="eager frames on the CPU, the library that most competitors use",
        packages=("pandas",),
        hint="pip install 'buzzer[run]'",
    ),
    EngineInfo(
        name="cudf",
        load=partial(_eager, "cudf"),
        summary="the same operators as pandas, on one GPU",
        packages=("cudf",),
        device="cuda",
        cpu_twin="pandas",
        hint="pip install 'buzzer[gpu]'",
    ),
    EngineInfo(
        name="polars",
        load=partial(_lazy, "cpu"),
        summary="lazy query plans on the CPU, the tuned baseline",
        packages=("polars",),
        hint="pip install 'buzzer[run]'",
    ),
    EngineInfo(
        name="polars-gpu",
        load=partial(_lazy, "gpu"),
        summary="the query plans of polars, run by cudf-polars on one GPU",
        packages=("polars", "cudf_polars"),
        device="cuda",
        cpu_twin="polars",
        on_cluster=_polars_on_cluster,
        hint="pip install 'buzzer[gpu]'",
    ),
)
ENGINES = {engine.name: engine for engine in _BUILT_IN}  # without plug-ins; `all_engines` includes them


@cache
def plugin_engines() -> dict[str, Plugin[EngineInfo]]:
    """Engines of other distributions, by name. They are entry points of the group `buzzer.engines`."""
    make = plugins.described(EngineInfo, lambda engine: engine.name)
    return plugins.load("buzzer.engines", make, {*ENGINES, "none", "all"})


def all_engines() -> dict[str, EngineInfo]:
    """All engines by name: the built-in ones, then those of plug-ins."""
    return ENGINES | {name: plugin.value for name, plugin in plugin_engines().items()}


def info(name: str) -> EngineInfo:
    """An engine's descriptor. Raises UsageError with a did-you-mean for an unknown name."""
    if (engine := _find(name)) is None:
        raise unknown_name("engine", name, all_engines())
    return engine


def _find(name: str) -> EngineInfo | None:
    """An engine's descriptor, or None for an unknown name. A built-in name loads no plug-ins."""
    return ENGINES.get(name) or all_engines().get(name)


def on_gpu(name: str) -> bool:
    """Whether an engine computes on a GPU; False for an unknown name."""
    engine = _find(name)
    return engine is not None and engine.device == "cuda"


def on_cluster(name: str) -> bool:
    """Whether an engine can compute on all GPUs of a Dask cluster; False for an unknown name."""
    engine = _find(name)
    return engine is not None and engine.on_cluster is not None


def cpu_twin(name: str) -> str:
    """The name of the engine that computes the same on the CPU, for work that must not use the GPUs."""
    return info(name).cpu_twin or name


@cache
def load(name: str) -> Engine:
    """The engine of this name. Raises UsageError for an unknown name, UnsupportedError if a package or device is missing."""
    check(name)
    described = info(name)
    if isinstance(described.load, str):
        engine: Engine = plugins.resolve(described.load, f"engine {name}")()
        return engine
    return described.load()


def check(name: str) -> None:
    """Raises the errors that `load` would raise, without importing the engine's libraries."""
    described = info(name)
    require(described)
    if described.device == "cuda":
        require_device(name)


@contextmanager
def loaded_on(name: str, client: Any, gpu_memory_bytes: int | None = None) -> Iterator[Engine]:
    """The engine for the driver of a Dask cluster. It runs on all GPUs of the cluster and may use `gpu_memory_bytes` of each. An
    engine without `on_cluster` runs in this process."""
    described = info(name)
    if described.on_cluster is None:
        yield load(name)
        return
    require(described)
    with described.on_cluster(client, gpu_memory_bytes) as engine:
        yield engine


def require(described: EngineInfo) -> None:
    """Raises UnsupportedError if a package that the engine needs is not installed."""
    for package in described.packages:
        if importlib.util.find_spec(package) is None:
            raise UnsupportedError(f"engine {described.name} needs the package {package}", described.hint)


def require_device(name: str) -> None:
    """Raises UnsupportedError if there is no usable GPU. The check comes first because some libraries fall back to the CPU."""
    from buzzer.engine.device import RAPIDS_CUDA, SEE_ENV, cuda_problem, gpus

    problem = cuda_problem(RAPIDS_CUDA) or ("" if gpus() else "NVML reports none")
    if problem:
        message = f"engine {name} needs a CUDA device: {problem}"
        raise UnsupportedError(message, SEE_ENV)
