"""Compiles launches ahead in other processes, into Triton's cache, while this one measures."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Self

from buzzer.engine.kernels.jit import Launch

WORKERS = 16


class Ahead:
    """Worker processes that compile for a compute capability. They use no device, and start afresh: a process that has
    used CUDA cannot be forked."""

    def __init__(self, capability: int, shared: int) -> None:
        workers = min(WORKERS, len(os.sched_getaffinity(0)))
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"))
        self._target = capability, shared

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, make: Callable[..., Sequence[Launch]], *given: Any) -> Future[None]:
        """Compile `make(*given)`, which a worker calls, so that tensors belong on the "meta" device."""
        return self._pool.submit(compile_all, self._target, make, given)


def compile_all(
    target: tuple[int, int], make: Callable[..., Sequence[Launch]], given: tuple[Any, ...]
) -> None:
    """Into Triton's cache; raises what Triton raises."""
    from buzzer.engine.kernels.offline import Compiler

    with Compiler(*target):
        for launch in make(*given):
            launch()
