"""Several workers for one job, by Dask: one a GPU (dask-cuda), processes of this machine, or a cluster that runs already."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from buzzer.errors import UnsupportedError, UsageError

CONNECT_S = 30
PACKAGES = {
    "cpu": ("distributed", "cluster"),
    "cuda": ("dask_cuda", "gpu"),
}  # device -> package, the extra that brings it


@contextmanager
def opened(
    workers: int,
    scheduler: str = "",
    *,
    device: str = "cpu",
    threads: int = 1,
    gpu_memory_bytes: int | None = None,
) -> Iterator[Any]:
    """A distributed.Client of `workers` local workers, or of the cluster whose scheduler has that address (tcp://host:8786).

    device: "cuda" gives each worker a GPU of its own, with a pool of at most `gpu_memory_bytes` (default: four fifths of the GPU), from
    which cuDF spills to the host.  threads: of each worker's libraries.

    Raises UnsupportedError without Dask, dask-cuda or as many GPUs, UsageError where no scheduler or worker answers.
    """
    package, extra = PACKAGES["cpu" if scheduler else device]
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"a cluster needs the package {package}", f"pip install 'buzzer[{extra}]'")
    import dask.config
    import distributed

    # A worker that dies has run out of memory or met a bug: again would end the same way.
    with dask.config.set(
        {"distributed.scheduler.allowed-failures": 0, "distributed.comm.timeouts.connect": CONNECT_S}
    ):
        if scheduler:
            with connected(scheduler) as client:
                yield client
            return
        made = cuda_cluster(workers, gpu_memory_bytes) if device == "cuda" else cpu_cluster(workers, threads)
        with made as local, distributed.Client(local) as client:
            client.wait_for_workers(workers, timeout=CONNECT_S)
            yield client


@contextmanager
def connected(scheduler: str) -> Iterator[Any]:
    import distributed

    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {scheduler}: {error}", "docs/clusters.md shows how to start one"
        ) from error
    with client:
        if not addresses(client):
            raise UsageError(
                f"the scheduler at {scheduler} has no workers", "docs/clusters.md shows how to start them"
            )
        yield client


def cpu_cluster(workers: int, threads: int) -> Any:
    """Processes of this machine. They live inside the run's own memory limit, so Dask sets none."""
    import distributed

    names = (
        "OMP_NUM_THREADS",
        "POLARS_MAX_THREADS",
        "RAYON_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    )
    alone: Any = {"dashboard_address": None, "memory_limit": 0, "env": dict.fromkeys(names, str(threads))}
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **alone)


def cuda_cluster(workers: int, gpu_memory_bytes: int | None) -> Any:
    """A worker a GPU."""
    from buzzer.engine.device import gpus

    if len(gpus()) < workers:
        raise UnsupportedError(
            f"{workers} GPUs asked for, {len(gpus())} here", "`buzzer env` shows what this machine has"
        )
    from dask_cuda import LocalCUDACluster

    limit = gpu_memory_bytes or 0.8
    return LocalCUDACluster(
        n_workers=workers,
        device_memory_limit=limit,
        rmm_async=True,  # the driver's pool, which grows as it is used
        rmm_maximum_pool_size=limit,
        enable_cudf_spill=True,
        dashboard_address=None,
    )


def spread(client: Any, array: Any, rows: int) -> Any:
    """A host array as a dask.array whose runs of `rows` rows lie on the workers, one after the other."""
    import dask.array
    from dask.delayed import delayed

    runs = [array[start : start + rows] for start in range(0, len(array), rows)]
    sent = [
        client.scatter(run, workers=[worker], hash=False)
        for run, worker in zip(runs, addresses(client), strict=False)
    ]
    parts = [
        dask.array.from_delayed(delayed(future), run.shape, run.dtype)
        for future, run in zip(sent, runs, strict=True)
    ]
    return dask.array.concatenate(parts)


def addresses(client: Any) -> list[str]:
    """The workers' addresses, in an order that stays."""
    return sorted(client.scheduler_info(n_workers=-1)["workers"])
