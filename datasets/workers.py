"""Several processes for a job that falls into independent parts."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

from buzzer.errors import DataError

Task = TypeVar("Task")
Made = TypeVar("Made")
THREADS = "POLARS_MAX_THREADS"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Task], Made], tasks: Sequence[Task], jobs: int) -> Generator[Made, None, None]:
    """`map(work, tasks)` by `jobs` processes, each with one thread; by this one if `jobs` is 1.

    `work` and the tasks must be picklable. At most two results a process wait to be taken, so memory does not grow with the
    tasks. The processes end with this one, however it ends. Raises what `work` raises, and DataError if a process is killed.
    """
    if jobs <= 1:
        yield from map(work, tasks)
        return
    waiting, ended = deque[Future[Made]](), False
    with (
        one_thread_each(),
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=follow_parent) as pool,
    ):
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) >= 2 * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            ended = True
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the generator was killed: out of memory?", "give fewer --jobs"
            ) from error
        finally:
            # A pool that breaks while it starts a process waits for that one for ever; and nobody wants what is left.
            for process in () if ended else active_children():
                process.kill()
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start within have one Polars thread, as all cores have a process."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it ends, `kill -9` included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
