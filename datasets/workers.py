"""Runs work in several processes."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from types import ModuleType
from typing import TypeVar

from buzzer.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
THREADS = "POLARS_MAX_THREADS"


def usable_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Generator[Result, None, None]:
    """`map(work, tasks)` in `jobs` processes with one thread each; in this process if `jobs` is 1.

    `work` and the tasks must be picklable, and not defined in the main script. At most two results per process are waiting, so memory
    does not grow with the number of tasks. The processes end when this one ends, in any way. Raises what `work` raises, and DataError
    if a process is killed.
    """
    if jobs <= 1:
        yield from map(work, tasks)
        return
    waiting, finished = deque[Future[Result]](), False
    with (
        one_thread_each(),
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=follow_parent) as pool,
    ):
        try:
            for task in tasks:
                with without_main():
                    waiting.append(pool.submit(work, task))
                if len(waiting) >= 2 * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            finished = True
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the generator was killed, possibly because memory ran out", "use fewer --jobs"
            ) from error
        finally:
            # A pool that breaks while it starts a process would wait for that process forever.
            for process in () if finished else active_children():
                process.kill()
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start inside the block use one Polars thread each, because there is one process per core."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that start inside the block do not import the main script. It may be a user's script that calls this project at its top
    level, or may have no file at all."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def follow_parent() -> None:
    """Prepares a worker process. It ignores Ctrl-C, which the parent handles, and ends when the parent ends, also after `kill -9`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
