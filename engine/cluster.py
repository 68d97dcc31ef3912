"""Dask clusters: one worker per GPU (dask-cuda), local CPU processes, or a cluster that is already running."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from buzzer.errors import UnsupportedError, UsageError

CONNECT_S = 30  # how long to wait for the scheduler and for the workers
# Device -> the package that it needs, and the extra that installs it.
PACKAGES = {"cpu": ("distributed", "cluster"), "cuda": ("dask_cuda", "gpu")}


@contextmanager
def opened(
    workers: int,
    scheduler: str = "",
    *,
    device: str = "cpu",
    threads: int = 1,
    gpu_memory_bytes: int | None = None,
) -> Iterator[Any]:
    """A distributed.Client of `workers` new local workers, or of the running cluster at `scheduler` (tcp://host:8786).

    device: "cuda" gives each worker its own GPU, with a memory pool of at most `gpu_memory_bytes` (default: four fifths of the
    GPU's memory). cuDF spills to the host beyond it.  threads: the number of threads of each worker's libraries.

    Raises UnsupportedError if Dask or dask-cuda is not installed or there are too few GPUs, UsageError if no scheduler or worker
    answers.
    """
    package, extra = PACKAGES["cpu" if scheduler else device]
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"a cluster needs the package {package}", f"pip install 'buzzer[{extra}]'")
    import dask.config
    import distributed

    # No retries: a worker dies because memory ran out or because of a bug, so it would die again.
    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": CONNECT_S}
    ):
        if scheduler:
            with connected(scheduler) as client:
                yield client
            return
        on_gpus = device == "cuda"
        cluster = cuda_cluster(workers, gpu_memory_bytes) if on_gpus else cpu_cluster(workers, threads)
        with cluster as local, distributed.Client(local) as client:
            client.wait_for_workers(workers, timeout=CONNECT_S)
            yield client


@contextmanager
def connected(scheduler: str) -> Iterator[Any]:
    """A client of the running cluster with this scheduler address. Raises UsageError if no scheduler or worker answers."""
    import distributed

    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {scheduler}: {error}",
            "start one with `dask scheduler`, and workers with `dask worker ADDRESS`, or `dask cuda worker ADDRESS`",
        ) from error
    with client:
        if not addresses(client):
            raise UsageError(
                f"the scheduler at {scheduler} has no workers",
                f"start some on each machine: `dask worker {scheduler}`, with GPUs `dask cuda worker {scheduler}`",
            )
        yield client


def cpu_cluster(workers: int, threads: int) -> Any:
    """A cluster of local processes. The run's memory limit covers them, so Dask sets no limit of its own."""
    import distributed

    names = (
        "OMP_NUM_THREADS",
        "POLARS_MAX_THREADS",
        "RAYON_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    )
    options: Any = {"dashboard_address": None, "memory_limit": 0, "env": dict.fromkeys(names, str(threads))}
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **options)


def cuda_cluster(workers: int, gpu_memory_bytes: int | None) -> Any:
    """A local cluster with one worker per GPU. Raises UnsupportedError if there are fewer GPUs than workers."""
    from buzzer.engine.device import SEE_ENV, gpus

    if len(gpus()) < workers:
        raise UnsupportedError(
            f"{workers} GPUs requested, this machine has {len(gpus())}",
            SEE_ENV,
        )
    from dask_cuda import LocalCUDACluster

    limit = gpu_memory_bytes or 0.8
    return LocalCUDACluster(
        n_workers=workers,
        device_memory_limit=limit,
        rmm_async=True,  # the driver's pool, which grows on demand
        rmm_maximum_pool_size=limit,
        enable_cudf_spill=True,
        dashboard_address=None,
    )


def spread(client: Any, array: Any, rows: int) -> Any:
    """A host array as a dask.array in chunks of `rows` rows. Each chunk is sent to a different worker."""
    import dask.array
    from dask.delayed import delayed

    chunks = [array[start : start + rows] for start in range(0, len(array), rows)]
    sent = [
        client.scatter(chunk, workers=[worker], hash=False)
        for chunk, worker in zip(chunks, addresses(client), strict=False)
    ]
    parts = [
        dask.array.from_delayed(delayed(future), chunk.shape, chunk.dtype)
        for future, chunk in zip(sent, chunks, strict=True)
    ]
    return dask.array.concatenate(parts)


def addresses(client: Any) -> list[str]:
    """The workers' addresses, sorted."""
    # Not client.scheduler_info(): its answer is a cache, and the client's periodic refresh puts one without workers there.
    return sorted(client.nthreads())
