"""Compiles launches into Triton's cache in other processes while this process measures."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Self

WORKERS = 16  # at most


class Ahead:
    """Worker processes that compile for a compute capability. They need no GPU. They are spawned, because a process that has
    used CUDA cannot be forked.

    capability: 90 for an H100.  shared: bytes of shared memory that a program may have.
    """

    def __init__(self, capability: int, shared: int) -> None:
        workers = min(WORKERS, len(os.sched_getaffinity(0)))
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"))
        self._target = capability, shared

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, make: Callable[..., Sequence[Callable[[], Any]]], *arguments: Any) -> Future[None]:
        """Compile the launches `make(*arguments)`. A worker calls `make`, so its tensors should be on the "meta" device."""
        return self._pool.submit(compile_all, self._target, make, arguments)


def compile_all(
    target: tuple[int, int], make: Callable[..., Sequence[Callable[[], Any]]], arguments: tuple[Any, ...]
) -> None:
    """Compile the launches `make(*arguments)` into Triton's cache. Runs in a worker. Raises Triton's errors.

    target: compute capability and bytes of shared memory.
    """
    from buzzer.engine.kernels.offline import Compiler

    with Compiler(*target):
        for launch in make(*arguments):
            launch()
